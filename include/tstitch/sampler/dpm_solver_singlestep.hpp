/// @file
/// Has moved, to method/dpm_solver_singlestep.hpp.
#pragma once
#pragma message("this header is tstitch/method/dpm_solver_singlestep.hpp now, this path is removed in 0.3")

#include "../method/dpm_solver_singlestep.hpp"
