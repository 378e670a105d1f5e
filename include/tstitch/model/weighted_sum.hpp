/// @file
/// Has moved, to tensor/weighted_sum.hpp.
#pragma once
#pragma message("this header is tstitch/tensor/weighted_sum.hpp now, this path is removed in 0.3")

#include "../tensor/weighted_sum.hpp"
