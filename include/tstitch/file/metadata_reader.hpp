/// @file
/// The metadata of one file as texts and numbers, checked key by key. metadata.hpp says what each means.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "archive.hpp"

namespace tstitch::detail {

/// A key, and how long its value may be.
struct MetadataKey {
  std::string_view name;
  std::size_t most_bytes = 200;
};

inline constexpr std::size_t long_text = std::size_t(64) << 10, long_list = std::size_t(4) << 20;

/// All keys of networks, autoencoders, text encoders and packages but e4m3_weights, which is large: only load_dit reads
/// it.
inline constexpr std::array metadata_keys = std::to_array<MetadataKey>({
    {"format"},
    {"kind"},
    {"name"},
    {"input_shape"},
    {"input_channels"},
    {"input_height"},
    {"input_width"},
    {"prediction"},
    {"variance"},
    {"num_classes"},
    {"null_class"},
    {"class_names", long_list},
    {"conditions", long_text},
    {"timestep_type"},
    {"noise_schedule"},
    {"num_train_timesteps"},
    {"flow_shift"},
    {"beta_start"},
    {"beta_end"},
    {"alphas_cumprod", long_list},
    {"decoding"},
    {"latent_scale", long_list},
    {"latent_shift", long_list},
    {"guidance_scale"},
    {"profile"},
    {"steps"},
    {"training_data", long_text},
    {"license", long_text},
    {"images_seen"},
    {"architecture"},
    {"width"},
    {"depth"},
    {"heads"},
    {"patch_size"},
    {"mlp_ratio"},
    {"e4m3_inputs", long_list},
    {"e4m3_weight_scales", long_list},
    {"forecast"},
    {"latent_channels"},
    {"picture_channels"},
    {"upsampling"},
    {"temporal_upsampling"},
    {"latents"},
    {"outputs", long_text},
    {"text_tokens"},
    {"no_text"},
    {"instruction", long_text},
    {"dtype"},
    {"device"},
    {"compute_capability"},
    {"cpu_capability"},
    {"torch"},
    {"batch", long_text},
});

/// The metadata of one file. Every error names the file, the key and the value.
class MetadataReader {
 public:
  /// @param archive of TorchScript or AOTInductor
  /// @param source the file's name in error messages
  MetadataReader(Archive const& archive, std::string source) : source_(std::move(source)) {
    for (MetadataKey const& key : metadata_keys) {
      const std::string name(key.name), record = "extra/tstitch/" + name;
      const auto found = archive.records().find(record);
      if (found == archive.records().end()) continue;
      require_size(key, found->second.size);
      values_[name] = archive.text(record);
    }
  }

  /// Of a file of another kind, whose reader has found the values.
  /// @param texts by their keys, "name"; keys that there are not are ignored
  /// @throws std::runtime_error for one that is too long
  MetadataReader(std::map<std::string, std::string> const& texts, std::string source) : source_(std::move(source)) {
    for (MetadataKey const& key : metadata_keys) {
      const auto found = texts.find(std::string(key.name));
      if (found == texts.end()) continue;
      require_size(key, found->second.size());
      values_.insert(*found);
    }
  }

  bool has(std::string const& key) const { return values_.contains(key); }

  std::string text(std::string const& key) const {
    if (!has(key)) fail(key, "is required", "nothing");
    return values_.at(key);
  }

  template <class Number>
  Number number(std::string const& key) const {
    return parse<Number>(key, text(key));
  }

  template <class Number>
  Number number(std::string const& key, Number otherwise) const {
    return has(key) ? number<Number>(key) : otherwise;
  }

  std::string text(std::string const& key, std::string otherwise) const { return has(key) ? text(key) : otherwise; }

  /// A number in [least, most].
  template <class Number>
  Number in_range(std::string const& key, Number least, Number most, std::optional<Number> otherwise = {}) const {
    const Number value = otherwise ? number<Number>(key, *otherwise) : number<Number>(key);
    if (!(value >= least && value <= most)) {
      fail(key, "must be in [" + shown(least) + ", " + shown(most) + "]", shown(value));
    }
    return value;
  }

  /// Text without control characters, safe to print.
  std::string line(std::string const& key, std::string const& otherwise) const {
    return require_line(key, text(key, otherwise));
  }

  std::string const& require_line(std::string const& key, std::string const& value) const {
    if (printable(value, value.size()) != value) fail(key, "must be text without control characters", quote(value));
    return value;
  }

  /// @param most how many lines there may be
  std::vector<std::string> lines(std::string const& key, std::size_t most) const {
    std::vector<std::string> lines;
    const std::string all = text(key, "");
    for (std::size_t begin = 0; begin < all.size();) {
      const std::size_t end = std::min(all.find('\n', begin), all.size());
      if (lines.size() == most) fail(key, "must have at most " + std::to_string(most) + " lines", "more");
      lines.push_back(all.substr(begin, end - begin));
      begin = end + 1;
    }
    return lines;
  }

  template <class Number>
  Number parse(std::string const& key, std::string const& value) const {
    Number number{};
    const char* const end = value.data() + value.size();
    const auto [rest, error] = std::from_chars(value.data(), end, number);
    if (error != std::errc{} || rest != end) fail(key, "must be a number", quote(value));
    return number;
  }

  /// What `choices` pairs with the value.
  template <class Value>
  Value choice(std::string const& key, std::string const& value,
               std::vector<std::pair<char const*, Value>> const& choices) const {
    std::string names;
    for (auto const& [name, meaning] : choices) {
      if (value == name) return meaning;
      names += (names.empty() ? "" : ", ") + std::string(name);
    }
    fail(key, "must be one of " + names, quote(value));
  }

  [[noreturn]] void fail(std::string const& key, std::string const& rule, std::string const& got) const {
    throw std::runtime_error("tstitch::read_network_info: " + source_ + ": tstitch/" + key + " " + rule + ", got " +
                             got);
  }

  /// A value as error messages show it.
  static std::string quote(std::string_view value) { return "'" + printable(value) + "'"; }

 private:
  void require_size(MetadataKey const& key, std::uint64_t size) const {
    if (size <= key.most_bytes) return;
    fail(std::string(key.name), "must have at most " + std::to_string(key.most_bytes) + " bytes", std::to_string(size));
  }

  template <class Number>
  static std::string shown(Number value) {
    if constexpr (std::is_integral_v<Number>) {
      return std::to_string(value);
    } else {
      return detail::text(value);
    }
  }

  std::string source_;
  std::map<std::string, std::string> values_ = {};
};

}  // namespace tstitch::detail
