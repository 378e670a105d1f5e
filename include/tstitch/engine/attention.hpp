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
#include <utility>

#include "../base/diagnostics.hpp"
#include "../tensor/cuda/kernel.hpp"
#include "attention_few_rows.hpp"
#include "attention_kernel.hpp"
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
  mutable std::pair<ByKind<FewRowsAttention>, ByKind<ManyRowsAttention>> kernels_;
};

/// softmax(q k^T / sqrt(head width)) v by a kernel.
/// @param qkv [n, tokens, 3, heads, head width]
/// @param factor 0: in the type of qkv; else times this in e4m3
/// @param by of others than `fastest`, also where another way is faster
/// @returns [n, tokens, heads, head width], or an undefined tensor where there is no such kernel, or torch is faster
inline at::Tensor attention_kernel(at::Tensor const& qkv, double factor = 0, AttentionBy by = AttentionBy::fastest) {
  const int element = qkv.scalar_type() == at::kHalf ? 1 : qkv.scalar_type() == at::kBFloat16 ? 2 : 0;
  if (!qkv.is_cuda() || !element || !qkv.is_contiguous() || reinterpret_cast<std::uintptr_t>(qkv.data_ptr()) % 16) {
    return {};
  }
  AttentionKernels const* const kernels = kernel_on<AttentionKernels>(qkv.device());
  if (!kernels) return {};
  const AttentionKind kind{.element = element, .head = int(qkv.size(4)), .e4m3 = factor != 0};
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

}  // namespace tstitch::detail
