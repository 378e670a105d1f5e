/// @file
/// Euler's method on the probability-flow ODE, deterministic, churned and ancestral.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "../base/contraction.hpp"
#include "ddim.hpp"

TSTITCH_NO_CONTRACTION

namespace tstitch {

/// The same input with another step and another x. Both must outlive it.
inline StepInput with_step(StepInput const& in, Step const& step, at::Tensor const& x) {
  return {step, x, in.history, in.noise_schedule, in.denoise, in.denoise_each, in.noise};
}

/// Raises the noise before a step is taken (Karras et al. 2022, arXiv 2206.00364, Algorithm 2): with s = sigma / alpha
/// from s to (1 + gamma) s, gamma = min(s_churn / N, sqrt(2) - 1). A step whose raised level would be noisier than the
/// noise schedule is left as it is, and so is one that begins at pure noise.
struct Churn {
  double s_churn = 0;  ///< at least 0, their S_churn: how much noise the whole run renews
  double s_tmin = 0;   ///< only steps that begin with s in [s_tmin, s_tmax] are churned
  double s_tmax = std::numeric_limits<double>::infinity();
  double s_noise = 1;  ///< above 0: factor on the noise that is added

  static void options(auto& self, auto const& see) {
    see("s_churn", self.s_churn);
    see("s_tmin", self.s_tmin);
    see("s_tmax", self.s_tmax);
    see("s_noise", self.s_noise);
  }

  void validate() const {
    if (!(s_churn >= 0 && std::isfinite(s_churn))) detail::refuse("Churn", "s_churn must be at least 0", s_churn);
    if (!(s_tmin >= 0 && s_tmin <= s_tmax)) detail::refuse("Churn", "s_tmin must be in [0, s_tmax]", s_tmin);
    if (!(s_noise > 0 && std::isfinite(s_noise))) detail::refuse("Churn", "s_noise must be above 0", s_noise);
  }

  /// The step from its raised level, and x there.
  std::pair<Step, at::Tensor> operator()(StepInput const& in) const {
    const auto [alpha, sigma] = in.step.from;
    const double s = sigma / alpha;
    const double gamma = s >= s_tmin && s <= s_tmax ? std::min(s_churn / in.step.count, std::sqrt(2.0) - 1) : 0;
    const double raised = in.step.from.lambda() - std::log1p(gamma);
    NoiseSchedule const& noise = in.noise_schedule;
    // No t belongs to the levels between the last two timesteps of a table with zero terminal SNR.
    const bool zero_snr = !noise.is_flow() && noise.alpha(noise.noisiest()) == 0;
    if (gamma == 0 || alpha == 0 || raised < noise.lambda(noise.noisiest() - zero_snr)) return {in.step, in.x};
    Step step = in.step;
    step.t = noise.timestep(raised);
    step.from = noise.level(raised);
    const double added = s_noise * s * std::sqrt((2 + gamma) * gamma);  // the root of ((1 + gamma) s)^2 - s^2
    return {step, weighted_sum(step.from.alpha / alpha, in.x, step.from.alpha * added, in.noise(0))};
  }
};

/// Euler's method, y + (s' - s) (y - x_0) / s with y = x / alpha and s = sigma / alpha. This is DDIM with eta = 0, term
/// for term, and for flow matching it is x + (sigma' - sigma) velocity, so DDIM computes it. What it adds is churn.
struct EulerUpdate {
  Churn churn = {};

  static void options(auto& self, auto const& see) { Churn::options(self.churn, see); }

  std::string name() const { return detail::name_with_options("Euler", *this); }

  void validate() const { churn.validate(); }

  at::Tensor operator()(StepInput const& in) const {
    const auto [step, x] = churn(in);
    return DDIMUpdate{}(with_step(in, step, x));
  }
};

/// A step down to a lower level than step.to, and noise back up to it (k-diffusion's ancestral steps): with
/// s = sigma / alpha, s_up = eta s' sqrt(1 - (s' / s)^2) and s_down^2 = s'^2 - s_up^2.
struct Ancestral {
  NoiseLevel down;
  double up;  ///< alpha' s_up, how much noise x at step.to receives

