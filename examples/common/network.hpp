/// @file
/// Networks from files of every kind.
#pragma once

#include <tstitch/model/aot_inductor.hpp>
#include <tstitch/model/torchscript.hpp>

#include <string>
#include <vector>

/// The network of a file, which may be of either kind whatever it is called.
/// @throws what loading throws
inline tstitch::Network load_network(std::string const& path, tstitch::TorchScriptOptions const& options) {
  if (!tstitch::is_aot_inductor(path)) return tstitch::load_torchscript(path, options);
  return tstitch::load_aot_inductor(
      path, {.device = options.device, .dtype = options.dtype, .warm_up_rows = options.warm_up_rows});
}

/// Those of one run, in the order of use; what does not fit together is refused before any weights are read.
/// @throws what loading throws
inline std::vector<tstitch::Network> load_networks(std::vector<std::string> const& paths,
                                                   tstitch::TorchScriptOptions const& options) {
  std::vector<tstitch::Network> networks;
  for (std::string const& path : paths) {
    networks.emplace_back([](at::Tensor const& x, at::Tensor const&) { return x; }, tstitch::read_network_info(path));
  }
  tstitch::require_compatible(networks);
  networks.clear();
  for (std::string const& path : paths) networks.push_back(load_network(path, options));
  return networks;
}
