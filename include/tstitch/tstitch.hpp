/// @file
/// The whole library but for its opt-in parts: what reads files (file/torchscript.hpp, file/dit.hpp,
/// file/aot_inductor.hpp, file/condition_file.hpp), CUDA graphs (engine/cuda_graph.hpp), and output/.
#pragma once

#include "method/ddim.hpp"
#include "method/ddpm.hpp"
#include "method/deis.hpp"
#include "method/dpm_solver.hpp"
#include "method/dpm_solver_adaptive.hpp"
#include "method/dpm_solver_singlestep.hpp"
#include "method/euler.hpp"
#include "method/heun.hpp"
#include "method/inversion.hpp"
#include "method/lcm.hpp"
#include "method/lms.hpp"
#include "method/pndm.hpp"
#include "method/unipc.hpp"
#include "model/autoencoder.hpp"
#include "model/guidance.hpp"
#include "peer/profile.hpp"
#include "peer/reference_routing.hpp"
#include "plan/baseline_schedules.hpp"
#include "plan/plan.hpp"
#include "study/agreement.hpp"
#include "study/variational_bound.hpp"
#include "tensor/cuda/kernels.hpp"
#include "version.hpp"
