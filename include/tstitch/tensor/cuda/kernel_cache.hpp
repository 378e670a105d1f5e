/// @file
/// Compiled kernels in files, so that only the first program on a machine compiles them.
///
/// They are kept in the folder that TSTITCH_KERNEL_CACHE names, else $XDG_CACHE_HOME/tstitch/kernels or
/// ~/.cache/tstitch/kernels, where it and they are the user's own and nobody else may write to them; an empty
/// TSTITCH_KERNEL_CACHE keeps nothing. It is code: what others own or may write to is not taken from there.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <vector>

#include "../../base/diagnostics.hpp"
#include "../../base/digest.hpp"
#include "../../base/error.hpp"
#include "../../base/write_file.hpp"
#include "nvrtc.hpp"

namespace tstitch::detail {

/// Where compiled kernels are kept; empty: nowhere.
inline std::string kernel_cache_folder() {
  if (char const* const named = std::getenv("TSTITCH_KERNEL_CACHE")) return named;
  if (char const* const cache = std::getenv("XDG_CACHE_HOME"); cache && *cache)
    return cache + std::string("/tstitch/kernels");
  char const* const home = std::getenv("HOME");
  return home && *home ? home + std::string("/.cache/tstitch/kernels") : "";
}

/// Keeps a file there, with the folders above it; by its name others see all of it or nothing.
/// @throws std::runtime_error
inline void keep_in_cache(std::string const& path, std::string const& bytes) {
  for (std::size_t end = path.find('/', 1); end != std::string::npos; end = path.find('/', end + 1)) {
    mkdir(path.substr(0, end).c_str(), 0700);  // where one cannot be made, the file cannot either
  }
  // Others may compile it too, in this process or on another machine that has the folder.
  const auto now = std::chrono::steady_clock::now().time_since_epoch().count();
  const std::string own = path + "." + std::to_string(getpid()) + "-" + std::to_string(now);
  write_file(own, bytes);
  chmod(own.c_str(), 0600);  // whatever the umask: what others may write to is not trusted
  if (std::rename(own.c_str(), path.c_str()) != 0) std::remove(own.c_str());
}

/// Whether nobody but this user may have written it.
inline bool is_own(struct stat const& status) {
  return status.st_uid == geteuid() && (status.st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

/// The bytes of a regular file in a cache; empty where there is none, or one that others may have written, which is
/// diagnosed.
inline std::string read_from_cache(std::string const& folder, std::string const& path) {
  const int directory = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory < 0) return "";
  const std::string name = path.substr(folder.size() + 1);
  // What is opened is what is looked at, whatever takes its name meanwhile.
  const int file = openat(directory, name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  const bool is_link = file < 0 && errno == ELOOP;
  struct stat of_folder {
  }, of_file{};
  const bool known = file >= 0 && fstat(directory, &of_folder) == 0 && fstat(file, &of_file) == 0;
  std::string bytes;
  if (is_link || (known && !(is_own(of_folder) && is_own(of_file)))) {
    diagnose("cached_cuda",
             "compiles what is kept in '" + printable(path) +
                 "' anew, because it is a link, or it or its folder is of another user, or others may write to it");
  } else if (known && S_ISREG(of_file.st_mode)) {
    bytes.resize(std::size_t(of_file.st_size));
    std::size_t done = 0;
    for (ssize_t part = 1; part > 0 && done < bytes.size(); done += std::size_t(std::max<ssize_t>(part, 0))) {
      part = read(file, bytes.data() + done, bytes.size() - done);
    }
    bytes.resize(done);
  }
  if (file >= 0) close(file);
  close(directory);
  return bytes;
}

/// The same, from the cache where it is there. A cache that cannot be read or written is as good as none.
/// @param again the driver would not have what is there
inline std::string cached_cuda(CudaSource const& source, int architecture, bool again = false) {
  const std::string folder = kernel_cache_folder();
  if (folder.empty()) return compile_cuda(source, architecture);
  std::vector<std::string> texts{source.text};
  texts.insert(texts.end(), source.options.begin(), source.options.end());
  const std::string path =
      folder + "/" + source.name + "-" + architecture_name(source, architecture) + "-" + digest(texts) + ".cubin";
  // Behind the code is its digest: the driver believes what it is given, and reads on behind half a file.
  if (std::string code = again ? "" : read_from_cache(folder, path); !code.empty()) {
    const std::size_t size = code.size() - std::min<std::size_t>(code.size(), 16);
    const std::string ending = code.substr(size);
    code.resize(size);
    if (ending == digest({code})) return code;
  }
  std::string code = compile_cuda(source, architecture);
  try {
    keep_in_cache(path, code + digest({code}));
  } catch (std::exception const& error) {
    diagnose("cached_cuda", std::string("keeps no kernels, and compiles them in every process: ") + error.what());
  }
  return code;
}

}  // namespace tstitch::detail
