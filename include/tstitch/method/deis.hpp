/// @file
/// DEIS: Zhang and Chen 2023, "Fast Sampling of Diffusion Models with Exponential Integrator", arXiv 2204.13902.
#pragma once

#include "../base/contraction.hpp"
#include "dpm_solver.hpp"

TSTITCH_NO_CONTRACTION

namespace tstitch {

/// Their tAB-DEIS (Eq. 14 and 15), with the polynomial through the noise predictions taken in log(rho), rho = sigma /
/// alpha, as diffusers' DEISMultistep does: x' = alpha' (x / alpha + sum over k of C_k eps_k) with C_k the integral of
/// the k-th Lagrange polynomial from rho to rho'.
///
/// Because log(rho) = -lambda, these integrals are those of the noise form of DPM-Solver with its slopes integrated
/// exactly, so that this is one choice of DPMSolverUpdate.
struct DEISUpdate {
  int order = 3;  ///< 1, 2 or 3; their r is order - 1
  /// See DPMSolverUpdate; 15 is diffusers' choice.
  int lower_order_final_below = 15;

  static void options(auto& self, auto const& see) {
    see("order", self.order);
    see("lower_order_final_below", self.lower_order_final_below);
  }

  std::string name() const { return detail::name_with_options("DEIS", *this); }

  int history() const { return order - 1; }

  void validate() const {
    if (order < 1 || order > 3) detail::refuse("DEIS", "order must be 1, 2 or 3", order);
    if (lower_order_final_below < 0) {
      detail::refuse("DEIS", "lower_order_final_below must not be negative", lower_order_final_below);
    }
  }

  at::Tensor operator()(StepInput const& in) const {
    return DPMSolverUpdate{.order = order,
                           .algorithm_type = AlgorithmType::dpmsolver,
                           .solver_type = SolverType::heun,
                           .lower_order_final_below = lower_order_final_below}(in);
  }
};

/// DEIS under a model schedule. `DEIS{noise_schedule, Stitch{.ratio = 0.4}, {.steps = 20}, {.order = 3}}`
template <class Schedule>
class DEIS : public Sampler<DEISUpdate, Schedule> {
 public:
  using Sampler<DEISUpdate, Schedule>::Sampler;
};
template <class Schedule>
DEIS(NoiseSchedule, Schedule, SamplingOptions = {}, DEISUpdate = {}) -> DEIS<Schedule>;
template <class Schedule, class... Wrong>
DEIS(NoiseSchedule, Schedule, Wrong...) -> DEIS<Schedule>;

}  // namespace tstitch

TSTITCH_USUAL_CONTRACTION
