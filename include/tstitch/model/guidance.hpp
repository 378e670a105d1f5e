/// @file
/// What guidance does to predictions, and guidance by the gradient of any log density.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

#include "../plan/guidance.hpp"
#include "../tensor/host_tensor.hpp"
#include "../tensor/shape.hpp"
#include "network.hpp"

namespace tstitch {

/// Of which picture a log density is.
enum class DensityOf {
  x,    ///< of x_t, by a classifier that knows noisy pictures; costs no pass through the network
  x_0,  ///< of the predicted x_0; its gradient with respect to x goes through the network, which must have gradients
        ///< (TorchScript and torch's operations have, the DiT engine and AOTInductor have not)
};

/// Guidance by log p(y | picture), which may be any function with a gradient: x_0 moves by
/// scale sigma^2 / alpha d log p / dx.
///
/// By Tweedie's formula the score is (alpha x_0 - x) / sigma^2, so that this is the x_0 of the score plus the scaled
/// gradient. With DensityOf::x it is classifier guidance (Dhariwal and Nichol 2021, arXiv 2105.05233, Eq. 14), with
/// DensityOf::x_0 diffusion posterior sampling (Chung et al. 2022, arXiv 2209.14687, Eq. 11); their step size
/// zeta / |y - A(x_0)| is a log density of -|y - A(x_0)|. Comes after all other guidance and before thresholding.
struct GradientGuidance {
  /// @param picture [n, C, ...], what `of` says
  /// @param t [n], as the step's network takes it
  /// @returns [n], up to a constant; none: no guidance of this kind. Must be safe to call from several threads if the
  ///          sampler is used from several. Padding of batches is in the rows as other images are.
  using LogDensity = std::function<at::Tensor(at::Tensor const& picture, at::Tensor const& t, Condition const&)>;
  LogDensity log_density = {};
  double scale = 1;
  DensityOf of = DensityOf::x_0;

  explicit operator bool() const { return bool(log_density); }

  /// @throws std::invalid_argument
  void validate() const {
    if (!std::isfinite(scale)) detail::refuse("GradientGuidance", "scale must be a finite number", scale);
  }
};

namespace detail {

/// The factor [n, 1, ...] that brings a guided output phi of the way to the deviation of the conditional one (Lin et
/// al. 2024, arXiv 2305.08891, Eq. 15 and 16). An output that is the same everywhere, or one number, stays as it is.
inline at::Tensor rescale_factor(at::Tensor const& guided, at::Tensor const& conditional, double phi) {
  const auto deviation = [](at::Tensor const& x) { return x.std(dims_of_an_image(x), true, true); };
  const at::Tensor of_guided = deviation(guided);
  const at::Tensor ratio = deviation(conditional).div(of_guided).masked_fill(of_guided.gt(0).logical_not(), 1);
  return ratio.mul(phi).add(1 - phi);
}

/// x_0 under adaptive projected guidance.
/// @param conditional [n, k, ...]
/// @param update likewise, with momentum
inline at::Tensor project(at::Tensor const& conditional, at::Tensor const& update, double scale,
                          ProjectedGuidance const& how) {
  const auto dot = [](at::Tensor const& a, at::Tensor const& b) { return a.mul(b).sum(dims_of_an_image(a), true); };
  const at::Tensor along = dot(update, conditional).div(dot(conditional, conditional).clamp_min(1e-24));
  at::Tensor kept = update.sub(conditional.mul(along), 1 - how.eta);
  if (std::isfinite(how.norm_threshold)) {
    kept = kept.mul(dot(update, update).sqrt().reciprocal().mul(how.norm_threshold).clamp_max(1));
  }
  return conditional.add(kept, scale - 1);
}

/// `all` with its first channels replaced; `all` itself is left as it is.
inline at::Tensor with_first_channels(at::Tensor const& all, at::Tensor const& first) {
  if (first.size(1) == all.size(1)) return first;
  at::Tensor changed = all.clone();
  changed.narrow(1, 0, first.size(1)).copy_(first);
  return changed;
}

/// The gradient at x of a function that returns [n], each value of its own row of x.
template <class Function>
at::Tensor gradient(at::Tensor const& x, Function function) {
  const c10::AutoGradMode gradients(true);
  const at::Tensor leaf = x.detach().requires_grad_(true);
  const at::Tensor value = function(leaf);
  if (!value.defined() || value.dim() != 1 || value.size(0) != x.size(0)) {
    throw std::runtime_error("tstitch::GradientGuidance: log_density must return [" + std::to_string(x.size(0)) +
                             "], got " + (value.defined() ? shape_text(value.sizes()) : "an undefined tensor"));
  }
  if (!value.requires_grad()) {
    throw std::runtime_error("tstitch::GradientGuidance: log_density must depend on x by operations with gradients");
  }
  // Only of x: parameters of networks are left without.
  value.sum().backward({}, {}, false, at::TensorList(leaf));
  return leaf.grad();
}

}  // namespace detail

}  // namespace tstitch
