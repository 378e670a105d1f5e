/// @file
/// Weighted sums by a CUDA kernel.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "../weighted_sum.hpp"
#include "kernel.hpp"
#include "nvrtc.hpp"
#include "prelude.hpp"

namespace tstitch::detail {

/// CUDA C++ of the sum, behind `number_conversions`. TERMS is the most terms that a sum can have there.
///
/// Each thread has N neighbours of the sum [rows, columns]; a term may have its rows further apart, as the first
/// channels of a network's output have them. Rounded as torch's operations are, one after another.
inline constexpr char sum_kernel_source[] = R"cuda(
struct Term {
  const void* data;
  long long row_stride;  // in elements
  float weight, of_sum;
  int type;  // 0 float, 1 __half, 2 __nv_bfloat16
};
struct Terms {
  Term each[TERMS];
};

template <int N> struct Pack;
template <> struct Pack<1> {
  typedef float Floats;
  typedef unsigned short Shorts;
};
template <> struct Pack<4> {
  typedef float4 Floats;
  typedef ushort4 Shorts;
};

template <int N>
__device__ void sum(float* out, const Terms& terms, int count, unsigned elements, unsigned columns) {
  const unsigned i = (blockIdx.x * blockDim.x + threadIdx.x) * N;
  if (i >= elements) return;
  const unsigned row = i / columns, column = i - row * columns;
  float sums[N];
  for (int n = 0; n < N; ++n) sums[n] = 0;
  for (int k = 0; k < count; ++k) {
    const Term& term = terms.each[k];
    const long long at = row * term.row_stride + column;
    float values[N];
    if (term.type == 0) {
      *(typename Pack<N>::Floats*)values = *(const typename Pack<N>::Floats*)((const float*)term.data + at);
    } else {
      unsigned short given[N];
      *(typename Pack<N>::Shorts*)given = *(const typename Pack<N>::Shorts*)((const unsigned short*)term.data + at);
      for (int n = 0; n < N; ++n) {
        values[n] = term.type == 1 ? half_to_float(given[n]) : bfloat16_to_float(given[n]);
      }
    }
    for (int n = 0; n < N; ++n) sums[n] = __fmaf_rn(term.weight, values[n], __fmul_rn(term.of_sum, sums[n]));
  }
  *(typename Pack<N>::Floats*)(out + i) = *(const typename Pack<N>::Floats*)sums;
}

extern "C" __global__ void sum_1(float* out, const __grid_constant__ Terms terms, int count, unsigned elements,
                                 unsigned columns) {
  sum<1>(out, terms, count, elements, columns);
}

extern "C" __global__ void sum_4(float* out, const __grid_constant__ Terms terms, int count, unsigned elements,
                                 unsigned columns) {
  sum<4>(out, terms, count, elements, columns);
}
)cuda";

/// The sum in one pass on a GPU.
class SumKernel {
 public:
  static constexpr std::size_t most_terms = 8;

  static CudaSource source() {
    return {"sum", std::string(number_conversions) + sum_kernel_source, {"-DTERMS=" + std::to_string(most_terms)}};
  }

  /// @throws std::runtime_error when it cannot be had there
  explicit SumKernel(c10::Device device)
      : kernels_(source(), device), one_(kernels_.function("sum_1")), four_(kernels_.function("sum_4")) {}

  /// A float32 tensor, or an undefined one for terms that it does not take.
  at::Tensor operator()(std::span<const Term> terms) const {
    at::Tensor const& first = terms[0].tensor;
    const std::int64_t elements = first.numel();
    if (terms.size() > most_terms || elements < 1 || elements >= std::int64_t(1) << 31 || first.dim() < 1) return {};
    Given given{};
    const std::int64_t columns = elements / first.size(0);
    bool in_fours = columns % 4 == 0;
    for (std::size_t k = 0; k < terms.size(); ++k) {
      at::Tensor const& x = terms[k].tensor;
      const int type = x.scalar_type() == at::kFloat      ? 0
                       : x.scalar_type() == at::kHalf     ? 1
                       : x.scalar_type() == at::kBFloat16 ? 2
                                                          : -1;
      if (type < 0 || x.device() != first.device() || x.requires_grad() || x.sizes() != first.sizes() ||
          !has_whole_rows(x)) {
        return {};
      }
      given[k] = {x.const_data_ptr(), x.stride(0), float(terms[k].weight), float(terms[k].of_sum), type, 0};
      const std::uintptr_t four_values = type == 0 ? 16 : 8;
      in_fours = in_fours && x.stride(0) % 4 == 0 && reinterpret_cast<std::uintptr_t>(given[k].data) % four_values == 0;
    }
    at::Tensor out = first.new_empty(first.sizes(), first.options().dtype(at::kFloat));
    void* out_data = out.mutable_data_ptr();
    int count = int(terms.size());
    unsigned all = unsigned(elements), row = unsigned(columns);
    std::array<void*, 5> arguments{&out_data, &given, &count, &all, &row};
    const std::int64_t threads = in_fours ? elements / 4 : elements;
    kernels_.start(in_fours ? four_ : one_, (threads + 255) / 256, 256, arguments.data());
    return out;
  }

 private:
  struct GivenTerm {
    void const* data;
    long long row_stride;
    float weight, of_sum;
    int type, padding;
  };
  using Given = std::array<GivenTerm, most_terms>;

  /// Whether what comes after the first dimension lies together.
  static bool has_whole_rows(at::Tensor const& x) {
    std::int64_t expected = 1;
    for (std::int64_t d = x.dim() - 1; d > 0; --d) {
      if (x.size(d) > 1 && x.stride(d) != expected) return false;
      expected *= x.size(d);
    }
    return true;
  }

  CudaKernels kernels_;
  void* one_;
  void* four_;
};

/// For `sum_on_gpu`.
inline at::Tensor sum_by_kernel(std::span<const Term> terms) {
  SumKernel const* const kernel = kernel_on<SumKernel>(terms[0].tensor.device());
  return kernel ? (*kernel)(terms) : at::Tensor();
}

}  // namespace tstitch::detail
