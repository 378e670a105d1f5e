/// @file
/// Has moved.
#pragma once
#pragma message( \
    "tstitch/model/parallel_file.hpp is tstitch/file/parallel_file.hpp now; this path goes with version 0.3")

#include "../file/parallel_file.hpp"
