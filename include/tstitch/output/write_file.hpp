/// @file
/// Files that are whole or not there.
#pragma once

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>

namespace tstitch::detail {

/// Writes a whole file or none: under another name first, then renamed.
/// @throws std::runtime_error
inline void write_file(std::string const& path, std::string_view bytes) {
  const std::string part = path + ".part";
  const auto fail = [&](char const* what) {
    const std::string reason = std::strerror(errno);
    std::remove(part.c_str());
    throw std::runtime_error("tstitch::write_file: '" + path + "': " + what + ", got '" + reason + "'");
  };
  std::FILE* const file = std::fopen(part.c_str(), "wb");
  if (!file) fail("must be a place that can be written to");
  const bool written = std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size();
  if (const bool closed = std::fclose(file) == 0; !written || !closed) fail("must fit on the disk");
  if (std::rename(part.c_str(), path.c_str()) != 0) fail("must be a name that can be replaced");
}

}  // namespace tstitch::detail
