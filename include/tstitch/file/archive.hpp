/// @file
/// The archives that torch writes, checked before torch, which believes them, reads them.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>
#include <c10/util/Exception.h>
#include <caffe2/serialize/inline_container.h>
#include <caffe2/serialize/read_adapter_interface.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../base/crc32.hpp"
#include "../base/error.hpp"
#include "../tensor/host_tensor.hpp"
#include "file.hpp"
#include "onto_device.hpp"
#include "parallel_file.hpp"

namespace tstitch::detail {

/// The checksum of many bytes.
inline std::uint32_t crc32_of(void const* data, std::size_t count) {
  struct Part {
    Crc32 sum = {};
    std::size_t size = 0;
  };
  std::vector<Part> parts(part_count(count));
  in_parts(count, [&](std::size_t part, std::size_t begin, std::size_t end) {
    parts[part].size = end - begin;
    parts[part].sum.add(static_cast<char const*>(data) + begin, end - begin);
  });
  for (std::size_t k = 1; k < parts.size(); ++k) parts[0].sum.add_checksum(parts[k].sum.value(), parts[k].size);
  return parts[0].sum.value();
}

/// One number of many, FNV-1a (Fowler, Noll and Vo) by whole numbers.
class FileFingerprint {
 public:
  void add(std::uint64_t part) {
    value_ = (value_ ^ part) * 0x100000001B3;
    value_ ^= value_ >> 29;
  }

  std::uint64_t value() const { return value_; }

 private:
  std::uint64_t value_ = 0;
};

/// A zip archive of torch, whose directory is consistent and lies in the file, and whose records are compared with
/// their checksums whenever they are read, which torch leaves out. Torch reads through it, so that what was checked is
/// what torch gets.
class Archive final : public caffe2::serialize::ReadAdapterInterface {
 public:
  struct Record {
    std::uint64_t begin = 0;  ///< of its bytes in the file
    std::uint64_t bytes = 0;  ///< there
    std::uint64_t size = 0;   ///< when it is inflated
    std::uint32_t checksum = 0;
    bool compressed = false;
  };

  /// @throws c10::Error for what torch would not have written
  explicit Archive(std::shared_ptr<ReadAdapterInterface> file) : file_(std::move(file)) {
    const Directory directory = find_directory();
    const std::string entries = bytes_at(directory.begin, directory.size);
    std::map<std::uint64_t, std::uint64_t> extents;  // of headers and bytes
    std::set<std::string> names;
    std::string folder;
    std::uint64_t position = 0;
    for (std::uint64_t k = 0; k < directory.count; ++k) {
      const Entry entry = read_entry(entries, position);
      if (k == 0) folder = entry.name.substr(0, entry.name.find('/') + 1);
      require(!folder.empty() && entry.name.starts_with(folder), entry.name, "is outside the archive's folder");
      require(names.insert(in_lower_case(entry.name)).second, entry.name, "is there twice");  // torch ignores case
      const Record record = locate(entry);
      extents.emplace(entry.header, record.begin + record.bytes);
      const std::string name = entry.name.substr(folder.size());
      require(!is_of_format(in_lower_case(name)) || (!record.compressed && record.size <= most_of_format), entry.name,
              "is compressed or larger than 4 KiB");
      if (!record.compressed && record.size > 0) by_position_.emplace(record.begin, name);
      records_.emplace(name, record);
    }
    TORCH_CHECK(position == entries.size(), "the directory of the archive has another size than it says");
    std::uint64_t end = 0;
    for (auto const& [header, its_end] : extents) {
      TORCH_CHECK(header >= end && its_end <= directory.begin, "entries of the archive overlap");
      end = its_end;
    }
    TORCH_CHECK(extents.size() == records_.size(), "entries of the archive overlap");
    reader_ = std::make_unique<caffe2::serialize::PyTorchStreamReader>(file_);
    TORCH_CHECK(!has("byteorder") || text("byteorder") == "little",
                "the archive must have the byte order 'little', got ", quoted(text("byteorder")));
  }

  std::map<std::string, Record, std::less<>> const& records() const { return records_; }

  /// Names as torch compares them.
  static std::string in_lower_case(std::string text) {
    for (char& c : text) {
      if (c >= 'A' && c <= 'Z') c = char(c - 'A' + 'a');
    }
    return text;
  }

  bool has(std::string_view name) const { return records_.contains(name); }

