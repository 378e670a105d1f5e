/// @file
/// From a network's raw output to x_0, whatever the network predicts, with guidance and thresholding.
#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>
#include <string>

#include "../plan/plan.hpp"
#include "network.hpp"
#include "thresholding.hpp"

namespace tstitch {

/// What is believed about x at a point of the trajectory. x_0 is the common currency of the library: networks of
/// different prediction types meet in it, and so do guidance, thresholding and the history of multistep rules.
struct Prediction {
  at::Tensor x_0;                ///< [n, C, H, W], thresholded
  at::Tensor unclipped_x_0;      ///< [n, C, H, W], what thresholding made x_0 from; x_0 itself where there is none
  at::Tensor variance_fraction;  ///< [n, C, H, W], v of the learned range; undefined if the network has none
};

/// The labels of a batch on the networks' device.
struct BatchLabels {
  at::Tensor conditional;  ///< [n] int64; undefined without classes
  at::Tensor guided;       ///< [2n] int64, the labels and then the null class; undefined if guidance is never on
};

/// a x + b y, in two passes. Tensor methods only: operators would cost every user a second of compile time.
inline at::Tensor linear_combination(double a, at::Tensor const& x, double b, at::Tensor const& y) {
  return x.mul(a).add_(y, b);
}

namespace detail {

inline std::string shape_text(at::IntArrayRef sizes) {
  std::string text = "[";
  for (std::size_t i = 0; i < sizes.size(); ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + "]";
}

/// One network evaluation; the output checked for its shape and brought to the type of x.
inline at::Tensor evaluate(Network const& network, at::Tensor const& x, double t, at::Tensor const& labels) {
  const bool integer = network.info().timestep_type == TimestepType::int64;
  const at::Tensor timesteps =
      x.new_full({x.size(0)}, integer ? std::nearbyint(t) : t, integer ? x.options().dtype(at::kLong) : x.options());
  at::Tensor output = network(x, timesteps, Condition{labels});
  const std::int64_t channels = x.size(1) * (network.info().learned_variance ? 2 : 1);
  if (!output.defined() || output.dim() != 4 || output.size(0) != x.size(0) || output.size(1) != channels ||
      output.size(2) != x.size(2) || output.size(3) != x.size(3)) {
    throw std::runtime_error("tstitch::Network '" + network.info().name + "': the output must be " +
                             shape_text({x.size(0), channels, x.size(2), x.size(3)}) + ", got " +
                             (output.defined() ? shape_text(output.sizes()) : "an undefined tensor"));
  }
  return output.scalar_type() == x.scalar_type() ? output : output.to(x.scalar_type());
}

}  // namespace detail

/// Evaluates a network at a point of the trajectory.
///
/// @param x [n, C, H, W] at noise level `point.level`
/// @param guidance_scale 1 evaluates n rows; anything else evaluates 2n, the conditional half first
/// @param guided_channels how many of the first channels are guided, 0 for all (see Guidance::channels)
inline Prediction denoise(Network const& network, at::Tensor const& x, Timestep const& point, BatchLabels const& labels,
                          double guidance_scale, std::int64_t guided_channels, Thresholding const& thresholding) {
  const std::int64_t n = x.size(0), channels = x.size(1);
  const auto [alpha, sigma] = point.level;
  Prediction prediction;
  at::Tensor output;  // [n, C, H, W]
  if (guidance_scale == 1) {
    const at::Tensor all = detail::evaluate(network, x, point.t, labels.conditional);
    output = network.info().learned_variance ? all.narrow(1, 0, channels) : all;
    if (network.info().learned_variance) prediction.variance_fraction = all.narrow(1, channels, channels);
  } else {
    const at::Tensor all = detail::evaluate(network, x.repeat({2, 1, 1, 1}), point.t, labels.guided);
    const at::Tensor conditional = all.narrow(0, 0, n), unconditional = all.narrow(0, n, n);
    const std::int64_t guided = guided_channels ? guided_channels : channels;
    // Never in place: the tensor may be one that the network keeps.
    output = guided == channels ? conditional.narrow(1, 0, channels).mul(guidance_scale)
                                : conditional.narrow(1, 0, channels).clone();
    if (guided != channels) output.narrow(1, 0, guided).mul_(guidance_scale);
    output.narrow(1, 0, guided).add_(unconditional.narrow(1, 0, guided), 1 - guidance_scale);
    if (network.info().learned_variance) prediction.variance_fraction = conditional.narrow(1, channels, channels);
  }

  switch (network.info().prediction_type) {
    case PredictionType::epsilon: prediction.x_0 = linear_combination(1 / alpha, x, -sigma / alpha, output); break;
    case PredictionType::v_prediction: prediction.x_0 = linear_combination(alpha, x, -sigma, output); break;
    case PredictionType::sample: prediction.x_0 = output.clone(); break;
    case PredictionType::flow:
      prediction.x_0 = linear_combination(1 / (alpha + sigma), x, -sigma / (alpha + sigma), output);
      break;
  }
  prediction.unclipped_x_0 = prediction.x_0;
  if (thresholding != Thresholding::none()) prediction.x_0 = thresholding(prediction.x_0);
  return prediction;
}

}  // namespace tstitch
