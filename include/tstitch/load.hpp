/// @file
/// One door for networks from files: finds out what a file is, and runs it in the fastest way that keeps its number
/// format, on a GPU where there is one. Opt-in: it costs the compile time of all loaders together (file/torchscript.hpp
/// alone costs half of it).
///
///     const auto networks = tstitch::load_networks({"small.pt", "large.pt"});
///
/// Files are programs: TorchScript files and packages run code that they contain. Load what you trust.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/diagnostics.hpp"
#include "base/text.hpp"
#include "file/aot_inductor.hpp"
#include "file/at_once.hpp"
#include "file/dit.hpp"
#include "file/load_options.hpp"
#include "file/torchscript.hpp"
#include "model/bridge.hpp"
#include "model/one_at_a_time.hpp"
#include "study/calibration.hpp"
#ifdef TSTITCH_WITH_CUDA
#include "engine/cuda_graph.hpp"
#endif

namespace tstitch {

namespace detail {

struct NamedBackend {
  char const* name;
  Backend backend;
};
inline constexpr NamedBackend named_backends[]{{"torchscript", Backend::torchscript},
                                               {"native", Backend::native},
                                               {"native-e4m3", Backend::native_e4m3},
                                               {"aot-inductor", Backend::aot_inductor}};

struct NamedType {
  char const* name;
  at::ScalarType type;
};
inline constexpr NamedType named_types[]{{"float32", at::kFloat}, {"float16", at::kHalf}, {"bfloat16", at::kBFloat16}};

}  // namespace detail

/// The names of backends on command lines: auto, torchscript, native, native-e4m3, aot-inductor, and all but auto with
/// "+graph" behind it, too.
inline std::vector<std::string> const& backend_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all{"auto"};
    for (detail::NamedBackend const& each : detail::named_backends) {
      all.push_back(each.name);
      all.push_back(std::string(each.name) + "+graph");
    }
    return all;
  }();
  return names;
}

/// The same options with the backend of this name: auto with Graphs::automatic, others with Graphs::always where
/// "+graph" is behind the name, else with Graphs::never.
/// @throws std::invalid_argument for a name that there is not
inline LoadOptions with_backend(LoadOptions options, std::string const& name) {
  options.backend = Backend::automatic;
  options.graphs = Graphs::automatic;
  if (name == "auto") return options;
  for (detail::NamedBackend const& each : detail::named_backends) {
    options.backend = each.backend;
    options.graphs = name == each.name ? Graphs::never : Graphs::always;
    if (name == each.name || name == std::string(each.name) + "+graph") return options;
  }
  detail::refuse("with_backend", "the backend must be one of " + detail::joined(backend_names()),
                 detail::in_quotes(name));
}

/// The names of number formats on command lines, auto first.
inline std::vector<std::string> const& dtype_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all{"auto"};
    for (detail::NamedType const& each : detail::named_types) all.push_back(each.name);
    return all;
  }();
  return names;
}

/// The number format of this name; none for auto.
/// @throws std::invalid_argument for a name that there is not
inline std::optional<at::ScalarType> dtype_named(std::string const& name) {
  if (name == "auto") return {};
  for (detail::NamedType const& each : detail::named_types) {
    if (name == each.name) return each.type;
  }
  detail::refuse("dtype_named", "the number format must be one of " + detail::joined(dtype_names()),
                 detail::in_quotes(name));
}

namespace detail {

/// Whether a GPU is to replay what it was asked before.
inline bool wants_graphs(LoadOptions const& options) {
  return options.graphs == Graphs::always || (options.graphs == Graphs::automatic && options.device.is_cuda());
}

/// Warms up as the options say.
template <class Options>
void warm_up_by(Network const& network, Options const& options) {
  warm_up(network, options.warm_up_rows, options.warm_up_sizes, options.warm_up_forecasts);
}

/// A DiT by the library's own engine, warmed up, which load_dit leaves to others.
inline Network load_engine(std::string const& path, TorchScriptOptions const& options, DiTOptions const& how = {}) {
  Network network = load_dit(path, options, how);
  reading(torchscript_file, quoted(path), [&] { warm_up_by(network, options); });
  return network;
}

/// The same.
/// @param or_torchscript where it is none that the engine can run
inline Network load_native(std::string const& path, TorchScriptOptions const& options, bool or_torchscript) {
  try {
    return load_engine(path, options);
  } catch (std::runtime_error const& error) {
    if (!or_torchscript) throw;
    diagnose("load_network", "runs " + quoted(path) + " by TorchScript: " + error.what());
    return load_torchscript(path, options);
  }
}

/// Who reads this file; null where it is one of the library's own loaders.
/// @throws std::invalid_argument for a reader that lacks a function
inline FileReader const* reader_of(std::string const& path, LoadOptions const& options) {
  for (FileReader const& reader : options.readers) {
    if (std::find(reader.backends.begin(), reader.backends.end(), options.backend) == reader.backends.end()) continue;
    if (!reader.reads || !reader.info || !reader.load) {
      refuse("load_network", "a reader must have reads, info and load", "one without");
    }
    if (reader.reads(path)) return &reader;
  }
  return nullptr;
}

}  // namespace detail

