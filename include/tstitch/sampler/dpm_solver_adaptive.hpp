/// @file
/// Has moved.
#pragma once
#pragma message( \
    "tstitch/sampler/dpm_solver_adaptive.hpp is tstitch/method/dpm_solver_adaptive.hpp now; this path goes with version 0.3")

#include "../method/dpm_solver_adaptive.hpp"
