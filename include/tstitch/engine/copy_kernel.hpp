/// @file
/// Copies of several tensors on a GPU by one kernel: to start another one costs more than to copy a small tensor.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "../tensor/cuda/kernel.hpp"

namespace tstitch::detail {

/// CUDA C++ of the copies, of which there are up to COPIES. A block has 16 THREADS bytes of one of them.
inline constexpr char copy_kernel_source[] = R"cuda(
struct Copy {
  const char* from;
  char* to;
  long long bytes, first_block;
};
struct Copies {
  Copy each[COPIES];
};

extern "C" __global__ void copy(const __grid_constant__ Copies copies, int count) {
  int k = 0;
  while (k + 1 < count && blockIdx.x >= copies.each[k + 1].first_block) ++k;
  const Copy& own = copies.each[k];
  const long long at = ((blockIdx.x - own.first_block) * THREADS + threadIdx.x) * 16;
  if (at + 16 <= own.bytes) {
    *(uint4*)(own.to + at) = *(const uint4*)(own.from + at);
  } else {
    for (long long i = at; i < own.bytes; ++i) own.to[i] = own.from[i];
  }
}
)cuda";

/// The kernel on a GPU.
class CopyKernel {
 public:
  static constexpr int most_copies = 8, threads = 256;

  static CudaSource source() {
    return {"copy",
            copy_kernel_source,
            {"-DCOPIES=" + std::to_string(most_copies), "-DTHREADS=" + std::to_string(threads)}};
  }

  /// @throws std::runtime_error when it cannot be had there
  explicit CopyKernel(c10::Device device)
      : device_(device), kernels_(source(), device), copy_(kernels_.function("copy")) {}

  /// What lies in another way is copied by torch.
  /// @param to each of the shape and type of its counterpart
  /// @returns how many tensors the kernel copies
  int operator()(std::vector<at::Tensor> const& to, std::vector<at::Tensor> const& from) const {
    Copies copies;
    int taken = 0;
    for (std::size_t i = 0; i < to.size(); ++i) {
      if (add(copies, to[i], from[i])) {
        ++taken;
      } else {
        to[i].copy_(from[i], /*non_blocking=*/true);
      }
    }
    if (copies.blocks == 0) return taken;
    std::array<void*, 2> arguments{&copies.each, &copies.count};
    kernels_.start(copy_, copies.blocks, threads, arguments.data());
    return taken;
  }

 private:
  struct Copy {
    char const* from;
    char* to;
    long long bytes, first_block;
  };
  struct Copies {
    std::array<Copy, most_copies> each{};
    int count = 0;
    long long blocks = 0;
  };

  /// @returns false for what the kernel does not take
  bool add(Copies& copies, at::Tensor const& to, at::Tensor const& from) const {
    const bool repeats = from.dim() > 1 && from.stride(0) == 0;  // the same rows for each
    const std::int64_t times = repeats ? from.size(0) : 1;
    const at::Tensor once = repeats ? from.select(0, 0) : from;
    if (from.device() != device_ || !once.is_contiguous() || !to.is_contiguous()) return false;
    if (copies.count + times > most_copies) return false;
    const std::int64_t bytes = once.numel() * std::int64_t(once.element_size());
    auto const* const source = static_cast<char const*>(once.const_data_ptr());
    auto* const target = static_cast<char*>(to.mutable_data_ptr());
    const auto aligned = [](void const* address) { return reinterpret_cast<std::uintptr_t>(address) % 16 == 0; };
    if (!aligned(source) || !aligned(target) || (times > 1 && bytes % 16)) return false;
    for (std::int64_t k = 0; k < times; ++k) {
      copies.each[std::size_t(copies.count++)] = {source, target + k * bytes, bytes, copies.blocks};
      copies.blocks += (bytes + 16 * threads - 1) / (16 * threads);
    }
    return true;
  }

  c10::Device device_;
  CudaKernels kernels_;
  void* copy_;
};

/// Copies each tensor to its counterpart, as CopyKernel does where there is one.
/// @param device of `to`
inline void copy_all(std::vector<at::Tensor> const& to, std::vector<at::Tensor> const& from, c10::Device device) {
  if (CopyKernel const* const kernel = kernel_on<CopyKernel>(device)) {
    (*kernel)(to, from);
    return;
  }
  for (std::size_t i = 0; i < to.size(); ++i) to[i].copy_(from[i], /*non_blocking=*/true);
}

}  // namespace tstitch::detail
