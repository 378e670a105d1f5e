/// @file
/// Has moved, to peer/reference_routing.hpp.
#pragma once
#pragma message("this header is tstitch/peer/reference_routing.hpp now, this path is removed in 0.3")

#include "../peer/reference_routing.hpp"
