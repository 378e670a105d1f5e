/// @file
/// The whole library but for its opt-in parts: model/torchscript.hpp and output/.
#pragma once

#include "model/guidance.hpp"
#include "plan/plan.hpp"
#include "plan/reference_routing.hpp"
#include "sampler/ddim.hpp"
#include "sampler/ddpm.hpp"
#include "sampler/deis.hpp"
#include "sampler/dpm_solver.hpp"
#include "sampler/dpm_solver_adaptive.hpp"
#include "sampler/dpm_solver_singlestep.hpp"
#include "sampler/euler.hpp"
#include "sampler/heun.hpp"
#include "sampler/inversion.hpp"
#include "sampler/lcm.hpp"
#include "sampler/lms.hpp"
#include "sampler/pndm.hpp"
#include "sampler/profile.hpp"
#include "sampler/unipc.hpp"
#include "sampler/variational_bound.hpp"
#include "version.hpp"
