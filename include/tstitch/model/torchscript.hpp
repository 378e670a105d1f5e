/// @file
/// Has moved, to file/torchscript.hpp.
#pragma once
#pragma message("this header is tstitch/file/torchscript.hpp now, this path is removed in 0.3")

#include "../file/torchscript.hpp"
