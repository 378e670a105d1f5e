/// @file
/// Has moved, to method/euler.hpp.
#pragma once
#pragma message("this header is tstitch/method/euler.hpp now, this path is removed in 0.3")

#include "../method/euler.hpp"