/// What load_network would load, without its weights.
/// @throws std::runtime_error naming the file and what is wrong with it
inline NetworkInfo load_network_info(std::string const& path, LoadOptions const& options = {}) {
  if (FileReader const* const reader = detail::reader_of(path, options)) return reader->info(path);
  return is_aot_inductor(path) ? read_network_info(path) : read_network_info(path, options.info);
}

namespace detail {

/// The network as it is before graphs.
inline Network load_plain(std::string const& path, LoadOptions const& options) {
  // Before weights are read, and also where a package leaves nothing open.
  if (!options.warm_up_rows.empty()) closed("load_network", load_network_info(path, options), options.warm_up_sizes);
  if (FileReader const* const reader = reader_of(path, options)) {
    Network network = reader->load(path, options);
    warm_up_by(network, options);
    return network;
  }
  const TorchScriptOptions script{.device = options.device,
                                  .dtype = options.dtype,
                                  .warm_up_rows = options.warm_up_rows,
                                  .warm_up_sizes = options.warm_up_sizes,
                                  .warm_up_forecasts = options.warm_up_forecasts,
                                  .info = options.info};
  const bool choose = options.backend == Backend::automatic;
  Backend backend = options.backend;
  if (choose) {
    backend = is_aot_inductor(path)                                    ? Backend::aot_inductor
              : is_dit(tstitch::read_network_info(path, options.info)) ? Backend::native
                                                                       : Backend::torchscript;
  }
  switch (backend) {
    case Backend::aot_inductor:
      return load_aot_inductor(path, {.device = options.device,
                                      .dtype = options.dtype,
                                      .warm_up_rows = options.warm_up_rows,
                                      .warm_up_forecasts = options.warm_up_forecasts});
    case Backend::native: return load_native(path, script, choose);
    case Backend::native_e4m3: {
      std::vector<double> inputs = tstitch::read_network_info(path, options.info).architecture.e4m3_inputs;
      if (inputs.empty()) inputs = largest_inputs(path, script);  // the exporter did not look
      return load_engine(path, script, {.e4m3_inputs = inputs});
    }
    default: return load_torchscript(path, script);
  }
}

/// Refuses before anything is loaded.
/// @param with_cuda whether the program was built with TSTITCH_WITH_CUDA
inline void require_graphs(LoadOptions const& options, bool with_cuda) {
  if (with_cuda || options.graphs != Graphs::always) return;
  throw std::runtime_error(
      "tstitch::load_network: graphs must have a CUDA build of torch and a program built with "
      "TSTITCH_WITH_CUDA (CMake and pkg-config set it), got one without");
}

}  // namespace detail

