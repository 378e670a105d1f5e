/// @file
/// Has moved, to file/dit.hpp and study/calibration.hpp.
#pragma once
#pragma message("this header is tstitch/file/dit.hpp now, this path is removed in 0.3")

#include "../file/dit.hpp"
#include "../study/calibration.hpp"
