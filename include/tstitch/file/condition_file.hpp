/// @file
/// Conditions such as the embedding of a prompt, and the prompts, from files of torch.save and to them. Opt-in.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../base/write_file.hpp"
#include "../model/condition.hpp"
#include "archive.hpp"
#include "file.hpp"
#include "parallel_file.hpp"
#include "pickle.hpp"
#include "pickle_writer.hpp"
#include "storage_reader.hpp"

namespace tstitch {
namespace detail {

/// What a file of conditions holds, as its pickle says it.
struct ConditionEntries {
  std::vector<std::pair<std::string_view, PickledTensor>> tensors = {};  ///< in the file's order
  Pickle::Value const* prompts = nullptr;                                ///< a list; null where there is none
};

inline ConditionEntries condition_entries(FileKind kind, std::string const& source, Pickle const& pickle) {
  using Kind = Pickle::Kind;
  Pickle::Value const& root = pickle.root();
  if (root.kind != Kind::dict) refuse_file(kind, source, text(root.kind));
  ConditionEntries entries;
  for (std::size_t i = 0; i < root.children.size(); i += 2) {
    Pickle::Value const& key = pickle.value(root.children[i]);
    Pickle::Value const& value = pickle.value(root.children[i + 1]);
    if (key.kind != Kind::text) refuse_file(kind, source, std::string("a key of ") + text(key.kind));
    if (value.kind == Kind::tensor) {
      entries.tensors.emplace_back(key.text, pickle.tensor(value));
    } else if (value.kind == Kind::list && key.text == "prompts") {
      entries.prompts = &value;
    } else {
      refuse_file(kind, source, "an entry '" + printable(key.text) + "' of " + text(value.kind));
    }
  }
  return entries;
}

inline constexpr std::size_t longest_prompt = std::size_t(64) << 10;     ///< bytes
inline constexpr std::size_t most_prompt_bytes = std::size_t(16) << 20;  ///< of all prompts of a file

}  // namespace detail

/// Reads a dict of tensors, `torch.save({"text_embedding": ..., "text_embedding.null": ...}, path)`, where `name.null`
/// is the null counterpart of `name`. Runs no code from the file: tensors in a dict with text keys are all that is
/// taken. The list "prompts", where there is one, is left to `load_prompts`.
/// @throws std::runtime_error naming the file and what is wrong with it
inline std::vector<NamedCondition> load_conditions(std::string const& path) {
  constexpr detail::FileKind kind{"load_conditions", "a file of torch.save with a dict of tensors"};
  const auto file = detail::open_file(kind, path);
  const std::string source = detail::quoted(path);
  std::vector<std::pair<std::string, at::Tensor>> entries;
  detail::reading(kind, source, [&] {
    const detail::Archive archive(file);
    const detail::Pickle pickle(archive, "data", /*classes=*/false);
    detail::StorageReader storages(archive);
    const detail::ConditionEntries found = detail::condition_entries(kind, source, pickle);
    for (auto const& [name, tensor] : found.tensors) {
      entries.emplace_back(name, storages(tensor));
    }
  });
  std::vector<NamedCondition> conditions;
  const auto named = [&](std::string const& name) -> NamedCondition& {
    const auto is_it = [&](NamedCondition const& each) { return each.name == name; };
    const auto found = std::find_if(conditions.begin(), conditions.end(), is_it);
    return found != conditions.end() ? *found : conditions.emplace_back(NamedCondition{name, {}, {}});
  };
  for (auto const& [name, tensor] : entries) {
    const bool null = name.ends_with(".null");
    (null ? named(name.substr(0, name.size() - 5)).null : named(name).value) = tensor;
  }
  for (NamedCondition const& each : conditions) {
    if (!each.value.defined()) {
      const std::string name = detail::printable(each.name);
      detail::refuse_file(kind, source, "'" + name + ".null' without '" + name + "'");
    }
  }
  return conditions;
}

/// Writes a file that load_conditions, load_prompts and Python's torch.load read: a dict of tensors, "name.null" for
/// null counterparts, and the prompts from which they were made.
/// @param prompts one for each row, as load_prompts takes them, or none
/// @throws std::invalid_argument for a condition without a value, and for prompts that load_prompts would refuse
/// @throws std::runtime_error where the file cannot be written; then none is left
inline void save_conditions(std::string const& path, std::vector<NamedCondition> const& conditions,
                            std::vector<std::string> const& prompts = {}, Sync sync = Sync::now) {
  detail::PickleWriter pickle;
  pickle.begin_dict();
  const auto add = [&](std::string const& name, at::Tensor const& tensor) {
    pickle.text(name);
    pickle.tensor(tensor.detach().cpu().contiguous());
  };
  std::int64_t rows = 0;
  for (NamedCondition const& each : conditions) {
    const std::string name = "'" + detail::printable(each.name) + "'";
    if (!each.value.defined()) detail::refuse("save_conditions", name + " must have a value", "none");
    add(each.name, each.value);
    rows = std::max(rows, each.value.dim() > 0 ? each.value.size(0) : 0);
    if (each.null.defined()) add(each.name + ".null", each.null);
  }
  if (!prompts.empty()) {
    if (std::int64_t(prompts.size()) != rows) {
      detail::refuse("save_conditions", "prompts must be one for each of " + std::to_string(rows) + " rows",
                     double(prompts.size()));
    }
    std::size_t bytes = 0;
    for (std::string const& each : prompts) {
      bytes += each.size();
      if (each.size() > detail::longest_prompt || bytes > detail::most_prompt_bytes || !detail::is_utf8(each)) {
        detail::refuse("save_conditions", "prompts must be UTF-8 of at most 64 KiB each and 16 MiB together",
                       "'" + detail::printable(each) + "'");
      }
    }
    pickle.text("prompts");
    pickle.begin_list();
    for (std::string const& each : prompts) pickle.text(each);
    pickle.end_list();
  }
  pickle.end_dict();
  write_file(path, pickle.archive(), sync);
}

/// Reads the texts from which the conditions of a file were made, which its list "prompts" holds: UTF-8 of at most 64
/// KiB each and 16 MiB together, in the order of the tensors' rows. They may hold control characters; show them with
/// care.
/// @returns one text for each row of the tensors, or nothing where the file has no such list
/// @throws std::runtime_error naming the file and what is wrong with it
inline std::vector<std::string> load_prompts(std::string const& path) {
  constexpr detail::FileKind kind{"load_prompts", "a file of torch.save with a dict of tensors"};
  const auto file = detail::open_file(kind, path);
  const std::string source = detail::quoted(path);
  std::vector<std::string> prompts;
  detail::reading(kind, source, [&] {
    const detail::Archive archive(file);
    const detail::Pickle pickle(archive, "data", /*classes=*/false);
    const detail::ConditionEntries entries = detail::condition_entries(kind, source, pickle);
    if (!entries.prompts) return;
    const auto refuse = [&](std::string const& rule, std::string const& got) {
      throw std::runtime_error("tstitch::load_prompts: " + source + ": prompts must be " + rule + ", got " + got);
    };
    std::int64_t rows = 0;
    for (auto const& [name, tensor] : entries.tensors) {
      rows = std::max(rows, tensor.sizes.empty() ? std::int64_t(0) : tensor.sizes[0]);
    }
    std::vector<std::uint32_t> const& texts = entries.prompts->children;
    if (std::int64_t(texts.size()) != rows) {
      refuse("one for each of the tensors' rows", std::to_string(texts.size()) + " for " + std::to_string(rows));
    }
    std::size_t bytes = 0;
    for (const std::uint32_t index : texts) {
      detail::Pickle::Value const& value = pickle.value(index);
      if (value.kind != detail::Pickle::Kind::text) refuse("texts", detail::text(value.kind));
      if (value.text.size() > detail::longest_prompt) {
        refuse("at most " + std::to_string(detail::longest_prompt) + " bytes each", std::to_string(value.text.size()));
      }
      // A pickle may name one text many times.
      bytes += value.text.size();
      if (bytes > detail::most_prompt_bytes) {
        refuse("at most " + std::to_string(detail::most_prompt_bytes) + " bytes together", "more");
      }
      if (!detail::is_utf8(value.text)) refuse("UTF-8", "'" + detail::printable(value.text) + "'");
      prompts.emplace_back(value.text);
    }
  });
  return prompts;
}

}  // namespace tstitch
