/// @file
/// Has moved, to method/ddim.hpp.
#pragma once
#pragma message("this header is tstitch/method/ddim.hpp now, this path is removed in 0.3")

#include "../method/ddim.hpp"
