/// @file
/// Which file it is, by its contents.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>

#include "../base/error.hpp"
#include "file.hpp"
#include "metadata.hpp"

namespace tstitch {

/// "9f6c1e0a44d2b37c", another one for a file of other contents. Weights are not read: it follows from the checksums
/// that the archive has of them.
/// @throws std::runtime_error for a file that is none of a network, an autoencoder or a text encoder
inline std::string fingerprint_text(std::string const& path) {
  constexpr detail::FileKind kind{"fingerprint_text", "a TorchScript file or an AOTInductor package"};
  const std::uint64_t value =
      detail::open_network(kind, detail::quoted(path), detail::open_file(kind, path))->fingerprint();
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(value));
  return text;
}

}  // namespace tstitch
