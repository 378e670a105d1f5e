/// @file
/// Many small files in one, as tar and WebDataset read it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <set>
#include <string>
#include <string_view>

#include "../base/error.hpp"
#include "../base/file_writer.hpp"

namespace tstitch {

/// Writes a tar archive file by file, in the format ustar (POSIX.1-1988). All have the mode 0644, no owner and the time
/// 0, so the bytes follow from the files alone.
class TarWriter {
 public:
  /// @throws std::runtime_error for a place that cannot be written; nothing is there before `finish`
  explicit TarWriter(std::string const& path) : file_(path) {}

  /// @param name of the file, with "/" between folders: 1 to 100 printable characters of ASCII, neither at "/" nor with
  ///        ".." between two, which would lead out of where it is unpacked
  /// @param bytes its contents, less than 8 GiB, as the format has no more digits
  /// @returns where in the archive the contents begin
  /// @throws std::invalid_argument for other names, names that are there, and more bytes
  /// @throws std::runtime_error when the disk takes no more
  std::uint64_t add(std::string const& name, std::string_view bytes) {
    require_name(name);
    if (bytes.size() >= std::uint64_t(1) << 33) {
      detail::refuse("TarWriter", "'" + name + "' must have less than 8 GiB", std::to_string(bytes.size()) + " bytes");
    }
    if (!names_.insert(name).second) detail::refuse("TarWriter", "each file must have another name", "'" + name + "'");
    file_.write(header(name, bytes.size()));
    const std::uint64_t begin = file_.offset();
    file_.write(bytes);
    pad(block);
    return begin;
  }

  /// Writes the end, waits until the disk has it, and gives it its name.
  /// @throws std::runtime_error when the disk takes no more
  void finish() {
    file_.write(std::string(2 * block, '\0'));
    pad(20 * block);  // a record of the format
    file_.finish();
  }

 private:
  static constexpr std::size_t block = 512;

  static void require_name(std::string const& name) {
    bool good = !name.empty() && name.size() <= 100 && name.front() != '/' && name.back() != '/';
    for (const char c : name) good = good && c >= ' ' && c < '\x7f';
    if (good && ("/" + name + "/").find("/../") == std::string::npos) return;
    detail::refuse("TarWriter", "a name must be 1 to 100 printable characters of ASCII without a way out",
                   "'" + name + "'");
  }

  static std::string header(std::string const& name, std::uint64_t size) {
    std::string header(block, '\0');
    const auto put = [&](std::size_t at, std::string_view text) { header.replace(at, text.size(), text); };
    char digits[16];
    std::snprintf(digits, sizeof digits, "%011llo", static_cast<unsigned long long>(size));
    put(0, name);
    put(100, "0000644");                        // mode
    put(108, "0000000"), put(116, "0000000");   // owner and group
    put(124, digits), put(136, "00000000000");  // size and time
    put(148, "        "), put(156, "0");        // checksum, and a regular file
    put(257, std::string_view("ustar\0"
                              "00",
                              8));  // magic and version
    unsigned sum = 0;
    for (const char c : header) sum += static_cast<unsigned char>(c);
    std::snprintf(digits, sizeof digits, "%06o", sum);
    put(148, std::string_view(digits, 7));
    return header;
  }

  void pad(std::uint64_t multiple) {
    if (const std::uint64_t over = file_.offset() % multiple) file_.write(std::string(multiple - over, '\0'));
  }

  FileWriter file_;
  std::set<std::string> names_ = {};
};

}  // namespace tstitch
