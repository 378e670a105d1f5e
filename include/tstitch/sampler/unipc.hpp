/// @file
/// Has moved.
#pragma once
#pragma message("this header is tstitch/method/unipc.hpp now, this path goes with version 0.3")

#include "../method/unipc.hpp"
