/// @file
/// Networks from TorchScript files. Opt-in: it costs six seconds of compile time where the rest costs two.
///
/// What a network is travels inside the file: metadata.hpp lists the keys.
///
/// Files are not frozen, and parameters keep their names, so that other engines can take the weights from the same
/// file; freezing happens here.
///
/// TorchScript is a program: loading a file and calling its network run code of the file, which can read and write
/// other files. Load what you trust. What can be checked is checked before torch, which believes files, reads one: that
/// it is regular, that records have the checksums and sizes that the archive and its pickles say, that tensors lie in
/// them, and that nothing is nested too deeply.
#pragma once

#include <c10/core/GradMode.h>
#include <caffe2/serialize/istream_adapter.h>
#include <caffe2/serialize/read_adapter_interface.h>
#include <torch/csrc/jit/api/module.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <istream>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../base/diagnostics.hpp"
#include "../base/error.hpp"
#include "../model/autoencoder.hpp"
#include "../model/network.hpp"
#include "../model/split_network.hpp"
#include "../tensor/cuda/kernels.hpp"
#include "archive.hpp"
#include "at_once.hpp"
#include "file.hpp"
#include "loading.hpp"
#include "metadata.hpp"
#include "parallel_file.hpp"
#include "stored_module.hpp"

namespace tstitch {

struct TorchScriptOptions {
  at::Device device = at::kCPU;
  /// float32, float16 or bfloat16. Not stated: float32 on the CPU, the file's own type elsewhere.
  std::optional<at::ScalarType> dtype = {};
  /// Batch sizes to run before the network is handed out: the first runs of each are slow, because TorchScript compiles
  /// then. Guidance doubles the rows of a batch. On a GPU other batch sizes are warmed up when they first come.
  std::vector<std::int64_t> warm_up_rows = {};
  /// Sizes that the network leaves open, which warming up must know.
  InputSizes warm_up_sizes = {};
  bool warm_up_forecasts = false;  ///< whether forecast steps are warmed up too, where the network can forecast
  /// What the network is, for files without metadata; files that have it are believed instead.
  std::optional<NetworkInfo> info = {};
};

namespace detail {

inline constexpr FileKind torchscript_file{"load_torchscript", "a TorchScript file"};

/// Runs a network of a new shape twice before its first result counts.
///
/// On a GPU TorchScript's first two runs of a shape, profiled and half optimised, round differently from all later
/// ones. Without this a picture has other last bits when it is the first to be drawn.
class WarmUp {
 public:
  template <class Run>
  void before(std::vector<at::Tensor> const& arguments, Run run) {
    std::vector<std::vector<std::int64_t>> shapes;
    for (at::Tensor const& each : arguments) shapes.push_back(each.sizes().vec());
    const std::lock_guard lock(mutex_);
    if (known_.contains(shapes)) return;
    run();
    run();
    known_.insert(std::move(shapes));
  }

