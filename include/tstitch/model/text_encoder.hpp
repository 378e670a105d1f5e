/// @file
/// Texts to what networks are conditioned on: a text encoder with its tokenizer.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>
#include <c10/core/ScalarType.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "../tensor/host_tensor.hpp"
#include "condition.hpp"

namespace tstitch {

/// What a text encoder is.
struct TextEncoderInfo {
  std::string name = {};
  std::string architecture = {};            ///< "CLIPTextModel", "T5EncoderModel" ...
  std::int64_t text_tokens = 77;            ///< of every text: longer ones are cut, shorter ones filled up
  std::vector<ConditionInfo> outputs = {};  ///< what it gives, as networks ask for it
  /// Networks of it were trained to take zeros for no text, not what it gives for an empty one (SDXL).
  bool zeros_for_no_text = false;
  /// What the encoder puts before every prompt, and not before what guidance leads away from (Sana); empty: nothing,
  /// and both are encoded alike.
  std::string instruction = {};
  std::string license = {};
};

/// The tokens of n texts, on the host.
struct TextTokens {
  at::Tensor ids;   ///< [n, text_tokens] int64
  at::Tensor mask;  ///< [n, text_tokens] int64, 1 where there is text and 0 behind it
  at::Tensor cut;   ///< [n] int64, how many tokens of each text there was no room for
};

/// A text encoder before texts and results are checked: callables, which threads may call at the same time, and what
/// they are.
struct TextEncoderParts {
  /// n texts of UTF-8 to what info.outputs lists, [n, ...] each.
  using Encode = std::function<std::vector<std::pair<std::string, at::Tensor>>(std::vector<std::string> const&)>;
  Encode encode;
  Encode encode_negative = {};  ///< without info.instruction; needed where there is one, and else not called
  std::function<TextTokens(std::vector<std::string> const&)> tokenize;
  TextEncoderInfo info = {};
  at::Device device = at::kCPU;
};

/// Bytes of a text that are taken, and of all texts of a call.
inline constexpr std::size_t longest_text = std::size_t(64) << 10, most_text_bytes = std::size_t(16) << 20;

/// Texts to conditions. Threads may use one at the same time.
class TextEncoder {
 public:
  /// @throws std::invalid_argument for callables that are empty, and information that makes no sense
  explicit TextEncoder(TextEncoderParts parts) : parts_(std::move(parts)), place_("TextEncoder '" + info().name + "'") {
    detail::require_callable(place_, parts_.encode);
    detail::require_callable(place_, parts_.tokenize);
    if (!info().instruction.empty()) detail::require_callable(place_, parts_.encode_negative);
    if (info().outputs.empty()) detail::refuse(place_, "outputs must be at least one", "none");
    if (info().text_tokens < 1) detail::refuse(place_, "text_tokens must be at least 1", double(info().text_tokens));
  }

  /// Prompts, which have info().instruction put before them.
  /// @param texts 1 or more, UTF-8 of at most 64 KiB each and 16 MiB together; empty ones are texts, too
  /// @returns what info().outputs lists, in its order, each with `value` [n, ...] on device() and without `null`
  /// @throws std::invalid_argument for other texts, which it names by number from 0 on
  /// @throws std::runtime_error when the encoder fails or gives something else
  std::vector<NamedCondition> encode(std::vector<std::string> const& texts) const {
    return encoded(parts_.encode, texts);
  }

  /// The same for texts that guidance is to lead away from, which have no instruction.
  /// @throws what `encode` throws
  std::vector<NamedCondition> encode_negative(std::vector<std::string> const& texts) const {
    return encoded(info().instruction.empty() ? parts_.encode : parts_.encode_negative, texts);
  }

  /// The same with `null`, [1, ...], for the half of classifier-free guidance without the prompt.
  /// @param negative what guidance is to lead away from; not stated: no text, which is zeros or the empty text, as
  ///                 info().zeros_for_no_text says
  /// @throws what `encode` throws, where the negative text is the last
  std::vector<NamedCondition> conditions(std::vector<std::string> const& prompts,
                                         std::optional<std::string> const& negative = {}) const {
    require(prompts);
    std::vector<std::string> texts = prompts;
    texts.push_back(negative.value_or(""));
    require(texts);
    std::vector<NamedCondition> found, of_negative;
    if (info().instruction.empty()) {
      found = encode(texts);
    } else {
      found = encode(prompts);
      of_negative = encode_negative({texts.back()});
    }
    const std::int64_t n = std::int64_t(prompts.size());
    for (std::size_t k = 0; k < found.size(); ++k) {
      const at::Tensor all = found[k].value;
      found[k].value = all.narrow(0, 0, n);
      found[k].null = of_negative.empty() ? all.narrow(0, n, 1) : of_negative[k].value;
      if (!negative && info().zeros_for_no_text && all.is_floating_point())
        found[k].null = all.new_zeros(found[k].null.sizes());
    }
    return found;
  }