  /// @param eta in [0, 1]
  Ancestral(NoiseSchedule const& noise_schedule, NoiseLevel from, NoiseLevel to, double eta)
      : down(to), up(to.sigma * renewed(from, to, eta)) {
    const double share = renewed(from, to, eta);
    if (share > 0) down = noise_schedule.level(to.lambda() - 0.5 * std::log1p(-share * share));
  }

  /// s_up / s': 1 where the step goes down to x_0.
  static double renewed(NoiseLevel from, NoiseLevel to, double eta) {
    const double ratio = to.sigma / from.sigma * from.alpha / to.alpha;
    return eta > 0 ? eta * std::sqrt(1 - ratio * ratio) : 0;
  }

  /// x at `to`, from x at `from` in a straight line down, as if x_0 held all along, and noise back up.
  /// @param x, x_0 [n, C, ...]
  at::Tensor operator()(StepInput const& in, at::Tensor const& x, at::Tensor const& x_0, NoiseLevel from, NoiseLevel to,
                        int draw = 0) const {
    const double ratio = down.sigma / from.sigma, rescale = to.alpha / down.alpha;
    WeightedSum sum;
    sum.add(rescale * ratio, x).add(rescale * (down.alpha - ratio * from.alpha), x_0);
    if (up > 0) sum.add(up, in.noise(draw));
    return sum.value();
  }

  /// x at step.to.
  /// @param x [n, C, ...] at `down`
  at::Tensor renew(StepInput const& in, at::Tensor const& x, int draw = 0) const {
    return up > 0 ? weighted_sum(in.step.to.alpha / down.alpha, x, up, in.noise(draw)) : x;
  }
};

/// Euler's method with ancestral steps. For diffusion this is DDIM of the same eta, and DDPM with the fixed small
/// variance for eta = 1; for flow matching too eta = 1 draws from the posterior of a Gaussian forward process with
/// these levels.
struct EulerAncestralUpdate {
  double eta = 1;  ///< in [0, 1]

  static void options(auto& self, auto const& see) { see("eta", self.eta); }

  std::string name() const { return detail::name_with_options("EulerAncestral", *this); }

  void validate() const {
    if (!(eta >= 0 && eta <= 1)) detail::refuse("EulerAncestral", "eta must be in [0, 1]", eta);
  }

  at::Tensor operator()(StepInput const& in) const {
    const auto [from, to] = std::pair{in.step.from, in.step.to};
    const at::Tensor x_0 = in.predict().x_0;
    if (to == NoiseLevel::clean()) return x_0;
    return Ancestral(in.noise_schedule, from, to, eta)(in, in.x, x_0, from, to);
  }
};

/// Euler's method under a model schedule. `Euler{noise_schedule, Stitch{.ratio = 0.4}, {.steps = 30}}`
template <class Schedule>
class Euler : public Sampler<EulerUpdate, Schedule> {
 public:
  using Sampler<EulerUpdate, Schedule>::Sampler;
};
template <class Schedule>
Euler(NoiseSchedule, Schedule, SamplingOptions = {}, EulerUpdate = {}) -> Euler<Schedule>;
template <class Schedule, class... Wrong>
Euler(NoiseSchedule, Schedule, Wrong...) -> Euler<Schedule>;

/// Euler's method with ancestral steps under a model schedule.
/// `EulerAncestral{noise_schedule, Stitch{.ratio = 0.4}, {.steps = 30}, {.eta = 1}}`
template <class Schedule>
class EulerAncestral : public Sampler<EulerAncestralUpdate, Schedule> {
 public:
  using Sampler<EulerAncestralUpdate, Schedule>::Sampler;
};
template <class Schedule>
EulerAncestral(NoiseSchedule, Schedule, SamplingOptions = {}, EulerAncestralUpdate = {}) -> EulerAncestral<Schedule>;
template <class Schedule, class... Wrong>
EulerAncestral(NoiseSchedule, Schedule, Wrong...) -> EulerAncestral<Schedule>;

}  // namespace tstitch

TSTITCH_USUAL_CONTRACTION