 private:
  std::mutex mutex_;
  std::set<std::vector<std::vector<std::int64_t>>> known_;
};

/// Reads all tensors of a module: parameters and buffers to a device, those of real numbers in the type where one is
/// given. TorchScript's own `to` rounds whole numbers and truth values, too, and takes from complex numbers what is
/// imaginary.
inline void move(StoredModule& stored, at::Device device, std::optional<at::ScalarType> type) {
  const auto move_one = [&](at::Tensor const& tensor) {
    const at::Tensor numbers = stored.onto(device, tensor).detach();
    stored.set(tensor, type && tensor.is_floating_point() ? numbers.to(*type) : numbers);
  };
  for (at::Tensor const& parameter : stored.module().parameters()) move_one(parameter);
  for (at::Tensor const& buffer : stored.module().buffers()) move_one(buffer);
  stored.read_all();
}

inline at::ScalarType type_of(torch::jit::Module const& module, TorchScriptOptions const& options) {
  const at::ScalarType type = options.dtype.value_or(at::kFloat);
  require_type("load_torchscript", type);
  if (options.dtype || options.device.is_cpu()) return type;
  for (at::Tensor const& parameter : module.parameters()) {
    if (!parameter.is_floating_point()) continue;
    require_type("load_torchscript", parameter.scalar_type());
    return parameter.scalar_type();
  }
  return type;
}

/// @param file how messages call it: `source`
/// @throws std::runtime_error for what is no TorchScript
inline std::shared_ptr<Archive> open_torchscript(std::string const& source,
                                                 std::shared_ptr<caffe2::serialize::ReadAdapterInterface> const& file) {
  const auto archive = open_network(torchscript_file, source, file);
  if (is_package(*archive)) refuse_file(torchscript_file, source, "a package of torch.export (see aot_inductor.hpp)");
  return archive;
}

/// The methods of a network that can be asked in parts (see SplitNetwork): embed takes what forward takes and returns a
/// list of tensors, blocks takes that list, and head the list and what blocks returned.
inline constexpr std::array<char const*, 3> part_names{"forecast_embed", "forecast_blocks", "forecast_head"};

/// Freezing computes what is constant ahead, in which tensors of other types than the module was traced with can fail
/// although its calls do not.
/// @param in_parts whether it has methods beside forward
inline std::shared_ptr<torch::jit::Module> frozen(torch::jit::Module const& module, std::string const& source,
                                                  bool in_parts = false) {
  try {
    const std::vector<std::string> kept(part_names.begin(), in_parts ? part_names.end() : part_names.begin());
    return std::make_shared<torch::jit::Module>(torch::jit::freeze(module, kept));
  } catch (std::exception const& error) {
    diagnose("load_torchscript", source + " runs as it is, because it cannot be frozen: " + reason(error));
    return std::make_shared<torch::jit::Module>(module);
  }
}

/// Whether it has them.
/// @throws std::runtime_error for some of them, or in another form
inline bool has_parts(torch::jit::Module const& module, std::size_t arguments, std::string const& source) {
  const std::array<std::size_t, 3> wanted{arguments, 1, 2};
  const auto fail = [&](std::string const& rule, std::string const& got) {
    throw std::runtime_error("tstitch::load_torchscript: " + source + ": " + rule + ", got " + got);
  };
  std::size_t found = 0;
  for (std::size_t k = 0; k < part_names.size(); ++k) {
    const auto method = module.find_method(part_names[k]);
    if (!method) continue;
    ++found;
    const std::string name = part_names[k];
    if (method->num_inputs() != wanted[k] + 1) {  // one more for the module itself
      fail(name + " must take " + std::to_string(wanted[k]) + " arguments", std::to_string(method->num_inputs() - 1));
    }
    auto const& returns = method->function().getSchema().returns();
    const std::string type =
        returns.size() == 1 ? returns[0].type()->str() : std::to_string(returns.size()) + " values";
    const std::string made = k == 0 ? "Tensor[]" : "Tensor";
    if (type != made) fail(name + " must return " + (k == 0 ? "List[Tensor]" : made), type);
  }
  if (found != 0 && found != part_names.size()) {
    fail("must have all of forecast_embed, forecast_blocks and forecast_head, or none", std::to_string(found));
  }
  return found != 0;
}

/// A module as a callable for Network.
struct ScriptedNetwork {
  std::shared_ptr<torch::jit::Module> module;
  at::ScalarType type;
  std::shared_ptr<WarmUp> warm_up;
  Signature signature;

  at::Tensor operator()(at::Tensor const& x, at::Tensor const& t, Condition const& condition) const {
    const std::vector<at::Tensor> tensors = signature.arguments(x, t, condition, type);
    const std::vector<c10::IValue> arguments(tensors.begin(), tensors.end());
    if (warm_up) warm_up->before(tensors, [&] { module->forward(arguments); });
    return module->forward(arguments).toTensor();
  }

