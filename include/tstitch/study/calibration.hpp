/// @file
/// What a transformer must be told to compute in 8 bits: how large the inputs of its layers get. Opt-in.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "../base/error.hpp"
#include "../engine/attention_many_rows.hpp"
#include "../engine/dit.hpp"
#include "../file/dit.hpp"
#include "../file/torchscript.hpp"
#include "../method/ddim.hpp"
#include "../model/condition.hpp"
#include "../model/network.hpp"

namespace tstitch {

/// Trajectories along which `largest_inputs` looks.
struct CalibrationOptions {
  int steps = 20;
  std::int64_t images = 16;   ///< of classes 0, 1, 2 ... in turn
  double guidance_scale = 0;  ///< 0: what the network recommends
  std::uint64_t seed = 0;
  /// Of networks that take some; with guidance where one has a null counterpart.
  std::vector<NamedCondition> conditions = {};
  std::vector<std::int64_t> shape = {};  ///< of x for one sample, where the network leaves it open
};

/// What DiTOptions::e4m3_inputs asks for, along DDIM trajectories by the network of this file in its own type. Waits
/// for the GPU.
///
/// Of a DiT it is 0 for proj unless the network has heads of 64 or 72 channels and up to 256 tokens. The inputs of
/// others are rounded in a pass of their own, which takes what 8 bits save in so small a product, and is not free of
/// errors.
/// @throws as load_dit does; std::runtime_error for values that are not finite; std::invalid_argument for a condition
/// that is not given
inline std::vector<double> largest_inputs(std::string const& path, TorchScriptOptions const& options = {},
                                          CalibrationOptions const& calibration = {}) {
  std::vector<at::Tensor> largest;
  const auto look = [&](std::size_t layer, at::Tensor const& input) {
    if (largest.size() <= layer) largest.resize(layer + 1);
    const at::Tensor now = input.abs().max();
    largest[layer] = largest[layer].defined() ? largest[layer].maximum(now) : now;
  };
  const Network network = load_dit(path, options, {.plain = true, .observer = look});
  Request request{.conditions = calibration.conditions, .count = calibration.images, .seed = calibration.seed};
  request.shape = calibration.shape;
  NetworkInfo const& info = network.info();
  for (ConditionInfo const& wanted : info.conditions) {
    const auto is_it = [&](NamedCondition const& each) { return each.name == wanted.name; };
    if (std::any_of(request.conditions.begin(), request.conditions.end(), is_it)) continue;
    detail::refuse("largest_inputs",
                   "CalibrationOptions::conditions must have '" + detail::printable(wanted.name) +
                       "' for a network whose file does not say how large its inputs get",
                   "none");
  }
  for (std::int64_t i = 0; i < calibration.images && info.num_classes; ++i) {
    request.labels.push_back(i % info.num_classes);
  }
  const std::vector<std::int64_t> stated = detail::shape_of(info);
  if (calibration.shape.empty() && !detail::is_closed(stated)) {
    detail::refuse(
        "largest_inputs",
        "CalibrationOptions::shape must say the sizes that a network leaves open whose file does not say how "
        "large its inputs get, " +
            detail::sizes_text(stated),
        "none");
  }
  const double scale = calibration.guidance_scale != 0 ? calibration.guidance_scale : info.guidance_scale;
  const auto has_null = [](NamedCondition const& each) { return each.null.defined(); };
  if (info.null_class || std::any_of(request.conditions.begin(), request.conditions.end(), has_null)) {
    request.guidance = {.scale = scale};
  }
  if (!info.noise_schedule) {
    throw std::runtime_error("tstitch::largest_inputs: " + detail::quoted(path) +
                             ": must state a noise schedule, got none");
  }
  const bool flow = network.noise_schedule().is_flow();
  const DDIM sampler{network.noise_schedule(),
                     SingleNetwork{},
                     {.steps = calibration.steps, .spacing = flow ? Spacing::shifted() : Spacing::linspace()}};
  // Step by step: after the first that breaks all layers would be broken.
  Trajectory trajectory = sampler.begin({network}, request);
  bool finite = true;
  while (finite && !trajectory.finished()) {
    sampler.advance({network}, trajectory);
    finite = trajectory.x.isfinite().all().item<bool>();
  }
  std::vector<double> found;
  for (at::Tensor const& each : largest) {
    found.push_back(each.item<double>());
    if (std::isfinite(found.back())) continue;
    throw std::runtime_error("tstitch::largest_inputs: " + detail::quoted(path) + ": inputs must be finite, got " +
                             detail::text(found.back()) + " in layer " + std::to_string(found.size() - 1));
  }
  if (!finite) {
    throw std::runtime_error("tstitch::largest_inputs: " + detail::quoted(path) +
                             ": outputs must be finite, got nan or infinity at step " +
                             std::to_string(trajectory.next - 1));
  }
  NetworkInfo::Architecture const& a = info.architecture;
  if (a.kind == "sd3") return found;  // whose attention is to many keys, or leaves the rounding to a quick pass
  std::vector<std::int64_t> const& drawn = calibration.shape.empty() ? stated : calibration.shape;
  if (!detail::ManyRowsAttention::fits(a.width / a.heads) ||
      !detail::ManyRowsAttention::has_room(drawn.at(1) / a.patch_size * (drawn.at(2) / a.patch_size))) {
    for (std::size_t proj = 1; proj < found.size(); proj += 4) found[proj] = 0;
  }
  return found;
}

}  // namespace tstitch
