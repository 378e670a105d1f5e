/// @file
/// What is checked of a request, of networks and of a run before anything is computed.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "../model/network.hpp"
#include "../plan/plan.hpp"
#include "../tensor/host_tensor.hpp"
#include "request.hpp"
#include "trajectory.hpp"

namespace tstitch::detail {

/// Images of a request, and of a batch.
inline constexpr std::int64_t most_images = 1 << 24;

/// Below it x / alpha does not fit into float32.
inline constexpr double least_alpha = 1e-36;

inline bool knows_label(NetworkInfo const& info, std::int64_t label) {
  return (label >= 0 && label < info.num_classes) || label == info.null_class;
}

inline void require_network(std::vector<Network> const& networks, int step, std::size_t index) {
  if (index >= networks.size()) {
    refuse("Sampler",
           "the model schedule gives step " + std::to_string(step) + " to network " + std::to_string(index) +
               ", so at least " + std::to_string(index + 1) + " networks are needed",
           std::to_string(networks.size()));
  }
}

inline void require_forecasts(Network const& network, std::size_t index) {
  if (network.forecasts()) return;
  refuse(
      "Forecast",
      "is for networks whose parts can be asked one by one (of load_dit, SplitNetwork, files exported with parts: of "
      "U-Nets by --deep-feature, packages by --forecast-parts); ForecastEvery::first_network leaves out those before "
      "it",
      name_of(network, index));
}

/// What a rule and a gradient must be like where anything may be forecast.
inline void require_forecastable(RuleView const& rule, GradientGuidance const& gradient) {
  if (rule.long_steps) {
    refuse("Sampler", "forecasts are for update rules whose evaluations are known before the run",
           rule.name(rule.rule));
  }
  if (rule.direction == Direction::to_noise) {
    refuse("Sampler", "forecasts are for update rules that go to the picture", rule.name(rule.rule));
  }
  if (gradient && gradient.of == DensityOf::x_0) {
    refuse("GradientGuidance", "of x_0 must go through every step's network, and so have no forecasts",
           "a schedule of them");
  }
}

/// What a callable of others returned must be like x.
inline void require_like(char const* what, at::Tensor const& returned, at::Tensor const& x) {
  if (returned.defined() && returned.sizes() == x.sizes() && returned.scalar_type() == x.scalar_type() &&
      returned.device() == x.device()) {
    return;
  }
  const auto text = [&](at::Tensor const& tensor) {
    if (!tensor.defined()) return std::string("an undefined tensor");
    const bool elsewhere = returned.defined() && returned.device() != x.device();
    return std::string(at::toString(tensor.scalar_type())) + " " + shape_text(tensor.sizes()) +
           (elsewhere ? " on " + tensor.device().str() : "");
  };
  throw std::runtime_error(std::string("tstitch::Sampler: ") + what + " must return " + text(x) + ", got " +
                           text(returned));
}

/// What a run needs of the labels and conditions that it was begun with.
template <class Fail>
void require_condition(NetworkInfo const& info, Condition const& condition, bool guided, Fail const& fail) {
  if (info.num_classes > 0 && !condition.labels.defined()) {
    fail(guided ? "the trajectory must have been begun with labels and a null class"
                : "the trajectory must have been begun with labels",
         "none");
  }
  for (const std::int64_t label : condition.host_labels) {
    if (info.num_classes == 0 || knows_label(info, label)) continue;
    fail("labels must be in [0, " + std::to_string(info.num_classes - 1) + "]", std::to_string(label));
  }
  for (ConditionInfo const& asked : info.conditions) {
    const auto is_it = [&](auto const& each) { return each.first == asked.name; };
    if (std::any_of(condition.tensors.begin(), condition.tensors.end(), is_it)) continue;
    fail("the trajectory must have been begun with '" + asked.name + "'", "none");
  }
}

/// A trajectory may have been begun for other networks, by a sampler that did not ask this one, or changed since.
inline void require_suits(Network const& network, std::size_t index, Trajectory const& trajectory,
                          EvaluationGuidance const& guidance) {
  NetworkInfo const& info = network.info();
  const auto fail = [&](std::string const& rule, std::string const& got) {
    refuse("Sampler::advance", rule + " for " + name_of(network, index), got);
  };
  at::Tensor const& x = trajectory.x;
  if (!has_shape_of(info, x.sizes())) fail("x must be [n, C, ...] of the right shape", shape_text(x.sizes()));
  const bool guided = guidance.scale != 1 && !guidance.guide;
  if (!std::isfinite(guidance.scale)) fail("the guidance scale must be a number", text(guidance.scale));
  if (guided && guidance.channels > x.size(1)) {
    fail("Guidance::channels must be at most " + std::to_string(x.size(1)), std::to_string(guidance.channels));
  }
  if (guided && info.conditions.empty() && !info.null_class) {
    fail("guidance needs a null class", "guidance scale " + text(guidance.scale));
  }
  require_condition(info, guided ? trajectory.condition.guided : trajectory.condition.conditional, guided, fail);
}

/// Classifier-free guidance needs a half without the condition.
inline void require_null(Network const& network, std::size_t index, Request const& request) {
  if (network.info().null_class) return;
  for (ConditionInfo const& wanted : network.info().conditions) {
    for (NamedCondition const& given : request.conditions) {
      if (given.name == wanted.name && given.null.defined()) return;
    }
  }
  refuse("Guidance",
         network.info().conditions.empty()
             ? "needs networks that were trained with a null class"
             : "needs a null class or the null counterpart of a condition that the network takes",
         name_of(network, index));
}

/// A step from pure noise asks only what can be answered there.
inline void require_defined_there(std::vector<Network> const& networks, PlannedStep const& planned,
                                  Request const& request) {
  const double alpha = planned.step.from.alpha;
  if (alpha > least_alpha) return;
  for (const std::size_t k : {planned.network, planned.guide_evaluations ? planned.guide_network : planned.network}) {
    if (networks[k].info().prediction_type != PredictionType::epsilon) continue;
    refuse(
        "Sampler",
        "a step that begins at pure noise (alpha = 0) needs a network that predicts x_0 or a velocity, because there "
        "the noise says nothing of x_0",
        "step " + std::to_string(planned.step.index) + " to " + name_of(networks[k], k) + ", which predicts epsilon" +
            (alpha > 0 ? ", at alpha = " + text(alpha) : std::string()));
  }
  if (request.gradient) {
    refuse("GradientGuidance", "no step may begin at pure noise (alpha = 0), where x says nothing of x_0",
           "step " + std::to_string(planned.step.index));
  }
}

/// Networks, plan and guidance suit each other.
/// @param validate the rule's own check of a network
/// @returns whether any step is guided
template <class Validate>
bool require_plan(std::vector<Network> const& networks, Plan const& plan, NoiseSchedule const& noise_schedule,
                  Request const& request, Validate const& validate) {
  bool guided = false;
  for (PlannedStep const& planned : plan.steps) {
    require_network(networks, planned.step.index, planned.network);
    validate(networks[planned.network].info());
    require_defined_there(networks, planned, request);
    if (planned.forecast.network) require_forecasts(networks[planned.network], planned.network);
    if (planned.guided == GuidedBy::nothing) continue;
    guided = true;
    if (planned.guided == GuidedBy::null_half) require_null(networks[planned.network], planned.network, request);
  }
  for (std::size_t k = 0; k < networks.size(); ++k) {
    const auto& stated = networks[k].info().noise_schedule;
    if (stated && stated->distance(noise_schedule) > 1e-6) {
      refuse("Sampler",
             "the sampler's noise schedule must be the one that the networks were trained with (" + stated->name() +
                 " for " + name_of(networks[k], k) + ")",
             noise_schedule.name());
    }
  }
  return guided;
}

/// Fills in how many images there are, their seeds and the batch size.
inline void fill_in_counts(Request& request) {
  if (!request.noise_source) refuse("Request", "noise_source must be callable", "none");
  if (request.count < 0) refuse("Request", "count must not be negative", double(request.count));
  if (request.batch_size < 0) refuse("Request", "batch_size must not be negative", double(request.batch_size));
  if (request.smaller_batches && request.pad_batches) {
    refuse("Request", "smaller_batches must be off with pad_batches, whose bits are those of one batch size", "both");
  }
  const auto rows_in = [](at::Tensor const& tensor) {
    return tensor.defined() && tensor.dim() > 0 ? tensor.size(0) : std::int64_t(0);
  };
  if (request.count == 0) {
    for (NamedCondition const& each : request.conditions) {
      request.count = std::max({request.count, rows_in(each.value), rows_in(each.null)});
    }
    request.count = std::max<std::int64_t>({1, request.count, std::int64_t(request.seeds.size()),
                                            std::int64_t(request.labels.size()), rows_in(request.initial_noise),
                                            rows_in(request.initial_image)});
  }
  for (auto const& [name, value] : {std::pair{"count", request.count}, {"batch_size", request.batch_size}}) {
    if (value > most_images) {
      refuse("Request", std::string(name) + " must be at most " + std::to_string(most_images), std::to_string(value));
    }
  }
  const std::size_t count = std::size_t(request.count);
  if (request.seeds.empty()) {
    if (request.seed > ~std::uint64_t(0) - (count - 1)) {
      refuse("Request", "seed + i must be at most 2^64 - 1 for each of the " + std::to_string(count) + " images",
             std::to_string(request.seed));
    }
    for (std::size_t i = 0; i < count; ++i) request.seeds.push_back(request.seed + i);
  }
  if (request.seeds.size() != count) {
    refuse("Request", "seeds: one for each of the " + std::to_string(count) + " images is needed",
           double(request.seeds.size()));
  }
  if (request.batch_size == 0) request.batch_size = request.count;
}

/// Fills in one label an image.
/// @param info of a network that knows classes, if there is one
inline void fill_in_labels(NetworkInfo const& info, Request& request) {
  const std::size_t count = std::size_t(request.count);
  const std::string one_each = "one for each of the " + std::to_string(count) + " images is needed";
  if (request.labels.size() == 1) request.labels.assign(count, request.labels[0]);
  if (request.labels.empty() && info.num_classes > 0) {
    refuse("Request", "labels: these networks need them, " + one_each, 0);
  }
  if (!request.labels.empty() && info.num_classes == 0) {
    refuse("Request", "labels: these networks take none", double(request.labels.size()));
  }
  if (!request.labels.empty() && request.labels.size() != count) {
    refuse("Request", "labels: " + one_each, double(request.labels.size()));
  }
  for (const std::int64_t label : request.labels) {
    if (knows_label(info, label)) continue;
    refuse("Request", "labels must be in [0, " + std::to_string(info.num_classes - 1) + "]", double(label));
  }
}

/// A tensor of a condition is what a network asks for.
inline void require_fits(ConditionInfo const& asked, at::Tensor const& tensor, std::int64_t count,
                         std::string const& part, std::string const& network) {
  if (!tensor.defined() || !fits(asked, tensor.sizes())) {
    refuse("Request", part + " must be [n or 1, ...] of " + text_of(asked) + " for " + network,
           tensor.defined() ? shape_text(tensor.sizes()) : "an undefined tensor");
  }
  if (tensor.size(0) != 1 && tensor.size(0) != count) {
    refuse("Request", part + " must have 1 row or one for each of " + std::to_string(count) + " images",
           double(tensor.size(0)));
  }
  if (asked.floating != tensor.is_floating_point()) {
    refuse("Request", part + " must be " + (asked.floating ? "of a floating type" : "int64"),
           at::toString(tensor.scalar_type()));
  }
}

/// What is given is what the network asks for.
/// @param is_asked by the plan: then all that it asks for is needed
/// @param wanted which of the request's conditions any network asks for
inline void check_conditions_of(Network const& network, std::size_t k, bool is_asked, Request const& request,
                                std::vector<bool>& wanted) {
  for (ConditionInfo const& asked : network.info().conditions) {
    const auto is_it = [&](NamedCondition const& each) { return each.name == asked.name; };
    const auto given = std::find_if(request.conditions.begin(), request.conditions.end(), is_it);
    const std::string place = "conditions: '" + asked.name + "'";
    if (given == request.conditions.end()) {
      if (is_asked) refuse("Request", place + " is needed by " + name_of(network, k), "none");
      continue;
    }
    wanted[std::size_t(given - request.conditions.begin())] = true;
    require_fits(asked, given->value, request.count, place, name_of(network, k));
    if (!given->null.defined()) continue;
    require_fits(asked, given->null, request.count, place + ".null", name_of(network, k));
    if (given->null.sizes().slice(1) != given->value.sizes().slice(1)) {
      refuse(
          "Request",
          place + ".null must have the shape of its value, " + shape_text(given->value.sizes().slice(1)) + " an image",
          shape_text(given->null.sizes().slice(1)));
    }
  }
}

/// Every network that is asked gets what it needs, and nothing is given in vain.
inline void check_conditions(std::vector<Network> const& networks, Plan const& plan, Request const& request) {
  for (auto each = request.conditions.begin(); each != request.conditions.end(); ++each) {
    const auto is_it = [&](NamedCondition const& other) { return other.name == each->name; };
    if (std::any_of(request.conditions.begin(), each, is_it)) {
      refuse("Request", "conditions: their names must differ", "'" + each->name + "' twice");
    }
  }
  std::vector<bool> is_asked(networks.size()), wanted(request.conditions.size());
  for (PlannedStep const& planned : plan.steps) {
    is_asked[planned.network] = true;
    if (planned.guide_evaluations) is_asked[planned.guide_network] = true;
  }
  // Another sampler may take over and ask those that this plan does not.
  for (std::size_t k = 0; k < networks.size(); ++k) check_conditions_of(networks[k], k, is_asked[k], request, wanted);
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    if (wanted[i]) continue;
    refuse("Request", "conditions: each must be one that a network asks for", "'" + request.conditions[i].name + "'");
  }
}

