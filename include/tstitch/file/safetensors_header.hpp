/// @file
/// What stands before the numbers in safetensors files, and in the indices of sharded ones. Opt-in: it needs
/// nlohmann-json.
///
/// A file is 8 bytes, the size of a JSON text, little-endian; the text; and the numbers of all tensors one after
/// another, row-major (https://github.com/huggingface/safetensors).
#pragma once

#include <c10/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "../base/text.hpp"
#include "file.hpp"

namespace tstitch::detail {

/// Values of a JSON text one after another, each with the keys above it.
///
/// Nothing of the text is kept here, so that one of others takes no memory but what `Visitor` makes of it.
/// @tparam Visitor has object(keys), list(keys), number(keys, value, in_list), text(keys, value), other(keys, what)
/// and end(keys), of objects; each may throw. Lists hold numbers alone.
template <class Visitor>
class JsonEvents {
 public:
  using Keys = std::vector<std::string>;

  explicit JsonEvents(Visitor& visitor) : visitor_(visitor) {}

  /// @throws std::runtime_error for what is no JSON, and what the visitor throws
  void read(std::string_view text) {
    nlohmann::json::sax_parse(text.begin(), text.end(), this, nlohmann::json::input_format_t::json, /*strict=*/true);
  }

  bool null() { return other("null"); }
  bool boolean(bool value) { return other(value ? "true" : "false"); }
  bool number_integer(std::int64_t value) { return other(std::to_string(value)); }
  bool number_unsigned(std::uint64_t value) {
    visitor_.number(keys_, value, in_list_);
    return true;
  }
  bool number_float(double /*value*/, std::string const& written) { return other(written); }
  bool string(std::string& value) {
    if (in_list_) return other("a text in a list");
    visitor_.text(keys_, value);
    return true;
  }
  bool binary(std::vector<std::uint8_t>& /*value*/) { return other("bytes"); }
  bool start_object(std::size_t /*elements*/) {
    if (in_list_) return other("an object in a list");
    visitor_.object(keys_);
    ++objects_;
    return true;
  }
  bool key(std::string& name) {
    keys_.resize(objects_ - 1);
    keys_.push_back(std::move(name));
    return true;
  }
  bool end_object() {
    keys_.resize(--objects_);
    visitor_.end(keys_);
    return true;
  }
  bool start_array(std::size_t /*elements*/) {
    if (in_list_) return other("a list in a list");
    visitor_.list(keys_);
    in_list_ = true;
    return true;
  }
  bool end_array() {
    in_list_ = false;
    return true;
  }
  bool parse_error(std::size_t /*position*/, std::string const& /*token*/, nlohmann::json::exception const& error) {
    throw std::runtime_error(error.what());
  }

 private:
  bool other(std::string const& what) {
    visitor_.other(keys_, what);
    return true;
  }

  Visitor& visitor_;
  Keys keys_ = {};
  std::size_t objects_ = 0;  // that are open
  bool in_list_ = false;
};

struct SafetensorsType {
  std::string_view name;
  std::size_t bytes;
  std::optional<at::ScalarType> read_as = {};  ///< none: it is not read
};
/// All that the format has with whole bytes.
inline constexpr std::array safetensors_types = std::to_array<SafetensorsType>({
    {"F64", 8, at::kDouble},
    {"F32", 4, at::kFloat},
    {"F16", 2, at::kHalf},
    {"BF16", 2, at::kBFloat16},
    {"BOOL", 1},
    {"U8", 1},
    {"I8", 1},
    {"F8_E5M2", 1},
    {"F8_E4M3", 1},
    {"F8_E8M0", 1},
    {"I16", 2},
    {"U16", 2},
    {"I32", 4},
    {"U32", 4},
    {"I64", 8},
    {"U64", 8},
    {"C64", 8},
});

/// A tensor as a header states it.
struct SafetensorsEntry {
  SafetensorsType const* type = nullptr;
  std::vector<std::int64_t> sizes = {};
  std::uint64_t begin = 0, end = 0;  ///< among the bytes behind the header
};

/// The JSON text before the numbers of a file.
class SafetensorsHeader {
 public:
  using Keys = std::vector<std::string>;

