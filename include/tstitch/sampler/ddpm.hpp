/// @file
/// DDPM: Ho, Jain and Abbeel 2020, "Denoising Diffusion Probabilistic Models", arXiv 2006.11239, on any subset of the
/// training timesteps as in Nichol and Dhariwal 2021, arXiv 2102.09672.
#pragma once

#include <algorithm>
#include <cmath>

#include "sampler.hpp"

namespace tstitch {

/// The variance of the noise that a DDPM step adds.
enum class Variance {
  automatic,      ///< learned_range for the networks that have it, else fixed_small
  fixed_small,    ///< the posterior's, Ho et al. 2020, Eq. 7
  fixed_large,    ///< beta
  learned_range,  ///< between the two as the network says, Nichol and Dhariwal 2021, Eq. 15
};

/// One ancestral step, Ho et al. 2020, Eq. 6 and 7. Between two timesteps of the plan their alpha_t is
/// (from.alpha / to.alpha)^2, their beta_t one minus that, their alpha bar our alpha^2.
struct DDPMUpdate {
  Variance variance = Variance::automatic;
  /// Whether a step that ends at x_0 adds noise too unless it begins at t = 0, as diffusers does. With the fixed large
  /// variance and a spacing that does not visit t = 0 that is visible noise; with the others next to none.
  bool noise_in_last_step = false;

  void validate(NetworkInfo const& info) const {
    if (variance == Variance::learned_range && !info.learned_variance) {
      detail::refuse("DDPM", "variance: learned_range needs networks that have learned it",
                     "'" + info.name + "', which has not");
    }
  }

  at::Tensor operator()(StepInput const& in) const {
    const auto [from, to] = std::pair{in.step.from, in.step.to};
    const Prediction prediction = in.predict();
    if (to == NoiseLevel::clean() && !(noise_in_last_step && in.step.t > 0)) return prediction.x_0;
    const double step_alpha = (from.alpha / to.alpha) * (from.alpha / to.alpha);
    const double beta = 1 - step_alpha;
    const double from_variance = from.sigma * from.sigma, to_variance = to.sigma * to.sigma;
    const at::Tensor mean = linear_combination(to_variance * std::sqrt(step_alpha) / from_variance, in.x,
                                               beta * to.alpha / from_variance, prediction.x_0);
    const double posterior_variance = std::max(beta * to_variance / from_variance, 1e-20);  // its log must be finite
    const bool learned = variance == Variance::learned_range ||
                         (variance == Variance::automatic && prediction.variance_fraction.defined());
    if (!learned) {
      return mean.add_(in.noise(0), std::sqrt(variance == Variance::fixed_large ? beta : posterior_variance));
    }
    // log variance = f log beta + (1 - f) log posterior_variance with f = (v + 1) / 2, halved for the deviation.
    const double high = std::log(beta) / 2, low = std::log(posterior_variance) / 2;
    const at::Tensor deviation = prediction.variance_fraction.mul((high - low) / 2).add_((high + low) / 2).exp_();
    return mean.addcmul_(deviation, in.noise(0));
  }
};

/// The DDPM sampler under a model schedule. `DDPM{noise_schedule, Stitch{.ratio = 0.4}, {.steps = 250}}`
template <class Schedule>
class DDPM : public Sampler<DDPMUpdate, Schedule> {
 public:
  DDPM(NoiseSchedule noise_schedule, Schedule model_schedule, SamplingOptions options = {}, DDPMUpdate rule = {})
      : Sampler<DDPMUpdate, Schedule>(std::move(noise_schedule), std::move(model_schedule), std::move(options), rule) {}
};

}  // namespace tstitch
