/// @file
/// Runs what is in an AOTInductor package, whole or in parts. aot_inductor.hpp says what that is, and loads it.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "../model/network.hpp"
#include "../model/split_network.hpp"
#include "archive.hpp"
#include "compiled_for.hpp"
#include "loading.hpp"

namespace tstitch::detail {

/// The models of a package on a device.
class CompiledModels {
 public:
  /// @param names of the models, the first of which has the weights
  /// @throws what torch throws
  CompiledModels(std::string const& path, std::vector<std::string> const& names, at::Device device) : device_(device) {
    // The loader of torch 2.11 keeps what it parses in a static variable.
    static std::mutex one_at_a_time;
    const std::lock_guard lock(one_at_a_time);
    const c10::DeviceGuard guard(device_);  // the loader leaves its own as the current one
    std::unordered_map<std::string, at::Tensor> weights;
    for (std::string const& name : names) {
      models_.push_back(std::make_unique<torch::inductor::AOTIModelPackageLoader>(
          path, name, /*run_single_threaded=*/true, /*num_runners=*/1, device.index()));
      if (models_.size() == 1) {
        if (names.size() > 1) weights = models_[0]->get_runner()->extract_constants_map(/*use_inactive=*/false);
        continue;
      }
      std::unordered_map<std::string, at::Tensor> own;
      for (std::string const& constant : models_.back()->get_constant_fqns()) {
        if (const auto found = weights.find(constant); found != weights.end()) own.insert(*found);
      }
      models_.back()->load_constants(own, /*use_inactive=*/false, /*check_full_update=*/true, /*user_managed=*/true);
    }
  }

  CompiledModels(CompiledModels const&) = delete;
  CompiledModels& operator=(CompiledModels const&) = delete;

  ~CompiledModels() {
    // The first has the memory of the weights.
    while (!models_.empty()) models_.pop_back();
  }

  std::vector<at::Tensor> run(std::size_t model, std::vector<at::Tensor> const& inputs) {
    // The single-threaded mode, which alone can be captured in CUDA graphs, loads kernels and prepares constants at the
    // first call without a lock. On a GPU this one is held for as long as the work takes to be queued.
    const std::lock_guard lock(mutex_);
    const c10::DeviceGuard guard(device_);  // torch takes the stream of the current one
    return models_[model]->run(inputs);
  }

 private:
  at::Device device_;
  std::vector<std::unique_ptr<torch::inductor::AOTIModelPackageLoader>> models_ = {};
  std::mutex mutex_ = {};
};

/// Compiled code does not look at what it gets, so this does.
class CompiledNetwork {
 public:
  CompiledNetwork(std::shared_ptr<CompiledModels> models, NetworkInfo const& info, BatchSizes batch,
                  at::ScalarType type, at::Device device)
      : models_(std::move(models)),
        signature_(info),
        batch_(std::move(batch)),
        name_(info.name),
        shape_(info.shape),
        type_(type),
        timestep_type_(info.timestep_type == TimestepType::int64 ? at::kLong : at::kFloat),
        device_(device) {}

  at::Tensor operator()(at::Tensor const& x, at::Tensor const& t, Condition const& condition) const {
    return one("forward", run(0, arguments(x, t, condition)));
  }

  /// Of a package that has the models for it.
  /// @param feature_shape of one row of what blocks return, which head is given; checked where it is not empty
  SplitNetwork parts(bool residual, std::shared_ptr<const std::vector<std::int64_t>> feature_shape) const {
    SplitNetwork parts;
    parts.embed = [self = *this](at::Tensor const& x, at::Tensor const& t, Condition const& condition) {
      return self.run(1, self.arguments(x, t, condition));
    };
    parts.blocks = [self = *this](std::vector<at::Tensor> const& embedded) {
      return self.one("blocks", self.run(2, embedded));
    };
    parts.head = [self = *this, feature_shape](std::vector<at::Tensor> embedded, at::Tensor const& feature) {
      if (!feature_shape->empty()) {
        self.require(feature, "the feature", embedded[0].size(0), *feature_shape, self.type_);
      }
      embedded.push_back(feature);
      return self.one("head", self.run(3, std::move(embedded)));
    };
    parts.residual = residual;
    parts.whole = *this;
    return parts;
  }

 private:
  std::string place() const { return "Network '" + name_ + "'"; }

  /// What the models take.
  std::vector<at::Tensor> arguments(at::Tensor const& x, at::Tensor const& t, Condition const& condition) const {
    const std::int64_t rows = x.defined() && x.dim() > 0 ? x.size(0) : 0;
    require(x, "x", rows, shape_, {});
    if (rows < 1 || rows > batch_.largest()) {
      refuse(place(), "a batch must have 1 to " + std::to_string(batch_.largest()) + " rows, which it was compiled for",
             std::to_string(rows));
    }
    require(t, "t", rows, {}, {});
    if (signature_.labelled) require(condition.labels, "labels", rows, {}, at::kLong);
    for (ConditionInfo const& wanted : signature_.conditions) {
      require(condition.at(wanted.name), wanted.name, rows, wanted.shape,
              wanted.floating ? std::optional<at::ScalarType>() : at::kLong);
    }
    std::vector<at::Tensor> inputs = signature_.arguments(x, t, condition, type_);
    inputs[1] = t.to(timestep_type_);
    return inputs;
  }

