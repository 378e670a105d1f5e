/// @file
/// Files that torch reads through several threads.
#pragma once

#include <c10/util/Exception.h>
#include <caffe2/serialize/read_adapter_interface.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <future>
#include <memory>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "file.hpp"

namespace tstitch::detail {

/// How many threads are worth it for so many bytes.
inline std::size_t part_count(std::size_t count) {
  constexpr std::size_t smallest_part = std::size_t(1) << 20;
  static const std::size_t most = std::clamp(std::thread::hardware_concurrency(), 1u, 8u);
  return std::clamp<std::size_t>(count / smallest_part, 1, most);
}

/// Does something to each of part_count(count) parts of a range, in a thread each.
/// @param action takes the index, begin and end of a part; it must not throw
template <class Action>
void in_parts(std::size_t count, Action const& action) {
  const std::size_t parts = part_count(count);
  const auto run = [&](std::size_t part) {
    const std::size_t begin = count / parts * part;
    action(part, begin, part + 1 == parts ? count : begin + count / parts);
  };
  std::vector<std::future<void>> others;  // waits for them at its end
  others.reserve(parts);
  std::size_t part = 1;
  try {
    for (; part < parts; ++part) others.push_back(std::async(std::launch::async, run, part));
  } catch (std::system_error const&) {
    for (; part < parts; ++part) run(part);  // there can be no more threads
  }
  run(0);
}

/// A file whose large parts are read by several threads at once: copying out of the page cache, into memory that the
/// system clears meanwhile, is too much for one. Several threads may ask at the same time.
class ParallelFile final : public caffe2::serialize::ReadAdapterInterface {
 public:
  /// @param kind, source for messages
  /// @throws std::runtime_error for what is no regular file with a byte to read
  ParallelFile(FileKind kind, std::string const& path) : file_(kind, path) {}

  /// Bytes, when it was opened.
  std::size_t size() const override { return std::size_t(file_.size()); }

  /// @returns the number of bytes read: fewer than `count` only where size() ends them
  /// @throws c10::Error when the file cannot be read, or has become shorter
  std::size_t read(std::uint64_t position, void* buffer, std::size_t count, char const* /*what*/ = "") const override {
    position = std::min(position, file_.size());
    count = std::size_t(std::min<std::uint64_t>(count, file_.size() - position));
    std::vector<int> errors(part_count(count));
    in_parts(count, [&](std::size_t part, std::size_t begin, std::size_t end) {
      errors[part] = read_all(static_cast<char*>(buffer) + begin, end - begin, position + begin);
    });
    for (const int error : errors) require_read(error);
    return count;
  }

  /// Bytes that lie within size(), by this thread alone.
  /// @throws as `read` does
  void read_alone(std::uint64_t position, void* buffer, std::size_t count) const {
    require_read(read_all(static_cast<char*>(buffer), count, position));
  }

 private:
  static constexpr int ends_early = -1;

  static void require_read(int error) {
    TORCH_CHECK(error != ends_early, "the file became shorter while it was read");
    TORCH_CHECK(error == 0, "the file cannot be read: ", std::generic_category().message(error));
  }

  ssize_t read_some(char* buffer, std::size_t count, std::uint64_t position) const {
    ssize_t got;
    do {
      got = ::pread(file_.descriptor(), buffer, count, off_t(position));
    } while (got < 0 && errno == EINTR);
    return got;
  }

  /// @returns 0, or what went wrong
  int read_all(char* buffer, std::size_t count, std::uint64_t position) const {
    while (count > 0) {
      const ssize_t got = read_some(buffer, count, position);
      if (got < 0) return errno;
      if (got == 0) return ends_early;
      buffer += got;
      count -= std::size_t(got);
      position += std::uint64_t(got);
    }
    return 0;
  }

  RegularFile file_;
};

/// @throws std::runtime_error naming the file where there is no byte to read
inline std::shared_ptr<caffe2::serialize::ReadAdapterInterface> open_file(FileKind kind, std::string const& path) {
  return std::make_shared<ParallelFile>(kind, path);
}

}  // namespace tstitch::detail
