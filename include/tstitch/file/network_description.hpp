/// @file
/// What a network is, in a small text beside weights that lie where they were published: what the exporters write with
/// `--format in-place`. file/safetensors.hpp loads it.
///
/// UTF-8 text, a key and its value a line, with a space between. Lines that begin with # and empty ones say nothing.
///
///     tstitch network 1                 the first line
///     weights PATH                      a file, one a line, or what else SafetensorsFiles takes; relative to the text
///     dtype                             float32, float16 or bfloat16: what it runs in on a GPU where nothing else is
///                                       said (default: the type of the weights)
///     name small                        and all other keys that metadata.hpp lists for networks, without "tstitch/";
///                                       but format, e4m3_weight_scales and e4m3_weights
///     conditions text_embedding float 333 4096
///     conditions pooled_embedding float 2048
///                                       of a value of several lines each has its own
#pragma once

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "../base/error.hpp"
#include "../base/text.hpp"
#include "file.hpp"
#include "metadata_reader.hpp"
#include "text_file.hpp"

namespace tstitch {

/// A text that describes a network, line by line; what it means for a network is not looked at.
struct NetworkDescription {
  std::map<std::string, std::string> texts = {};  ///< by key, {"name", "small"}, and {"format", "1"}
  std::vector<std::string> weights = {};          ///< paths, in order
  std::string without_weights = {};               ///< all lines but those
};

namespace detail {

inline constexpr FileKind network_description{"read_network_description", "a description of a network"};
inline constexpr std::string_view description_magic = "tstitch network ";

inline NetworkDescription parse_network_description(std::string const& path, std::string const& all) {
  std::size_t number = 0;
  const auto fail = [&](std::string const& rule, std::string const& got) {
    throw std::runtime_error("tstitch::read_network_description: " + quoted(path) + ", line " + std::to_string(number) +
                             ": " + rule + ", got " + in_quotes(got));
  };
  if (!is_utf8(all)) refuse_file(network_description, quoted(path), "bytes that are no UTF-8");
  NetworkDescription found{.texts = {{"format", "1"}}};
  for (std::string const& line : split(all, '\n')) {
    ++number;
    if (number == 1 && line != std::string(description_magic) + "1") {
      fail("must be '" + std::string(description_magic) + "1'", line);
    }
    const std::size_t space = std::min(line.find(' '), line.size());
    const std::string key = line.substr(0, space), value = line.substr(std::min(space + 1, line.size()));
    if (key == "weights") {
      if (printable(value, value.size()) != value || value.empty()) fail("must have a path behind weights", line);
      found.weights.push_back((std::filesystem::path(path).parent_path() / value).string());
      continue;
    }
    found.without_weights += line + "\n";
    if (number == 1 || line.empty() || line[0] == '#') continue;
    if (printable(line, line.size()) != line) fail("must be text without control characters", line);
    const auto is_it = [&](MetadataKey const& each) { return each.name == key; };
    const bool known = key != "format" && key != "e4m3_weight_scales" &&
                       std::any_of(metadata_keys.begin(), metadata_keys.end(), is_it);
    if (!known) fail("must begin with a key that there is", line);
    const auto [text, first] = found.texts.try_emplace(key, value);
    if (!first) text->second += "\n" + value;
  }
  number = 0;
  if (found.weights.empty()) refuse_file(network_description, quoted(path), "one without a line 'weights'");
  return found;
}

}  // namespace detail

/// Whether a file begins as descriptions of networks do. False for what cannot be read.
inline bool is_network_description(std::string const& path) {
  try {
    const detail::RegularFile file(detail::network_description, path);
    std::array<char, detail::description_magic.size()> begin{};
    const ssize_t count = ::pread(file.descriptor(), begin.data(), begin.size(), 0);
    return count == ssize_t(begin.size()) && std::string_view(begin.data(), begin.size()) == detail::description_magic;
  } catch (std::runtime_error const&) {
    return false;
  }
}

/// @throws std::runtime_error naming the file, the line and what is wrong with it
inline NetworkDescription read_network_description(std::string const& path) {
  return detail::parse_network_description(path,
                                           detail::read_text(detail::network_description, path, std::size_t(1) << 24));
}

}  // namespace tstitch
