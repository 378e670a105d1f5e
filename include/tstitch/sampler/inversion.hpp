/// @file
/// Has moved, to method/inversion.hpp.
#pragma once
#pragma message("this header is tstitch/method/inversion.hpp now, this path is removed in 0.3")

#include "../method/inversion.hpp"
