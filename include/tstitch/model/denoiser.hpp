/// @file
/// From a network's raw output to x_0, whatever the network predicts, with guidance and thresholding.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../plan/guidance.hpp"
#include "../plan/timesteps.hpp"
#include "../tensor/host_tensor.hpp"
#include "../tensor/shape.hpp"
#include "../tensor/weighted_sum.hpp"
#include "evaluation.hpp"
#include "feature_memory.hpp"
#include "guidance.hpp"
#include "network.hpp"
#include "thresholding.hpp"

namespace tstitch {

/// What is believed about x at a point of the trajectory. x_0 is the common currency of the library: networks of
/// different prediction types meet in it, and so do guidance, thresholding and the history of multistep rules.
struct Prediction {
  at::Tensor x_0;            ///< [n, C, ...], thresholded
  at::Tensor unclipped_x_0;  ///< [n, C, ...], what thresholding made x_0 from; x_0 itself where there is none
  at::Tensor
      variance_fraction;  ///< [n, C, ...], v of the learned range, as the network made it; undefined if it has none
  /// [n, k, ...], the guidance update with what it received of earlier ones; undefined without
  /// ProjectedGuidance::momentum.
  at::Tensor momentum = {};
};

/// How one evaluation is guided: what Guidance comes to in a step.
struct EvaluationGuidance {
  double scale = 1;           ///< 1 evaluates n rows; anything else 2n, the conditional half first, or the guide too
  std::int64_t channels = 0;  ///< how many of the first channels are guided, 0 for all
  double rescale = 0;         ///< see Guidance::rescale
  std::optional<ProjectedGuidance> projected = {};
  at::Tensor momentum = {};                ///< Prediction::momentum of an earlier step
  Network const* guide = nullptr;          ///< see Guidance::guide_network
  Memory* guide_memory = nullptr;          ///< see Evaluation::memory
  Evaluation told = {};                    ///< to the network, but for the timestep and the halves
  StepForecast const* forecast = nullptr;  ///< what of the guidance is forecast or kept; null: nothing
  KeptSteps* differences = nullptr;        ///< of earlier steps, with a forecast
  GradientGuidance const* gradient = nullptr;
};

/// The timestep as the network is told it.
inline double network_timestep(Network const& network, double t) {
  return network.info().timestep_type == TimestepType::int64 ? std::nearbyint(t) : t;
}

/// What a network takes as t for `rows` rows of x that are all at one timestep.
inline at::Tensor timestep_rows(Network const& network, at::Tensor const& x, double t, std::int64_t rows) {
  const bool integer = network.info().timestep_type == TimestepType::int64;
  const at::ScalarType type = integer ? at::kLong : x.scalar_type();
  t = network_timestep(network, t);
  if (x.is_cpu() && (integer || type == at::kFloat)) {  // an operation costs more than the numbers
    const at::Tensor host = detail::host_tensor({rows}, type);
    if (integer) {
      std::fill_n(host.mutable_data_ptr<std::int64_t>(), rows, std::int64_t(t));
    } else {
      std::fill_n(host.mutable_data_ptr<float>(), rows, float(t));
    }
    return host;
  }
  return x.new_full({rows}, t, x.options().dtype(type));
}

namespace detail {

/// Numbers, one for each image, to a tensor [n] of this type on this device, without waiting for it.
inline at::Tensor one_each(std::vector<double> const& values, at::Device device, at::ScalarType type) {
  const at::Tensor host = host_tensor({std::int64_t(values.size())}, at::kDouble, device.is_cuda());
  std::copy(values.begin(), values.end(), host.mutable_data_ptr<double>());
  return host.to(device, type, /*non_blocking=*/device.is_cuda());
}

/// Grows with every change in place. Tensors made under InferenceMode do not count theirs.
inline std::uint64_t changes_in_place(at::Tensor const& tensor) {
  if (!tensor.defined() || tensor.is_inference()) return 0;
  return tensor.unsafeGetTensorImpl()->version_counter().current_version();
}

inline std::uint64_t changes_in_place(at::Tensor const& x, Condition const& condition) {
  std::uint64_t changes = changes_in_place(x) + changes_in_place(condition.labels);
  for (auto const& [name, tensor] : condition.tensors) changes += changes_in_place(tensor);
  return changes;
}

/// One network evaluation; the output checked for its shape, and of the network's own type.
/// @param rows of the output: those of x, or twice as many, in which x comes twice
template <class Points>
at::Tensor evaluate(Network const& network, at::Tensor const& x, std::int64_t rows, Points const& points,
                    Condition const& condition, Evaluation told) {
  told.timestep = points.timestep(network);
  const at::Tensor t = told.timestep && network.knows_timestep() ? at::Tensor() : points.timesteps(network, x, rows);
  const bool whole = rows == x.size(0) || network.repeats_x();
  const std::uint64_t changes = changes_in_place(x, condition);
  // Tensors made under InferenceMode do not count their changes, so there the network is given a copy.
  at::Tensor output = network(!whole ? twice(x) : x.is_inference() ? x.clone() : x, t, condition, told);
  if (changes_in_place(x, condition) != changes) {
    throw std::runtime_error("tstitch::Network '" + network.info().name +
                             "': must leave x and the condition as they are, got a change in place");
  }
  const std::int64_t channels = x.size(1) * (network.info().learned_variance ? 2 : 1);
  if (!output.defined() || output.dim() != x.dim() || output.size(0) != rows || output.size(1) != channels ||
      output.sizes().slice(2) != x.sizes().slice(2)) {
    std::vector<std::int64_t> shape = x.sizes().vec();
    shape[0] = rows;
    shape[1] = channels;
    throw std::runtime_error("tstitch::Network '" + network.info().name + "': the output must be " + shape_text(shape) +
                             ", got " + (output.defined() ? shape_text(output.sizes()) : "an undefined tensor"));
  }
  if (!output.is_floating_point()) {
    throw std::runtime_error("tstitch::Network '" + network.info().name +
                             "': the output must be of a floating type, got " + at::toString(output.scalar_type()));
  }
  if (x.requires_grad() && !output.requires_grad() && c10::GradMode::is_enabled()) {
    throw std::runtime_error("tstitch::Network '" + network.info().name +
                             "': guidance by the gradient of x_0 needs a network with gradients, as load_torchscript's "
                             "have, got an output without");
  }
  return output;
}

/// What a network answers, taken apart.
struct RawOutput {
  WeightedSum output;            ///< [n, C, ...]; a sum that is not computed yet
  at::Tensor variance_fraction;  ///< [n, C, ...] or undefined
};

/// The halves of a network's output with a learned variance.
struct OutputHalves {
  at::Tensor output;             ///< [n, C, ...]
  at::Tensor variance_fraction;  ///< [n, C, ...] or undefined
};

inline OutputHalves split(Network const& network, at::Tensor const& all, std::int64_t channels) {
  if (!network.info().learned_variance) return {all, {}};
  return {all.narrow(1, 0, channels), all.narrow(1, channels, channels)};
}

/// Remembers a difference of computed guidance, if that is asked for.
template <class Difference>
void keep_difference(EvaluationGuidance const& guidance, Difference const& difference) {
  StepForecast const* const forecast = guidance.forecast;
  if (!forecast || forecast->keep_difference == 0) return;
  guidance.differences->keep(guidance.told.step->index, guidance.told.number, difference(), forecast->keep_difference);
}

/// Whether the difference is forecast.
inline bool forecasts_guidance(EvaluationGuidance const& guidance) {
  return guidance.forecast && guidance.forecast->guidance;
}

/// What a network answers with the condition, and without it.
struct WithAndWithout {
  OutputHalves with;
  std::vector<std::pair<double, at::Tensor>> without = {};  ///< [n, C, ...], a sum of weight times tensor

