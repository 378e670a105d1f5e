/// @file
/// Networks that AOTInductor compiled: packages (.pt2) of machine code for one kind of processor. Opt-in.
///
/// What a network is travels inside, in the keys of metadata.hpp, as extra files of the package. Besides it says
///
///     tstitch/dtype *               float32 | float16 | bfloat16, in which it computes
///     tstitch/device *              cpu | cuda, for which it was compiled
///     tstitch/compute_capability *  of the GPU, "9.0", where that is cuda
///     tstitch/cpu_capability        what torch says of the processor, "AVX2"
///     tstitch/torch                 the version that compiled it
///     tstitch/batch *               the numbers of rows that it takes: "1-512" for all of these, or sizes from small
///                                   to large, "1 2 8"
///
/// A package for any number of rows holds one model, called "model". One for a list of sizes holds a model for each,
/// called "1_rows", "2_rows", "8_rows"; the weights are in the first, and in memory once. Inputs are contiguous: x in
/// the network's type, t as int64 or, for timestep_type float32, as float32, labels as int64, and the conditions.
/// All have the sizes that the metadata says, none of which is open.
///
/// Loading runs code of the file, so load what you trust. It is unpacked into a folder of its own in /tmp, which must
/// allow programs to run and is removed with the last copy of the network.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/GradMode.h>
#include <c10/macros/Export.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "../model/network.hpp"
#include "../tensor/cuda/driver.hpp"
#include "../tensor/cuda/kernels.hpp"
#include "../tensor/host_tensor.hpp"
#include "archive.hpp"
#include "compiled_for.hpp"
#include "file.hpp"
#include "loading.hpp"
#include "metadata.hpp"
#include "parallel_file.hpp"

namespace at {
// Of ATen/Version.h, which includes most of ATen.
TORCH_API std::string get_cpu_capability();
}  // namespace at

