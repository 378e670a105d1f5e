/// @file
/// Has moved, to method/lms.hpp.
#pragma once
#pragma message("this header is tstitch/method/lms.hpp now, this path is removed in 0.3")

#include "../method/lms.hpp"
