/// @file
/// Has moved, to method/lcm.hpp.
#pragma once
#pragma message("this header is tstitch/method/lcm.hpp now, this path is removed in 0.3")

#include "../method/lcm.hpp"
