/// @file
/// Rules of order 2 that evaluate the network twice in a step: Heun's method and DPM-Solver-2.
#pragma once

#include <cmath>

#include "../base/contraction.hpp"
#include "detail/probability_flow.hpp"
#include "euler.hpp"

TSTITCH_NO_CONTRACTION

namespace tstitch {

/// Heun's method (Karras et al. 2022, arXiv 2206.00364, Algorithm 1, and with churn Algorithm 2): Euler to the end of
/// the step, then again from its beginning with the mean of the slopes at both ends.
///
/// A step to x_0, and one from the pure noise of a diffusion schedule (zero terminal SNR), is Euler's.
struct HeunUpdate {
  Churn churn = {};

  static void options(auto& self, auto const& see) { Churn::options(self.churn, see); }

  std::string name() const { return detail::name_with_options("Heun", *this); }

  int evaluations(Step const& step) const { return single_evaluation(step) ? 1 : 2; }

  void validate() const { churn.validate(); }

  at::Tensor operator()(StepInput const& in) const {
    const auto [step, x] = churn(in);
    if (single_evaluation(step)) return DDIMUpdate{}(with_step(in, step, x));
    const ProbabilityFlow ode{in.noise_schedule};
    const Slope slope{x, in.denoise(x, {step.t, step.from}).x_0, step.from};
    const at::Tensor end = ode.follow(x, step.from, step.to, {{1, slope}});
    const Slope slope_at_end{end, in.denoise(end, {step.t_to, step.to}).x_0, step.to};
    return ode.follow(x, step.from, step.to, {{0.5, slope}, {0.5, slope_at_end}});
  }
};

/// DPM-Solver-2 (Lu et al. 2022, arXiv 2206.00927, Algorithm 1 with r_1 = 1/2; k-diffusion's sample_dpm_2 and
/// diffusers' KDPM2): Euler to the geometric mean of both ends' s, then again from the beginning of the step with the
/// slope there. With eta above 0 the steps are ancestral.
///
/// A step that goes down to x_0, and one from the pure noise of a diffusion schedule (zero terminal SNR), is Euler's.
struct DPM2Update {
  double eta = 0;  ///< in [0, 1]
  Churn churn = {};
  TimeOfSigma time_of_middle = TimeOfSigma::exact;  ///< what the network is told there; diffusers: interpolated

  static void options(auto& self, auto const& see) {
    see("eta", self.eta);
    Churn::options(self.churn, see);
    see("time_of_middle", self.time_of_middle);
  }

  std::string name() const { return detail::name_with_options("DPM2", *this); }

  int evaluations(Step const& step) const {
    return single_evaluation(step) || Ancestral::renewed(step.from, step.to, eta) == 1 ? 1 : 2;
  }

  void validate() const {
    if (!(eta >= 0 && eta <= 1)) detail::refuse("DPM2", "eta must be in [0, 1]", eta);
    churn.validate();
  }

  at::Tensor operator()(StepInput const& in) const {
    auto [step, x] = churn(in);
    const Ancestral ancestral(in.noise_schedule, step.from, step.to, eta);
    step.to = ancestral.down;
    const int draw = churn.s_churn > 0 ? 1 : 0;  // 0 is churn's
    if (evaluations(in.step) == 1) return ancestral.renew(in, DDIMUpdate{}(with_step(in, step, x)), draw);
    const ProbabilityFlow ode{in.noise_schedule};
    const Slope slope{x, in.denoise(x, {step.t, step.from}).x_0, step.from};
    const double lambda = ode.lambda(std::sqrt(ode.s(step.from) * ode.s(step.to)));
    const Timestep middle{time_of(in.noise_schedule, lambda, time_of_middle), in.noise_schedule.level(lambda)};
    const at::Tensor x_middle = ode.follow(x, step.from, middle.level, {{1, slope}});
    const Slope slope_middle{x_middle, in.denoise(x_middle, middle).x_0, middle.level};
    return ancestral.renew(in, ode.follow(x, step.from, step.to, {{1, slope_middle}}), draw);
  }
};

/// Heun's method under a model schedule. `Heun{noise_schedule, Stitch{.ratio = 0.4}, {.steps = 20}}`
template <class Schedule>
class Heun : public Sampler<HeunUpdate, Schedule> {
 public:
  using Sampler<HeunUpdate, Schedule>::Sampler;
};
template <class Schedule>
Heun(NoiseSchedule, Schedule, SamplingOptions = {}, HeunUpdate = {}) -> Heun<Schedule>;
template <class Schedule, class... Wrong>
Heun(NoiseSchedule, Schedule, Wrong...) -> Heun<Schedule>;

/// DPM-Solver-2 under a model schedule. `DPM2{noise_schedule, Stitch{.ratio = 0.4}, {.steps = 20}, {.eta = 1}}`
template <class Schedule>
class DPM2 : public Sampler<DPM2Update, Schedule> {
 public:
  using Sampler<DPM2Update, Schedule>::Sampler;
};
template <class Schedule>
DPM2(NoiseSchedule, Schedule, SamplingOptions = {}, DPM2Update = {}) -> DPM2<Schedule>;
template <class Schedule, class... Wrong>
DPM2(NoiseSchedule, Schedule, Wrong...) -> DPM2<Schedule>;

}  // namespace tstitch

TSTITCH_USUAL_CONTRACTION
