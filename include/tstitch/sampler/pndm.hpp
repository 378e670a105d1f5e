/// @file
/// Has moved, to method/pndm.hpp.
#pragma once
#pragma message("this header is tstitch/method/pndm.hpp now, this path is removed in 0.3")

#include "../method/pndm.hpp"
