/// @file
/// Has moved, to file/parallel_file.hpp.
#pragma once
#pragma message("this header is tstitch/file/parallel_file.hpp now, this path is removed in 0.3")

#include "../file/parallel_file.hpp"
