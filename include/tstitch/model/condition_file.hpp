/// @file
/// Has moved, to file/condition_file.hpp.
#pragma once
#pragma message("this header is tstitch/file/condition_file.hpp now, this path is removed in 0.3")

#include "../file/condition_file.hpp"