  /// @throws what `encode` throws
  TextTokens tokenize(std::vector<std::string> const& texts) const {
    require(texts);
    const c10::AutoGradMode no_gradients(false);
    TextTokens tokens = parts_.tokenize(texts);
    const std::int64_t n = std::int64_t(texts.size());
    for (at::Tensor const& each : {tokens.ids, tokens.mask}) {
      if (!each.defined() || each.scalar_type() != at::kLong ||
          each.sizes() != at::IntArrayRef({n, info().text_tokens})) {
        fail("tokens must be int64 " + detail::shape_text({n, info().text_tokens}), "others");
      }
    }
    if (!tokens.cut.defined() || tokens.cut.scalar_type() != at::kLong || tokens.cut.sizes() != at::IntArrayRef({n})) {
      fail("cut must be int64 " + detail::shape_text({n}), "others");
    }
    return tokens;
  }

  TextEncoderInfo const& info() const { return parts_.info; }
  at::Device device() const { return parts_.device; }

 private:
  std::vector<NamedCondition> encoded(TextEncoderParts::Encode const& encode,
                                      std::vector<std::string> const& texts) const {
    require(texts);
    const c10::AutoGradMode no_gradients(false);
    const auto given = encode(texts);
    std::vector<NamedCondition> found;
    for (ConditionInfo const& info : parts_.info.outputs) {
      const auto is_it = [&](auto const& each) { return each.first == info.name; };
      const auto output = std::find_if(given.begin(), given.end(), is_it);
      if (output == given.end() || !output->second.defined()) fail("must give '" + info.name + "'", "none");
      at::Tensor const& value = output->second;
      if (!fits(info, value.sizes()) || value.size(0) != std::int64_t(texts.size())) {
        fail("'" + info.name + "' must be " + std::to_string(texts.size()) + " times " + text_of(info),
             detail::shape_text(value.sizes()));
      }
      if (info.floating ? !value.is_floating_point() : value.scalar_type() != at::kLong) {
        fail("'" + info.name + "' must be of " + (info.floating ? "a floating type" : "int64"),
             at::toString(value.scalar_type()));
      }
      found.push_back({info.name, value, {}});
    }
    return found;
  }

  void require(std::vector<std::string> const& texts) const {
    if (texts.empty()) detail::refuse(place_, "texts must be at least one", "none");
    std::size_t bytes = 0;
    for (std::size_t k = 0; k < texts.size(); ++k) {
      const std::string text = "text " + std::to_string(k);
      if (texts[k].size() > longest_text) {
        detail::refuse(place_, text + " must have at most " + std::to_string(longest_text) + " bytes",
                       std::to_string(texts[k].size()));
      }
      if (!detail::is_utf8(texts[k])) {
        detail::refuse(place_, text + " must be UTF-8", "'" + detail::printable(texts[k]) + "'");
      }
      bytes += texts[k].size();
    }
    if (bytes > most_text_bytes) {
      detail::refuse(place_, "texts must have at most " + std::to_string(most_text_bytes) + " bytes together",
                     std::to_string(bytes));
    }
  }

  [[noreturn]] void fail(std::string const& rule, std::string const& got) const {
    throw std::runtime_error("tstitch::" + place_ + ": " + rule + ", got " + got);
  }

