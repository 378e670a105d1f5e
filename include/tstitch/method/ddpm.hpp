/// @file
/// DDPM: Ho, Jain and Abbeel 2020, "Denoising Diffusion Probabilistic Models", arXiv 2006.11239, on any subset of the
/// training timesteps as in Nichol and Dhariwal 2021, arXiv 2102.09672.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include "../base/contraction.hpp"
#include "../sampler/sampler.hpp"

TSTITCH_NO_CONTRACTION

namespace tstitch {

/// The variance of the noise that a DDPM step adds.
enum class Variance {
  automatic,      ///< learned_range for the networks that have it, else fixed_small
  fixed_small,    ///< the posterior's, Ho et al. 2020, Eq. 7
  fixed_large,    ///< beta
  learned_range,  ///< between the two as the network says, Nichol and Dhariwal 2021, Eq. 15
};

constexpr std::array<char const*, 4> names_of(Variance) {
  return {"automatic", "fixed_small", "fixed_large", "learned_range"};
}

namespace detail {

/// What x at `from` and x_0 tell of x at `to`: q(x_to | x_from, x_0) is normal with mean of_x x_from + of_x_0 x_0.
/// Ho et al. 2020, Eq. 6 and 7, where alpha_t is (from.alpha / to.alpha)^2, alpha bar is alpha^2 and beta_t is the
/// variance of the noise that leads from `to` to `from`: 1 - alpha_t where alpha^2 + sigma^2 = 1. For any two levels,
/// flow matching among them: Kingma et al. 2021, arXiv 2107.00630, appendix A.
struct Posterior {
  double beta;
  double variance;  ///< 0 where `to` is the clean picture
  double of_x;
  double of_x_0;

  /// @param float32_beta see DDPMUpdate::float32_beta
  Posterior(NoiseLevel from, NoiseLevel to, bool float32_beta = false) {
    double ratio = from.alpha / to.alpha;
    const double from_variance = from.sigma * from.sigma, to_variance = to.sigma * to.sigma;
    beta = from_variance - ratio * ratio * to_variance;
    if (float32_beta) {
      const float alpha_t = float(from.alpha * from.alpha) / float(to.alpha * to.alpha);
      beta = double(1.0f - alpha_t);
      ratio = std::sqrt(double(alpha_t));
    }
    variance = beta * to_variance / from_variance;
    of_x = ratio * to_variance / from_variance;
    of_x_0 = to.alpha * beta / from_variance;
  }
};

/// Whether a step's variance is the network's own.
inline bool is_learned(Variance variance, bool network_has) {
  return variance == Variance::learned_range || (variance == Variance::automatic && network_has);
}

/// f high + (1 - f) low with f = (v + 1) / 2, Nichol and Dhariwal 2021, Eq. 15; low and high are logs of variances, or
/// halves of them for deviations. Computed in this type, whatever the network's is.
inline at::Tensor in_learned_range(at::Tensor const& v, at::ScalarType type, double low, double high) {
  return v.to(type).mul((high - low) / 2).add_((high + low) / 2);
}

}  // namespace detail

/// One ancestral step: x_to from its posterior, with the predicted x_0 for the true one.
struct DDPMUpdate {
  Variance variance = Variance::automatic;
  /// Whether a step that ends at x_0 adds noise too unless it begins at t = 0, as diffusers does. With the fixed large
  /// variance and a spacing that does not visit t = 0 that is visible noise; with the others next to none.
  bool noise_in_last_step = false;
  /// Whether beta_t is 1 - alpha_t in float32, as in diffusers, which leaves it three or four digits where steps are
  /// short. For schedules with alpha^2 + sigma^2 = 1.
  bool float32_beta = false;

  static void options(auto& self, auto const& see) {
    see("variance", self.variance);
    see("noise_in_last_step", self.noise_in_last_step);
    see("float32_beta", self.float32_beta);
  }

  std::string name() const { return detail::name_with_options("DDPM", *this); }

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
    const detail::Posterior posterior(from, to, float32_beta);
    WeightedSum x;
    x.add(posterior.of_x, in.x).add(posterior.of_x_0, prediction.x_0);
    const double low = std::max(posterior.variance, 1e-20);  // its log must be finite
    if (!detail::is_learned(variance, prediction.variance_fraction.defined())) {
      return x.add(std::sqrt(variance == Variance::fixed_large ? posterior.beta : low), in.noise(0)).value();
    }
    const at::Tensor mean = x.value();
    const at::Tensor deviation = detail::in_learned_range(prediction.variance_fraction, mean.scalar_type(),
                                                          std::log(low) / 2, std::log(posterior.beta) / 2);
    // exp would make 0 of -infinity
    return mean.addcmul_(deviation.exp_().add_(prediction.variance_fraction, 0), in.noise(0));
  }
};

/// The DDPM sampler under a model schedule. `DDPM{noise_schedule, Stitch{.ratio = 0.4}, {.steps = 250}}`
template <class Schedule>
class DDPM : public Sampler<DDPMUpdate, Schedule> {
 public:
  using Sampler<DDPMUpdate, Schedule>::Sampler;
};
template <class Schedule>
DDPM(NoiseSchedule, Schedule, SamplingOptions = {}, DDPMUpdate = {}) -> DDPM<Schedule>;
template <class Schedule, class... Wrong>
DDPM(NoiseSchedule, Schedule, Wrong...) -> DDPM<Schedule>;

}  // namespace tstitch

TSTITCH_USUAL_CONTRACTION
