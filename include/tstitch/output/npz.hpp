/// @file
/// Arrays too large for the memory in one file that numpy.load reads.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../base/crc32.hpp"
#include "../base/error.hpp"
#include "../base/file_writer.hpp"
#include "npy.hpp"

namespace tstitch {

/// Writes a .npz as numpy.savez does, a zip archive of .npy files that are not compressed, array after array and piece
/// by piece: what is drawn for guided-diffusion's evaluator is `arr_0`, uint8 [n, H, W, 3]. Beyond 4 GiB, and beyond
/// 65535 arrays, in the zip64 format (APPNOTE.TXT 6.3.10, 4.3.14 and 4.5.3). The bytes follow from the arrays alone.
class NpzWriter {
 public:
  /// @param limit from which size and offset on the format is zip64; a smaller one than the format's is for tests
  /// @throws std::runtime_error for a place that cannot be written; nothing is there before `finish`
  explicit NpzWriter(std::string const& path, std::uint64_t limit = 0xFFFFFFFE) : file_(path), limit_(limit) {}

  /// Begins an array; the one before must be whole.
  /// @param name "arr_0": without ".npy", up to 1000 bytes of printable ASCII but for slashes
  /// @param descr numpy's word for the type: "|u1", "<i8", "<f4" and others whose last character is their size
  /// @throws std::invalid_argument for anything else, and for a name that is there
  void begin(std::string const& name, std::string const& descr, at::IntArrayRef sizes) {
    require_whole();
    constexpr std::size_t longest = 1000;
    const bool plain =
        std::all_of(name.begin(), name.end(), [](char c) { return c > ' ' && c < '\x7f' && c != '/' && c != '\\'; });
    if (name.empty() || name.size() > longest || !plain) {
      detail::refuse("NpzWriter", "a name must be 1 to 1000 printable characters of ASCII without slashes",
                     "'" + name + "'");
    }
    for (Member const& other : members_) {
      if (other.name == name + ".npy") detail::refuse("NpzWriter", "each array must have another name", name);
    }
    const char digit = descr.size() == 3 ? descr[2] : '\0';
    const bool is_type = descr.size() == 3 && std::string_view("<|").find(descr[0]) != std::string_view::npos &&
                         std::string_view("uifb").find(descr[1]) != std::string_view::npos;
    if (!is_type || std::string_view("1248").find(digit) == std::string_view::npos ||
        (descr[0] == '|') != (digit == '1')) {
      detail::refuse("NpzWriter", "a type must be numpy's word for little-endian numbers, such as |u1 or <i8",
                     "'" + descr + "'");
    }
    std::uint64_t bytes = std::uint64_t(digit - '0');
    for (const std::int64_t size : sizes) {
      if (size < 0 || (size > 0 && bytes > most / std::uint64_t(size))) {
        detail::refuse("NpzWriter", "sizes must not be negative, and their product at most 2^62 bytes",
                       std::to_string(size));
      }
      bytes *= std::uint64_t(size);
    }
    const std::string header = npy_header(descr, sizes);
    Member member{name + ".npy", file_.offset(), header.size() + bytes, {}};
    file_.write(local_header(member));
    data_begin_ = file_.offset() + header.size();
    left_ = member.size;
    members_.push_back(std::move(member));
    write(header);
  }

  /// The next numbers of the array, in C order.
  /// @throws std::invalid_argument for more than the array has
  /// @throws std::runtime_error when the disk takes no more
  void write(std::string_view bytes) {
    if (bytes.size() > left_) {
      detail::refuse("NpzWriter",
                     "an array must have the bytes of its sizes, of which " + std::to_string(left_) + " are left",
                     std::to_string(bytes.size()));
    }
    Member& member = members_.back();
    member.crc.add(bytes.data(), bytes.size());
    file_.write(bytes);
    left_ -= bytes.size();
    if (left_ == 0) file_.write_at(member.offset + 14, little(member.crc.value(), 4));
  }

