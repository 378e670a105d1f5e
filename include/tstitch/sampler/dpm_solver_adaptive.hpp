/// @file
/// Has moved.
#pragma once
#pragma message("this header is tstitch/method/dpm_solver_adaptive.hpp now, this path goes with version 0.3")

#include "../method/dpm_solver_adaptive.hpp"
