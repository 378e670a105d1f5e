/// @file
/// The whole library but for its opt-in parts: what reads files (model/torchscript.hpp, model/dit.hpp,
/// model/aot_inductor.hpp, model/condition_file.hpp), CUDA graphs (model/cuda_graph.hpp), and output/.
#pragma once

#include "model/autoencoder.hpp"
#include "model/guidance.hpp"
#include "plan/baseline_schedules.hpp"
#include "plan/plan.hpp"
#include "plan/reference_routing.hpp"
#include "sampler/agreement.hpp"
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
