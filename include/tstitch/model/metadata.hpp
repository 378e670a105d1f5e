/// @file
/// Has moved.
#pragma once
#pragma message("tstitch/model/metadata.hpp is tstitch/file/metadata.hpp now; this path goes with version 0.3")

#include "../file/metadata.hpp"
