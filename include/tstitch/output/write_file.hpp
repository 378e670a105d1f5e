/// @file
/// Has moved, to base/write_file.hpp.
#pragma once
#pragma message("this header is tstitch/base/write_file.hpp now, this path is removed in 0.3")

#include "../base/write_file.hpp"
