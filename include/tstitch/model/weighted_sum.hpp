/// @file
/// Has moved.
#pragma once
#pragma message("this header is tstitch/tensor/weighted_sum.hpp now, this path goes with version 0.3")

#include "../tensor/weighted_sum.hpp"
