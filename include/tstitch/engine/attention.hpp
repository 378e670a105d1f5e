/// @file
/// Attention by a kernel of our own, where one is faster than cuDNN's, or rounds to 8 bits while it is at it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <exception>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>

#include "../base/diagnostics.hpp"
#include "../tensor/cuda/kernel.hpp"
#include "attention_few_rows.hpp"
#include "attention_kernel.hpp"
#include "attention_many_keys.hpp"
#include "attention_many_rows.hpp"

namespace tstitch::detail {

enum class AttentionBy { fastest, few_rows, many_rows };

/// What one GPU has of the kernels.
class AttentionKernels {
 public:
  explicit AttentionKernels(c10::Device device) : device_(device) {}

  /// The kernel of a kind, which stays; null where there is none.
  template <class Kernel>
  Kernel const* get(AttentionKind kind) const {
    if (!Kernel::fits(kind.head)) return nullptr;
    auto& kernels = std::get<ByKind<Kernel>>(kernels_);
    const std::lock_guard lock(mutex_);
    const auto [found, is_new] = kernels.try_emplace(kind);
    if (is_new) {
      try {
        found->second.emplace(kind, device_);
      } catch (std::exception const& error) {
        diagnose("attention_kernel", std::string("torch's attention takes the place of a kernel: ") + error.what());
      }
    }
    return found->second ? &*found->second : nullptr;
  }

 private:
  template <class Kernel>
  using ByKind = std::map<AttentionKind, std::optional<Kernel>>;

  c10::Device device_;
  mutable std::mutex mutex_;
  mutable std::tuple<ByKind<FewRowsAttention>, ByKind<ManyRowsAttention>, ByKind<ManyKeysAttention>> kernels_;
};

/// The kernels for tensors like qkv, of 16 bits, whose last dimension is a head; null where there are none.
inline AttentionKernels const* attention_kernels(at::Tensor const& qkv) {
  const bool taken = qkv.scalar_type() == at::kHalf || qkv.scalar_type() == at::kBFloat16;
  if (!qkv.is_cuda() || !taken || !qkv.is_contiguous() || reinterpret_cast<std::uintptr_t>(qkv.data_ptr()) % 16) {
    return nullptr;
  }
  return kernel_on<AttentionKernels>(qkv.device());
}

/// For a result in the type of qkv, or in e4m3.
inline AttentionKind attention_kind(at::Tensor const& qkv, bool e4m3) {
  return {.element = qkv.scalar_type() == at::kHalf ? 1 : 2, .head = int(qkv.size(-1)), .e4m3 = e4m3};
}

/// softmax(q k^T / sqrt(head width)) v by a kernel.
/// @param qkv [n, tokens, 3, heads, head width]
/// @param factor 0: in the type of qkv; else times this in e4m3
/// @param by of others than `fastest`, also where another way is faster
/// @returns [n, tokens, heads, head width], or an undefined tensor where there is no such kernel, or torch is faster
inline at::Tensor attention_kernel(at::Tensor const& qkv, double factor = 0, AttentionBy by = AttentionBy::fastest) {
  AttentionKernels const* const kernels = attention_kernels(qkv);
  if (!kernels) return {};
  const AttentionKind kind = attention_kind(qkv, factor != 0);
  const auto by_kernel = [&](auto const& kernel) {
    const at::Tensor out = qkv.new_empty({qkv.size(0), qkv.size(1), qkv.size(3), qkv.size(4)},
                                         kind.e4m3 ? qkv.options().dtype(at::kFloat8_e4m3fn) : qkv.options());
    kernel(qkv, out, factor);
    return out;
  };
  if (by != AttentionBy::many_rows) {
    FewRowsAttention const* const kernel = kernels->get<FewRowsAttention>(kind);
    if (kernel && (by == AttentionBy::few_rows || kernel->is_fast(qkv))) return by_kernel(*kernel);
  }
  if (by != AttentionBy::few_rows && ManyRowsAttention::has_room(qkv.size(1))) {
    if (ManyRowsAttention const* const kernel = kernels->get<ManyRowsAttention>(kind)) return by_kernel(*kernel);
  }
  return {};
}

/// With which results become e4m3: those of the first tokens, and the others.
struct TokenFactors {
  std::int64_t first_tokens;
  double first, others;
};

/// The same where tokens come before images, for many of them.
/// @param qkv [tokens, n, 3, heads, head width]
/// @param asking how many tokens have queries, from the first on
/// @param factors none: in the type of qkv
/// @returns [asking, n, heads, head width], or an undefined tensor where there is no such kernel, or torch is faster
inline at::Tensor attention_of_tokens(at::Tensor const& qkv, std::int64_t asking,
                                      std::optional<TokenFactors> const& factors = {}) {
  constexpr std::int64_t many = 512;
  AttentionKernels const* const kernels = qkv.size(0) >= many ? attention_kernels(qkv) : nullptr;
  if (!kernels) return {};
  ManyKeysAttention const* const kernel = kernels->get<ManyKeysAttention>(attention_kind(qkv, factors.has_value()));
  if (!kernel) return {};
  const at::Tensor out = qkv.new_empty({asking, qkv.size(1), qkv.size(3), qkv.size(4)},
                                       factors ? qkv.options().dtype(at::kFloat8_e4m3fn) : qkv.options());
  (*kernel)(qkv, out, factors ? factors->first_tokens : 0, factors ? factors->first : 1, factors ? factors->others : 1);
  return out;
}

}  // namespace tstitch::detail
