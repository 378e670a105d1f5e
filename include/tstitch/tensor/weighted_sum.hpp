/// @file
/// Sums of tensors times numbers: what update rules are made of.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "../base/contraction.hpp"
#include "../base/vector_code.hpp"
#include "cuda/kernel.hpp"
#include "cuda/prelude.hpp"
#include "host_sum.hpp"
#include "host_tensor.hpp"

TSTITCH_NO_CONTRACTION

namespace tstitch {

/// A tensor times a number, added to what is there already times another.
struct Term {
  double weight;
  at::Tensor tensor;
  double of_sum = 1;  ///< what the sum of the terms before is multiplied with
};

namespace detail {

/// @param terms at least two, of which the second takes the first as it is
template <class Real>
[[gnu::always_inline]] inline void sum_on_host(Real* out, std::span<const Term> terms, std::int64_t count) {
  for (std::int64_t i = 0; i < count; i += sum_block) {
    const std::int64_t part = count - i < sum_block ? count - i : sum_block;
    const auto values = [&](std::size_t k) { return terms[k].tensor.template const_data_ptr<Real>() + i; };
    sum_of_two(out + i, Real(terms[0].weight), values(0), Real(terms[1].weight), values(1), part);
    for (std::size_t k = 2; k < terms.size(); ++k) {
      add_term(out + i, Real(terms[k].of_sum), Real(terms[k].weight), values(k), part);
    }
  }
}

#ifdef TSTITCH_X86
template <class Real>
[[gnu::target("avx2")]] void sum_on_host_avx2(Real* out, std::span<const Term> terms, std::int64_t count) {
  sum_on_host(out, terms, count);
}
#endif

template <class Real>
at::Tensor sum_on_host(std::span<const Term> terms) {
  at::Tensor const& first = terms[0].tensor;
  at::Tensor sum = host_tensor(first.sizes(), first.scalar_type());
  Real* const out = sum.mutable_data_ptr<Real>();
#ifdef TSTITCH_X86
  if (has_avx2()) {
    sum_on_host_avx2(out, terms, first.numel());
    return sum;
  }
#endif
  sum_on_host(out, terms, first.numel());
  return sum;
}

/// Whether the plain loop may take the place of tensor operations.
inline bool plain_on_host(std::span<const Term> terms, at::ScalarType type) {
  at::Tensor const& first = terms[0].tensor;
  if (terms.size() < 2 || (type != at::kFloat && type != at::kDouble)) return false;
  for (Term const& term : terms) {
    at::Tensor const& x = term.tensor;
    if (!x.is_cpu() || x.scalar_type() != type || !x.is_contiguous() || x.requires_grad() ||
        x.sizes() != first.sizes()) {
      return false;
    }
  }
  return true;
}

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

}  // namespace detail

/// weight tensor + weight tensor + ..., in one pass for plain tensors on the host and on a GPU, else by tensor
/// operations, which have gradients and run anywhere. Tensors are of one shape and device.
class WeightedSum {
 public:
  /// A tensor that comes again is one term; one whose weight is 0 is none.
  WeightedSum& add(double weight, at::Tensor const& tensor) {
    if (factor_ == 1) {
      for (std::size_t k = first_; k < terms_.size(); ++k) {
        if (!terms_[k].tensor.is_same(tensor)) continue;
        terms_[k].weight += weight;
        return *this;
      }
    }
    return weight == 0 && !terms_.empty() ? *this : append(weight, tensor);
  }

  /// Makes the sum NaN where the tensor is not finite, and leaves it as it is elsewhere.
  WeightedSum& carry_non_finite(at::Tensor const& tensor) { return append(0, tensor); }

  /// Multiplies what is there already.
  WeightedSum& scale(double factor) {
    if (terms_.size() == 1) {
      terms_[0].weight *= factor;
    } else {
      factor_ *= factor;
    }
    return *this;
  }

  /// A tensor of its own. There must be a term.
  /// @param type that of the result; not stated: that of the first term
  at::Tensor value(std::optional<at::ScalarType> type = {}) const {
    const at::ScalarType wanted = type.value_or(terms_[0].tensor.scalar_type());
    if (factor_ == 1) {
      if (detail::plain_on_host(terms_, wanted)) {
        return wanted == at::kFloat ? detail::sum_on_host<float>(terms_) : detail::sum_on_host<double>(terms_);
      }
      if (terms_[0].tensor.is_cuda() && wanted == at::kFloat) {
        if (detail::SumKernel const* const kernel = detail::kernel_on<detail::SumKernel>(terms_[0].tensor.device())) {
          if (at::Tensor sum = (*kernel)(terms_); sum.defined()) return sum;
        }
      }
    }
    return by_operations(wanted);
  }

  /// The same by tensor operations, one after another.
  at::Tensor by_operations(at::ScalarType type) const {
    at::Tensor sum = terms_[0].tensor.to(type).mul(terms_[0].weight);
    for (std::size_t k = 1; k < terms_.size(); ++k) {
      if (terms_[k].of_sum != 1) sum.mul_(terms_[k].of_sum);
      sum.add_(terms_[k].tensor.to(type), terms_[k].weight);
    }
    return factor_ == 1 ? sum : sum.mul_(factor_);
  }

 private:
  WeightedSum& append(double weight, at::Tensor const& tensor) {
    if (factor_ != 1) first_ = terms_.size();
    terms_.push_back({weight, tensor, factor_});
    factor_ = 1;
    return *this;
  }

  c10::SmallVector<Term, 8> terms_;
  double factor_ = 1;      // that has no term yet
  std::size_t first_ = 0;  // of the terms since a factor
};

/// a x + b y
inline at::Tensor weighted_sum(double a, at::Tensor const& x, double b, at::Tensor const& y) {
  return WeightedSum().add(a, x).add(b, y).value();
}

}  // namespace tstitch

TSTITCH_USUAL_CONTRACTION
