/// @file
/// Networks by the words of a command line.
#pragma once

#include <tstitch/file/safetensors.hpp>
#include <tstitch/load.hpp>

#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

/// All kinds of files that programs here read.
inline std::vector<tstitch::FileReader> readers() {
  return {tstitch::safetensors_reader()};
}

/// What a network's file says of itself.
inline tstitch::NetworkInfo load_network_info(std::string const& path) {
  return tstitch::load_network_info(path, {.readers = readers()});
}

/// The networks of one run.
/// @param backends one for all, or one for each, of tstitch::backend_names
/// @param others is done at the same time, as in tstitch::load_networks
/// @throws std::invalid_argument for another number of backends; what loading throws
inline std::vector<tstitch::Network> load_networks(std::vector<std::string> const& paths, tstitch::LoadOptions options,
                                                   std::vector<std::string> const& backends,
                                                   std::vector<std::function<void()>> const& others = {}) {
  if (backends.size() != 1 && backends.size() != paths.size()) {
    throw std::invalid_argument("--backend: must be one, or one for each of the " + std::to_string(paths.size()) +
                                " networks, got " + std::to_string(backends.size()));
  }
  options.readers = readers();
  std::vector<tstitch::LoadOptions> each;
  for (std::string const& backend : backends) each.push_back(tstitch::with_backend(options, backend));
  return tstitch::load_networks(paths, each, others);
}