  /// @param source the file's name in messages
  /// @param data bytes behind the header
  /// @throws std::runtime_error for what is none, or does not fit so many bytes
  SafetensorsHeader(std::string source, std::string_view text, std::uint64_t data) : source_(std::move(source)) {
    if (!text.starts_with('{')) fail("", "must begin with {", in_quotes(text.substr(0, 1)));
    JsonEvents<SafetensorsHeader>(*this).read(text);
    require_places(data);
  }

  std::map<std::string, SafetensorsEntry> const& tensors() const { return tensors_; }
  std::map<std::string, std::string> const& metadata() const { return metadata_; }

  void object(Keys const& keys) {
    if (keys.empty()) return;
    if (keys.size() > 1) fail(keys[0], "must be of texts, numbers and lists", "an object in it");
    if (keys[0] == metadata_key) {
      if (std::exchange(has_metadata_, true)) fail(keys[0], "must be there once", "it twice");
      return;
    }
    if (!tensors_.try_emplace(keys[0]).second) fail(keys[0], "must be there once", "it twice");
    now_ = {};
  }

  void list(Keys const& keys) {
    if (keys.size() != 2 || keys[0] == metadata_key) fail(keys.empty() ? "" : keys[0], "must be an object", "a list");
    if (keys[1] == "shape") {
      once(keys, now_.shape);
    } else if (keys[1] == "data_offsets") {
      once(keys, now_.offsets);
    } else {
      fail(keys[0], field_rule, in_quotes(keys[1]) + " as a list");
    }
  }

  void number(Keys const& keys, std::uint64_t value, bool in_list) {
    if (!in_list) return other(keys, std::to_string(value));
    const bool shape = keys[1] == "shape";
    auto& list = shape ? now_.shape : now_.offsets;
    if (list->size() == (shape ? most_sizes : 2)) {
      fail(keys[0], shape ? "must have at most " + std::to_string(most_sizes) + " sizes" : "must have two data_offsets",
           "more");
    }
    list->push_back(value);
  }

  void text(Keys const& keys, std::string& value) {
    if (keys.size() == 2 && keys[0] == metadata_key) {
      if (!metadata_.emplace(keys[1], std::move(value)).second) {
        fail(keys[0], "must have each key once", in_quotes(keys[1]) + " twice");
      }
    } else if (keys.size() == 2 && keys[1] == "dtype") {
      if (now_.type) fail(keys[0], "must have one dtype", "two");
      for (SafetensorsType const& type : safetensors_types) {
        if (type.name == value) now_.type = &type;
      }
      if (!now_.type) fail(keys[0], "must have a dtype that there is", in_quotes(value));
    } else {
      other(keys, in_quotes(value));
    }
  }

  void other(Keys const& keys, std::string const& what) {
    if (keys.size() < 2) fail(keys.empty() ? "" : keys[0], "must be an object", what);
    if (keys[0] == metadata_key) fail(keys[0], "must be texts", in_quotes(keys[1]) + ": " + what);
    fail(keys[0], field_rule, in_quotes(keys[1]) + ": " + what);
  }

  void end(Keys const& keys) {
    if (keys.size() != 1 || keys[0] == metadata_key) return;
    if (!now_.type || !now_.shape || !now_.offsets) fail(keys[0], "must have dtype, shape and data_offsets", "fewer");
    if (now_.offsets->size() != 2) fail(keys[0], "must have two data_offsets", std::to_string(now_.offsets->size()));
    SafetensorsEntry& entry = tensors_.at(keys[0]);
    entry.type = now_.type;
    entry.begin = now_.offsets->at(0);
    entry.end = now_.offsets->at(1);
    std::uint64_t counted = 1, elements = 1;
    for (const std::uint64_t size : *now_.shape) {
      if (size > most_elements / counted) {
        fail(keys[0], "must have at most 2^48 elements", "more");
      }
      counted *= std::max<std::uint64_t>(size, 1);
      elements *= size;
      entry.sizes.push_back(std::int64_t(size));
    }
    const std::uint64_t bytes = elements * entry.type->bytes;
    if (entry.end < entry.begin || entry.end - entry.begin != bytes) {
      fail(keys[0], "must have as many bytes as its shape, " + std::to_string(bytes),
           "data_offsets " + std::to_string(entry.begin) + " and " + std::to_string(entry.end));
    }
  }

