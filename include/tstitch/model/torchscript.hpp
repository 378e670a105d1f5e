/// @file
/// Has moved.
#pragma once
#pragma message("this header is tstitch/file/torchscript.hpp now, this path goes with version 0.3")

#include "../file/torchscript.hpp"
