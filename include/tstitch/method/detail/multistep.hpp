/// @file
/// What multistep update rules share: the next x as a weighted sum of x and of predictions, this step's and earlier
/// ones.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <span>

#include "../../base/contraction.hpp"
#include "../../sampler/sampler.hpp"

TSTITCH_NO_CONTRACTION

namespace tstitch {

/// The entry `back` steps ago, 1 for the newest. There must be that many.
inline Past const& past(StepInput const& in, std::size_t back) {
  return in.history[in.history.size() - back];
}

/// scale x + weights[0] x_0 + weights[1] x_0 of one step ago + ..., to which more may be added
/// @param x_0 [n, C, ...], predicted in this step
/// @param weights at least one; one more for each earlier step that counts
inline WeightedSum combine_x_0(StepInput const& in, at::Tensor const& x_0, double scale,
                               std::span<const double> weights) {
  WeightedSum sum;
  sum.add(scale, in.x).add(weights[0], x_0);
  for (std::size_t k = 1; k < weights.size(); ++k) sum.add(weights[k], past(in, k).x_0);
  return sum;
}

/// scale x + weights[0] eps + weights[1] eps of one step ago + ..., to which more may be added, with
/// eps = (x - alpha x_0) / sigma of each step, put in without being formed.
/// @param x_0 [n, C, ...], predicted in this step
/// @param weights at least one; one more for each earlier step that counts
inline WeightedSum combine_epsilon(StepInput const& in, at::Tensor const& x_0, double scale,
                                   std::span<const double> weights) {
  WeightedSum sum;
  sum.add(scale, in.x);
  const auto add_epsilon = [&](double weight, at::Tensor const& x, at::Tensor const& predicted, NoiseLevel level) {
    if (weight != 0) sum.add(weight / level.sigma, x).add(-weight * level.alpha / level.sigma, predicted);
  };
  add_epsilon(weights[0], in.x, x_0, in.step.from);
  for (std::size_t k = 1; k < weights.size(); ++k) {
    Past const& earlier = past(in, k);
    add_epsilon(weights[k], earlier.x, earlier.x_0, earlier.step.from);
  }
  return sum;
}

}  // namespace tstitch

TSTITCH_USUAL_CONTRACTION
