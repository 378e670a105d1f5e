/// @file
/// Files that are whole or not there.
#pragma once

#include <sys/stat.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>

namespace tstitch::detail {

/// Writes a whole file or none: under another name first, then renamed. What a link points to is written, and devices
/// and pipes as they are.
/// @throws std::runtime_error
inline void write_file(std::string const& path, std::string_view bytes) {
  struct stat there = {};
  const bool exists = stat(path.c_str(), &there) == 0;
  std::string target = path;
  if (char* const resolved = exists ? realpath(path.c_str(), nullptr) : nullptr) {
    target = resolved;
    std::free(resolved);
  }
  const bool renames = !exists || S_ISREG(there.st_mode) || S_ISDIR(there.st_mode);
  const std::string part = renames ? target + ".part" : target;
  const auto fail = [&](char const* what) {
    const std::string reason = std::strerror(errno);
    if (renames) std::remove(part.c_str());
    throw std::runtime_error("tstitch::write_file: '" + path + "': " + what + ", got '" + reason + "'");
  };
  std::FILE* const file = std::fopen(part.c_str(), "wb");
  if (!file) fail("must be a place that can be written to");
  const bool written = std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size();
  if (const bool closed = std::fclose(file) == 0; !written || !closed) fail("must fit on the disk");
  if (renames && std::rename(part.c_str(), target.c_str()) != 0) fail("must be a name that can be replaced");
}

}  // namespace tstitch::detail
