/// @file
/// Has moved.
#pragma once
#pragma message("this header is tstitch/method/ddpm.hpp now, this path goes with version 0.3")

#include "../method/ddpm.hpp"
