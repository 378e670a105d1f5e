/// @file
/// From a checked request to the run of one batch.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../model/denoiser.hpp"
#include "../plan/plan.hpp"
#include "../tensor/host_tensor.hpp"
#include "../tensor/weighted_sum.hpp"
#include "request.hpp"
#include "trajectory.hpp"

namespace tstitch::detail {

/// Images [first, first + images) of a checked request, filled up to the batch size if that is asked for.
inline Request batch_of(Request const& whole, std::int64_t first, std::int64_t images) {
  Request part = whole;
  const auto cut = [&](auto& list) {
    if (list.empty()) return;
    list.assign(list.begin() + first, list.begin() + first + images);
    if (whole.pad_batches) list.resize(std::size_t((whole.batch_size + 7) / 8 * 8), list.back());
  };
  cut(part.labels);
  cut(part.seeds);
  part.count = std::int64_t(part.seeds.size());
  const auto cut_rows = [&](at::Tensor& tensor) {
    if (!tensor.defined()) return;
    const at::Tensor rows = tensor.narrow(0, first, images);
    std::vector<std::int64_t> sizes = rows.sizes().vec();
    sizes[0] = part.count;
    tensor = rows.new_empty(sizes);
    tensor.copy_(rows.narrow(0, images - 1, 1).expand_as(tensor));
    tensor.narrow(0, 0, images).copy_(rows);
  };
  cut_rows(part.initial_noise);
  cut_rows(part.initial_image);
  if (whole.mask.defined() && whole.mask.size(0) > 1) cut_rows(part.mask);
  for (NamedCondition& each : part.conditions) {
    if (each.value.size(0) > 1) cut_rows(each.value);
    if (each.null.defined() && each.null.size(0) > 1) cut_rows(each.null);
  }
  return part;
}

/// The labels of a checked batch, and behind them, for guidance, the null class.
/// @param has_null whether the half without the condition is needed for other conditions
/// @returns whether it is needed
inline bool add_labels(BatchCondition& batch, std::vector<Network> const& networks, std::vector<std::int64_t> labels,
                       at::Device device, bool has_null) {
  if (labels.empty()) return has_null;
  batch.conditional.labels = to_device(labels, device);
  batch.conditional.host_labels = labels;
  // Any network that states a null class states the same.
  const auto knows_null = [](Network const& network) { return network.info().null_class.has_value(); };
  const auto knowing = std::find_if(networks.begin(), networks.end(), knows_null);
  if (knowing == networks.end() && !has_null) return false;
  const std::vector<std::int64_t> given = labels;
  if (knowing != networks.end()) {
    labels.resize(2 * given.size(), *knowing->info().null_class);
  } else {
    labels.insert(labels.end(), given.begin(), given.end());
  }
  batch.guided.labels = to_device(labels, device);
  batch.guided.host_labels = std::move(labels);
  return true;
}

/// The condition of a checked batch on the networks' device.
inline BatchCondition condition_of(std::vector<Network> const& networks, Request const& request,
                                   at::TensorOptions const& options) {
  const at::Device device = options.device();
  BatchCondition batch;
  bool has_null = false;
  for (NamedCondition const& each : request.conditions) has_null = has_null || each.null.defined();
  has_null = add_labels(batch, networks, request.labels, device, has_null);
  const auto rows_of = [&](at::Tensor const& tensor) {
    std::vector<std::int64_t> sizes = tensor.sizes().vec();
    sizes[0] = request.count;
    const at::ScalarType type = tensor.is_floating_point() ? at::typeMetaToScalarType(options.dtype()) : at::kLong;
    return tensor.to(device, type).expand(sizes);
  };
  for (NamedCondition const& each : request.conditions) {
    const at::Tensor value = rows_of(each.value);
    batch.conditional.tensors.emplace_back(each.name, value.contiguous());
    if (!has_null) continue;
    std::vector<std::int64_t> sizes = value.sizes().vec();
    sizes[0] *= 2;
    const at::Tensor both = value.new_empty(sizes);
    both.narrow(0, 0, request.count).copy_(value);
    both.narrow(0, request.count, request.count).copy_(each.null.defined() ? rows_of(each.null) : value);
    batch.guided.tensors.emplace_back(each.name, both);
  }
  return batch;
}

/// The noise that a checked batch begins with; a copy, because a source may use its memory again.
/// @throws std::runtime_error for a source that returns what it must not
inline at::Tensor initial_noise(Request const& request, at::TensorOptions const& options) {
  const at::Tensor x = request.noise_source(request.seeds, NoiseAddress::initial(), request.shape, options);
  std::vector<std::int64_t> shape = request.shape;
  shape.insert(shape.begin(), request.count);
  const at::Device device = options.device();
  if (x.defined() && x.sizes() == at::IntArrayRef(shape) && x.device() == device &&
      (x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble)) {
    return x.clone();
  }
  throw std::runtime_error("tstitch::Sampler: noise_source must return float32 or float64 " + shape_text(shape) +
                           " on " + device.str() + ", got " +
                           (x.defined() ? std::string(at::toString(x.scalar_type())) + " " + shape_text(x.sizes()) +
                                              " on " + x.device().str()
                                        : "an undefined tensor"));
}

/// Fills in the x of a batch at its level, and what a mask keeps.
/// @param inverts then x is the initial image
inline void begin_x(Trajectory& trajectory, Request const& request, at::Device device, bool inverts) {
  at::Tensor& x = trajectory.x;
  at::Tensor image = request.initial_image;
  if (inverts) {
    x = image.to(device).contiguous();
    return;
  }
  const at::TensorOptions options =
      (image.defined() ? image.options() : at::TensorOptions().dtype(at::kFloat)).device(device);
  x = request.initial_noise.defined() ? request.initial_noise.to(device) : initial_noise(request, options);
  if (!image.defined()) return;
  image = image.to(x.options()).contiguous();
  const at::Tensor drawn = x;
  x = weighted_sum(trajectory.level.alpha, image, trajectory.level.sigma, drawn);
  if (!request.mask.defined()) return;
  trajectory.inpainting = {request.mask.to(x.options()), image, drawn};
  if (request.strength == 1) x = x.lerp(drawn, trajectory.inpainting.mask);
}

/// Tells a network of the steps that are planned for it, with guidance where there may be any.
inline void prepare(Network const& network, std::size_t index, Plan const& plan, Trajectory const& trajectory) {
  std::vector<double> timesteps;
  for (std::size_t i = std::size_t(trajectory.next); i < plan.steps.size(); ++i) {
    const double t = network_timestep(network, plan.steps[i].step.t);
    const bool known = std::find(timesteps.begin(), timesteps.end(), t) != timesteps.end();
    if (plan.steps[i].network == index && !known) timesteps.push_back(t);
  }
  if (timesteps.empty()) return;
  BatchCondition const& condition = trajectory.condition;
  const bool guided = condition.guided.labels.defined() || !condition.guided.tensors.empty();
  network.prepare(timesteps, guided ? condition.guided : condition.conditional);
}

}  // namespace tstitch::detail