  std::size_t size() const override { return file_->size(); }

  /// Another number for other contents, from the checksums that the archive says; the records are not read.
  std::uint64_t fingerprint() const {
    FileFingerprint fingerprint;
    for (auto const& [name, record] : records_) {
      fingerprint.add(crc32_of(name.data(), name.size()));
      fingerprint.add(record.size);
      fingerprint.add(record.checksum);
    }
    return fingerprint.value();
  }

  /// @throws c10::Error naming a record that is read and has another checksum than it says
  std::size_t read(std::uint64_t position, void* buffer, std::size_t count, char const* what = "") const override {
    const std::size_t got = file_->read(position, buffer, count, what);
    if (Record const* const record = record_at(position); record && got == record->size) {
      require_checksum(name_of(*record), *record, crc32_of(buffer, got));
    }
    return got;
  }

  /// The record that begins there in the file, which is neither compressed nor empty; null for none.
  Record const* record_at(std::uint64_t position) const {
    const auto found = by_position_.find(position);
    return found == by_position_.end() ? nullptr : &records_.find(found->second)->second;
  }

  std::string const& name_of(Record const& record) const { return by_position_.at(record.begin); }

  /// A record that is not compressed, on a GPU: uint8, [size].
  /// @throws c10::Error naming one that has another checksum than it says
  at::Tensor onto(at::Device device, Record const& record) const {
    std::string const& name = name_of(record);
    if (auto const* const file = dynamic_cast<ParallelFile const*>(file_.get())) {
      std::uint32_t checksum = 0;
      at::Tensor bytes = onto_gpu(*file, record.begin, std::size_t(record.size), device, checksum);
      require_checksum(name, record, checksum);
      return bytes;
    }
    const at::Tensor bytes = host_tensor({std::int64_t(record.size)}, at::kByte);
    require(read(record.begin, bytes.mutable_data_ptr(), std::size_t(record.size)) == record.size, name, "ends early");
    return bytes.to(device);
  }

  /// A record, inflated.
  /// @throws c10::Error naming one that is not there, has another checksum than it says, or inflates to too much
  std::pair<at::DataPtr, std::size_t> data(std::string const& name) const {
    const auto found = records_.find(name);
    require(found != records_.end(), name, "is missing");
    Record const& record = found->second;
    require(!record.compressed || record.size <= most_inflated, name, "is compressed and larger than 16 MiB");
    auto [data, size] = reader_->getRecord(name);
    require(size == record.size, name, "has another size than it says");
    require_checksum(name, record, crc32_of(data.get(), size));
    return {std::move(data), size};
  }

  /// The same as text.
  std::string text(std::string const& name) const {
    const auto [bytes, size] = data(name);
    return {static_cast<char const*>(bytes.get()), size};
  }

  /// Compares all records with their checksums, for readers that do not read through this one.
  /// @throws c10::Error naming a record that has another
  void require_intact() const {
    constexpr std::uint64_t piece = std::uint64_t(32) << 20;
    std::string buffer;
    for (auto const& [name, record] : records_) {
      if (record.compressed) {
        data(name);
        continue;
      }
      Crc32 sum;
      for (std::uint64_t done = 0; done < record.size; done += buffer.size()) {
        buffer.resize(std::size_t(std::min(piece, record.size - done)));
        require(file_->read(record.begin + done, buffer.data(), buffer.size()) == buffer.size(), name, "ends early");
        sum.add_checksum(crc32_of(buffer.data(), buffer.size()), buffer.size());
      }
      require_checksum(name, record, sum.value());
    }
  }

 private:
  static constexpr std::uint64_t most_entries = 100'000, most_inflated = std::uint64_t(16) << 20;
  static constexpr std::uint64_t most_of_format = 4096;
  static constexpr std::size_t longest_name = 511;  // of torch

  struct Directory {
    std::uint64_t begin = 0, size = 0, count = 0;
  };

  struct Entry {
    std::string name = {};
    std::uint64_t header = 0;  ///< where its own header begins
    std::uint64_t bytes = 0, size = 0, flags = 0, method = 0;
    std::uint32_t checksum = 0;
  };

  static void require(bool holds, std::string_view name, char const* rule) {
    TORCH_CHECK(holds, "entry ", detail::quoted(std::string(name)), " of the archive ", rule);
  }