/// Checks a mask; the initial image has its shape.
inline void require_mask(at::Tensor const& mask, at::Tensor const& image) {
  bool fits = mask.dim() == image.dim();
  for (std::int64_t d = 0; fits && d < mask.dim(); ++d) {
    fits = mask.size(d) == image.size(d) || (d < 2 && mask.size(d) == 1);
  }
  if (!fits) {
    refuse("Request", "mask must be [1 or n, 1 or C, ...] with the size of initial_image", shape_text(mask.sizes()));
  }
  if (mask.is_complex()) refuse("Request", "mask must be bool or in [0, 1]", at::toString(mask.scalar_type()));
  if (!mask.ge(0).logical_and(mask.le(1)).all().template item<bool>()) {
    refuse("Request", "mask must be in [0, 1]", "values outside");
  }
}

/// Checks what belongs to an initial image; that and the noise have their shapes.
inline void require_editing(Request const& request, bool inverts) {
  const at::Tensor &noise = request.initial_noise, &image = request.initial_image, &mask = request.mask;
  if (!image.defined()) {
    if (inverts) refuse("Request", "initial_image is needed for inversion", "none");
    if (request.strength != 1) refuse("Request", "strength needs an initial_image", request.strength);
    if (mask.defined()) refuse("Request", "mask needs an initial_image", "none");
    return;
  }
  if (inverts && noise.defined()) {
    refuse("Request", "initial_noise is what inversion finds, and must not be given", shape_text(noise.sizes()));
  }
  if (noise.defined() && noise.sizes() != image.sizes()) {
    refuse("Request", "initial_noise must have the shape of initial_image", shape_text(noise.sizes()));
  }
  if (!mask.defined()) return;
  if (inverts) refuse("Request", "mask is not for inversion", shape_text(mask.sizes()));
  require_mask(mask, image);
}