  /// Adds the first so many channels of the second, times `factor`, to a sum.
  void add_without(WeightedSum& sum, double factor, std::int64_t channels) const {
    for (auto const& [weight, tensor] : without) {
      sum.add(factor * weight, channels == tensor.size(1) ? tensor : tensor.narrow(1, 0, channels));
    }
  }
};

/// Both in one evaluation of 2n rows; or the second is the first less a difference that is forecast.
template <class Points>
WithAndWithout with_and_without(Network const& network, at::Tensor const& x, Points const& points,
                                BatchCondition const& condition, EvaluationGuidance const& guidance) {
  const std::int64_t n = x.size(0), channels = x.size(1);
  if (forecasts_guidance(guidance)) {
    const at::Tensor all = evaluate(network, x, n, points, condition.conditional, guidance.told);
    WithAndWithout made{split(network, all, channels)};
    made.without.emplace_back(1, made.with.output);
    guidance.differences->each(
        guidance.forecast->difference, guidance.told.number,
        [&](double weight, at::Tensor const& difference) { made.without.emplace_back(-weight, difference); });
    return made;
  }
  Evaluation told = guidance.told;
  told.both_halves = true;
  const at::Tensor all = evaluate(network, x, 2 * n, points, condition.guided, told);
  const at::Tensor without = all.narrow(0, n, n).narrow(1, 0, channels);
  WithAndWithout made{split(network, all.narrow(0, 0, n), channels), {{1, without}}};
  keep_difference(guidance,
                  [&] { return WeightedSum().add(1, made.with.output).add(-1, without).value(x.scalar_type()); });
  return made;
}

/// The network's output under classifier-free guidance.
/// @returns output and the conditional v
template <class Points>
RawOutput guided_output(Network const& network, at::Tensor const& x, Points const& points,
                        BatchCondition const& condition, EvaluationGuidance const& guidance) {
  const std::int64_t channels = x.size(1);
  if (guidance.scale == 1) {
    const at::Tensor all = evaluate(network, x, x.size(0), points, condition.conditional, guidance.told);
    const OutputHalves halves = split(network, all, channels);
    return {WeightedSum().add(1, halves.output), halves.variance_fraction};
  }
  const WithAndWithout both = with_and_without(network, x, points, condition, guidance);
  OutputHalves const& with = both.with;
  const std::int64_t guided = guidance.channels ? guidance.channels : channels;
  const at::Tensor conditional = guided == channels ? with.output : with.output.narrow(1, 0, guided);
  WeightedSum sum;
  sum.add(guidance.scale, conditional);
  both.add_without(sum, 1 - guidance.scale, guided);
  if (guided == channels && guidance.rescale == 0) return {std::move(sum), with.variance_fraction};
  at::Tensor part = sum.value(x.scalar_type());
  if (guidance.rescale > 0) {
    part = part.mul(rescale_factor(part, conditional.to(x.scalar_type()), guidance.rescale));
  }
  return {WeightedSum().add(1, with_first_channels(with.output.to(x.scalar_type()), part)), with.variance_fraction};
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
    case PredictionType::v_prediction: {
      const double power = alpha * alpha + sigma * sigma;
      if (std::abs(power - 1) < 1e-12) return {alpha, -sigma};
      return {alpha / power, -sigma / power};  // of flow matching, whose x has another variance
    }
    case PredictionType::flow: return {1 / (alpha + sigma), -sigma / (alpha + sigma)};
  }
  return {0, 1};
}

/// All images at one point.
struct SharedPoint {
  Timestep const& point;

