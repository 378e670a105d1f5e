/// @file
/// The stack on which pickles are checked, with what the checks need of each value.
#pragma once

#include <c10/util/Exception.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tstitch::detail {

/// What the instructions of a pickle do to values, as Python's unpickler would, but with descriptions of them.
class PickleStack {
 public:
  enum class Kind { none, boolean, integer, real, text, tuple, list, dict, global, storage, tensor, object };

  struct Value {
    Kind kind = Kind::none;
    bool placed = false;  ///< in a container; it may no longer change, so there are no cycles
    int depth = 0;        ///< how deep containers are nested in it
    /// An integer's value; a boolean's, 0 or 1; the bits of a real; a storage's or tensor's index in tensors_.
    std::int64_t number = 0;
    std::string_view text = {};                ///< a text; a global's "module\nname"
    std::vector<std::uint32_t> children = {};  ///< a tuple's or list's values; a dict's key, value, key, value ...
  };

  Value const& root() const { return values_[stack_[0]]; }
  Value const& value(std::uint32_t index) const { return values_[index]; }

 protected:
  /// @param folder, classes see Pickle
  PickleStack(std::string folder, bool classes) : folder_(std::move(folder)), classes_(classes) {}

  static constexpr int most_depth = 256;  // torch reads nested containers by recursion, which needs stack

  void require(bool holds, char const* rule) const { TORCH_CHECK(holds, folder_, ".pkl ", rule); }

  void push(Value value) {
    stack_.push_back(std::uint32_t(values_.size()));
    values_.push_back(std::move(value));
  }

  std::uint32_t pop() {
    require(stack_.size() > (marks_.empty() ? 0 : marks_.back()), "takes a value that is not there");
    const std::uint32_t index = stack_.back();
    stack_.pop_back();
    return index;
  }

  /// Takes all values since the last mark off the stack.
  std::vector<std::uint32_t> pop_marked() {
    require(!marks_.empty(), "takes a value that is not there");
    const std::vector<std::uint32_t> values(stack_.begin() + std::ptrdiff_t(marks_.back()), stack_.end());
    stack_.resize(marks_.back());
    marks_.pop_back();
    return values;
  }

  Value& top(Kind kind) {
    require(stack_.size() > (marks_.empty() ? 0 : marks_.back()), "takes a value that is not there");
    Value& value = values_[stack_.back()];
    require(value.kind == kind && !value.placed, "fills what is no container, or one that is in another");
    return value;
  }

  void place(Value& container, std::vector<std::uint32_t> const& values, bool keep) {
    for (const std::uint32_t index : values) {
      Value& value = values_[index];
      value.placed = true;
      container.depth = std::max(container.depth, value.depth + 1);
      require(container.depth <= most_depth, "is nested too deeply");
    }
    require(!container.placed, "has a container in itself");
    if (keep) container.children.insert(container.children.end(), values.begin(), values.end());
  }

  void push_tuple(std::vector<std::uint32_t> const& values) {
    Value tuple{.kind = Kind::tuple};
    place(tuple, values, true);
    push(std::move(tuple));
  }

  /// Of modules the values are not kept: their lists may be long, and nothing reads them.
  void append(std::vector<std::uint32_t> const& values) { place(top(Kind::list), values, !classes_); }

  void set_items(std::vector<std::uint32_t> const& values) {
    require(values.size() % 2 == 0, "has a key without a value");
    place(top(Kind::dict), values, true);
  }

  void memorize(std::size_t id) {
    require(!stack_.empty() && id <= memo_.size(), "memorizes a value out of order");
    if (id == memo_.size()) memo_.emplace_back();
    memo_[id] = stack_.back();
  }

  void recall(std::size_t id) {
    require(id < memo_.size(), "recalls a value that is not there");
    stack_.push_back(memo_[id]);
  }

  std::string folder_;
  bool classes_;
  std::vector<Value> values_ = {};
  std::vector<std::uint32_t> stack_ = {}, memo_ = {};
  std::vector<std::size_t> marks_ = {};
};

/// Torch's name for values of this kind.
inline char const* text(PickleStack::Kind kind) {
  switch (kind) {
    case PickleStack::Kind::none: return "None";
    case PickleStack::Kind::boolean: return "Bool";
    case PickleStack::Kind::integer: return "Int";
    case PickleStack::Kind::real: return "Double";
    case PickleStack::Kind::text: return "String";
    case PickleStack::Kind::tuple: return "Tuple";
    case PickleStack::Kind::list: return "GenericList";
    case PickleStack::Kind::dict: return "GenericDict";
    case PickleStack::Kind::global: return "Global";
    case PickleStack::Kind::storage: return "Storage";
    case PickleStack::Kind::tensor: return "Tensor";
    case PickleStack::Kind::object: return "Object";
  }
  return "Unknown";
}

}  // namespace tstitch::detail
