/// @file
/// Encoded prompts kept in a folder, so that a text is not encoded twice. Opt-in.
///
///     const tstitch::PromptCache cache("prompts");
///     const tstitch::TextEncoder encoder = cache.load("sana_text.pt", {.device = device});
///     request.conditions = encoder.conditions({"a fox in the snow"}, "blurry");
///
/// Every text has a file of its own there, which `load_conditions` and Python's torch.load read: the outputs of the
/// encoder for it, [1, ...], its tokens ("tokens.ids", "tokens.mask", "tokens.cut"), and the text ("prompts").
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "../base/diagnostics.hpp"
#include "../base/digest.hpp"
#include "../base/error.hpp"
#include "../base/write_file.hpp"
#include "../model/text_encoder.hpp"
#include "../tensor/host_tensor.hpp"
#include "condition_file.hpp"
#include "text_encoder.hpp"

namespace tstitch {

struct PromptCacheOptions {
  /// Of all entries, 1 GiB. The entries that nobody has asked for the longest are removed for new ones.
  std::uint64_t most_bytes = std::uint64_t(1) << 30;
  /// Is told in a line what did not stop the work: an entry that was damaged and encoded anew, and one that could not
  /// be written. Threads may call it at the same time. Not stated: `diagnostics()` has it.
  std::function<void(std::string const&)> warn = {};
};

namespace detail {

/// The description of the encoder in a file, and a number that tells the file from others.
inline std::pair<TextEncoderInfo, std::uint64_t> identify_text_encoder(std::string const& path) {
  const std::string source = detail::quoted(path);
  const auto archive = open_network(text_encoder_file, source, open_file(text_encoder_file, path));
  return reading(text_encoder_file, source, [&] {
    return std::pair(read_text_encoder_info(MetadataReader(*archive, source)), archive->fingerprint());
  });
}

/// What is kept of a text: a value of one row for each name.
using PromptEntry = std::vector<NamedCondition>;

inline at::Tensor const* value_of(PromptEntry const& entry, std::string const& name) {
  const auto is_it = [&](NamedCondition const& each) { return each.name == name; };
  const auto found = std::find_if(entry.begin(), entry.end(), is_it);
  return found == entry.end() ? nullptr : &found->value;
}

/// The files of a cache.
class PromptFolder {
 public:
  PromptFolder(std::string path, PromptCacheOptions options) : path_(std::move(path)), options_(std::move(options)) {
    if (path_.empty()) refuse("PromptCache", "folder must be a path", "none");
    std::error_code error, none;
    std::filesystem::create_directories(path_, error);
    if (!std::filesystem::is_directory(path_, none)) {
      throw std::runtime_error("tstitch::PromptCache: " + detail::quoted(path_) + ": must be a folder, got " +
                               (std::filesystem::exists(path_, none) ? "a file" : "'" + error.message() + "'"));
    }
  }

  /// The entry for this text; nothing where the file is not there, or has another or a damaged one.
  std::optional<PromptEntry> read(std::string const& name, std::string const& text,
                                  std::vector<ConditionInfo> const& outputs) const {
    const std::string file = file_of(name);
    std::error_code none;
    if (!std::filesystem::exists(file, none)) return {};
    try {
      if (load_prompts(file) != std::vector{text}) return {};
      PromptEntry entry = load_conditions(file);
      for (ConditionInfo const& info : outputs) {
        at::Tensor const* const value = value_of(entry, info.name);
        if (!value || !fits(info, value->sizes()) || value->size(0) != 1 ||
            (info.floating ? !value->is_floating_point() : value->scalar_type() != at::kLong)) {
          throw std::runtime_error("it must hold '" + info.name + "', " + text_of(info));
        }
      }
      std::filesystem::last_write_time(file, std::filesystem::file_time_type::clock::now(), none);
      return entry;
    } catch (std::exception const& error) {
      if (!std::filesystem::exists(file, none)) return {};  // another process has removed it
      warn(detail::quoted(file) + " cannot be used, and its text is encoded anew: " + reason(error));
      return {};
    }
  }

  void write(std::string const& name, std::string const& text, PromptEntry const& entry) const {
    const std::string file = file_of(name);
    try {
      save_conditions(file, entry, {text}, Sync::later);
      make_room(file);
    } catch (std::exception const& error) {
      warn(detail::quoted(file) + " is not kept: " + reason(error));
    }
  }