  at::Tensor timesteps(Network const& network, at::Tensor const& x, std::int64_t rows) const {
    return timestep_rows(network, x, point.t, rows);
  }

  std::optional<double> timestep(Network const& network) const { return network_timestep(network, point.t); }

  at::Tensor x_0(Network const& network, at::Tensor const& x, WeightedSum output) const {
    const ToX0 to = to_x_0(network.info().prediction_type, point.level);
    output.scale(to.of_output);
    // What an earlier output broke stays broken where x_0 does not depend on x.
    return (to.of_x == 0 ? output.carry_non_finite(x) : output.add(to.of_x, x)).value(x.scalar_type());
  }

  /// x_0 where the score is larger by this.
  at::Tensor moved(at::Tensor const& x_0, at::Tensor const& score, double scale) const {
    return x_0.add(score, scale * point.level.sigma * point.level.sigma / point.level.alpha);
  }
};

/// Each image at a point of its own.
struct PointEach {
  std::span<const Timestep> points;

  at::Tensor timesteps(Network const& network, at::Tensor const& x, std::int64_t rows) const {
    const bool integer = network.info().timestep_type == TimestepType::int64;
    std::vector<double> times;
    for (Timestep const& point : points) times.push_back(integer ? std::nearbyint(point.t) : point.t);
    const at::Tensor each = one_each(times, x.device(), integer ? at::kLong : x.scalar_type());
    return rows == std::int64_t(points.size()) ? each : each.repeat({2});
  }