// Translation units with and without it have other functions.
#ifdef TSTITCH_WITH_CUDA
inline namespace with_cuda {
inline constexpr bool captures_graphs = true;
#else
inline namespace without_cuda {
inline constexpr bool captures_graphs = false;
#endif

/// The network with graphs where the options want them; they are captured when it is called, here for the rows that are
/// warmed up, later for others.
///
/// While one is captured, another thread must not make the GPU's context wait, and what compiles or loads kernels may.
/// So networks are called first without graphs, which may be at the same time, and then with them, one by one.
/// @throws std::runtime_error for Graphs::always in a program without CUDA
inline Network with_graphs(Network const& plain, LoadOptions const& options) {
  if (!detail::wants_graphs(options)) return plain;
  detail::require_graphs(options, captures_graphs);
  const std::string name = detail::quoted(plain.info().name);
#ifdef TSTITCH_WITH_CUDA
  // What plain calls left to the allocator is no use to graphs, and a capture that runs out of memory cannot free it.
  if (plain.device().is_cuda()) c10::cuda::CUDACachingAllocator::emptyCache();
  Network network = captured(plain, {.on_fallback = [name](std::string const& reason) {
                               detail::diagnose("load_network", "runs " + name + " without graphs: " + reason);
                             }});
  detail::warm_up_by(network, options);
  return network;
#else
  detail::diagnose("load_network", "runs " + name + " without graphs: the program was built without TSTITCH_WITH_CUDA");
  return plain;
#endif
}

/// A network from a file of any kind.
/// @throws std::runtime_error naming the file and what is wrong with it, or that it is none for this backend; and for
/// Graphs::always in a program without CUDA
/// @throws std::invalid_argument where it is to be warmed up and sizes that it leaves open are not given
inline Network load_network(std::string const& path, LoadOptions const& options = {}) {
  if (options.residency != Residency::all) {
    detail::refuse("load_network", "residency is of several networks, which load_networks loads", "one_at_a_time");
  }
  detail::require_graphs(options, captures_graphs);
  return with_graphs(detail::load_plain(path, options), options);
}

/// The networks of one run, in the order of use, loaded at the same time; what does not fit together is refused before
/// any weights are read.
/// @param options for all, or for each
/// @param others what else is to be done at the same time, each in a thread, such as loading a decoder; before the
/// networks where these are one at a time
/// @throws std::invalid_argument for another number of options, and different residencies; as load_network does; what
/// `others` throw
inline std::vector<Network> load_networks(std::vector<std::string> const& paths,
                                          std::vector<LoadOptions> const& options,
                                          std::vector<std::function<void()>> const& others = {}) {
  if (options.size() != 1 && options.size() != paths.size()) {
    detail::refuse("load_networks",
                   "options must be one, or one for each of the " + std::to_string(paths.size()) + " files",
                   std::to_string(options.size()));
  }
  const auto of = [&](std::size_t k) -> LoadOptions const& { return options[options.size() == 1 ? 0 : k]; };
  const auto bridge = [&](std::vector<Network>& all) {
    for (std::size_t k = 0; k + 1 < all.size(); ++k) {
      if (of(k).bridge) all[k] = bridged(all[k], all.back().info());
    }
  };
  std::vector<Network> stated;
  for (std::size_t k = 0; k < paths.size(); ++k) {
    detail::require_graphs(of(k), captures_graphs);
    stated.emplace_back([](at::Tensor const& x, at::Tensor const&) { return x; }, load_network_info(paths[k], of(k)),
                        of(k).device);
  }
  bridge(stated);
  for (LoadOptions const& each : options) {
    if (each.residency == options[0].residency) continue;
    detail::refuse("load_networks", "residency must be the same for all", "all and one_at_a_time");
  }
  require_compatible(stated);
  if (paths.empty() && others.empty()) return {};
  if (!paths.empty() && of(0).residency == Residency::one_at_a_time) {
    if (!others.empty()) at_once(of(0).device, others.size(), [&](std::size_t i) { return others[i](), true; });
    std::vector<NetworkLoader> loaders;
    for (std::size_t k = 0; k < paths.size(); ++k) {
      LoadOptions alone = of(k);
      alone.residency = Residency::all;
      const std::optional<NetworkInfo> like =
          of(k).bridge && k + 1 < paths.size() ? std::optional(stated.back().info()) : std::nullopt;
      loaders.push_back([path = paths[k], alone, like] {
        Network network = load_network(path, alone);
        return like ? bridged(network, *like) : network;
      });
    }
    return one_at_a_time(loaders);
  }
  std::vector<std::optional<Network>> plain(paths.size());
  at_once(options.empty() ? at::Device(at::kCPU) : options[0].device, paths.size() + others.size(), [&](std::size_t k) {
    if (k < paths.size()) {
      plain[k].emplace(detail::load_plain(paths[k], of(k)));
    } else {
      others[k - paths.size()]();
    }
    return true;
  });
  std::vector<Network> networks;
  for (std::size_t k = 0; k < paths.size(); ++k) networks.push_back(with_graphs(*plain[k], of(k)));
  bridge(networks);
  return networks;
}

inline std::vector<Network> load_networks(std::vector<std::string> const& paths, LoadOptions const& options = {}) {
  return load_networks(paths, std::vector<LoadOptions>{options});
}

}  // namespace with_cuda or without_cuda
}  // namespace tstitch