 private:
  static constexpr auto metadata_key = "__metadata__";
  static constexpr auto field_rule = "must have dtype, a text, and shape and data_offsets, lists of whole numbers";
  static constexpr std::size_t most_sizes = 16;
  static constexpr std::uint64_t most_elements = std::uint64_t(1) << 48;

  using Numbers = std::optional<std::vector<std::uint64_t>>;

  void once(Keys const& keys, Numbers& list) const {
    if (list) fail(keys[0], "must have one " + keys[1], "two");
    list.emplace();
  }

  [[noreturn]] void fail(std::string const& name, std::string const& rule, std::string const& got) const {
    throw std::runtime_error("tstitch::load_safetensors: " + source_ + ": " +
                             (name.empty() ? "the header" : in_quotes(name) + " of the header") + " " + rule +
                             ", got " + got);
  }

  /// One behind another, from the first byte to the last.
  void require_places(std::uint64_t data) const {
    std::vector<std::pair<std::string const*, SafetensorsEntry const*>> all;
    for (auto const& [name, entry] : tensors_) all.emplace_back(&name, &entry);
    std::sort(all.begin(), all.end(), [](auto const& a, auto const& b) {
      return std::pair(a.second->begin, a.second->end) < std::pair(b.second->begin, b.second->end);
    });
    std::uint64_t place = 0;
    for (auto const& [name, entry] : all) {
      if (entry->begin != place) {
        fail(*name, "must begin where another tensor ends, at byte " + std::to_string(place),
             std::to_string(entry->begin));
      }
      place = entry->end;
    }
    if (place != data) {
      fail("", "must account for all " + std::to_string(data) + " bytes of numbers", std::to_string(place));
    }
  }

  struct Fields {
    SafetensorsType const* type = nullptr;
    Numbers shape = {}, offsets = {};
  };

  std::string source_;
  std::map<std::string, SafetensorsEntry> tensors_ = {};
  std::map<std::string, std::string> metadata_ = {};
  bool has_metadata_ = false;
  Fields now_ = {};
};

/// An index of a sharded set: which file has which tensor.
class SafetensorsIndex {
 public:
  using Keys = std::vector<std::string>;

  /// @throws std::runtime_error for what is none
  SafetensorsIndex(std::string source, std::string_view text) : source_(std::move(source)) {
    JsonEvents<SafetensorsIndex>(*this).read(text);
    if (files_.empty()) fail("must have a weight_map from tensors to files", "none");
  }

  /// Names of files by those of tensors.
  std::map<std::string, std::string> const& files() const { return files_; }

  void object(Keys const& keys) {
    if (keys.size() > 1) fail("must have objects of texts and numbers", "an object in " + in_quotes(keys[0]));
    if (keys.size() == 1 && keys[0] == map_key && std::exchange(has_map_, true)) {
      fail("must have one weight_map", "two");
    }
  }
  void list(Keys const& keys) {
    if (in_map(keys) || keys.empty()) fail("must have a weight_map from tensors to files", "a list");
  }
  void number(Keys const& keys, std::uint64_t value, bool /*in_list*/) { other(keys, std::to_string(value)); }
  void text(Keys const& keys, std::string& value) {
    if (keys.size() != 2 || !in_map(keys)) return other(keys, in_quotes(value));
    const bool plain = !value.empty() && value[0] != '.' && value.find_first_of("/\\") == std::string::npos &&
                       printable(value, value.size()) == value && value.ends_with(".safetensors");
    if (!plain) fail("must name .safetensors files beside it", in_quotes(value));
    if (!files_.emplace(keys[1], std::move(value)).second) {
      fail("must have each tensor once", in_quotes(keys[1]) + " twice");
    }
  }
  void other(Keys const& keys, std::string const& what) const {
    if (in_map(keys) || keys.empty()) fail("must have a weight_map from tensors to files", what);
  }
  void end(Keys const& /*keys*/) {}

 private:
  static constexpr auto map_key = "weight_map";

  static bool in_map(Keys const& keys) { return !keys.empty() && keys[0] == map_key; }

  [[noreturn]] void fail(std::string const& rule, std::string const& got) const {
    throw std::runtime_error("tstitch::load_safetensors: " + source_ + ": the index " + rule + ", got " + got);
  }

  std::string source_;
  std::map<std::string, std::string> files_ = {};
  bool has_map_ = false;
};

}  // namespace tstitch::detail
