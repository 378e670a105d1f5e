/// @file
/// What loaders of networks share.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/GradMode.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "../base/error.hpp"
#include "../model/network.hpp"
#include "../tensor/host_tensor.hpp"

namespace tstitch {
namespace detail {

inline int cuda_device_count() {
  return at::detail::getCUDAHooks().hasCUDA() ? at::detail::getCUDAHooks().deviceCount() : 0;
}

}  // namespace detail

/// Refuses a device on which no network can run: what is neither the CPU nor a GPU of this machine.
/// @param place what asks, for messages
/// @throws std::invalid_argument for another kind of device, std::runtime_error for a GPU that is not there
inline void require_device(at::Device device, char const* place = "load_torchscript") {
  if (device.is_cpu()) return;
  if (!device.is_cuda()) detail::refuse(place, "device must be cpu or cuda", device.str());
  const int count = detail::cuda_device_count();
  if (count == 0 || device.index() >= count) {
    throw std::runtime_error("tstitch::" + std::string(place) + ": device " + device.str() +
                             " must exist, got a machine with " + std::to_string(count) + " CUDA devices");
  }
}

namespace detail {

/// @param place the loader, for messages
inline void require_type(char const* place, at::ScalarType type) {
  if (type != at::kFloat && type != at::kHalf && type != at::kBFloat16) {
    refuse(place, "dtype must be float32, float16 or bfloat16", at::toString(type));
  }
}

/// What forward takes, in its order.
struct Signature {
  explicit Signature(NetworkInfo const& info) : labelled(info.num_classes > 0), conditions(info.conditions) {}

  std::size_t count() const { return 2 + (labelled ? 1 : 0) + conditions.size(); }

  /// "(x, t, labels, text_embedding)"
  std::string text() const {
    std::string names = labelled ? "(x, t, labels" : "(x, t";
    for (ConditionInfo const& condition : conditions) names += ", " + condition.name;
    return names + ")";
  }

  /// @param type of the network
  /// @throws std::invalid_argument when a condition is missing
  std::vector<at::Tensor> arguments(at::Tensor const& x, at::Tensor const& t, Condition const& condition,
                                    at::ScalarType type) const {
    std::vector<at::Tensor> arguments{x.to(type), t};
    arguments.reserve(count());
    if (labelled) arguments.push_back(condition.labels);
    for (ConditionInfo const& wanted : conditions) {
      at::Tensor const& tensor = condition.at(wanted.name);
      arguments.push_back(wanted.floating ? tensor.to(type) : tensor);
    }
    return arguments;
  }

  bool labelled;
  std::vector<ConditionInfo> conditions;
};

/// Runs a network on zeros, so that later runs of so many rows are fast.
/// @param info of the network, with nothing open (`closed`)
/// @param forecasts whether what it keeps for forecasts and forecasts by it is run too, where it can
/// @returns the output of the last run without
inline at::Tensor run_on_zeros(Network const& network, NetworkInfo const& info, std::int64_t rows, int runs,
                               bool forecasts = false) {
  const auto zeros = [&](std::vector<std::int64_t> sizes, at::ScalarType type) {
    sizes.insert(sizes.begin(), rows);
    return host_tensor(sizes, type).zero_().to(network.device());
  };
  const at::Device device = network.device();
  const at::Tensor x = zeros(info.shape, at::kFloat);
  const at::Tensor integers = to_device(std::vector<std::int64_t>(std::size_t(rows), 0), device);
  const at::Tensor t = info.timestep_type == TimestepType::int64 ? integers : integers.to(at::kFloat);
  Condition condition;
  if (info.num_classes) {
    condition.labels = integers;
    condition.host_labels.assign(std::size_t(rows), 0);
  }
  for (ConditionInfo const& wanted : info.conditions) {
    condition.tensors.emplace_back(wanted.name, zeros(wanted.shape, wanted.floating ? at::kFloat : at::kLong));
  }
  at::Tensor output;
  for (int run = 0; run < runs; ++run) output = network(x, t, condition, 0.0);
  if (!forecasts || !network.forecasts()) return output;
  Memory memory;
  const Step step{.index = 0, .count = 2, .t = 0, .from = {}, .to = {}};
  const StepForecast keeping{.keep = 1}, repeating{.network = true, .conditional = {{0, 1}}};
  for (StepForecast const* const forecast : {&keeping, &repeating}) {
    const Evaluation evaluation{.timestep = 0, .step = &step, .memory = &memory, .forecast = forecast};
    for (int run = 0; run < runs; ++run) network(x, t, condition, evaluation);
  }
  return output;
}

}  // namespace detail

/// The first GPU where there is one, else the CPU.
inline at::Device default_device() {
  return detail::cuda_device_count() > 0 ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU);
}

/// Asks a network for zeros, so that what it does once for each shape (compiling, choosing kernels, capturing a graph)
/// is done before a run.
/// @param rows of the batches that it will see; under guidance twice the pictures
/// @param sizes that the network leaves open
/// @param forecasts whether it will be asked to forecast; nothing for one that cannot
/// @throws std::invalid_argument for rows, where they are not given or not what the network states
inline void warm_up(Network const& network, std::vector<std::int64_t> const& rows, InputSizes const& sizes = {},
                    bool forecasts = false) {
  if (rows.empty()) return;
  const c10::AutoGradMode no_gradients(false);
  const NetworkInfo info = detail::closed("warm_up", network.info(), sizes);
  const int runs = network.settles_at_once() ? 1 : 3;
  for (const std::int64_t count : rows) detail::run_on_zeros(network, info, count, runs, forecasts);
}

}  // namespace tstitch
