/// @file
/// Has moved.
#pragma once
#pragma message("tstitch/model/dit.hpp is tstitch/file/dit.hpp now; this path goes with version 0.3")

#include "../file/dit.hpp"
#include "../study/calibration.hpp"