  TextEncoderParts parts_;
  std::string place_;
};

namespace detail {

/// The conditions of all parts, those of one name made one.
/// @param join of two tensors of a name, both defined
template <class Join>
std::vector<NamedCondition> merged(char const* place, std::vector<std::vector<NamedCondition>> const& parts,
                                   Join join) {
  const auto both = [&](std::string const& name, at::Tensor const& a, at::Tensor const& b) {
    if (a.defined() != b.defined()) refuse(place, "'" + name + "' must have null twice", "once");
    if (!a.defined()) return at::Tensor();
    // Encoders may be of several types, as a CLIP in float32 and a T5 in bfloat16 are.
    const bool mixed = a.is_floating_point() && b.is_floating_point() && a.scalar_type() != b.scalar_type();
    const at::ScalarType type = mixed ? c10::promoteTypes(a.scalar_type(), b.scalar_type()) : a.scalar_type();
    return mixed ? join(name, a.to(type), b.to(type)) : join(name, a, b);
  };
  std::vector<NamedCondition> found;
  for (std::vector<NamedCondition> const& part : parts) {
    for (NamedCondition const& each : part) {
      const auto is_it = [&](NamedCondition const& other) { return other.name == each.name; };
      const auto other = std::find_if(found.begin(), found.end(), is_it);
      if (other == found.end()) {
        found.push_back(each);
        continue;
      }
      other->value = both(each.name, other->value, each.value);
      other->null = both(each.name, other->null, each.null);
    }
  }
  return found;
}

[[noreturn]] inline void refuse_pair(char const* place, std::string const& rule, at::Tensor const& a,
                                     at::Tensor const& b) {
  refuse(place, rule,
         shape_text(a.sizes()) + " and " + shape_text(b.sizes()) + " of " + at::toString(a.scalar_type()) + " and " +
             at::toString(b.scalar_type()));
}

/// a at the beginning of zeros.
inline at::Tensor with_zeros_behind(at::Tensor const& a, at::IntArrayRef sizes) {
  if (a.sizes() == sizes) return a;
  const at::Tensor all = a.new_zeros(sizes);
  at::Tensor part = all;
  for (std::int64_t d = 0; d < a.dim(); ++d) part = part.narrow(d, 0, a.size(d));
  part.copy_(a);
  return all;
}

}  // namespace detail

/// The conditions of several encoders for one network: those of one name with their channels side by side, in the order
/// of the encoders, as SDXL takes the states of its two. Those of several floating types become the one that holds
/// both.
/// @param parts what `encode` or `conditions` gave, for the same texts
/// @throws std::invalid_argument for conditions of one name that do not fit together, or of whole numbers
inline std::vector<NamedCondition> side_by_side(std::vector<std::vector<NamedCondition>> const& parts) {
  return detail::merged("side_by_side", parts, [](std::string const& name, at::Tensor const& a, at::Tensor const& b) {
    const std::size_t last = std::size_t(std::max<std::int64_t>(a.dim() - 1, 0));
    const bool fit = a.dim() == b.dim() && a.dim() > 1 && a.is_floating_point() && a.scalar_type() == b.scalar_type() &&
                     a.device() == b.device() && a.sizes().slice(0, last) == b.sizes().slice(0, last);
    if (!fit) {
      detail::refuse_pair("side_by_side", "'" + name + "' must be floating and differ in the last size only", a, b);
    }
    std::vector<std::int64_t> sizes = a.sizes().vec();
    sizes.back() += b.size(-1);
    const at::Tensor both = a.new_empty(sizes);
    both.narrow(-1, 0, a.size(-1)).copy_(a);
    both.narrow(-1, a.size(-1), b.size(-1)).copy_(b);
    return both;
  });
}

/// The conditions of several encoders for one network: those of one name with their tokens one behind another, in the
/// order of the encoders, as Stable Diffusion 3 takes those of CLIP and T5. What has fewer channels is filled up with
/// zeros, and types are as `side_by_side` makes them.
/// @param parts what `encode`, `conditions` or `side_by_side` gave, for the same texts
/// @throws std::invalid_argument for conditions of one name that are not [n, tokens, channels], or [n, tokens] of whole
///         numbers
inline std::vector<NamedCondition> one_behind_another(std::vector<std::vector<NamedCondition>> const& parts) {
  constexpr auto place = "one_behind_another";
  return detail::merged(place, parts, [](std::string const& name, at::Tensor const& a, at::Tensor const& b) {
    const auto is_text = [](at::Tensor const& x) {
      return x.is_floating_point() ? x.dim() == 3 : x.dim() == 2 && x.scalar_type() == at::kLong;
    };
    if (!is_text(a) || !is_text(b) || a.scalar_type() != b.scalar_type() || a.device() != b.device() ||
        a.size(0) != b.size(0)) {
      detail::refuse_pair(place, "'" + name + "' must be [n, tokens, channels], or [n, tokens] of int64", a, b);
    }
    std::vector<std::int64_t> sizes = a.sizes().vec();
    sizes[1] += b.size(1);
    if (a.dim() == 3) sizes[2] = std::max(a.size(2), b.size(2));
    const at::Tensor both = detail::with_zeros_behind(a, sizes);
    at::Tensor behind = both.narrow(1, a.size(1), b.size(1));
    if (a.dim() == 3) behind = behind.narrow(2, 0, b.size(2));
    behind.copy_(b);
    return both;
  });
}

/// The conditions with zeros behind those that are smaller than what is listed, in each size: channels that no encoder
/// has, and tokens of an encoder that is left out.
/// @param sizes a name and a shape without 0 each; names that no condition has are ignored
/// @throws std::invalid_argument for conditions that are larger, or have another number of sizes
inline std::vector<NamedCondition> filled_up(std::vector<NamedCondition> conditions,
                                             std::vector<ConditionInfo> const& sizes) {
  for (NamedCondition& each : conditions) {
    const auto is_it = [&](ConditionInfo const& info) { return info.name == each.name; };
    const auto info = std::find_if(sizes.begin(), sizes.end(), is_it);
    if (info == sizes.end()) continue;
    for (at::Tensor* const tensor : {&each.value, &each.null}) {
      if (!tensor->defined()) continue;
      bool fits = tensor->dim() == std::int64_t(info->shape.size()) + 1;
      for (std::size_t d = 0; fits && d < info->shape.size(); ++d)
        fits = tensor->size(std::int64_t(d) + 1) <= info->shape[d];
      if (!fits) {
        detail::refuse("filled_up", "'" + each.name + "' must be at most [n, " + text_of(*info).substr(1),
                       detail::shape_text(tensor->sizes()));
      }
      std::vector<std::int64_t> whole{tensor->size(0)};
      whole.insert(whole.end(), info->shape.begin(), info->shape.end());
      *tensor = detail::with_zeros_behind(*tensor, whole);
    }
  }
  return conditions;
}

}  // namespace tstitch
