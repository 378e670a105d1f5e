/// @file
/// Conditions from files that Python wrote with torch.save, such as the embedding of a prompt. Opt-in.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "archive.hpp"
#include "condition.hpp"
#include "file.hpp"
#include "host_tensor.hpp"
#include "parallel_file.hpp"
#include "pickle.hpp"

namespace tstitch {
namespace detail {

/// All elements of the storages of a pickle, each made once.
class StorageReader {
 public:
  explicit StorageReader(Archive const& archive) : archive_(archive) {}

  at::Tensor operator()(PickledTensor const& pickled) {
    at::Tensor& storage = storages_[{pickled.record, pickled.type}];
    if (!storage.defined()) {
      storage = host_tensor({pickled.elements}, pickled.type);
      if (pickled.elements > 0) {
        const auto [bytes, size] = archive_.data(pickled.record);
        std::memcpy(storage.mutable_data_ptr(), bytes.get(), storage.nbytes());
      }
    }
    return storage.as_strided(pickled.sizes, pickled.strides, pickled.offset);
  }

 private:
  Archive const& archive_;
  std::map<std::pair<std::string, at::ScalarType>, at::Tensor> storages_ = {};
};

}  // namespace detail

/// Reads a dict of tensors, `torch.save({"text_embedding": ..., "text_embedding.null": ...}, path)`, where `name.null`
/// is the null counterpart of `name`. Runs no code from the file: tensors in a dict with text keys are all that is
/// taken.
/// @throws std::runtime_error naming the file and what is wrong with it
inline std::vector<NamedCondition> load_conditions(std::string const& path) {
  constexpr detail::FileKind kind{"load_conditions", "a file of torch.save with a dict of tensors"};
  const auto file = detail::open_file(kind, path);
  const std::string source = detail::quoted(path);
  std::vector<std::pair<std::string, at::Tensor>> entries;
  detail::reading(kind, source, [&] {
    const detail::Archive archive(file);
    const detail::Pickle pickle(archive, "data", /*classes=*/false);
    using Kind = detail::Pickle::Kind;
    if (pickle.root().kind != Kind::dict) detail::refuse_file(kind, source, detail::text(pickle.root().kind));
    detail::StorageReader storages(archive);
    for (std::size_t i = 0; i < pickle.root().children.size(); i += 2) {
      auto const& key = pickle.value(pickle.root().children[i]);
      auto const& value = pickle.value(pickle.root().children[i + 1]);
      if (key.kind != Kind::text || value.kind != Kind::tensor) {
        detail::refuse_file(kind, source, std::string("an entry of ") + detail::text(value.kind));
      }
      entries.emplace_back(key.text, storages(pickle.tensor(value)));
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

}  // namespace tstitch