  /// @param part 0: the whole network; 1 to 3: embed, blocks and head
  /// @param inputs [n, ...] each
  std::vector<at::Tensor> run(std::size_t part, std::vector<at::Tensor> inputs) const {
    const std::int64_t rows = inputs[0].size(0), padded = batch_.padded(rows);
    for (at::Tensor& input : inputs) input = padded == rows ? input.contiguous() : with_more_rows(input, padded);
    const std::size_t whole = batch_.most ? 0 : batch_.model(rows), wholes = batch_.model_names().size();
    std::vector<at::Tensor> outputs = models_->run(part == 0 ? whole : wholes + 3 * whole + part - 1, inputs);
    for (at::Tensor& output : outputs) {
      if (padded != rows) output = output.narrow(0, 0, rows);
    }
    return outputs;
  }

  static at::Tensor one(char const* what, std::vector<at::Tensor> outputs) {
    if (outputs.size() != 1) {
      throw std::runtime_error("tstitch::load_aot_inductor: " + std::string(what) + " must return one tensor, got " +
                               std::to_string(outputs.size()));
    }
    return std::move(outputs[0]);
  }

  /// @param shape of one row
  /// @param type empty where it is converted
  void require(at::Tensor const& tensor, std::string const& what, std::int64_t rows,
               std::vector<std::int64_t> const& shape, std::optional<at::ScalarType> type) const {
    std::vector<std::int64_t> sizes{rows};
    sizes.insert(sizes.end(), shape.begin(), shape.end());
    if (!tensor.defined() || tensor.sizes() != at::IntArrayRef(sizes)) {
      refuse(place(), what + " must be " + shape_text(sizes),
             tensor.defined() ? shape_text(tensor.sizes()) : "an undefined tensor");
    }
    if (type && tensor.scalar_type() != *type) {
      refuse(place(), what + " must be " + at::toString(*type), at::toString(tensor.scalar_type()));
    }
    if (tensor.device() != device_) {
      refuse(place(), what + " must be on " + device_.str(), tensor.device().str());
    }
  }

  /// Repeats the last row, which is a row that the network knows what to do with.
  static at::Tensor with_more_rows(at::Tensor const& input, std::int64_t rows) {
    const std::int64_t given = input.size(0);
    std::vector<std::int64_t> sizes = input.sizes().vec();
    sizes[0] = rows;
    const at::Tensor more = input.new_empty(sizes);
    more.narrow(0, 0, given).copy_(input);
    more.narrow(0, given, rows - given).copy_(input.narrow(0, given - 1, 1));
    return more;
  }

  std::shared_ptr<CompiledModels> models_;
  Signature signature_;
  BatchSizes batch_;
  std::string name_;
  std::vector<std::int64_t> shape_;  // of x for one sample
  at::ScalarType type_, timestep_type_;
  at::Device device_;
};

/// Whether the network of a package can be asked in parts.
/// @throws std::runtime_error for one that has some of the parts
inline bool has_parts(Archive const& archive, BatchSizes const& batch, std::string const& source) {
  const std::vector<std::string> names = batch.names_in_parts();
  const std::size_t wholes = batch.model_names().size();
  std::string missing;
  std::size_t found = 0;
  for (std::size_t k = wholes; k < names.size(); ++k) {
    const std::string folder = "data/aotinductor/" + names[k] + "/";
    const auto record = archive.records().lower_bound(folder);
    const bool there = record != archive.records().end() && record->first.starts_with(folder);
    if (there) ++found;
    if (!there && missing.empty()) missing = names[k];
  }
  if (found != 0 && !missing.empty()) {
    throw std::runtime_error("tstitch::load_aot_inductor: " + source +
                             ": must hold all models of forecast_embed, forecast_blocks and forecast_head, or none, "
                             "got none called " +
                             printable(missing));
  }
  return found != 0;
}

/// What a network makes of zeros must be what its metadata says.
inline void require_runs(Network const& network, NetworkInfo const& info, std::int64_t rows) {
  std::vector<std::int64_t> sizes = info.shape;
  if (info.learned_variance) sizes[0] *= 2;
  sizes.insert(sizes.begin(), rows);
  const at::Tensor output = run_on_zeros(network, info, rows, 1);
  if (output.sizes() != at::IntArrayRef(sizes)) {
    throw std::runtime_error("an output of " + shape_text(output.sizes()) + " for " + shape_text(sizes));
  }
}

/// A network that has run once, with its parts where it has them.
/// @param rows for which it was compiled
inline Network run_once(CompiledNetwork const& compiled, bool in_parts, NetworkInfo info, at::Device device,
                        std::int64_t rows) {
  const auto feature_shape = std::make_shared<std::vector<std::int64_t>>();
  const SplitNetwork parts = in_parts ? compiled.parts(info.forecasts_residual, feature_shape) : SplitNetwork();
  const Network network =
      in_parts ? Network(parts, std::move(info), device) : Network(compiled, std::move(info), device);
  require_runs(network, network.info(), rows);
  if (!in_parts) return network;
  const auto one_after_another = [&](at::Tensor const& x, at::Tensor const& t, Condition const& condition) {
    const std::vector<at::Tensor> embedded = parts.embed(x, t, condition);
    const at::Tensor feature = parts.blocks(embedded);
    feature_shape->assign(feature.sizes().begin() + 1, feature.sizes().end());
    return parts.head(embedded, feature);
  };
  require_runs(Network(one_after_another, network.info(), device), network.info(), rows);
  return network;
}

}  // namespace tstitch::detail
