/// @file
/// The bundled networks.
#pragma once

#include <filesystem>
#include <string>
#include <system_error>

/// A file of the bundled networks: in the folder that was installed with the program, else in the one it was built
/// from.
inline std::string bundled(std::string const& name) {
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  const std::filesystem::path installed = (program.parent_path() / TSTITCH_INSTALLED_MODELS / name).lexically_normal();
  return !error && std::filesystem::exists(installed, error) ? installed.string() : TSTITCH_MODELS "/" + name;
}

inline std::string bundled_small() {
  return bundled("cifar10_dit_small.pt");
}
inline std::string bundled_large() {
  return bundled("cifar10_dit_large.pt");
}
