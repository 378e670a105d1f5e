/// @file
/// Which file it is, by its contents.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

#include "../base/digest.hpp"
#include "../base/error.hpp"
#include "archive.hpp"
#include "file.hpp"
#include "metadata.hpp"
#include "network_description.hpp"
#include "parallel_file.hpp"

namespace tstitch {
namespace detail {

inline constexpr FileKind fingerprint_kind{
    "fingerprint_text",
    "a TorchScript file, an AOTInductor package, a .safetensors file or a description of a network"};

/// Of weights in a .safetensors file: its size, its header, and 64 pieces of 4 KiB of the numbers, the first, the last
/// and 62 at even distances between.
inline void add_weights(FileFingerprint& fingerprint, std::string const& path) {
  constexpr std::uint64_t prefix = 8, piece = 4096, pieces = 64;
  const ParallelFile file(fingerprint_kind, path);
  reading(fingerprint_kind, quoted(path), [&] {
    unsigned char bytes[prefix] = {};
    file.read(0, bytes, prefix);
    std::uint64_t header = 0;
    for (std::size_t k = prefix; k-- > 0;) header = header << 8 | bytes[k];
    if (file.size() < prefix || header > 100'000'000 || header > file.size() - prefix) {
      refuse_file(fingerprint_kind, quoted(path), "another one");
    }
    std::string read(std::size_t(prefix + header), '\0');
    file.read(0, read.data(), read.size());
    fingerprint.add(file.size());
    fingerprint.add(crc32_of(read.data(), read.size()));
    const std::uint64_t begin = prefix + header, numbers = file.size() - begin;
    read.resize(std::size_t(std::min(numbers, piece * pieces)));
    if (numbers <= read.size()) {
      file.read(begin, read.data(), read.size());
    } else {
      for (std::uint64_t k = 0; k < pieces; ++k) {
        file.read(begin + k * (numbers - piece) / (pieces - 1), read.data() + k * piece, piece);
      }
    }
    fingerprint.add(crc32_of(read.data(), read.size()));
  });
}

}  // namespace detail

/// "9f6c1e0a44d2b37c", another one for a file of other contents. Of a TorchScript file and a package the weights are
/// not read: it follows from the checksums that the archive has of them.
///
/// Of a description of a network it follows from the text but for where the weights lie, and of each file of weights,
/// as of a .safetensors file alone, from its size, its header and samples of its numbers. So it notices other names,
/// shapes and types, and weights that were trained further; not a few numbers that were changed by hand.
/// @throws std::runtime_error for a file that is none of a network, an autoencoder or a text encoder, and for a
/// description that names an index or a folder
inline std::string fingerprint_text(std::string const& path) {
  using namespace detail;
  std::uint64_t value = 0;
  if (is_network_description(path)) {
    const NetworkDescription description = read_network_description(path);
    std::string const& text = description.without_weights;
    FileFingerprint fingerprint;
    fingerprint.add(crc32_of(text.data(), text.size()));
    fingerprint.add(text.size());
    for (std::string const& file : description.weights) add_weights(fingerprint, file);
    value = fingerprint.value();
  } else if (path.ends_with(".safetensors")) {
    FileFingerprint fingerprint;
    add_weights(fingerprint, path);
    value = fingerprint.value();
  } else {
    value = open_network(fingerprint_kind, quoted(path), open_file(fingerprint_kind, path))->fingerprint();
  }
  return hexadecimal(value);
}

}  // namespace tstitch