  static void require_checksum(std::string const& name, Record const& record, std::uint32_t got) {
    require(got == record.checksum, name, "is damaged: its checksum differs");
  }

  /// A little-endian number.
  static std::uint64_t number(std::string_view bytes, std::uint64_t position, std::size_t size) {
    TORCH_CHECK(position <= bytes.size() && size <= bytes.size() - position, "an entry of the archive ends early");
    std::uint64_t value = 0;
    for (std::size_t k = size; k-- > 0;) value = value << 8 | static_cast<unsigned char>(bytes[position + k]);
    return value;
  }

  /// Whether an entry says how the archive is written, which torch reads before it is asked for anything.
  static bool is_of_format(std::string_view name) {
    return name == "version" || name == "byteorder" || name.starts_with('.');
  }

  std::string bytes_at(std::uint64_t position, std::uint64_t count) const {
    TORCH_CHECK(position <= size() && count <= size() - position, "an entry of the archive lies beyond its end");
    std::string bytes(std::size_t(count), '\0');
    TORCH_CHECK(file_->read(position, bytes.data(), bytes.size()) == bytes.size(), "the archive ends early");
    return bytes;
  }

  Directory find_directory() const {
    constexpr std::uint64_t end_size = 22, locator_size = 20, zip64_end_size = 56;
    constexpr char rule[] = "no zip archive, or one that is cut off";
    TORCH_CHECK(size() >= end_size, rule);
    std::uint64_t limit = size() - end_size;
    const std::string end = bytes_at(limit, end_size);
    TORCH_CHECK(number(end, 0, 4) == 0x06054b50 && number(end, 20, 2) == 0, rule);
    Directory directory{number(end, 16, 4), number(end, 12, 4), number(end, 10, 2)};
    if (limit >= locator_size + zip64_end_size) {
      const std::string locator = bytes_at(limit - locator_size, locator_size);
      if (number(locator, 0, 4) == 0x07064b50) {  // torch takes it wherever it is there
        limit = number(locator, 8, 8);
        const std::string zip64_end = bytes_at(limit, zip64_end_size);
        TORCH_CHECK(number(zip64_end, 0, 4) == 0x06064b50, rule);
        directory = {number(zip64_end, 48, 8), number(zip64_end, 40, 8), number(zip64_end, 32, 8)};
      }
    }
    TORCH_CHECK(directory.begin <= limit && directory.size <= limit - directory.begin, rule);
    TORCH_CHECK(directory.count >= 1 && directory.count <= most_entries, "the archive must have 1 to ", most_entries,
                " entries, got ", directory.count);
    return directory;
  }

  /// @param position of the entry in the directory; then of the next
  static Entry read_entry(std::string_view directory, std::uint64_t& position) {
    constexpr std::uint64_t fixed_size = 46, in_zip64 = 0xFFFFFFFF;
    const auto field = [&](std::uint64_t offset, std::size_t size) {
      return number(directory, position + offset, size);
    };
    TORCH_CHECK(field(0, 4) == 0x02014b50, "the directory of the archive is damaged");
    const std::uint64_t name_size = field(28, 2), extra_size = field(30, 2), comment_size = field(32, 2);
    const std::uint64_t extra = position + fixed_size + name_size, end = extra + extra_size + comment_size;
    TORCH_CHECK(end <= directory.size(), "the directory of the archive is damaged");
    Entry entry{.name = std::string(directory.substr(position + fixed_size, name_size)),
                .header = field(42, 4),
                .bytes = field(20, 4),
                .size = field(24, 4),
                .flags = field(8, 2),
                .method = field(10, 2),
                .checksum = std::uint32_t(field(16, 4))};
    require(name_size >= 1 && name_size <= longest_name && printable(entry.name, longest_name) == entry.name &&
                entry.name.find('\\') == std::string::npos &&
                ("/" + entry.name + "/").find("/../") == std::string::npos,
            entry.name, "must have a name that torch would give it");
    std::vector<std::uint64_t*> wide;
    for (std::uint64_t* const each : {&entry.size, &entry.bytes, &entry.header}) {
      if (*each == in_zip64) wide.push_back(each);
    }
    for (std::uint64_t at = extra; !wide.empty() && at + 4 <= extra + extra_size;) {
      const std::uint64_t size = number(directory, at + 2, 2);
      if (number(directory, at, 2) == 1) {
        require(size >= 8 * wide.size() && at + 4 + size <= extra + extra_size, entry.name,
                "has a damaged extra field");
        for (std::size_t k = 0; k < wide.size(); ++k) *wide[k] = number(directory, at + 4 + 8 * k, 8);
        wide.clear();
      }
      at += 4 + size;
    }
    position = end;
    return entry;
  }