  /// Where in the file the numbers of the array begin that was begun last.
  std::uint64_t data_begin() const { return data_begin_; }

  /// Writes the end, waits until the disk has it, and gives it its name.
  /// @throws std::invalid_argument for an array that is not whole, and for none
  /// @throws std::runtime_error when the disk takes no more
  void finish() {
    require_whole();
    if (members_.empty()) detail::refuse("NpzWriter", "must have an array at least", "none");
    const std::uint64_t begin = file_.offset();
    for (Member const& member : members_) file_.write(central_header(member));
    const std::uint64_t size = file_.offset() - begin, count = members_.size();
    const bool large = begin + size > limit_ || count > 0xFFFE;
    if (large) {
      const std::uint64_t end = file_.offset();
      file_.write(std::string("PK\x06\x06", 4) + little(44, 8) + little(45, 2) + little(45, 2) + little(0, 4) +
                  little(0, 4) + little(count, 8) + little(count, 8) + little(size, 8) + little(begin, 8));
      file_.write(std::string("PK\x06\x07", 4) + little(0, 4) + little(end, 8) + little(1, 4));
    }
    const std::uint64_t shown = large ? 0xFFFF : count;
    file_.write(std::string("PK\x05\x06", 4) + little(0, 4) + little(shown, 2) + little(shown, 2) +
                little(large ? 0xFFFFFFFF : size, 4) + little(large ? 0xFFFFFFFF : begin, 4) + little(0, 2));
    file_.finish();
  }

 private:
  struct Member {
    std::string name;
    std::uint64_t offset;  ///< of its local header
    std::uint64_t size;
    detail::Crc32 crc;
  };

  static constexpr std::uint64_t most = std::uint64_t(1) << 62;

  static std::string little(std::uint64_t value, int bytes) {
    std::string text;
    for (int i = 0; i < bytes; ++i) text += char(value >> 8 * i & 0xFF);
    return text;
  }

  /// Version, flags, method and a time that zip has for none: 1980-01-01.
  static std::string common(Member const& member, bool large) {
    return little(large ? 45 : 20, 2) + little(0, 2) + little(0, 2) + little(0, 2) + little(0x21, 2) +
           little(member.crc.value(), 4);
  }

  std::string local_header(Member const& member) const {
    const bool large = member.size > limit_;
    const std::string shown = little(large ? 0xFFFFFFFF : member.size, 4);
    std::string header = std::string("PK\x03\x04", 4) + common(member, large) + shown + shown +
                         little(member.name.size(), 2) + little(large ? 20 : 0, 2) + member.name;
    if (large) header += little(1, 2) + little(16, 2) + little(member.size, 8) + little(member.size, 8);
    return header;
  }

  std::string central_header(Member const& member) const {
    const bool large = member.size > limit_, far_away = member.offset > limit_;
    std::string extra;
    if (large) extra += little(member.size, 8) + little(member.size, 8);
    if (far_away) extra += little(member.offset, 8);
    if (!extra.empty()) extra = little(1, 2) + little(extra.size(), 2) + extra;
    const std::string shown = little(large ? 0xFFFFFFFF : member.size, 4);
    constexpr int made_on_unix = 3 << 8;
    return std::string("PK\x01\x02", 4) + little(made_on_unix | 45, 2) + common(member, large || far_away) + shown +
           shown + little(member.name.size(), 2) + little(extra.size(), 2) + little(0, 2) + little(0, 2) +
           little(0, 2) + little(std::uint64_t(0100644) << 16, 4) + little(far_away ? 0xFFFFFFFF : member.offset, 4) +
           member.name + extra;
  }

  void require_whole() const {
    if (left_ == 0) return;
    detail::refuse("NpzWriter", "'" + members_.back().name + "' must be whole before what follows",
                   std::to_string(left_) + " bytes that are missing");
  }

  FileWriter file_;
  std::uint64_t limit_;
  std::vector<Member> members_ = {};
  std::uint64_t left_ = 0, data_begin_ = 0;
};

}  // namespace tstitch
