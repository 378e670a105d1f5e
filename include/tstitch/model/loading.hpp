/// @file
/// Has moved, to file/loading.hpp.
#pragma once
#pragma message("this header is tstitch/file/loading.hpp now, this path is removed in 0.3")

#include "../file/loading.hpp"
