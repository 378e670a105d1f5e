/// @file
/// Has moved, to base/error.hpp.
#pragma once
#pragma message("this header is tstitch/base/error.hpp now, this path is removed in 0.3")

#include "../base/error.hpp"
