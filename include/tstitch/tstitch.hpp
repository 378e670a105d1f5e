/// @file
/// The whole library but for its opt-in parts: model/torchscript.hpp and output/.
#pragma once

#include "plan/plan.hpp"
#include "sampler/ddim.hpp"
#include "sampler/ddpm.hpp"
#include "sampler/dpm_solver.hpp"
#include "version.hpp"
