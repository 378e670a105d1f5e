/// @file
/// From a network's raw output to x_0, whatever the network predicts, with guidance and thresholding.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "../plan/plan.hpp"
#include "host_tensor.hpp"
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

/// What a network takes as t for `rows` rows of x that are all at one timestep.
inline at::Tensor timestep_rows(Network const& network, at::Tensor const& x, double t, std::int64_t rows) {
  const bool integer = network.info().timestep_type == TimestepType::int64;
  return x.new_full({rows}, integer ? std::nearbyint(t) : t, integer ? x.options().dtype(at::kLong) : x.options());
}

/// Numbers, one for each image, to a tensor [n] of this type on this device, without waiting for it.
inline at::Tensor one_each(std::vector<double> const& values, at::Device device, at::ScalarType type) {
  const at::Tensor host = host_tensor({std::int64_t(values.size())}, at::kDouble, device.is_cuda());
  std::copy(values.begin(), values.end(), host.mutable_data_ptr<double>());
  return host.to(device, type, /*non_blocking=*/device.is_cuda());
}

/// One network evaluation; the output checked for its shape and brought to the type of x.
inline at::Tensor evaluate(Network const& network, at::Tensor const& x, at::Tensor const& t, at::Tensor const& labels) {
  at::Tensor output = network(x, t, Condition{labels});
  const std::int64_t channels = x.size(1) * (network.info().learned_variance ? 2 : 1);
  if (!output.defined() || output.dim() != 4 || output.size(0) != x.size(0) || output.size(1) != channels ||
      output.size(2) != x.size(2) || output.size(3) != x.size(3)) {
    throw std::runtime_error("tstitch::Network '" + network.info().name + "': the output must be " +
                             shape_text({x.size(0), channels, x.size(2), x.size(3)}) + ", got " +
                             (output.defined() ? shape_text(output.sizes()) : "an undefined tensor"));
  }
  return output.scalar_type() == x.scalar_type() ? output : output.to(x.scalar_type());
}

/// The network's output under guidance, and its v if it has learned the variance.
struct RawOutput {
  at::Tensor output;             ///< [n, C, H, W]
  at::Tensor variance_fraction;  ///< [n, C, H, W] or undefined
};

/// @param timesteps rows -> what the network takes as t for so many rows
template <class Timesteps>
RawOutput guided_output(Network const& network, at::Tensor const& x, Timesteps timesteps, BatchLabels const& labels,
                        double guidance_scale, std::int64_t guided_channels) {
  const std::int64_t n = x.size(0), channels = x.size(1);
  RawOutput raw;
  if (guidance_scale == 1) {
    const at::Tensor all = evaluate(network, x, timesteps(n), labels.conditional);
    raw.output = network.info().learned_variance ? all.narrow(1, 0, channels) : all;
    if (network.info().learned_variance) raw.variance_fraction = all.narrow(1, channels, channels);
    return raw;
  }
  const at::Tensor all = evaluate(network, x.repeat({2, 1, 1, 1}), timesteps(2 * n), labels.guided);
  const at::Tensor conditional = all.narrow(0, 0, n), unconditional = all.narrow(0, n, n);
  const std::int64_t guided = guided_channels ? guided_channels : channels;
  // Never in place: the tensor may be one that the network keeps.
  raw.output = guided == channels ? conditional.narrow(1, 0, channels).mul(guidance_scale)
                                  : conditional.narrow(1, 0, channels).clone();
  if (guided != channels) raw.output.narrow(1, 0, guided).mul_(guidance_scale);
  raw.output.narrow(1, 0, guided).add_(unconditional.narrow(1, 0, guided), 1 - guidance_scale);
  if (network.info().learned_variance) raw.variance_fraction = conditional.narrow(1, channels, channels);
  return raw;
}

/// x_0 = of_x x + of_output output.
struct ToX0 {
  double of_x;
  double of_output;
};

inline ToX0 to_x_0(PredictionType type, NoiseLevel level) {
  const auto [alpha, sigma] = level;
  switch (type) {
    case PredictionType::epsilon: return {1 / alpha, -sigma / alpha};
    case PredictionType::sample: break;
    case PredictionType::v_prediction: return {alpha, -sigma};
    case PredictionType::flow: return {1 / (alpha + sigma), -sigma / (alpha + sigma)};
  }
  return {0, 1};
}

inline Prediction thresholded(at::Tensor x_0, at::Tensor variance_fraction, Thresholding const& thresholding) {
  Prediction prediction{x_0, x_0, std::move(variance_fraction)};
  if (thresholding != Thresholding::none()) prediction.x_0 = thresholding(x_0);
  return prediction;
}

}  // namespace detail

/// Evaluates a network at a point of the trajectory.
///
/// @param x [n, C, H, W] at noise level `point.level`
/// @param guidance_scale 1 evaluates n rows; anything else evaluates 2n, the conditional half first
/// @param guided_channels how many of the first channels are guided, 0 for all (see Guidance::channels)
inline Prediction denoise(Network const& network, at::Tensor const& x, Timestep const& point, BatchLabels const& labels,
                          double guidance_scale, std::int64_t guided_channels, Thresholding const& thresholding) {
  auto [output, variance_fraction] = detail::guided_output(
      network, x, [&](std::int64_t rows) { return detail::timestep_rows(network, x, point.t, rows); }, labels,
      guidance_scale, guided_channels);
  const detail::ToX0 to = detail::to_x_0(network.info().prediction_type, point.level);
  const at::Tensor x_0 = to.of_x == 0 ? output.clone() : linear_combination(to.of_x, x, to.of_output, output);
  return detail::thresholded(x_0, std::move(variance_fraction), thresholding);
}

/// The same with each image at a point of its own.
/// @param points one an image
inline Prediction denoise(Network const& network, at::Tensor const& x, std::span<const Timestep> points,
                          BatchLabels const& labels, double guidance_scale, std::int64_t guided_channels,
                          Thresholding const& thresholding) {
  const bool integer = network.info().timestep_type == TimestepType::int64;
  std::vector<double> times, of_x, of_output;
  for (Timestep const& point : points) {
    const detail::ToX0 to = detail::to_x_0(network.info().prediction_type, point.level);
    times.push_back(integer ? std::nearbyint(point.t) : point.t);
    of_x.push_back(to.of_x);
    of_output.push_back(to.of_output);
  }
  const at::Tensor each = detail::one_each(times, x.device(), integer ? at::kLong : x.scalar_type());
  auto [output, variance_fraction] = detail::guided_output(
      network, x, [&](std::int64_t rows) { return rows == x.size(0) ? each : each.repeat({2}); }, labels,
      guidance_scale, guided_channels);
  const auto column = [&](std::vector<double> const& values) {
    return detail::one_each(values, x.device(), x.scalar_type()).view({-1, 1, 1, 1});
  };
  const at::Tensor x_0 = x.mul(column(of_x)).addcmul_(output, column(of_output));
  return detail::thresholded(x_0, std::move(variance_fraction), thresholding);
}

}  // namespace tstitch