namespace tstitch {

struct AOTInductorOptions {
  at::Device device = at::kCPU;
  /// What the package is to compute in, which is settled when it is compiled. Not stated: whatever it is.
  std::optional<at::ScalarType> dtype = {};
  /// Batch sizes that will come, which the package must have been compiled for, and that are run once before the
  /// network is handed out. Guidance doubles the rows of a batch.
  std::vector<std::int64_t> warm_up_rows = {};
};

namespace detail {

/// "9.0", as packages say it. The driver is asked, because torch's own answer is in headers that need CUDA's.
/// @returns empty where there is no such driver
inline std::string capability_text(at::Device device) {
  const int capability = compute_capability(with_index(device).index());
  return capability ? std::to_string(capability / 10) + "." + std::to_string(capability % 10) : "";
}

/// Whether a processor runs what was compiled for another, in the words of torch.
inline bool runs_code_of(std::string const& processor, std::string const& compiled) {
  const std::vector<std::string> rising{"NO AVX", "DEFAULT", "AVX2", "AVX512"};
  const auto rank = [&](std::string const& name) { return std::find(rising.begin(), rising.end(), name); };
  return processor == compiled ||
         (rank(processor) != rising.end() && rank(compiled) != rising.end() && rank(processor) > rank(compiled));
}

/// @throws std::runtime_error when the package was compiled for something else
inline void require_compiled_for(CompiledFor const& compiled, AOTInductorOptions const& options,
                                 std::string const& source) {
  const auto must_be_for = [&](std::string const& wanted, std::string const& got) {
    throw std::runtime_error("tstitch::load_aot_inductor: " + source + ": must be compiled for " + wanted +
                             ", got one for " + got);
  };
  const auto name_of = [](at::ScalarType type) {
    for (auto const& [name, each] : compiled_types()) {
      if (each == type) return std::string(name);
    }
    return std::string(at::toString(type));
  };
  const std::string device = options.device.is_cuda() ? "cuda" : options.device.str();
  if (compiled.device != device) must_be_for(device, compiled.device);
  if (options.dtype && *options.dtype != compiled.dtype) must_be_for(name_of(*options.dtype), name_of(compiled.dtype));
  if (options.device.is_cuda()) {
    const std::string found = capability_text(options.device);
    if (!found.empty() && found != compiled.compute_capability) {
      must_be_for("GPUs of compute capability " + found, compiled.compute_capability);
    }
  }
  // What queues the work of a GPU is machine code, too.
  if (!compiled.cpu_capability.empty() && !runs_code_of(at::get_cpu_capability(), compiled.cpu_capability)) {
    must_be_for("processors with " + at::get_cpu_capability(), compiled.cpu_capability);
  }
}

/// The models of a package on a device.
class CompiledModels {
 public:
  /// @throws what torch throws
  CompiledModels(std::string const& path, BatchSizes const& batch, at::Device device) : device_(device) {
    // The loader of torch 2.11 keeps what it parses in a static variable.
    static std::mutex one_at_a_time;
    const std::lock_guard lock(one_at_a_time);
    const c10::DeviceGuard guard(device_);  // the loader leaves its own as the current one
    std::unordered_map<std::string, at::Tensor> weights;
    for (std::string const& name : batch.model_names()) {
      models_.push_back(std::make_unique<torch::inductor::AOTIModelPackageLoader>(
          path, name, /*run_single_threaded=*/true, /*num_runners=*/1, device.index()));
      if (models_.size() == 1) {
        if (batch.sizes.size() > 1) weights = models_[0]->get_runner()->extract_constants_map(/*use_inactive=*/false);
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

  at::Tensor run(std::size_t model, std::vector<at::Tensor> const& inputs) {
    // The single-threaded mode, which alone can be captured in CUDA graphs, loads kernels and prepares constants at the
    // first call without a lock. On a GPU this one is held for as long as the work takes to be queued.
    const std::lock_guard lock(mutex_);
    const c10::DeviceGuard guard(device_);  // torch takes the stream of the current one
    std::vector<at::Tensor> outputs = models_[model]->run(inputs);
    if (outputs.size() != 1) {
      throw std::runtime_error("tstitch::load_aot_inductor: forward must return one tensor, got " +
                               std::to_string(outputs.size()));
    }
    return std::move(outputs[0]);
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
    const std::int64_t padded = batch_.padded(rows);
    for (at::Tensor& input : inputs) input = padded == rows ? input.contiguous() : with_more_rows(input, padded);
    const at::Tensor output = models_->run(batch_.most ? 0 : batch_.model(rows), inputs);
    return padded == rows ? output : output.narrow(0, 0, rows);
  }

 private:
  std::string place() const { return "Network '" + name_ + "'"; }

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

/// Runs `action` on a package that was found in order, turning what torch throws into one line.
template <class Action>
auto loading(CompiledFor const& compiled, std::string const& source, Action action) {
  std::string got;
  try {
    return action();
  } catch (std::exception const& error) {
    got = "'" + reason(error) + "'";
  }
  const std::string version = compiled.torch.substr(0, compiled.torch.find('+'));  // 2.11.0+cu130
  if (!version.empty() && version != TORCH_VERSION) {
    throw std::runtime_error("tstitch::load_aot_inductor: " + source +
                             ": must be compiled by torch " TORCH_VERSION
                             ", which this program has, got one by torch " +
                             version + " that fails with " + got);
  }
  throw std::runtime_error("tstitch::load_aot_inductor: " + source +
                           ": must hold a network that runs as its metadata says, got " + got);
}

}  // namespace detail

/// Whether this file is one for load_aot_inductor, whatever it is called.
inline bool is_aot_inductor(std::string const& path) {
  try {
    return detail::is_package(detail::Archive(detail::open_file(detail::aot_inductor_file, path)));
  } catch (std::exception const&) {  // whatever it is, it is none
    return false;
  }
}

/// Loads a network and runs it once.
///
/// It is called as one of load_torchscript is. A batch must not have more rows than it was compiled for; where it was
/// compiled for certain sizes, a batch of another is filled up to the next with copies of its last row, and what comes
/// out for these is cut off. Several threads may call it: on a GPU they queue work at the same time, on the CPU they
/// wait for each other. Its calls can be captured in CUDA graphs.
/// @throws std::runtime_error naming the file and what is wrong with it, or what it was not compiled for
inline Network load_aot_inductor(std::string const& path, AOTInductorOptions const& options = {}) {
  const std::string source = detail::quoted(path);
  const auto file = detail::open_file(detail::aot_inductor_file, path);
  if (options.dtype) detail::require_type("load_aot_inductor", *options.dtype);
  struct Stated {
    NetworkInfo info;
    CompiledFor compiled;
    detail::BatchSizes batch;
    std::shared_ptr<detail::Archive> archive;
  };
  Stated stated = detail::reading(detail::aot_inductor_file, source, [&] {
    const auto archive = detail::open_package(source, file);
    NetworkInfo info = detail::read_network_info(*archive, source);
    const detail::MetadataReader metadata(*archive, source);
    if (detail::has_open_sizes(info)) {
      metadata.fail(detail::is_closed(info.shape) ? "conditions" : "input_shape",
                    "must have all sizes of a compiled network", "*");
    }
    return Stated{std::move(info), detail::read_compiled_for(metadata), detail::read_batch_sizes(metadata), archive};
  });
  require_device(options.device, "load_aot_inductor");
  detail::require_compiled_for(stated.compiled, options, source);
  for (const std::int64_t rows : options.warm_up_rows) {
    if (rows >= 1 && rows <= stated.batch.largest()) continue;
    throw std::runtime_error("tstitch::load_aot_inductor: " + source + ": must be compiled for batches of " +
                             std::to_string(rows) + " rows, got one for at most " +
                             std::to_string(stated.batch.largest()));
  }
  // The loader of torch reads the file by itself, and compares nothing.
  detail::reading(detail::aot_inductor_file, source, [&] { stated.archive->require_intact(); });
  const c10::AutoGradMode no_gradients(false);
  return detail::loading(stated.compiled, source, [&] {
    const at::Device device = detail::with_index(options.device);
    detail::CompiledNetwork compiled(std::make_shared<detail::CompiledModels>(path, stated.batch, device), stated.info,
                                     stated.batch, stated.compiled.dtype, device);
    Network network(std::move(compiled), std::move(stated.info), options.device);
    NetworkInfo const& info = network.info();
    std::vector<std::int64_t> sizes = info.shape;
    if (info.learned_variance) sizes[0] *= 2;
    sizes.insert(sizes.begin(), stated.batch.smallest());
    const at::Tensor output = detail::run_on_zeros(network, info, sizes[0], 1);
    if (output.sizes() != at::IntArrayRef(sizes)) {
      throw std::runtime_error("an output of " + detail::shape_text(output.sizes()) + " for " +
                               detail::shape_text(sizes));
    }
    for (const std::int64_t rows : options.warm_up_rows) detail::run_on_zeros(network, info, rows, 1);
    return network;
  });
}

}  // namespace tstitch
