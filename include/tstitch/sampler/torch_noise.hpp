/// @file
/// Has moved.
#pragma once
#pragma message("this header is tstitch/peer/torch_noise.hpp now, this path goes with version 0.3")

#include "../peer/torch_noise.hpp"
