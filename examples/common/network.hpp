/// @file
/// Networks from files of every kind, run in any of the library's ways.
#pragma once

#include <tstitch/base/diagnostics.hpp>
#include <tstitch/engine/dit.hpp>
#include <tstitch/file/aot_inductor.hpp>
#include <tstitch/file/at_once.hpp>
#include <tstitch/file/torchscript.hpp>
#ifdef TSTITCH_WITH_CUDA
#include <tstitch/engine/cuda_graph.hpp>
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

/// How networks are run, by names on a command line. With "+graph" behind, a GPU replays what it was asked before.
///
///     torchscript   as the file says
///     native        a DiT by the library's own engine
///     native-e4m3   the same with the layers of its blocks in 8 bits
///     aot-inductor  as it was compiled (the file is a package)
///     auto          aot-inductor for packages, native for DiTs, else torchscript; on a GPU with graphs
inline std::vector<std::string> const& backend_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all{"auto"};
    for (char const* const name : {"torchscript", "native", "native-e4m3", "aot-inductor"}) {
      all.push_back(name);
      all.push_back(std::string(name) + "+graph");
    }
    return all;
  }();
  return names;
}

/// Whether a GPU is to replay what it was asked before.
/// @param backend one of `backend_names`
inline bool has_graphs(std::string const& backend, at::Device device) {
  return backend.find('+') != std::string::npos || (backend == "auto" && device.is_cuda());
}

/// The network as it is before graphs.
/// @param backend one of `backend_names`
/// @throws std::runtime_error when the file is none for this backend; what loading throws
inline tstitch::Network load_plain_network(std::string const& path, tstitch::TorchScriptOptions options,
                                           std::string backend) {
  const std::vector<std::int64_t> rows = options.warm_up_rows;
  options.warm_up_rows.clear();
  const bool choose = backend == "auto";
  if (choose) {
    backend = tstitch::is_aot_inductor(path)                      ? "aot-inductor"
              : tstitch::is_dit(tstitch::read_network_info(path)) ? "native"
                                                                  : "torchscript";
  }
  backend.resize(std::min(backend.find('+'), backend.size()));
  const tstitch::Network network = [&] {
    if (backend == "aot-inductor") {
      return tstitch::load_aot_inductor(path, {.device = options.device, .dtype = options.dtype});
    }
    if (backend == "native") {
      try {
        return tstitch::load_dit(path, options);
      } catch (std::runtime_error const& error) {
        if (!choose) throw;
        tstitch::detail::diagnose("load_network", "runs '" + path + "' by TorchScript: " + error.what());
      }
    }
    if (backend == "native-e4m3") {
      std::vector<double> inputs = tstitch::read_network_info(path).architecture.e4m3_inputs;
      if (inputs.empty()) inputs = tstitch::largest_inputs(path, options);  // the exporter did not look
      return tstitch::load_dit(path, options, {.e4m3_inputs = inputs});
    }
    return tstitch::load_torchscript(path, options);
  }();
  tstitch::warm_up(network, rows);
  return network;
}

/// The network with graphs, which are captured when it is called; here for so many rows, later for others.
///
/// While one is captured, another thread must not make the GPU's context wait, and what compiles or loads kernels may.
/// So plain networks are called first, which may be at the same time, and those with graphs after that, one by one.
/// @throws std::runtime_error without a CUDA build of torch, where the backend names graphs
inline tstitch::Network with_graphs(tstitch::Network const& plain, [[maybe_unused]] std::string const& path,
                                    std::string const& backend,
                                    [[maybe_unused]] std::vector<std::int64_t> const& warm_up_rows = {}) {
  if (!has_graphs(backend, plain.device())) return plain;
#ifdef TSTITCH_WITH_CUDA
  // What plain calls left to the allocator is no use to graphs, and a capture that runs out of memory cannot free it.
  if (plain.device().is_cuda()) c10::cuda::CUDACachingAllocator::emptyCache();
  const tstitch::Network network =
      tstitch::captured(plain, {.on_fallback = [path](std::string const& reason) {
                          tstitch::detail::diagnose("load_network", "runs '" + path + "' without graphs: " + reason);
                        }});
  tstitch::warm_up(network, warm_up_rows);
  return network;
#else
  if (backend != "auto") throw std::runtime_error("--backend: graphs need a CUDA build of torch, got one for the CPU");
  return plain;
#endif
}

/// @param backend one of `backend_names`
/// @throws std::runtime_error when the file is none for this backend; what loading throws
inline tstitch::Network load_network(std::string const& path, tstitch::TorchScriptOptions const& options,
                                     std::string const& backend = "auto") {
  return with_graphs(load_plain_network(path, options, backend), path, backend, options.warm_up_rows);
}

/// Those of one run before graphs, in the order of use, loaded at the same time; what does not fit together is refused
/// before any weights are read.
/// @param backends one for all, or one for each
/// @throws std::invalid_argument for another number of backends; what loading throws
inline std::vector<tstitch::Network> load_plain_networks(std::vector<std::string> const& paths,
                                                         tstitch::TorchScriptOptions const& options,
                                                         std::vector<std::string> const& backends) {
  if (backends.size() != 1 && backends.size() != paths.size()) {
    throw std::invalid_argument("--backend: must be one, or one for each of the " + std::to_string(paths.size()) +
                                " networks, got " + std::to_string(backends.size()));
  }
  std::vector<tstitch::Network> stated;
  for (std::string const& path : paths) {
    stated.emplace_back([](at::Tensor const& x, at::Tensor const&) { return x; }, tstitch::read_network_info(path));
  }
  tstitch::require_compatible(stated);
  return tstitch::detail::at_once(options.device, paths.size(), [&](std::size_t k) {
    return load_plain_network(paths[k], options, backends[backends.size() == 1 ? 0 : k]);
  });
}

/// Those of one run with graphs; see `with_graphs` and `load_plain_networks`.
inline std::vector<tstitch::Network> load_networks(std::vector<std::string> const& paths,
                                                   tstitch::TorchScriptOptions const& options,
                                                   std::vector<std::string> const& backends = {"auto"}) {
  std::vector<tstitch::Network> networks = load_plain_networks(paths, options, backends);
  for (std::size_t k = 0; k < networks.size(); ++k) {
    std::string const& backend = backends[backends.size() == 1 ? 0 : k];
    networks[k] = with_graphs(networks[k], paths[k], backend, options.warm_up_rows);
  }
  return networks;
}
