/// @file
/// What readers of files share.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string>
#include <string_view>

#include "../base/error.hpp"
#include "../tensor/torch_error.hpp"

namespace tstitch::detail {

/// Which function reads what, for messages.
struct FileKind {
  char const* place;  ///< "load_torchscript"
  char const* what;   ///< "a TorchScript file"
};

[[noreturn]] inline void refuse_file(FileKind kind, std::string const& source, std::string const& got) {
  throw std::runtime_error("tstitch::" + std::string(kind.place) + ": " + source + ": must be " + kind.what + ", got " +
                           got);
}

[[noreturn]] inline void refuse_unreadable(FileKind kind, std::string const& path) {
  throw std::runtime_error("tstitch::" + std::string(kind.place) + ": " + quoted(path) +
                           ": must be a file that can be read, got none");
}

/// A regular file, open for reading: its size is known, and reading it ends. Pipes and devices promise neither, and are
/// not even opened, which may wait, or do something.
class RegularFile {
 public:
  /// @param kind for messages
  /// @throws std::runtime_error for everything else, and for a file without a byte
  RegularFile(FileKind kind, std::string const& path) {
    struct stat status {};
    if (::stat(path.c_str(), &status) != 0) refuse_unreadable(kind, path);
    require_regular(kind, path, status);
    do {
      open_.descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    } while (open_.descriptor < 0 && errno == EINTR);
    // Something else may have taken its place meanwhile.
    if (open_.descriptor < 0 || ::fstat(open_.descriptor, &status) != 0) refuse_unreadable(kind, path);
    require_regular(kind, path, status);
    size_ = std::uint64_t(status.st_size);
  }

  int descriptor() const { return open_.descriptor; }

  /// Bytes, when it was opened.
  std::uint64_t size() const { return size_; }

 private:
  struct Open {
    Open() = default;
    Open(Open const&) = delete;
    Open& operator=(Open const&) = delete;
    ~Open() {
      if (descriptor >= 0) ::close(descriptor);
    }
    int descriptor = -1;
  };

  static void require_regular(FileKind kind, std::string const& path, struct stat const& status) {
    const bool folder = S_ISDIR(status.st_mode);
    if (!S_ISREG(status.st_mode) && !folder) refuse_file(kind, quoted(path), "a pipe, a socket or a device");
    if (folder || status.st_size < 1) refuse_file(kind, quoted(path), "an empty file or a folder");
  }

  Open open_ = {};
  std::uint64_t size_ = 0;
};

/// Runs `action`, turning what torch and the standard library throw at a bad file into one line.
template <class Action>
auto reading(FileKind kind, std::string const& source, Action action) {
  std::string got;
  try {
    return action();
  } catch (std::exception const& error) {
    if (std::string_view(error.what()).starts_with("tstitch::")) throw;
    got = reason(error);
  }
  refuse_file(kind, source, "'" + got + "'");
}

}  // namespace tstitch::detail
