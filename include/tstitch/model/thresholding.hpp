/// @file
/// What is done to a predicted x_0 before it is used.
#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>
#include <cstdint>
#include <optional>

#include "../base/error.hpp"
#include "../tensor/host_tensor.hpp"
#include "../tensor/shape.hpp"
#include "../tensor/weighted_sum.hpp"
#include "network.hpp"

namespace tstitch {

namespace detail {

/// x within [-range, range], and NaN where it is not finite; elsewhere x times 0 changes no bit.
template <class Real>
[[gnu::always_inline]] inline void clip_on_host(Real* __restrict out, Real const* __restrict x, Real range,
                                                std::int64_t count) {
  const auto clipped = [range](Real value) {
    const Real above = value < -range ? -range : value;
    return (above > range ? range : above) + value * 0;
  };
  std::int64_t i = 0;
  for (; count - i >= sum_block; i += sum_block) {  // loops over a constant are vector code at -O2
    for (std::int64_t k = 0; k < sum_block; ++k) out[i + k] = clipped(x[i + k]);
  }
  for (; i < count; ++i) out[i] = clipped(x[i]);
}

#ifdef TSTITCH_X86
template <class Real>
[[gnu::target("avx2")]] void clip_on_host_avx2(Real* out, Real const* x, Real range, std::int64_t count) {
  clip_on_host(out, x, range, count);
}
#endif

template <class Real>
at::Tensor clip_on_host(at::Tensor const& x, double range) {
  at::Tensor clipped = host_tensor(x.sizes(), x.scalar_type());
  Real* const out = clipped.mutable_data_ptr<Real>();
#ifdef TSTITCH_X86
  if (has_avx2()) {
    clip_on_host_avx2(out, values_of<Real>(x), Real(range), x.numel());
    return clipped;
  }
#endif
  clip_on_host(out, values_of<Real>(x), Real(range), x.numel());
  return clipped;
}

inline at::Tensor clip(at::Tensor const& x, double range) {
  if (x.is_cpu() && x.is_contiguous() && !x.requires_grad()) {
    if (x.scalar_type() == at::kFloat) return clip_on_host<float>(x, range);
    if (x.scalar_type() == at::kDouble) return clip_on_host<double>(x, range);
  }
  return x.clamp(-range, range).add_(x, 0);
}

}  // namespace detail

/// Keeps predicted x_0 in the range that pictures have. A value.
class Thresholding {
 public:
  /// Clips to [-1, 1] when the networks say that x_0 is a picture in that range, else leaves x_0 alone.
  static constexpr Thresholding automatic() { return {Kind::automatic, 1, 1, 1}; }

  static constexpr Thresholding none() { return {Kind::none, 1, 1, 1}; }

  /// Clips to [-range, range].
  static Thresholding clip(double range = 1) {
    require_range("Thresholding::clip", range);
    return {Kind::clip, range, 1, range};
  }

  /// Dynamic thresholding (Saharia et al. 2022, Imagen, arXiv 2205.11487, section 2.3), for each image:
  /// s = that quantile of |x_0|, kept within [range, most]; x_0 becomes clip(x_0, -s, s) / s x range.
  static Thresholding dynamic(double quantile = 0.995, double range = 1, double most = 1e9) {
    if (!(quantile > 0 && quantile <= 1)) {
      detail::refuse("Thresholding::dynamic", "quantile must be in (0, 1]", quantile);
    }
    require_range("Thresholding::dynamic", range);
    if (!(most >= range)) detail::refuse("Thresholding::dynamic", "most must not be below range", most);
    return {Kind::dynamic, range, quantile, most};
  }

  /// What `automatic` means for a network.
  Thresholding resolve(NetworkInfo const& info) const {
    if (kind_ != Kind::automatic) return *this;
    return info.decoding == Decoding::pixels ? clip(1) : none();
  }

  bool operator==(Thresholding const&) const = default;

  /// "clip [-1, 1]", "dynamic 0.995 of [1, 1e+09]".
  std::string name() const {
    const std::string range = detail::text(range_);
    switch (kind_) {
      case Kind::automatic: return "automatic";
      case Kind::clip: return "clip [-" + range + ", " + range + "]";
      case Kind::dynamic:
        return "dynamic " + detail::text(quantile_) + " of [" + range + ", " + detail::text(most_) + "]";
      default: return "none";
    }
  }

  /// Values that are not finite become NaN, so that clipping does not hide them.
  /// @param x_0 [n, C, ...]
  at::Tensor operator()(at::Tensor const& x_0) const {
    switch (kind_) {
      case Kind::clip: return detail::clip(x_0, range_);
      case Kind::dynamic: {
        const at::Tensor s =
            detail::one_an_image(x_0.flatten(1).abs().quantile(quantile_, 1).clamp_(range_, most_), x_0);
        return x_0.clamp(-s, s).div_(s).mul_(range_).add_(x_0, 0);
      }
      default: return x_0;
    }
  }

 private:
  static void require_range(char const* place, double range) {
    if (!(range > 0 && std::isfinite(range))) detail::refuse(place, "range must be above 0", range);
  }

  enum class Kind { automatic, none, clip, dynamic };

  constexpr Thresholding(Kind kind, double range, double quantile, double most)
      : kind_(kind), range_(range), quantile_(quantile), most_(most) {}

  Kind kind_;
  double range_;
  double quantile_;
  double most_;
};

}  // namespace tstitch
