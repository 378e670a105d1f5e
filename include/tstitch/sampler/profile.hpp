/// @file
/// Has moved.
#pragma once
#pragma message("tstitch/sampler/profile.hpp is tstitch/peer/profile.hpp now; this path goes with version 0.3")

#include "../peer/profile.hpp"
