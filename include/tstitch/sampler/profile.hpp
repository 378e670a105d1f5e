/// @file
/// Has moved.
#pragma once
#pragma message("this header is tstitch/peer/profile.hpp now, this path goes with version 0.3")

#include "../peer/profile.hpp"
