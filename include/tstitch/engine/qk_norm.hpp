/// @file
/// The norm of queries and keys in an MMDiT: by a CUDA kernel, or by torch's operations.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <exception>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>

#include "../base/diagnostics.hpp"
#include "../tensor/cuda/kernel.hpp"
#include "../tensor/cuda/nvrtc.hpp"
#include "../tensor/cuda/prelude.hpp"
#include "dit_kernels.hpp"

namespace tstitch::detail {

/// CUDA C++ of the kernel, behind `number_conversions` and `element_conversions`; HEAD is the width of a head, 8 to 256
/// and a power of two. A block has one token [3, heads, HEAD], whose queries and keys come first.
inline constexpr char qk_norm_source[] = R"cuda(
constexpr int LANES = HEAD / 8;  // threads of a head, which are neighbours in one warp

extern "C" __global__ void qk_norm(Element* qkv, const Element* weights, long long first_rows, int heads, float eps) {
  const long long row = blockIdx.x;
  const Eight* const of_stream = (const Eight*)(weights + (row < first_rows ? 0 : 2 * HEAD));
  Eight* const own = (Eight*)(qkv + row * 3 * heads * HEAD);
  const int of_queries = heads * LANES;
  const unsigned lane = threadIdx.x % 32;
  const unsigned of_head = (LANES == 32 ? 0xffffffffu : ((1u << LANES) - 1) << (lane / LANES * LANES));
  for (int i = threadIdx.x; i < 2 * of_queries; i += blockDim.x) {
    const Eight given = own[i], weight = of_stream[(i < of_queries ? 0 : LANES) + i % LANES];
    float values[8], squares = 0;
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      values[k] = to_float(given.values[k]);
      squares += values[k] * values[k];
    }
#pragma unroll
    for (int offset = LANES / 2; offset > 0; offset /= 2) squares += __shfl_xor_sync(of_head, squares, offset);
    const float inverse = rsqrtf(squares / HEAD + eps);
    Eight normed;
#pragma unroll
    for (int k = 0; k < 8; ++k) normed.values[k] = from_float(values[k] * inverse * to_float(weight.values[k]));
    own[i] = normed;
  }
}
)cuda";

/// The kernel for an element and a width of heads on a GPU.
class QKNormKernel {
 public:
  static bool fits(std::int64_t head) { return head >= 8 && head <= 256 && (head & (head - 1)) == 0; }

  /// @param element see element_of
  static CudaSource source(int element, std::int64_t head) {
    return {"qk_norm",
            std::string(number_conversions) + element_conversions + qk_norm_source,
            {"-DELEMENT=" + std::to_string(element), "-DHEAD=" + std::to_string(head)}};
  }

  /// @throws std::runtime_error when it cannot be had there
  QKNormKernel(int element, std::int64_t head, c10::Device device)
      : kernels_(source(element, head), device), norm_(kernels_.function("qk_norm")) {}

  void operator()(at::Tensor const& qkv, at::Tensor const& weights, std::int64_t first_rows, double eps) const {
    void* qkv_data = qkv.data_ptr();
    void* weight_data = weights.data_ptr();
    long long first = first_rows;
    int heads = int(qkv.size(2));
    float epsilon = float(eps);
    std::array<void*, 5> arguments{&qkv_data, &weight_data, &first, &heads, &epsilon};
    const std::int64_t eighths = 2 * heads * qkv.size(3) / 8;
    kernels_.start(norm_, qkv.size(0), int(std::min<std::int64_t>((eighths + 31) / 32 * 32, 1024)), arguments.data());
  }

 private:
  CudaKernels kernels_;
  void* norm_;
};

/// The kernel for tensors like qkv; null where there is none.
inline QKNormKernel const* qk_norm_kernel(at::Tensor const& qkv) {
  const int element = element_of(qkv.scalar_type());
  if (!qkv.is_cuda() || element < 0 || !QKNormKernel::fits(qkv.size(3))) return nullptr;
  static std::mutex mutex;
  static std::map<std::tuple<int, int, std::int64_t>, std::optional<QKNormKernel>> kernels;
  const std::lock_guard lock(mutex);
  const auto [found, is_new] = kernels.try_emplace({int(qkv.device().index()), element, qkv.size(3)});
  if (is_new) {
    try {
      found->second.emplace(element, qkv.size(3), qkv.device());
    } catch (std::exception const& error) {
      diagnose("qk_norm", std::string("torch's operations take the place of a kernel: ") + error.what());
    }
  }
  return found->second ? &*found->second : nullptr;
}

/// Divides each head's queries and keys by their root mean square, in float32, and multiplies them by weights, in
/// place.
/// @param qkv [rows, 3, heads, head], contiguous
/// @param weights [streams, 2, head], of queries and keys
/// @param first_rows the rows of the first stream; the others are of the second
/// @param plain with torch's operations
inline void qk_norm(at::Tensor const& qkv, at::Tensor const& weights, std::int64_t first_rows, bool plain = false) {
  constexpr double eps = 1e-6;
  if (!plain) {
    if (QKNormKernel const* const kernel = qk_norm_kernel(qkv)) return (*kernel)(qkv, weights, first_rows, eps);
  }
  const auto norm = [&](std::int64_t first, std::int64_t rows, std::int64_t stream) {
    if (rows == 0) return;
    const at::Tensor given = qkv.narrow(0, first, rows).narrow(1, 0, 2), values = given.to(at::kFloat);
    const at::Tensor inverse = values.square().mean(-1, /*keepdim=*/true).add_(eps).rsqrt_();
    given.copy_(values.mul(inverse).mul_(weights.select(0, stream).unsqueeze(1)));
  };
  norm(0, first_rows, 0);
  norm(first_rows, qkv.size(0) - first_rows, 1);
}

}  // namespace tstitch::detail
