/// @file
/// Has moved.
#pragma once
#pragma message("this header is tstitch/file/dit.hpp now, this path goes with version 0.3")

#include "../file/dit.hpp"
#include "../study/calibration.hpp"
