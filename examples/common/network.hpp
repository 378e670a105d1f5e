/// @file
/// Networks from files of every kind, run in any of the library's ways.
#pragma once

#include <tstitch/model/aot_inductor.hpp>
#include <tstitch/model/dit.hpp>
#include <tstitch/model/torchscript.hpp>
#ifdef TSTITCH_WITH_CUDA
#include <tstitch/model/cuda_graph.hpp>
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
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

/// @param backend one of `backend_names`
/// @throws std::runtime_error when the file is none for this backend; what loading throws
inline tstitch::Network load_network(std::string const& path, tstitch::TorchScriptOptions options,
                                     std::string backend = "auto") {
  const std::vector<std::int64_t> rows = options.warm_up_rows;
  options.warm_up_rows.clear();  // graphs are captured below
  const bool choose = backend == "auto";
  if (choose) {
    backend = tstitch::is_aot_inductor(path)                      ? "aot-inductor"
              : tstitch::is_dit(tstitch::read_network_info(path)) ? "native"
                                                                  : "torchscript";
  }
  const std::size_t plus = backend.find('+');
  const bool graph = plus != std::string::npos || (choose && options.device.is_cuda());
  backend.resize(std::min(plus, backend.size()));
  tstitch::Network network = [&] {
    if (backend == "aot-inductor") {
      return tstitch::load_aot_inductor(path, {.device = options.device, .dtype = options.dtype});
    }
    if (backend == "native") {
      try {
        return tstitch::load_dit(path, options);
      } catch (std::runtime_error const& error) {
        if (!choose) throw;
        std::fprintf(stderr, "%s: is run by TorchScript: %s\n", path.c_str(), error.what());
      }
    }
    if (backend == "native-e4m3") {
      std::vector<double> inputs = tstitch::read_network_info(path).architecture.e4m3_inputs;
      if (inputs.empty()) inputs = tstitch::largest_inputs(path, options);  // the exporter did not look
      return tstitch::load_dit(path, options, {.e4m3_inputs = inputs});
    }
    return tstitch::load_torchscript(path, options);
  }();
  if (graph) {
#ifdef TSTITCH_WITH_CUDA
    network =
        tstitch::captured(network, {.on_fallback = [path](std::string const& reason) {
                            std::fprintf(stderr, "%s: is run without CUDA graphs: %s\n", path.c_str(), reason.c_str());
                          }});
#else
    if (!choose) throw std::runtime_error("--backend: graphs need a CUDA build of torch, got one for the CPU");
#endif
  }
  tstitch::warm_up(network, rows);
  return network;
}

/// Those of one run, in the order of use; what does not fit together is refused before any weights are read.
/// @param backends one for all, or one for each
/// @throws std::invalid_argument for another number of backends; what loading throws
inline std::vector<tstitch::Network> load_networks(std::vector<std::string> const& paths,
                                                   tstitch::TorchScriptOptions const& options,
                                                   std::vector<std::string> const& backends = {"auto"}) {
  if (backends.size() != 1 && backends.size() != paths.size()) {
    throw std::invalid_argument("--backend: must be one, or one for each of the " + std::to_string(paths.size()) +
                                " networks, got " + std::to_string(backends.size()));
  }
  std::vector<tstitch::Network> networks;
  for (std::string const& path : paths) {
    networks.emplace_back([](at::Tensor const& x, at::Tensor const&) { return x; }, tstitch::read_network_info(path));
  }
  tstitch::require_compatible(networks);
  networks.clear();
  for (std::size_t k = 0; k < paths.size(); ++k) {
    networks.push_back(load_network(paths[k], options, backends[backends.size() == 1 ? 0 : k]));
  }
  return networks;
}
