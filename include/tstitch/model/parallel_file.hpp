/// @file
/// Has moved.
#pragma once
#pragma message("this header is tstitch/file/parallel_file.hpp now, this path goes with version 0.3")

#include "../file/parallel_file.hpp"
