/// @file
/// Sums of tensors times numbers: what update rules are made of.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "../base/contraction.hpp"
#include "../base/diagnostics.hpp"
#include "../base/vector_code.hpp"
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
    const auto values = [&](std::size_t k) { return values_of<Real>(terms[k].tensor) + i; };
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
  // The first channels of one image lie together, of several they do not; both are summed in the same way.
  c10::SmallVector<Term, 8> together;
  if (!std::all_of(terms.begin(), terms.end(), [](Term const& term) { return term.tensor.is_contiguous(); })) {
    for (Term const& term : terms) together.push_back({term.weight, term.tensor.contiguous(), term.of_sum});
    terms = {together.data(), together.size()};
  }
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
    if (!x.is_cpu() || x.scalar_type() != type || x.requires_grad() || x.sizes() != first.sizes()) {
      return false;
    }
  }
  return true;
}

/// The sum in one pass on the GPU of its terms; undefined where it cannot be had. Null unless a translation unit of the
/// program includes cuda/kernels.hpp, which sets it before main.
inline constinit std::atomic<at::Tensor (*)(std::span<const Term>)> sum_on_gpu = nullptr;

/// Says that there is none, once.
inline void miss_sum_on_gpu() {
  [[maybe_unused]] static const bool said = [] {
    diagnose("WeightedSum",
             "torch's operations take the place of a kernel, which a program has that includes "
             "<tstitch/tensor/cuda/kernels.hpp> in one of its files");
    return true;
  }();
}

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
        if (auto* const sum_on_gpu = detail::sum_on_gpu.load(std::memory_order_relaxed)) {
          if (at::Tensor sum = sum_on_gpu(terms_); sum.defined()) return sum;
        } else {
          detail::miss_sum_on_gpu();
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
