/// @file
/// Sums of tensors times numbers: what update rules are made of.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "host_tensor.hpp"
#include "vector_code.hpp"

namespace tstitch {

/// A tensor times a number.
struct Term {
  double weight;
  at::Tensor tensor;
};

namespace detail {

/// Elements that are summed at once, so that partial sums stay in the nearest cache.
inline constexpr std::int64_t sum_block = 1024;

/// out = a x + b y, and out += a x, for a whole block or for less. Loops over a constant are vector code without asking
/// for more than -O2.
template <class Real>
[[gnu::always_inline]] inline void sum_of_two(Real* __restrict out, Real a, Real const* __restrict x, Real b,
                                              Real const* __restrict y, std::int64_t count) {
  if (count == sum_block) {
    for (std::int64_t i = 0; i < sum_block; ++i) out[i] = a * x[i] + b * y[i];
  } else {
    for (std::int64_t i = 0; i < count; ++i) out[i] = a * x[i] + b * y[i];
  }
}

template <class Real>
[[gnu::always_inline]] inline void add_term(Real* __restrict out, Real a, Real const* __restrict x,
                                            std::int64_t count) {
  if (count == sum_block) {
    for (std::int64_t i = 0; i < sum_block; ++i) out[i] += a * x[i];
  } else {
    for (std::int64_t i = 0; i < count; ++i) out[i] += a * x[i];
  }
}

/// @param terms at least two
template <class Real>
[[gnu::always_inline]] inline void sum_on_host(Real* out, std::span<const Term> terms, std::int64_t count) {
  for (std::int64_t i = 0; i < count; i += sum_block) {
    const std::int64_t part = count - i < sum_block ? count - i : sum_block;
    const auto values = [&](std::size_t k) { return terms[k].tensor.template const_data_ptr<Real>() + i; };
    sum_of_two(out + i, Real(terms[0].weight), values(0), Real(terms[1].weight), values(1), part);
    for (std::size_t k = 2; k < terms.size(); ++k) add_term(out + i, Real(terms[k].weight), values(k), part);
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
inline bool plain_on_host(std::span<const Term> terms) {
  at::Tensor const& first = terms[0].tensor;
  if (terms.size() < 2 || (first.scalar_type() != at::kFloat && first.scalar_type() != at::kDouble)) return false;
  for (Term const& term : terms) {
    at::Tensor const& x = term.tensor;
    if (!x.is_cpu() || x.scalar_type() != first.scalar_type() || !x.is_contiguous() || x.requires_grad() ||
        x.sizes() != first.sizes()) {
      return false;
    }
  }
  return true;
}

}  // namespace detail

/// weight tensor + weight tensor + ..., in one pass for plain tensors on the host, else by tensor operations, which
/// have gradients and run anywhere. Tensors are of one shape, type and device.
class WeightedSum {
 public:
  WeightedSum() { terms_.reserve(8); }

  /// A tensor that comes again is one term; one whose weight is 0 is none.
  WeightedSum& add(double weight, at::Tensor const& tensor) {
    for (Term& term : terms_) {
      if (!term.tensor.is_same(tensor)) continue;
      term.weight += weight;
      return *this;
    }
    if (weight != 0 || terms_.empty()) terms_.push_back({weight, tensor});
    return *this;
  }

  /// A tensor of its own. There must be a term.
  at::Tensor value() const {
    if (detail::plain_on_host(terms_)) {
      return terms_[0].tensor.scalar_type() == at::kFloat ? detail::sum_on_host<float>(terms_)
                                                          : detail::sum_on_host<double>(terms_);
    }
    at::Tensor sum = terms_[0].tensor.mul(terms_[0].weight);
    for (std::size_t k = 1; k < terms_.size(); ++k) sum.add_(terms_[k].tensor, terms_[k].weight);
    return sum;
  }

 private:
  std::vector<Term> terms_;
};

/// a x + b y
inline at::Tensor weighted_sum(double a, at::Tensor const& x, double b, at::Tensor const& y) {
  return WeightedSum().add(a, x).add(b, y).value();
}

}  // namespace tstitch
