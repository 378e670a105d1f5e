/// @file
/// Files that are whole or not there.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

#include "error.hpp"

namespace tstitch {
namespace detail {

[[noreturn]] inline void fail_to_write(std::string const& path, char const* rule, std::string const& got) {
  throw std::runtime_error("tstitch::write_file: '" + printable(path, 1000) + "': " + rule + ", got '" + got + "'");
}

inline constexpr char must_be_writable[] = "must be a file that can be written";
inline constexpr char must_fit[] = "must fit on the disk";

/// Where the bytes of a file go.
struct Destination {
  /// @param path what a link points to is written, and devices and pipes as they are
  /// @throws std::runtime_error for a folder, and for what the system does not say what it is
  explicit Destination(std::string const& path) : file(path) {
    struct stat there = {};
    if (stat(path.c_str(), &there) == 0) {
      if (S_ISDIR(there.st_mode)) fail_to_write(path, must_be_writable, "a folder");
      is_replaced = S_ISREG(there.st_mode);
      if (!is_replaced) return;
      mode = there.st_mode & 07777;
      if (char* const resolved = realpath(path.c_str(), nullptr)) {
        file = resolved;
        std::free(resolved);
      }
      return;
    }
    // A system that does not follow a link has its reasons, so this does not either.
    if (errno != ENOENT) fail_to_write(path, must_be_writable, std::strerror(errno));
    char target[4096];  // of links to what is not there yet
    for (int links = 0; links < 40; ++links) {
      const ssize_t size = readlink(file.c_str(), target, sizeof target);
      if (size <= 0) return;
      file.erase(target[0] == '/' ? 0 : file.rfind('/') + 1).append(target, std::size_t(size));
    }
  }

  std::string folder() const {
    const std::size_t name = file.rfind('/') + 1;
    return name ? file.substr(0, name) : ".";
  }

  std::string file;
  std::optional<mode_t> mode;  ///< of what is there and will be replaced
  bool is_replaced = true;     ///< by another file, rather than written to
};

}  // namespace detail

/// What write_file would say of this place, before the work whose result it is to take. Leaves it as it is.
/// @param bytes that the file will have, as far as that is known
/// @throws std::runtime_error
inline void require_writable(std::string const& path, std::uint64_t bytes = 0) {
  const detail::Destination to(path);
  if (!to.is_replaced) {
    if (access(to.file.c_str(), W_OK) != 0) detail::fail_to_write(path, detail::must_be_writable, std::strerror(errno));
    return;
  }
  std::string probe = to.file + ".XXXXXX";  // a name that nobody has
  const int opened = mkstemp(probe.data());
  if (opened < 0) detail::fail_to_write(path, detail::must_be_writable, std::strerror(errno));
  close(opened);
  unlink(probe.c_str());
  std::uint64_t room = bytes;
  struct statvfs disk = {};
  if (statvfs(to.folder().c_str(), &disk) == 0 && disk.f_blocks > 0) {  // else it does not count
    const std::uint64_t blocks = geteuid() == 0 ? disk.f_bfree : disk.f_bavail;
    if (disk.f_frsize > 0 && bytes / disk.f_frsize >= blocks) room = blocks * disk.f_frsize;
  }
  rlimit limit = {};
  if (getrlimit(RLIMIT_FSIZE, &limit) == 0) room = std::min<std::uint64_t>(room, limit.rlim_cur);
  if (bytes > room) {
    detail::fail_to_write(path, detail::must_fit,
                          std::to_string(bytes) + " bytes, with room for " + std::to_string(room));
  }
}

namespace detail {

/// While it lives, a write that this signal of the thread's own writes tells of fails, rather than end the program:
/// SIGXFSZ of one beyond the limit on file sizes, which would leave half a file, SIGPIPE of one that nobody reads.
class WithoutSignal {
 public:
  explicit WithoutSignal(int number) : number_(number) {
    sigemptyset(&signal_);
    sigaddset(&signal_, number);
    pthread_sigmask(SIG_BLOCK, &signal_, &before_);
  }

  WithoutSignal(WithoutSignal const&) = delete;
  WithoutSignal& operator=(WithoutSignal const&) = delete;

  ~WithoutSignal() {
    sigset_t pending;
    sigemptyset(&pending);
    sigpending(&pending);
    int taken = 0;
    if (!sigismember(&before_, number_) && sigismember(&pending, number_)) sigwait(&signal_, &taken);
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }

 private:
  int number_;
  sigset_t signal_, before_;
};

/// Opens what is written before it takes the name of the destination: path.part, or path.part1 and so on where that is
/// taken; of what is not replaced the destination itself.
/// @param part is given its name
/// @throws std::runtime_error
inline std::FILE* open_part(std::string const& path, Destination const& to, std::string& part) {
  part = to.is_replaced ? to.file + ".part" : to.file;
  std::FILE* file = std::fopen(part.c_str(), to.is_replaced ? "wbx" : "wb");
  for (int taken = 1; !file && errno == EEXIST && taken < 1000; ++taken) {
    part = to.file + ".part" + std::to_string(taken);
    file = std::fopen(part.c_str(), "wbx");
  }
  if (!file) fail_to_write(path, must_be_writable, std::strerror(errno));
  if (to.mode) fchmod(fileno(file), *to.mode);
  return file;
}

/// Gives what is written the name of the destination.
/// @param wait until the disk has the name
/// @throws std::runtime_error; then the part is gone
inline void place_part(std::string const& path, Destination const& to, std::string const& part, bool wait) {
  if (std::rename(part.c_str(), to.file.c_str()) != 0) {
    const int error = errno;
    std::remove(part.c_str());
    fail_to_write(path, "must be a name that can be replaced", std::strerror(error));
  }
  if (!wait) return;
  // Some disks cannot be asked for this, and the file is whole in any case.
  if (const int folder = open(to.folder().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); folder >= 0) {
    fsync(folder);
    close(folder);
  }
}

}  // namespace detail

/// Whether write_file waits until the disk has the file, which costs the time of about a hundred small ones; or leaves
/// it to a later sync_disk, for all of many.
enum class Sync { now, later };

/// Writes a whole file or none: under a name first that nobody has, path.part or path.part1 and so on, then renamed.
/// Where the power fails that holds for files with Sync::now.
/// @throws std::runtime_error
inline void write_file(std::string const& path, std::string_view bytes, Sync sync = Sync::now) {
  const detail::Destination to(path);
  std::string part;
  std::FILE* const file = detail::open_part(path, to, part);
  const auto fail = [&](int error) {
    if (to.is_replaced) std::remove(part.c_str());
    detail::fail_to_write(path, detail::must_fit, std::strerror(error));
  };
  const detail::WithoutSignal guard(SIGXFSZ);
  const bool written = std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size() && std::fflush(file) == 0 &&
                       (sync == Sync::later || !to.is_replaced || fsync(fileno(file)) == 0);
  const int error = errno;
  if (std::fclose(file) != 0 && written) fail(errno);
  if (!written) fail(error);
  if (to.is_replaced) detail::place_part(path, to, part, sync == Sync::now);
}

/// Waits until all that was written to the disk of this folder is on it.
/// @throws std::runtime_error
inline void sync_disk(std::string const& folder) {
  const int opened = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (opened < 0) detail::fail_to_write(folder, "must be a folder", std::strerror(errno));
#if defined(__linux__)
  const bool synced = syncfs(opened) == 0;
#else
  const bool synced = fsync(opened) == 0;
#endif
  const int error = errno;
  close(opened);
  if (!synced) detail::fail_to_write(folder, "must be on a disk that keeps what is written", std::strerror(error));
}

}  // namespace tstitch
