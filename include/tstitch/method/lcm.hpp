/// @file
/// LCM: Luo et al. 2023, "Latent Consistency Models", arXiv 2310.04378.
#pragma once

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "../base/contraction.hpp"
#include "../sampler/sampler.hpp"

TSTITCH_NO_CONTRACTION

namespace tstitch {

/// Multistep consistency sampling (Algorithm 3 there): f = c_skip x + c_out x_0 is taken for the picture itself, and
/// fresh noise brings it to the next level. With u = timestep_scaling t and d = sigma_data, c_skip = d^2 / (u^2 + d^2)
/// and c_out = u / sqrt(u^2 + d^2), which the authors' code and diffusers have. For networks that were distilled so.
///
/// A step that ends at x_0 returns f; one that ends at another level has noise of that level. Flow matching too.
struct LCMUpdate {
  double timestep_scaling = 10;  ///< above 0
  double sigma_data = 0.5;       ///< above 0, the standard deviation of the data

  static void options(auto& self, auto const& see) {
    see("timestep_scaling", self.timestep_scaling);
    see("sigma_data", self.sigma_data);
  }

  std::string name() const { return detail::name_with_options("LCM", *this); }

  void validate() const {
    if (!(timestep_scaling > 0 && std::isfinite(timestep_scaling))) {
      detail::refuse("LCM", "timestep_scaling must be above 0", timestep_scaling);
    }
    if (!(sigma_data > 0 && std::isfinite(sigma_data))) detail::refuse("LCM", "sigma_data must be above 0", sigma_data);
  }

  at::Tensor operator()(StepInput const& in) const {
    const NoiseLevel to = in.step.to;
    const double u = timestep_scaling * in.step.t, square = u * u + sigma_data * sigma_data;
    const double c_skip = sigma_data * sigma_data / square, c_out = u / std::sqrt(square);
    const at::Tensor x_0 = in.predict().x_0;
    WeightedSum x;
    x.add(to.alpha * c_skip, in.x).add(to.alpha * c_out, x_0);
    if (to.sigma > 0) x.add(to.sigma, in.noise(0));
    return x.value();
  }
};

/// The timesteps on which latent consistency models were distilled, k - 1, 2k - 1 ... with k = floor(T /
/// original_steps), and of them N: every (original_steps / N)-th from the noisiest on, rounded down (diffusers' LCM).
/// @param original_steps how many the distillation used, at least N
inline Spacing lcm_timesteps(int original_steps = 50) {
  return {"lcm_timesteps", [original_steps](NoiseSchedule const& noise, int steps) {
            const int most = noise.num_train_timesteps();
            if (original_steps < 1 || original_steps > most) {
              detail::refuse("lcm_timesteps", "original_steps must be in [1, " + std::to_string(most) + "]",
                             original_steps);
            }
            if (steps > original_steps) {
              detail::refuse("lcm_timesteps",
                             "steps must be at most original_steps (" + std::to_string(original_steps) + ")", steps);
            }
            const double stride = double(original_steps) / steps;
            std::vector<Timestep> list;
            for (int i = 0; i < steps; ++i) {
              const int j = original_steps - int(i * stride);
              const double t = j * (most / original_steps) - 1;
              list.push_back({t, noise.at(t)});
            }
            return list;
          }};
}

/// LCM under a model schedule.
/// `LCM{noise_schedule, Stitch{.ratio = 0.5}, {.steps = 4, .spacing = lcm_timesteps()}}`
template <class Schedule>
class LCM : public Sampler<LCMUpdate, Schedule> {
 public:
  using Sampler<LCMUpdate, Schedule>::Sampler;
};
template <class Schedule>
LCM(NoiseSchedule, Schedule, SamplingOptions = {}, LCMUpdate = {}) -> LCM<Schedule>;
template <class Schedule, class... Wrong>
LCM(NoiseSchedule, Schedule, Wrong...) -> LCM<Schedule>;

}  // namespace tstitch

TSTITCH_USUAL_CONTRACTION
