/// @file
/// Has moved.
#pragma once
#pragma message("tstitch/output/write_file.hpp is tstitch/base/write_file.hpp now; this path goes with version 0.3")

#include "../base/write_file.hpp"
