/// @file
/// Has moved, to method/ddpm.hpp.
#pragma once
#pragma message("this header is tstitch/method/ddpm.hpp now, this path is removed in 0.3")

#include "../method/ddpm.hpp"
