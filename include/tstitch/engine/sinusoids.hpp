/// @file
/// What a transformer is told of a timestep.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>

#include <cmath>

namespace tstitch::detail {

/// The cosines and sines of t at 128 frequencies, the k-th 10000^(-k / frequency_steps).
/// @param t [m], float32
/// @returns [m, 256], float32
inline at::Tensor sinusoids(at::Tensor const& t, double frequency_steps) {
  // Multiplied and then divided, as the networks do: t is large, and the last bit of a frequency would show.
  const at::Tensor frequencies = at::arange(128, t.options()).mul(-std::log(10000.0)).div(frequency_steps).exp();
  const at::Tensor angles = t.unsqueeze(1).mul(frequencies);
  return at::cat({angles.cos(), angles.sin()}, 1);
}

}  // namespace tstitch::detail
