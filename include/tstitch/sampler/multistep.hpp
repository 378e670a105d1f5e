/// @file
/// What multistep update rules share: the next x as a weighted sum of x and of predictions, this step's and earlier
/// ones.
#pragma once

#include <ATen/core/Tensor.h>

#include <span>

#include "sampler.hpp"

namespace tstitch {

/// The entry `back` steps ago, 1 for the newest. There must be that many.
inline Past const& past(StepInput const& in, std::size_t back) {
  return in.history[in.history.size() - back];
}

/// scale x + weights[0] x_0 + weights[1] x_0 of one step ago + ...
/// @param x_0 [n, C, H, W], predicted in this step
/// @param weights at least one; one more for each earlier step that counts
inline at::Tensor combine_x_0(StepInput const& in, at::Tensor const& x_0, double scale,
                              std::span<const double> weights) {
  at::Tensor next = linear_combination(scale, in.x, weights[0], x_0);
  for (std::size_t k = 1; k < weights.size(); ++k) {
    if (weights[k] != 0) next.add_(past(in, k).x_0, weights[k]);
  }
  return next;
}

/// scale x + weights[0] eps + weights[1] eps of one step ago + ..., with eps = (x - alpha x_0) / sigma of each step,
/// put in without being formed.
/// @param x_0 [n, C, H, W], predicted in this step
/// @param weights at least one; one more for each earlier step that counts
inline at::Tensor combine_epsilon(StepInput const& in, at::Tensor const& x_0, double scale,
                                  std::span<const double> weights) {
  const auto [alpha, sigma] = in.step.from;
  at::Tensor next = linear_combination(scale + weights[0] / sigma, in.x, -weights[0] * alpha / sigma, x_0);
  for (std::size_t k = 1; k < weights.size(); ++k) {
    if (weights[k] == 0) continue;
    Past const& earlier = past(in, k);
    const auto [past_alpha, past_sigma] = earlier.step.from;
    next.add_(earlier.x, weights[k] / past_sigma).add_(earlier.x_0, -weights[k] * past_alpha / past_sigma);
  }
  return next;
}

}  // namespace tstitch
