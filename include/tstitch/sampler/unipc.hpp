/// @file
/// Has moved, to method/unipc.hpp.
#pragma once
#pragma message("this header is tstitch/method/unipc.hpp now, this path is removed in 0.3")

#include "../method/unipc.hpp"
