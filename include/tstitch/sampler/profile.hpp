/// @file
/// Has moved, to peer/profile.hpp.
#pragma once
#pragma message("this header is tstitch/peer/profile.hpp now, this path is removed in 0.3")

#include "../peer/profile.hpp"
