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
/// A package whose network can be asked in parts, for forecasts, holds beside each of these models three more, with
/// "forecast_embed_", "forecast_blocks_" and "forecast_head_" before its name: "forecast_embed_model". They do what the
/// methods of these names in TorchScript files do (SplitNetwork), with lists of tensors as that many inputs and
/// outputs, all of which are [n, ...]. Their weights are those of the first model, too. Of any of them all must be
/// there.
///
/// Loading runs code of the file, so load what you trust. It is unpacked into a folder of its own in /tmp, which must
/// allow programs to run and is removed with the last copy of the network.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "../model/network.hpp"
#include "../tensor/cuda/driver.hpp"
#include "../tensor/cuda/kernels.hpp"
#include "../tensor/host_tensor.hpp"
#include "../tensor/processor.hpp"
#include "archive.hpp"
#include "compiled_for.hpp"
#include "compiled_network.hpp"
#include "file.hpp"
#include "loading.hpp"
#include "metadata.hpp"
#include "parallel_file.hpp"

namespace tstitch {

struct AOTInductorOptions {
  at::Device device = at::kCPU;
  /// What the package is to compute in, which is settled when it is compiled. Not stated: whatever it is.
  std::optional<at::ScalarType> dtype = {};
  /// Batch sizes that will come, which the package must have been compiled for, and that are run once before the
  /// network is handed out. Guidance doubles the rows of a batch.
  std::vector<std::int64_t> warm_up_rows = {};
  bool warm_up_forecasts = false;  ///< whether forecast steps are run too, where the package is in parts
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
  if (!compiled.cpu_capability.empty() && !runs_code_of(cpu_capability(), compiled.cpu_capability)) {
    must_be_for("processors with " + cpu_capability(), compiled.cpu_capability);
  }
}

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
    bool in_parts;
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
    CompiledFor compiled = detail::read_compiled_for(metadata);
    detail::BatchSizes batch = detail::read_batch_sizes(metadata);
    const bool in_parts = detail::has_parts(*archive, batch, source);
    if (!in_parts && !info.forecasts_residual) {
      metadata.fail("forecast", "must be left out of packages without parts", "'feature'");
    }
    return Stated{std::move(info), std::move(compiled), std::move(batch), in_parts, archive};
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
    const auto models = std::make_shared<detail::CompiledModels>(
        path, stated.in_parts ? stated.batch.names_in_parts() : stated.batch.model_names(), device);
    const detail::CompiledNetwork compiled(models, stated.info, stated.batch, stated.compiled.dtype, device);
    const Network network =
        detail::run_once(compiled, stated.in_parts, std::move(stated.info), options.device, stated.batch.smallest());
    NetworkInfo const& info = network.info();
    for (const std::int64_t rows : options.warm_up_rows) {
      detail::run_on_zeros(network, info, rows, 1, options.warm_up_forecasts);
    }
    return network;
  });
}

}  // namespace tstitch
