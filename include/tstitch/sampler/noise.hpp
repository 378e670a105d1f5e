/// @file
/// Has moved, to tensor/noise.hpp.
#pragma once
#pragma message("this header is tstitch/tensor/noise.hpp now, this path is removed in 0.3")

#include "../tensor/noise.hpp"
