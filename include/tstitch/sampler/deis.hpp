/// @file
/// Has moved, to method/deis.hpp.
#pragma once
#pragma message("this header is tstitch/method/deis.hpp now, this path is removed in 0.3")

#include "../method/deis.hpp"
