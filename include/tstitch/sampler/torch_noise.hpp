/// @file
/// Has moved, to peer/torch_noise.hpp.
#pragma once
#pragma message("this header is tstitch/peer/torch_noise.hpp now, this path is removed in 0.3")

#include "../peer/torch_noise.hpp"
