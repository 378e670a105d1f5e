/// @file
/// The probability-flow ODE in the coordinates in which Euler, Heun, DPM-Solver-2, LMS and PNDM solve it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>
#include <cstddef>
#include <initializer_list>
#include <span>
#include <utility>

#include "../../base/contraction.hpp"
#include "multistep.hpp"

TSTITCH_NO_CONTRACTION

namespace tstitch {

/// dy/ds of ProbabilityFlow at x, (x - scale x_0) / sigma: kept as what it is made of, because sums of slopes are sums
/// of these.
struct Slope {
  at::Tensor x;    ///< [n, C, ...]
  at::Tensor x_0;  ///< [n, C, ...], predicted there
  NoiseLevel level;
};

/// With y = x / scale and s = sigma / scale the ODE is dy/ds = (y - x_0) / s (Karras et al. 2022, arXiv 2206.00364,
/// Algorithm 1, whose x is y and whose sigma is s); where the prediction does not change y follows a straight line.
///
/// Diffusion has scale = alpha, so that y = x_0 + s eps and the slope dy/ds is eps. Flow matching is drawn in x itself:
/// scale = 1, s = sigma, and the slope is the velocity eps - x_0.
struct ProbabilityFlow {
  NoiseSchedule const& noise_schedule;

  double scale(NoiseLevel level) const { return noise_schedule.is_flow() ? 1 : level.alpha; }

  /// Infinite at the pure noise of a diffusion schedule (zero terminal SNR). Only DDIM's step can begin there.
  double s(NoiseLevel level) const { return level.sigma / scale(level); }

  /// The level of this s, strictly between pure noise and x_0.
  double lambda(double s) const { return noise_schedule.is_flow() ? std::log((1 - s) / s) : -std::log(s); }

  /// x at `to`: y + (s(to) - s(from)) times the sum of the slopes by their shares.
  /// @param x [n, C, ...] at `from`
  at::Tensor follow(at::Tensor const& x, NoiseLevel from, NoiseLevel to,
                    std::initializer_list<std::pair<double, Slope>> slopes) const {
    const double ratio = scale(to) / scale(from);
    WeightedSum sum;
    sum.add(ratio, x);
    for (auto const& [share, slope] : slopes) add(sum, share * (to.sigma - ratio * from.sigma), slope);
    return sum.value();
  }

  /// x at step.to: y + weights[0] slope + weights[1] slope of one step ago + ...
  /// @param x_0 [n, C, ...], predicted in this step
  /// @param weights at least one; one more for each earlier step that counts
  at::Tensor combine(StepInput const& in, at::Tensor const& x_0, std::span<const double> weights) const {
    const double scale_to = scale(in.step.to);
    WeightedSum sum;
    sum.add(scale_to / scale(in.step.from), in.x);
    add(sum, scale_to * weights[0], {in.x, x_0, in.step.from});
    for (std::size_t k = 1; k < weights.size(); ++k) {
      Past const& earlier = past(in, k);
      add(sum, scale_to * weights[k], {earlier.x, earlier.x_0, earlier.step.from});
    }
    return sum.value();
  }

 private:
  void add(WeightedSum& sum, double weight, Slope const& slope) const {
    sum.add(weight / slope.level.sigma, slope.x).add(-weight * scale(slope.level) / slope.level.sigma, slope.x_0);
  }
};

/// Whether a step can be DDIM's only: to x_0, where there is no slope at the end, and from the pure noise of a
/// diffusion schedule, where s is infinite.
inline bool single_evaluation(Step const& step) {
  // Flow matching, which may begin at pure noise, has alpha + sigma = 1 where diffusion has more.
  return step.to.sigma == 0 || (step.from.alpha == 0 && step.to.alpha + step.to.sigma > 1 + 1e-9);
}

}  // namespace tstitch

TSTITCH_USUAL_CONTRACTION
