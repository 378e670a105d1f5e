/// @file
/// Files too large for the memory, which are whole or not there.
#pragma once

#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

#include "write_file.hpp"

namespace tstitch {

/// Writes a file piece by piece, as write_file does a whole one: under another name, path.part or path.part1 and so on,
/// until `finish`. For one thread.
class FileWriter {
 public:
  /// @throws std::runtime_error for a place that is no file that can be replaced
  explicit FileWriter(std::string path) : path_(std::move(path)), to_(path_) {
    if (!to_.is_replaced) detail::fail_to_write(path_, "must be a regular file", "another kind");
    file_ = detail::open_part(path_, to_, part_);
  }

  FileWriter(FileWriter const&) = delete;
  FileWriter& operator=(FileWriter const&) = delete;
  /// Without `finish` nothing is left.
  ~FileWriter() { drop(); }

  /// @throws std::runtime_error when the disk takes no more; then nothing is left
  void write(std::string_view bytes) {
    require_open();
    const detail::WithoutSignal guard(SIGXFSZ);
    if (std::fwrite(bytes.data(), 1, bytes.size(), file_) != bytes.size()) fail(errno);
    offset_ += bytes.size();
  }

  /// Writes over what is there already, such as a size that is known later.
  /// @throws std::runtime_error as `write`
  /// @throws std::invalid_argument where it is not all there
  void write_at(std::uint64_t offset, std::string_view bytes) {
    require_open();
    if (offset > offset_ || bytes.size() > offset_ - offset) {
      detail::refuse("FileWriter", "write_at must stay in the " + std::to_string(offset_) + " bytes that are written",
                     std::to_string(offset) + " and " + std::to_string(bytes.size()));
    }
    const detail::WithoutSignal guard(SIGXFSZ);
    if (fseeko(file_, off_t(offset), SEEK_SET) != 0 ||
        std::fwrite(bytes.data(), 1, bytes.size(), file_) != bytes.size() || fseeko(file_, 0, SEEK_END) != 0) {
      fail(errno);
    }
  }

  /// How much is written.
  std::uint64_t offset() const { return offset_; }

  /// Waits until the disk has it, and gives it its name.
  /// @throws std::runtime_error; then nothing is left
  void finish() {
    require_open();
    const detail::WithoutSignal guard(SIGXFSZ);
    if (std::fflush(file_) != 0 || fsync(fileno(file_)) != 0) fail(errno);
    const bool closed = std::fclose(file_) == 0;
    file_ = nullptr;
    if (!closed) {
      const int error = errno;
      std::remove(part_.c_str());
      detail::fail_to_write(path_, detail::must_fit, std::strerror(error));
    }
    detail::place_part(path_, to_, part_, /*wait=*/true);
  }

 private:
  void require_open() const {
    if (!file_) detail::refuse("FileWriter", "must not be used behind finish or a failure", path_);
  }

  [[noreturn]] void fail(int error) {
    drop();
    detail::fail_to_write(path_, detail::must_fit, std::strerror(error));
  }

  void drop() {
    if (!file_) return;
    std::fclose(file_);
    file_ = nullptr;
    std::remove(part_.c_str());
  }

  std::string path_;
  detail::Destination to_;
  std::string part_ = {};
  std::FILE* file_ = nullptr;
  std::uint64_t offset_ = 0;
};

}  // namespace tstitch
