/// @file
/// Has moved.
#pragma once
#pragma message("tstitch/sampler/noise.hpp is tstitch/tensor/noise.hpp now; this path goes with version 0.3")

#include "../tensor/noise.hpp"
