/// @file
/// Conditions from files that Python wrote with torch.save, such as the embedding of a prompt. Opt-in.
#pragma once

#include <torch/csrc/jit/serialization/pickle.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "condition.hpp"
#include "file.hpp"

namespace tstitch {

/// Reads a dict of tensors, `torch.save({"text_embedding": ..., "text_embedding.null": ...}, path)`, where `name.null`
/// is the null counterpart of `name`. Runs no code from the file: tensors in a dict with text keys are all that is
/// taken.
/// @throws std::runtime_error naming the file and what is wrong with it
inline std::vector<NamedCondition> load_conditions(std::string const& path) {
  constexpr detail::FileKind kind{"load_conditions", "a file of torch.save with a dict of tensors"};
  detail::require_readable(kind, path);
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const c10::IValue value = detail::reading(kind, detail::quoted(path), [&] { return torch::jit::pickle_load(bytes); });
  if (!value.isGenericDict()) detail::refuse_file(kind, detail::quoted(path), value.tagKind());
  std::vector<NamedCondition> conditions;
  const auto named = [&](std::string const& name) -> NamedCondition& {
    const auto is_it = [&](NamedCondition const& each) { return each.name == name; };
    const auto found = std::find_if(conditions.begin(), conditions.end(), is_it);
    return found != conditions.end() ? *found : conditions.emplace_back(NamedCondition{name, {}, {}});
  };
  for (auto const& entry : value.toGenericDict()) {
    if (!entry.key().isString() || !entry.value().isTensor()) {
      detail::refuse_file(kind, detail::quoted(path), "an entry of " + entry.value().tagKind());
    }
    const std::string name = entry.key().toStringRef();
    const bool null = name.ends_with(".null");
    (null ? named(name.substr(0, name.size() - 5)).null : named(name).value) = entry.value().toTensor();
  }
  for (NamedCondition const& each : conditions) {
    if (!each.value.defined()) {
      detail::refuse_file(kind, detail::quoted(path), "'" + each.name + ".null' without '" + each.name + "'");
    }
  }
  return conditions;
}

}  // namespace tstitch
