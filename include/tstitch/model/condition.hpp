/// @file
/// What networks are conditioned on: class labels, and any tensors by name.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tstitch {

/// A tensor that a network asks for besides x, t and a class label.
struct ConditionInfo {
  std::string name;                      ///< "text_embedding", "mask" ...
  std::vector<std::int64_t> shape = {};  ///< of one image; 0 where any size will do
  bool floating = true;                  ///< in the type of the network; else int64
};

/// A tensor of a request. Which networks see it is theirs to say: each takes the conditions that it asks for.
struct NamedCondition {
  std::string name;
  at::Tensor value;  ///< [n or 1, ...], one row an image or one for all
  /// [n or 1, ...], what takes its place in the half of classifier-free guidance without the condition: the embedding
  /// of an empty or a negative prompt. Undefined for what both halves see, such as a mask.
  at::Tensor null = {};
};

/// What a network sees in one evaluation of n rows.
struct Condition {
  at::Tensor labels = {};  ///< [n] int64, or undefined where there are no classes
  /// The same on the host, for engines that look things up by label; empty where it is not known.
  std::vector<std::int64_t> host_labels = {};
  /// [n, ...] each; for look-ups use `at`.
  std::vector<std::pair<std::string, at::Tensor>> tensors = {};

  /// @throws std::invalid_argument when there is none of this name
  at::Tensor const& at(std::string_view name) const {
    for (auto const& [each, tensor] : tensors) {
      if (each == name) return tensor;
    }
    throw std::invalid_argument("tstitch::Condition: must have '" + std::string(name) + "', got none of this name");
  }
};

/// The condition of a batch of n images, on the networks' device.
struct BatchCondition {
  Condition conditional;  ///< n rows
  Condition guided = {};  ///< 2n rows, the condition and then its null counterpart; empty if guidance is never on
};

namespace words {

/// "[77, 768]", with * where a size is 0, which is any.
inline std::string sizes_text(std::vector<std::int64_t> const& sizes) {
  std::string text = "[";
  for (std::size_t d = 0; d < sizes.size(); ++d) {
    text += (d ? ", " : "") + (sizes[d] ? std::to_string(sizes[d]) : "*");
  }
  return text + "]";
}

}  // namespace words

/// Whether the sizes for one sample are those stated, of which 0 is any.
inline bool sizes_fit(std::vector<std::int64_t> const& stated, at::IntArrayRef sizes) {
  if (sizes.size() != stated.size()) return false;
  for (std::size_t d = 0; d < stated.size(); ++d) {
    if (stated[d] && stated[d] != sizes[d]) return false;
  }
  return true;
}

namespace detail {

using words::sizes_text;

/// Whether one tensor can be of both sizes, of which 0 is any.
inline bool sizes_agree(std::vector<std::int64_t> const& a, std::vector<std::int64_t> const& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t d = 0; d < a.size(); ++d) {
    if (a[d] && b[d] && a[d] != b[d]) return false;
  }
  return true;
}

}  // namespace detail

/// The sizes for one sample: "[77, 768]", with * for any.
inline std::string text_of(ConditionInfo const& info) {
  return words::sizes_text(info.shape);
}

/// Whether [rows, sizes...] is what the network asks for.
inline bool fits(ConditionInfo const& info, at::IntArrayRef sizes) {
  return !sizes.empty() && sizes_fit(info.shape, sizes.slice(1));
}

namespace detail {

/// Whether one tensor can be what both ask for.
inline bool can_be_one(ConditionInfo const& a, ConditionInfo const& b) {
  return a.floating == b.floating && sizes_agree(a.shape, b.shape);
}

}  // namespace detail
}  // namespace tstitch