  std::string const& path() const { return path_; }

 private:
  void warn(std::string const& sentence) const {
    if (options_.warn) {
      options_.warn(sentence);
    } else {
      diagnose("PromptCache", sentence);
    }
  }

  std::string file_of(std::string const& name) const { return (std::filesystem::path(path_) / name).string(); }

  /// Whether it is a file of ours: an entry, or one that was being written.
  static bool is_ours(std::string const& name) {
    constexpr std::size_t digits = 16, whole = 2 * digits + 4;
    return name.size() >= whole && name.find_first_not_of("0123456789abcdef") == digits && name[digits] == '-' &&
           name.find_first_not_of("0123456789abcdef", digits + 1) == 2 * digits + 1 &&
           name.compare(whole - 3, 3, ".pt") == 0 && (name.size() == whole || name.compare(whole, 5, ".part") == 0);
  }

  /// Removes the oldest entries that there is no room for, and what is left of writers that were ended.
  /// @param newest is not removed
  void make_room(std::string const& newest) const {
    namespace fs = std::filesystem;
    struct File {
      fs::file_time_type time;
      std::uint64_t bytes;
      fs::path path;
    };
    std::vector<File> files;
    std::uint64_t bytes = 0;
    const fs::file_time_type hour_ago = fs::file_time_type::clock::now() - std::chrono::hours(1);
    std::error_code error;
    for (fs::directory_iterator each(path_, error), end; !error && each != end; each.increment(error)) {
      const std::string name = each->path().filename().string();
      std::error_code gone;  // by another process
      const File file{each->last_write_time(gone), gone ? 0 : std::uint64_t(each->file_size(gone)), each->path()};
      if (gone || !is_ours(name)) continue;
      if (!name.ends_with(".pt")) {
        if (file.time < hour_ago) fs::remove(file.path, gone);
        continue;
      }
      bytes += file.bytes;
      if (file.path != newest) files.push_back(file);
    }
    std::sort(files.begin(), files.end(), [](File const& a, File const& b) { return a.time < b.time; });
    for (File const& file : files) {
      if (bytes <= options_.most_bytes) return;
      fs::remove(file.path, error);
      bytes -= file.bytes;
    }
  }

  std::string path_;
  PromptCacheOptions options_;
};

/// An encoder that is used by way of a folder.
class CachedTextEncoder {
 public:
  using Outputs = std::vector<std::pair<std::string, at::Tensor>>;

  CachedTextEncoder(std::shared_ptr<PromptFolder const> folder, std::string path, TorchScriptOptions options,
                    TextEncoderInfo info, std::uint64_t fingerprint)
      : folder_(std::move(folder)),
        path_(std::move(path)),
        options_(std::move(options)),
        info_(std::move(info)),
        fingerprint_(fingerprint) {}

  Outputs encode(std::vector<std::string> const& texts, bool negative) const {
    std::vector<PromptEntry> entries;
    for (std::string const& text : texts) {
      std::optional<PromptEntry> entry = folder_->read(name_of(text, negative), text, info_.outputs);
      if (!entry) {
        TextEncoder const& encoder = loaded();
        entry = negative ? encoder.encode_negative({text}) : encoder.encode({text});
        PromptEntry kept = *entry;
        if (!negative) {
          const TextTokens tokens = encoder.tokenize({text});
          const at::Tensor all[] = {tokens.ids, tokens.mask, tokens.cut};
          for (std::size_t k = 0; k < 3; ++k) kept.push_back({token_names[k], all[k], {}});
        }
        folder_->write(name_of(text, negative), text, kept);
      }
      entries.push_back(std::move(*entry));
    }
    Outputs outputs;
    for (ConditionInfo const& info : info_.outputs) outputs.emplace_back(info.name, rows(entries, info.name));
    return outputs;
  }

  TextTokens tokenize(std::vector<std::string> const& texts) const {
    std::vector<PromptEntry> entries;
    for (std::string const& text : texts) {
      std::optional<PromptEntry> entry = folder_->read(name_of(text, false), text, info_.outputs);
      bool whole = entry.has_value();
      for (char const* const name : token_names) whole = whole && value_of(*entry, name);
      if (!whole) return loaded().tokenize(texts);
      entries.push_back(std::move(*entry));
    }
    return {rows(entries, token_names[0], at::kCPU), rows(entries, token_names[1], at::kCPU),
            rows(entries, token_names[2], at::kCPU)};
  }