  static std::optional<double> timestep(Network const&) { return {}; }

  at::Tensor x_0(Network const& network, at::Tensor const& x, WeightedSum const& output) const {
    std::vector<double> of_x, of_output;
    for (Timestep const& point : points) {
      const ToX0 to = to_x_0(network.info().prediction_type, point.level);
      of_x.push_back(to.of_x);
      of_output.push_back(to.of_output);
    }
    return x.mul(column(of_x, x)).addcmul_(output.value(x.scalar_type()), column(of_output, x));
  }

  at::Tensor moved(at::Tensor const& x_0, at::Tensor const& score, double scale) const {
    std::vector<double> factors;
    for (Timestep const& point : points) {
      factors.push_back(scale * point.level.sigma * point.level.sigma / point.level.alpha);
    }
    return x_0.addcmul(score, column(factors, x_0));
  }

 private:
  static at::Tensor column(std::vector<double> const& values, at::Tensor const& like) {
    return one_an_image(one_each(values, like.device(), like.scalar_type()), like);
  }
};

/// x_0 before thresholding, guided but for gradients.
template <class Points>
Prediction guided_x_0(Network const& network, at::Tensor const& x, Points const& points,
                      BatchCondition const& condition, EvaluationGuidance const& guidance) {
  if (guidance.scale == 1 || (!guidance.guide && !guidance.projected)) {
    auto [output, variance_fraction] = guided_output(network, x, points, condition, guidance);
    return {points.x_0(network, x, std::move(output)), {}, std::move(variance_fraction)};
  }
  const std::int64_t guided = guidance.channels ? guidance.channels : x.size(1);
  Prediction prediction;
  at::Tensor update;  // away from what is worse than x_0
  if (guidance.guide) {
    RawOutput with = guided_output(network, x, points, condition, {.told = guidance.told});
    prediction = {points.x_0(network, x, std::move(with.output)), {}, std::move(with.variance_fraction)};
    if (forecasts_guidance(guidance)) {
      update = guidance.differences->sum(guidance.forecast->difference, guidance.told.number);
    } else {
      const EvaluationGuidance of_guide{.told = {.step = guidance.told.step, .memory = guidance.guide_memory}};
      const RawOutput worse = guided_output(*guidance.guide, x, points, condition, of_guide);
      update =
          prediction.x_0.narrow(1, 0, guided).sub(points.x_0(*guidance.guide, x, worse.output).narrow(1, 0, guided));
      keep_difference(guidance, [&] { return update; });
    }
  } else {
    const WithAndWithout both = with_and_without(network, x, points, condition, guidance);
    WeightedSum without;
    both.add_without(without, 1, x.size(1));
    prediction = {points.x_0(network, x, WeightedSum().add(1, both.with.output)), {}, both.with.variance_fraction};
    update = prediction.x_0.narrow(1, 0, guided).sub(points.x_0(network, x, without).narrow(1, 0, guided));
  }
  const at::Tensor first = prediction.x_0.narrow(1, 0, guided);
  if (!guidance.projected) {
    prediction.x_0 = with_first_channels(prediction.x_0, first.add(update, guidance.scale - 1));
    return prediction;
  }
  if (guidance.projected->momentum != 0) {
    if (guidance.momentum.defined()) update = update.add(guidance.momentum, guidance.projected->momentum);
    prediction.momentum = update;
  }
  prediction.x_0 = with_first_channels(prediction.x_0, project(first, update, guidance.scale, *guidance.projected));
  return prediction;
}

/// The same, moved by the gradient of a log density.
template <class Points>
Prediction gradient_x_0(Network const& network, at::Tensor const& x, Points const& points,
                        BatchCondition const& condition, EvaluationGuidance const& guidance) {
  GradientGuidance const& by = *guidance.gradient;
  const at::Tensor t = points.timesteps(network, x, x.size(0));
  Prediction prediction;
  if (by.of == DensityOf::x) prediction = guided_x_0(network, x, points, condition, guidance);
  const at::Tensor score = gradient(x, [&](at::Tensor const& leaf) {
    if (by.of == DensityOf::x) return by.log_density(leaf, t, condition.conditional);
    prediction = guided_x_0(network, leaf, points, condition, guidance);
    return by.log_density(prediction.x_0, t, condition.conditional);
  });
  prediction.x_0 = points.moved(prediction.x_0.detach(), score, by.scale);
  for (at::Tensor* kept : {&prediction.variance_fraction, &prediction.momentum}) {
    if (kept->defined()) *kept = kept->detach();
  }
  return prediction;
}

template <class Points>
Prediction denoise(Network const& network, at::Tensor const& x, Points const& points, BatchCondition const& condition,
                   EvaluationGuidance const& guidance, Thresholding const& thresholding) {
  Prediction prediction = guidance.gradient ? gradient_x_0(network, x, points, condition, guidance)
                                            : guided_x_0(network, x, points, condition, guidance);
  prediction.unclipped_x_0 = prediction.x_0;
  if (thresholding != Thresholding::none()) prediction.x_0 = thresholding(prediction.x_0);
  return prediction;
}

}  // namespace detail