  SplitNetwork parts(bool residual) const {
    // Each part is compiled by itself, and so warms up by itself.
    std::array<std::shared_ptr<WarmUp>, 3> each;
    for (auto& one : each) one = warm_up ? std::make_shared<WarmUp>() : nullptr;
    const auto run = [module = module, each](std::size_t part, std::vector<at::Tensor> const& first,
                                             std::vector<c10::IValue> arguments) {
      torch::jit::Method method = module->get_method(part_names[part]);
      if (each[part]) {
        each[part]->before(first, [&] {
          std::vector<c10::IValue> copies;  // which it may change in place
          for (c10::IValue const& argument : arguments) copies.push_back(argument.deepcopy());
          method(std::move(copies));
        });
      }
      return method(std::move(arguments));
    };
    SplitNetwork parts;
    parts.embed = [run, self = *this](at::Tensor const& x, at::Tensor const& t, Condition const& condition) {
      const std::vector<at::Tensor> tensors = self.signature.arguments(x, t, condition, self.type);
      return run(0, tensors, {tensors.begin(), tensors.end()}).toTensorVector();
    };
    parts.blocks = [run](std::vector<at::Tensor> const& embedded) { return run(1, embedded, {embedded}).toTensor(); };
    parts.head = [run](std::vector<at::Tensor> const& embedded, at::Tensor const& feature) {
      return run(2, embedded, {embedded, feature}).toTensor();
    };
    parts.residual = residual;
    parts.whole = *this;
    return parts;
  }
};

inline Network make_network(StoredModule stored, NetworkInfo info, TorchScriptOptions const& options,
                            std::string const& source) {
  const c10::AutoGradMode no_gradients(false);
  torch::jit::Module module = stored.module();
  const at::ScalarType type = type_of(module, options);
  const Signature signature(info);
  const auto forward = module.find_method("forward");
  if (!forward || forward->num_inputs() != signature.count() + 1) {  // one more for the module itself
    throw std::runtime_error("tstitch::load_torchscript: " + source + ": forward must take " + signature.text() +
                             ", got " +
                             (forward ? std::to_string(forward->num_inputs() - 1) + " arguments" : "no forward"));
  }
  const bool in_parts = has_parts(module, signature.count(), source), residual = info.forecasts_residual;
  if (!in_parts && !residual) {
    throw std::runtime_error("tstitch::load_torchscript: " + source +
                             ": tstitch/forecast must be left out of files without forecast_embed, got 'feature'");
  }
  module.eval();
  move(stored, options.device, type);
  const auto warm_up = options.device.is_cpu() ? nullptr : std::make_shared<WarmUp>();
  const ScriptedNetwork scripted{frozen(module, source, in_parts), type, warm_up, signature};
  const Network network = in_parts ? Network(scripted.parts(residual), std::move(info), options.device)
                                   : Network(scripted, std::move(info), options.device);
  if (options.warm_up_rows.empty()) return network;
  const NetworkInfo closed_info = closed("load_torchscript", network.info(), options.warm_up_sizes);
  // TorchScript has settled after three runs, two of which WarmUp makes.
  for (const std::int64_t rows : options.warm_up_rows) {
    run_on_zeros(network, closed_info, rows, warm_up ? 1 : 3, options.warm_up_forecasts);
  }
  return network;
}

inline Network load_torchscript(std::shared_ptr<caffe2::serialize::ReadAdapterInterface> const& file,
                                TorchScriptOptions const& options, std::string const& source) {
  require_device(options.device);
  return reading(torchscript_file, source, [&] {
    const auto archive = open_torchscript(source, file);
    NetworkInfo info = read_network_info(*archive, source, options.info);
    return make_network(StoredModule(archive), std::move(info), options, source);
  });
}

}  // namespace detail

/// Loads a network, freezes it, and warms it up. One that cannot be frozen runs as it is, which diagnostics() says.
///
/// Runs code of the file, so load what you trust.
/// @throws std::runtime_error naming the file and what is wrong with it; std::invalid_argument where it is to be warmed
/// up and sizes that it leaves open are not given
inline Network load_torchscript(std::string const& path, TorchScriptOptions const& options = {}) {
  return detail::load_torchscript(detail::open_file(detail::torchscript_file, path), options, detail::quoted(path));
}

/// The same from a seekable stream that holds nothing but the file.
inline Network load_torchscript(std::istream& stream, TorchScriptOptions const& options = {}) {
  return detail::reading(detail::torchscript_file, "the stream", [&] {
    return detail::load_torchscript(std::make_shared<caffe2::serialize::IStreamAdapter>(&stream), options,
                                    "the stream");
  });
}

/// The module of a TorchScript file as it is: on the host, not frozen, in the types that it has. For looking into it.
///
/// Runs code of the file, so load what you trust.
/// @throws std::runtime_error naming the file and what is wrong with it
inline torch::jit::Module load_torchscript_module(std::string const& path) {
  const auto file = detail::open_file(detail::torchscript_file, path);
  const std::string source = detail::quoted(path);
  return detail::reading(detail::torchscript_file, source, [&] {
    detail::StoredModule stored(detail::open_torchscript(source, file));
    stored.read_all();
    return stored.module();
  });
}

/// Loads the networks of one run, in the order of use, and refuses those that do not fit together before any weights
/// are read. They load at the same time, each in a thread, so that the host needs memory for all files at once where
/// they stay there.
/// @throws std::runtime_error naming every mismatch; what load_torchscript throws for the first that fails, in order
inline std::vector<Network> load_torchscript_networks(std::vector<std::string> const& paths,
                                                      TorchScriptOptions const& options = {}) {
  if (!options.info) {
    std::vector<Network> stated;
    for (std::string const& path : paths) {
      stated.emplace_back([](at::Tensor const& x, at::Tensor const&) { return x; }, read_network_info(path));
    }
    require_compatible(stated);
  }
  std::vector<Network> networks =
      at_once(options.device, paths.size(), [&](std::size_t k) { return load_torchscript(paths[k], options); });
  require_compatible(networks);
  return networks;
}

namespace detail {

/// One half of an autoencoder, ready to run.
inline Autoencoder load_autoencoder(std::string const& path, std::string const& kind,
                                    TorchScriptOptions const& options) {
  const auto file = open_file(torchscript_file, path);
  const std::string source = quoted(path);
  require_device(options.device);
  return reading(torchscript_file, source, [&] {
    const auto archive = open_torchscript(source, file);
    AutoencoderInfo info = read_autoencoder_info(MetadataReader(*archive, source), kind);
    StoredModule stored(archive);
    torch::jit::Module module = stored.module();
    const c10::AutoGradMode no_gradients(false);
    const at::ScalarType type = type_of(module, options);
    const auto forward = module.find_method("forward");
    if (!forward || forward->num_inputs() != 2) {
      throw std::runtime_error("tstitch::load_torchscript: " + source + ": forward must take one tensor, got " +
                               (forward ? std::to_string(forward->num_inputs() - 1) + " arguments" : "no forward"));
    }
    module.eval();
    move(stored, options.device, type);
    const auto ready = frozen(module, source);
    return Autoencoder{[ready, type](at::Tensor const& x) { return ready->forward({x.to(type)}).toTensor(); },
                       std::move(info), options.device};
  });
}

}  // namespace detail

/// Loads the decoder of an autoencoder: latents to pictures. Runs code of the file, so load what you trust.
/// @throws std::runtime_error naming the file and what is wrong with it
inline Decoder load_decoder(std::string const& path, TorchScriptOptions const& options = {}) {
  return Decoder(detail::load_autoencoder(path, "decoder", options));
}

/// Loads the encoder of an autoencoder: pictures to latents. Runs code of the file, so load what you trust.
/// @throws std::runtime_error naming the file and what is wrong with it
inline Encoder load_encoder(std::string const& path, TorchScriptOptions const& options = {}) {
  return Encoder(detail::load_autoencoder(path, "encoder", options));
}

}  // namespace tstitch
