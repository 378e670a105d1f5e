/// @file
/// Has moved, to file/metadata.hpp.
#pragma once
#pragma message("this header is tstitch/file/metadata.hpp now, this path is removed in 0.3")

#include "../file/metadata.hpp"