/// [C, ...] of an image as the networks state it together, 0 where none does; empty where none says how many dimensions
/// there are.
inline std::vector<std::int64_t> stated_shape(std::vector<Network> const& networks) {
  std::vector<std::int64_t> stated;
  for (Network const& network : networks) take_shape(stated, network.info());
  return stated;
}

/// Checks what a run begins with, and fills in the shape of an image.
inline void fill_in_images(std::vector<Network> const& networks, Request& request, bool inverts) {
  const at::Tensor &noise = request.initial_noise, &image = request.initial_image;
  const auto suits = [&](at::IntArrayRef sizes) {
    return std::all_of(networks.begin(), networks.end(),
                       [&](Network const& network) { return has_shape_of(network.info(), sizes); });
  };
  const auto require_images = [&](std::string const& name, at::Tensor const& x, bool one_for_all) {
    if (!suits(x.sizes()) || !(x.size(0) == request.count || (one_for_all && x.size(0) == 1)) ||
        (!request.shape.empty() && x.sizes().slice(1) != at::IntArrayRef(request.shape))) {
      refuse("Request",
             name + " must be [n, C, ...] with the shape of the networks and one row an image" +
                 (one_for_all ? " or one for all" : ""),
             shape_text(x.sizes()));
    }
    if (x.scalar_type() != at::kFloat && x.scalar_type() != at::kDouble) {
      refuse("Request", name + " must be float32 or float64", at::toString(x.scalar_type()));
    }
  };
  if (noise.defined()) require_images("initial_noise", noise, false);
  if (image.defined()) {
    require_images("initial_image", image, true);
    std::vector<std::int64_t> sizes = image.sizes().vec();
    sizes[0] = request.count;
    request.initial_image = image.expand(sizes);
  }
  require_editing(request, inverts);
  if (noise.defined() || image.defined()) {
    request.shape = (noise.defined() ? noise : image).sizes().slice(1).vec();
    return;
  }
  if (request.shape.empty()) {
    request.shape = stated_shape(networks);
    if (request.shape.empty() || !is_closed(request.shape)) {
      refuse("Request",
             "shape or initial_noise must say the sizes that the networks leave open" +
                 (request.shape.empty() ? "" : ", " + sizes_text(request.shape)),
             "none");
    }
  }
  std::vector<std::int64_t> sizes = request.shape;
  sizes.insert(sizes.begin(), request.count);
  if (!has_room(request.shape) || !suits(sizes)) {
    std::string advice;
    for (Network const& network : networks) {
      if (advice.empty() && !has_shape_of(network.info(), sizes)) advice = words::advice_on_sizes(network.info());
    }
    refuse("Request", "shape must be [C, ...] of what the networks state" + advice + ", with 1 to 2^34 elements",
           shape_text(request.shape));
  }
}

}  // namespace tstitch::detail
