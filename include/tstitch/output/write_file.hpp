/// @file
/// Files that are whole or not there.
#pragma once

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>

namespace tstitch::detail {

/// Where the bytes of a file go.
struct Destination {
  /// @param path what a link points to is written, and devices and pipes as they are
  explicit Destination(std::string const& path) : file(path) {
    struct stat there = {};
    if (stat(path.c_str(), &there) != 0) return;
    is_folder = S_ISDIR(there.st_mode);
    is_replaced = S_ISREG(there.st_mode);
    if (char* const resolved = realpath(path.c_str(), nullptr)) {
      file = resolved;
      std::free(resolved);
    }
  }

  std::string file;
  bool is_folder = false;
  bool is_replaced = true;  ///< by another file, rather than written to
};

[[noreturn]] inline void fail_to_write(std::string const& path, char const* rule, std::string const& got) {
  throw std::runtime_error("tstitch::write_file: '" + path + "': " + rule + ", got '" + got + "'");
}

constexpr char must_be_writable[] = "must be a file that can be written";

/// What write_file would say of this place, before the work whose result it is to take. Leaves it as it is.
/// @throws std::runtime_error
inline void require_writable(std::string const& path) {
  const Destination to(path);
  if (to.is_folder) fail_to_write(path, must_be_writable, "a folder");
  if (!to.is_replaced) {
    if (access(to.file.c_str(), W_OK) != 0) fail_to_write(path, must_be_writable, std::strerror(errno));
    return;
  }
  std::string probe = to.file + ".XXXXXX";  // a name that nobody has
  const int opened = mkstemp(probe.data());
  if (opened < 0) fail_to_write(path, must_be_writable, std::strerror(errno));
  close(opened);
  unlink(probe.c_str());
}

/// Writes a whole file or none: under another name first (path.part), then renamed.
/// @throws std::runtime_error
inline void write_file(std::string const& path, std::string_view bytes) {
  const Destination to(path);
  if (to.is_folder) fail_to_write(path, must_be_writable, "a folder");
  const std::string part = to.is_replaced ? to.file + ".part" : to.file;
  const auto fail = [&](char const* rule) {
    const std::string reason = std::strerror(errno);
    if (to.is_replaced) std::remove(part.c_str());
    fail_to_write(path, rule, reason);
  };
  std::FILE* const file = std::fopen(part.c_str(), "wb");
  if (!file) fail(must_be_writable);
  const bool written = std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size();
  if (const bool closed = std::fclose(file) == 0; !written || !closed) fail("must fit on the disk");
  if (to.is_replaced && std::rename(part.c_str(), to.file.c_str()) != 0) fail("must be a name that can be replaced");
}

}  // namespace tstitch::detail
