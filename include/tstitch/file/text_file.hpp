/// @file
/// Small texts from files.
#pragma once

#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <string>

#include "../base/text.hpp"
#include "file.hpp"

namespace tstitch::detail {

/// The whole of a small text.
/// @throws std::runtime_error for what is larger
inline std::string read_text(FileKind kind, std::string const& path, std::size_t most) {
  const RegularFile file(kind, path);
  if (file.size() > most) refuse_file(kind, quoted(path), std::to_string(file.size()) + " bytes");
  std::string text(std::size_t(file.size()), '\0');
  for (std::size_t done = 0; done < text.size();) {
    const ssize_t read = ::pread(file.descriptor(), text.data() + done, text.size() - done, off_t(done));
    if (read < 0 && errno == EINTR) continue;
    if (read <= 0) refuse_file(kind, quoted(path), "an end at byte " + std::to_string(done));
    done += std::size_t(read);
  }
  return text;
}

}  // namespace tstitch::detail