 private:
  static constexpr char const* token_names[3] = {"tokens.ids", "tokens.mask", "tokens.cut"};

  /// An entry's file; of another encoder, type, device or text another.
  std::string name_of(std::string const& text, bool negative) const {
    const std::string type = options_.dtype             ? at::toString(*options_.dtype)
                             : options_.device.is_cpu() ? at::toString(at::kFloat)
                                                        : "stored";
    const std::string settings = options_.device.is_cpu() ? "cpu " + type : "cuda " + type;
    return hexadecimal(fingerprint_) + "-" + digest({settings + (negative ? " negative" : " prompt"), text}) + ".pt";
  }

  TextEncoder const& loaded() const {
    const std::lock_guard lock(mutex_);
    if (!loaded_) {
      TextEncoder encoder = load_text_encoder(path_, options_);
      // Others could get what this gives under the name of the file that was there before.
      if (identify_text_encoder(path_).second != fingerprint_) {
        throw std::runtime_error("tstitch::PromptCache: " + detail::quoted(path_) +
                                 ": must stay as it is while it is used, got another file");
      }
      loaded_ = std::move(encoder);
    }
    return *loaded_;
  }

  at::Tensor rows(std::vector<PromptEntry> const& entries, std::string const& name) const {
    return rows(entries, name, options_.device);
  }

  /// All entries' rows of this name, below each other.
  static at::Tensor rows(std::vector<PromptEntry> const& entries, std::string const& name, at::Device device) {
    std::vector<at::Tensor> parts;
    for (PromptEntry const& entry : entries) parts.push_back(*value_of(entry, name));
    return rows_of("PromptCache", name, parts, device);
  }

  std::shared_ptr<PromptFolder const> folder_;
  std::string path_;
  TorchScriptOptions options_;
  TextEncoderInfo info_;
  std::uint64_t fingerprint_;
  mutable std::mutex mutex_ = {};
  mutable std::optional<TextEncoder> loaded_ = {};
};

}  // namespace detail

/// A folder of encoded texts. Threads and processes may use one at the same time.
///
/// An entry belongs to a text, to whether it is a prompt or what guidance leads away from (where the encoder has an
/// instruction for prompts, see TextEncoderInfo), to the contents of the encoder's file, to the kind of device and to
/// the dtype. The contents are told by the name, size and CRC-32 of each record in the file, which the file says in a
/// few kilobytes: they are compared with the records whenever these are read, so that a file that says others does not
/// load. Entries carry such checksums, too. This is against mistakes: who can write into the folder can change what is
/// drawn.
class PromptCache {
 public:
  /// Makes the folder where it is not there.
  /// @throws std::invalid_argument for an empty path, std::runtime_error where there cannot be a folder
  explicit PromptCache(std::string folder, PromptCacheOptions options = {})
      : folder_(std::make_shared<detail::PromptFolder>(std::move(folder), std::move(options))) {}

  /// As load_text_encoder, but the weights are not loaded before a text is asked for that is not in the folder. Each
  /// text is encoded by itself, so that what it gives does not depend on what is there already; in a batch the last
  /// bits may be others.
  /// @throws what load_text_encoder throws, of which a part when the encoder is used, and then also std::runtime_error
  ///         for a file that has changed since
  TextEncoder load(std::string const& path, TorchScriptOptions const& options = {}) const {
    auto [info, fingerprint] = detail::identify_text_encoder(path);
    require_device(options.device, "load_text_encoder");
    const auto use = std::make_shared<detail::CachedTextEncoder>(folder_, path, options, info, fingerprint);
    return TextEncoder({.encode = [use](auto const& texts) { return use->encode(texts, false); },
                        .encode_negative = [use](auto const& texts) { return use->encode(texts, true); },
                        .tokenize = [use](auto const& texts) { return use->tokenize(texts); },
                        .info = std::move(info),
                        .device = options.device});
  }

  std::string const& folder() const { return folder_->path(); }

 private:
  std::shared_ptr<detail::PromptFolder const> folder_;
};

}  // namespace tstitch
