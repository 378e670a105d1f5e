/// @file
/// Files that are whole or not there.
#pragma once

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

namespace tstitch::detail {

/// Where the bytes of a file go.
struct Destination {
  /// @param path what a link points to is written, and devices and pipes as they are
  explicit Destination(std::string const& path) : file(path) {
    struct stat there = {};
    if (stat(path.c_str(), &there) == 0) {
      is_folder = S_ISDIR(there.st_mode);
      is_replaced = S_ISREG(there.st_mode);
      if (!is_replaced) return;
      mode = there.st_mode & 07777;
      if (char* const resolved = realpath(path.c_str(), nullptr)) {
        file = resolved;
        std::free(resolved);
      }
      return;
    }
    char target[4096];  // of links to what is not there yet
    for (int links = 0; links < 40; ++links) {
      const ssize_t size = readlink(file.c_str(), target, sizeof target);
      if (size <= 0) return;
      file.erase(target[0] == '/' ? 0 : file.rfind('/') + 1).append(target, std::size_t(size));
    }
  }

  std::string file;
  std::optional<mode_t> mode;  ///< of what is there and will be replaced
  bool is_folder = false;
  bool is_replaced = true;  ///< by another file, rather than written to
};

[[noreturn]] inline void fail_to_write(std::string const& path, char const* rule, std::string const& got) {
  throw std::runtime_error("tstitch::write_file: '" + path + "': " + rule + ", got '" + got + "'");
}

inline constexpr char must_be_writable[] = "must be a file that can be written";

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

/// Writes a whole file or none: under a name first that nobody has, path.part or path.part1 and so on, then renamed.
/// @throws std::runtime_error
inline void write_file(std::string const& path, std::string_view bytes) {
  const Destination to(path);
  if (to.is_folder) fail_to_write(path, must_be_writable, "a folder");
  std::string part = to.is_replaced ? to.file + ".part" : to.file;
  std::FILE* file = std::fopen(part.c_str(), to.is_replaced ? "wbx" : "wb");
  for (int taken = 1; !file && errno == EEXIST && taken < 1000; ++taken) {
    part = to.file + ".part" + std::to_string(taken);
    file = std::fopen(part.c_str(), "wbx");
  }
  if (!file) fail_to_write(path, must_be_writable, std::strerror(errno));
  const auto fail = [&](char const* rule) {
    const std::string reason = std::strerror(errno);
    if (to.is_replaced) std::remove(part.c_str());
    fail_to_write(path, rule, reason);
  };
  if (to.mode) fchmod(fileno(file), *to.mode);
  const bool written = std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size();
  if (const bool closed = std::fclose(file) == 0; !written || !closed) fail("must fit on the disk");
  if (to.is_replaced && std::rename(part.c_str(), to.file.c_str()) != 0) fail("must be a name that can be replaced");
}

}  // namespace tstitch::detail
