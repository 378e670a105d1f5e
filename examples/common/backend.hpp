/// @file
/// How the network of a file is run, by a name on a command line.
#pragma once

#include <tstitch/model/torchscript.hpp>

#include <stdexcept>
#include <string>
#include <vector>

struct Backend {
  char const* name;
  tstitch::Network (*load)(std::string const& path, tstitch::TorchScriptOptions const& options);
};

/// All that there are; another one is another line.
inline std::vector<Backend> const& backends() {
  using Options = tstitch::TorchScriptOptions;
  static const std::vector<Backend> all{
      {"torchscript",
       [](std::string const& path, Options const& options) { return tstitch::load_torchscript(path, options); }},
  };
  return all;
}

inline std::vector<std::string> backend_names() {
  std::vector<std::string> names;
  for (Backend const& each : backends()) names.emplace_back(each.name);
  return names;
}

/// @param backend one of `backend_names`
/// @throws std::invalid_argument for another name; what loading throws
inline tstitch::Network load_network(std::string const& path, std::string const& backend,
                                     tstitch::TorchScriptOptions const& options) {
  std::string known;
  for (Backend const& each : backends()) {
    if (each.name == backend) return each.load(path, options);
    known += (known.empty() ? "" : ", ") + std::string(each.name);
  }
  throw std::invalid_argument("--backend: must be one of " + known + ", got '" + backend + "'");
}