  /// Where the bytes of an entry are, by its own header, which must say the same.
  Record locate(Entry const& entry) const {
    constexpr std::uint64_t fixed_size = 30, in_zip64 = 0xFFFFFFFF, encrypted = 1, says_later = 8, deflated = 8;
    const std::string header = bytes_at(entry.header, fixed_size);
    const std::uint64_t name_size = number(header, 26, 2), extra_size = number(header, 28, 2);
    const bool later = (entry.flags & says_later) != 0;
    const auto agrees = [&](std::uint64_t offset, std::uint64_t expected) {
      const std::uint64_t got = number(header, offset, 4);
      return got == expected || (later && got == 0) || (offset != 14 && got == in_zip64);
    };
    require(number(header, 0, 4) == 0x04034b50 && number(header, 6, 2) == entry.flags &&
                number(header, 8, 2) == entry.method && agrees(14, entry.checksum) && agrees(18, entry.bytes) &&
                agrees(22, entry.size) && bytes_at(entry.header + fixed_size, name_size) == entry.name,
            entry.name, "has a header that says otherwise");
    require((entry.flags & encrypted) == 0 && (entry.method == 0 || entry.method == deflated), entry.name,
            "must be stored or deflated");
    const Record record{.begin = entry.header + fixed_size + name_size + extra_size,
                        .bytes = entry.bytes,
                        .size = entry.size,
                        .checksum = entry.checksum,
                        .compressed = entry.method == deflated};
    require(record.begin <= size() && record.bytes <= size() - record.begin, entry.name, "lies beyond its end");
    require(record.compressed || record.bytes == record.size, entry.name, "has another size than it says");
    return record;
  }

  std::shared_ptr<ReadAdapterInterface> file_;
  std::map<std::string, Record, std::less<>> records_ = {};
  std::map<std::uint64_t, std::string> by_position_ = {};                     // of what is not compressed
  std::unique_ptr<caffe2::serialize::PyTorchStreamReader> reader_ = nullptr;  // reads entries as soon as it is made
};

/// @param names of the tensors, somewhere in this text
/// @param format "safetensors"
[[noreturn]] inline void refuse_checkpoint(FileKind kind, std::string const& source, std::string_view names,
                                           std::string const& format) {
  const bool dit = names.find("x_embedder.proj") != std::string_view::npos;
  refuse_file(kind, source,
              std::string(dit ? "a DiT checkpoint" : "a checkpoint") + " (" + format +
                  "), which has weights alone: export it with examples/export/" +
                  (dit ? "export_dit.py" : "export_dit.py or the one for its network"));
}

/// Opens a file that is to hold a network.
/// @throws std::runtime_error naming what it is instead
inline std::shared_ptr<Archive> open_network(FileKind kind, std::string const& source,
                                             std::shared_ptr<caffe2::serialize::ReadAdapterInterface> const& file) {
  return reading(kind, source, [&] {
    std::string head(std::min<std::size_t>(file->size(), std::size_t(1) << 20), '\0');
    head.resize(file->read(0, head.data(), head.size()));
    std::uint64_t json_size = 0;  // of safetensors: 8 bytes before it
    for (std::size_t k = std::min<std::size_t>(head.size(), 8); k-- > 0;) {
      json_size = json_size << 8 | static_cast<unsigned char>(head[k]);
    }
    if (head.size() > 8 && head[8] == '{' && json_size < file->size()) {
      refuse_checkpoint(kind, source, head, "safetensors");
    }
    if (head.starts_with("tstitch network ")) {
      refuse_file(kind, source,
                  "a description of a network, whose weights lie elsewhere: the native engine runs it, by "
                  "file/safetensors.hpp");
    }
    if (head.starts_with("\x80\x02")) refuse_checkpoint(kind, source, head, "an old torch.save");
    auto archive = std::make_shared<Archive>(file);
    if (archive->has("data.pkl") && !archive->has("constants.pkl")) {
      refuse_checkpoint(kind, source, archive->text("data.pkl"), "torch.save");
    }
    return archive;
  });
}

}  // namespace tstitch::detail