/// Evaluates a network at a point of the trajectory.
///
/// @param x [n, C, ...] at noise level `point.level`
inline Prediction denoise(Network const& network, at::Tensor const& x, Timestep const& point,
                          BatchCondition const& condition, EvaluationGuidance const& guidance,
                          Thresholding const& thresholding) {
  return detail::denoise(network, x, detail::SharedPoint{point}, condition, guidance, thresholding);
}

/// The same with each image at a point of its own.
/// @param points one an image
/// @throws std::invalid_argument for another number of points
inline Prediction denoise(Network const& network, at::Tensor const& x, std::span<const Timestep> points,
                          BatchCondition const& condition, EvaluationGuidance const& guidance,
                          Thresholding const& thresholding) {
  if (std::int64_t(points.size()) != x.size(0)) {
    detail::refuse("denoise", "points: one for each of the " + std::to_string(x.size(0)) + " images is needed",
                   double(points.size()));
  }
  return detail::denoise(network, x, detail::PointEach{points}, condition, guidance, thresholding);
}

/// With classifier-free guidance or none.
/// @param guidance_scale, guided_channels see EvaluationGuidance
inline Prediction denoise(Network const& network, at::Tensor const& x, Timestep const& point,
                          BatchCondition const& condition, double guidance_scale, std::int64_t guided_channels,
                          Thresholding const& thresholding) {
  return denoise(network, x, point, condition, {.scale = guidance_scale, .channels = guided_channels}, thresholding);
}

/// The same with each image at a point of its own.
inline Prediction denoise(Network const& network, at::Tensor const& x, std::span<const Timestep> points,
                          BatchCondition const& condition, double guidance_scale, std::int64_t guided_channels,
                          Thresholding const& thresholding) {
  return denoise(network, x, points, condition, {.scale = guidance_scale, .channels = guided_channels}, thresholding);
}

}  // namespace tstitch
