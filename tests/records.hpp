/// @file
/// Archives of torch taken apart and put together again, for tests of files that lie.
#pragma once

#include <caffe2/serialize/inline_container.h>

#include <cstddef>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

using Records = std::vector<std::pair<std::string, std::string>>;

/// @param compressed how the names of those begin that are
inline std::string archive_of(Records const& records, std::string const& compressed = "none") {
  std::string bytes;
  caffe2::serialize::PyTorchStreamWriter writer([&](void const* data, std::size_t size) {
    bytes.append(static_cast<char const*>(data), size);
    return size;
  });
  for (auto const& [name, data] : records) {
    writer.writeRecord(name, data.data(), data.size(), name.starts_with(compressed));
  }
  writer.writeEndOfFile();
  return bytes;
}

/// What the writer does not add by itself.
inline Records records_of(std::string const& bytes) {
  std::istringstream stream(bytes);
  caffe2::serialize::PyTorchStreamReader reader(&stream);
  Records records;
  for (std::string const& name : reader.getAllRecords()) {
    if (name == "version" || name == "byteorder" || name.starts_with(".")) continue;
    const auto [data, size] = reader.getRecord(name);
    records.emplace_back(name, std::string(static_cast<char const*>(data.get()), size));
  }
  return records;
}
