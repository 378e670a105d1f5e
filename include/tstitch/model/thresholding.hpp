/// @file
/// What is done to a predicted x_0 before it is used.
#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>
#include <optional>

#include "../plan/error.hpp"
#include "network.hpp"

namespace tstitch {

/// Keeps predicted x_0 in the range that pictures have. A value.
class Thresholding {
 public:
  /// Clips to [-1, 1] when the networks say that x_0 is a picture in that range, else leaves x_0 alone.
  static constexpr Thresholding automatic() { return {Kind::automatic, 1, 1, 1}; }

  static constexpr Thresholding none() { return {Kind::none, 1, 1, 1}; }

  /// Clips to [-range, range].
  static Thresholding clip(double range = 1) {
    if (!(range > 0)) detail::refuse("Thresholding::clip", "range must be above 0", range);
    return {Kind::clip, range, 1, range};
  }

  /// Dynamic thresholding (Saharia et al. 2022, Imagen, arXiv 2205.11487, section 2.3), for each image:
  /// s = that quantile of |x_0|, kept within [range, most]; x_0 becomes clip(x_0, -s, s) / s x range.
  static Thresholding dynamic(double quantile = 0.995, double range = 1, double most = 1e9) {
    if (!(quantile > 0 && quantile <= 1)) {
      detail::refuse("Thresholding::dynamic", "quantile must be in (0, 1]", quantile);
    }
    if (!(range > 0)) detail::refuse("Thresholding::dynamic", "range must be above 0", range);
    if (!(most >= range)) detail::refuse("Thresholding::dynamic", "most must not be below range", most);
    return {Kind::dynamic, range, quantile, most};
  }

  /// What `automatic` means for a network.
  Thresholding resolve(NetworkInfo const& info) const {
    if (kind_ != Kind::automatic) return *this;
    return info.decoding == Decoding::pixels ? clip(1) : none();
  }

  bool operator==(Thresholding const&) const = default;

  /// @param x_0 [n, C, H, W]
  at::Tensor operator()(at::Tensor const& x_0) const {
    switch (kind_) {
      case Kind::clip: return x_0.clamp(-range_, range_);
      case Kind::dynamic: {
        const at::Tensor s = x_0.flatten(1).abs().quantile(quantile_, 1).clamp_(range_, most_).view({-1, 1, 1, 1});
        return x_0.clamp(-s, s).div_(s).mul_(range_);
      }
      default: return x_0;
    }
  }

 private:
  enum class Kind { automatic, none, clip, dynamic };

  constexpr Thresholding(Kind kind, double range, double quantile, double most)
      : kind_(kind), range_(range), quantile_(quantile), most_(most) {}

  Kind kind_;
  double range_;
  double quantile_;
  double most_;
};

}  // namespace tstitch
