/// @file
/// What readers of files share.
#pragma once

#include <c10/util/Exception.h>

#include <exception>
#include <fstream>
#include <stdexcept>
#include <string>

namespace tstitch::detail {

inline std::string quoted(std::string const& path) {
  return "'" + path + "'";
}

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

/// @throws std::runtime_error
inline void require_readable(FileKind kind, std::string const& path) {
  std::ifstream file(path, std::ios::binary);
  char byte;
  if (!file) refuse_unreadable(kind, path);
  if (!file.get(byte)) refuse_file(kind, quoted(path), "an empty file or a folder");
}

/// Runs `action`, turning what torch and the standard library throw at a bad file into one line.
template <class Action>
auto reading(FileKind kind, std::string const& source, Action action) {
  std::string got;
  try {
    return action();
  } catch (c10::Error const& error) {
    got = error.what_without_backtrace();
  } catch (std::exception const& error) {
    got = error.what();
    if (got.starts_with("tstitch::")) throw;
  }
  got.erase(0, got.find_first_not_of('\n'));
  refuse_file(kind, source, "'" + got.substr(0, got.find('\n')) + "'");  // the first line of many
}

}  // namespace tstitch::detail
