/// @file
/// Attention by a kernel of our own, where one is faster than cuDNN's, or rounds to 8 bits while it is at it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <exception>
#include <map>
#include <mutex>
#include <optional>
#include <utility>

#include "attention_few_rows.hpp"
#include "attention_many_rows.hpp"

namespace tstitch::detail {

enum class AttentionBy { fastest, few_rows, many_rows };

/// What one GPU has of the kernels.
class AttentionKernels {
 public:
  explicit AttentionKernels(c10::Device device) : device_(device) {}

  /// A kernel for an element and a head, which stays; null where there is none.
  template <class Kernel>
  Kernel const* get(int element, std::int64_t head) const {
    if (!Kernel::fits(head)) return nullptr;
    auto& kernels = std::get<ByElementAndHead<Kernel>>(kernels_);
    const std::lock_guard lock(mutex_);
    const auto [found, is_new] = kernels.try_emplace({element, int(head)});
    if (is_new) {
      try {
        found->second.emplace(element, int(head), device_);
      } catch (std::exception const&) {}  // torch has another way
    }
    return found->second ? &*found->second : nullptr;
  }

 private:
  template <class Kernel>
  using ByElementAndHead = std::map<std::pair<int, int>, std::optional<Kernel>>;

  c10::Device device_;
  mutable std::mutex mutex_;
  mutable std::pair<ByElementAndHead<FewRowsAttention>, ByElementAndHead<ManyRowsAttention>> kernels_;
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
  const auto made = [&] {
    return qkv.new_empty({qkv.size(0), qkv.size(1), qkv.size(3), qkv.size(4)},
                         factor == 0 ? qkv.options() : qkv.options().dtype(at::kFloat8_e4m3fn));
  };
  if (by != AttentionBy::many_rows) {
    FewRowsAttention const* const kernel = kernels->get<FewRowsAttention>(element, qkv.size(4));
    if (kernel && (by == AttentionBy::few_rows || kernel->is_fast(qkv))) {
      const at::Tensor out = made();
      return (*kernel)(qkv, out, factor) ? out : at::Tensor();
    }
  }
  if (by != AttentionBy::few_rows && ManyRowsAttention::has_room(qkv.size(1))) {
    if (ManyRowsAttention const* const kernel = kernels->get<ManyRowsAttention>(element, qkv.size(4))) {
      const at::Tensor out = made();
      (*kernel)(qkv, out, factor);
      return out;
    }
  }
  return {};
}

}  // namespace tstitch::detail
