/// @file
/// Has moved, to method/heun.hpp.
#pragma once
#pragma message("this header is tstitch/method/heun.hpp now, this path is removed in 0.3")

#include "../method/heun.hpp"
