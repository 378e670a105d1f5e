/// @file
/// Layers in 8 bits: e4m3, with one scale a tensor.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/_scaled_mm.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/linear.h>

#include <cmath>
#include <cstdint>
#include <optional>

#include "../base/error.hpp"
#include "../tensor/cuda/driver.hpp"
#include "../tensor/host_tensor.hpp"
#include "cublas_lt.hpp"
#include "dit_kernels.hpp"
#include "dit_weights.hpp"

namespace tstitch::detail {

/// GELU in its tanh form; on a CPU image by image. Torch's vector code and what it does for a remainder round in
/// different ways there, and where the shares of its threads end must not depend on an image's place in the batch.
/// @param x [n, ...]
inline at::Tensor gelu_tanh(at::Tensor const& x) {
  if (!x.is_cpu()) return at::gelu(x, "tanh");
  at::Tensor made = x.new_empty(x.sizes());
  for (std::int64_t i = 0; i < x.size(0); ++i) {
    at::Tensor image = made.select(0, i);
    at::gelu_out(image, x.select(0, i), "tanh");
  }
  return made;
}

/// Of the numbers that e4m3 has.
inline constexpr double largest_e4m3 = 448;

/// x / scale in e4m3, the nearest, and the largest for what is beyond it; after GELU in its tanh form if that is
/// wanted.
/// @param x its elements are as one for the kernel, where there is one
inline at::Tensor to_e4m3(at::Tensor const& x, double scale, bool gelu = false, DiTKernels const* kernels = nullptr) {
  if (kernels && kernels->has_e4m3() && x.numel() % 8 == 0) {
    const at::Tensor given = x.contiguous();
    at::Tensor out = given.new_empty(given.sizes(), given.options().dtype(at::kFloat8_e4m3fn));
    kernels->quantise(given, out, 1 / scale, gelu);
    return out;
  }
  const at::Tensor values = (gelu ? gelu_tanh(x) : x).to(at::kFloat).div(scale).clamp(-largest_e4m3, largest_e4m3);
  return values.to(at::kFloat8_e4m3fn);
}

/// Gives the weight 8 bits, unless it has them.
/// @param place for messages
/// @param largest_input see DiTOptions::e4m3_inputs
/// @throws std::invalid_argument for weights that are not finite
inline void quantise(char const* place, DiTLinear& linear, double largest_input) {
  const auto scale_of = [](double value) { return value > 0 ? value / largest_e4m3 : 1.0; };
  linear.input_scale = scale_of(1.1 * largest_input);  // other trajectories may go further
  if (!linear.eighth.defined()) {
    const double largest_weight = linear.weight.abs().max().item<double>();
    if (!std::isfinite(largest_weight)) refuse(place, "weights in 8 bits must be finite", largest_weight);
    linear.weight_scale = scale_of(largest_weight);
    linear.eighth = to_e4m3(linear.weight, linear.weight_scale);
  }
  const at::Tensor host = host_tensor({3, 4}, at::kFloat).zero_();
  host.mutable_data_ptr<float>()[0] = float(linear.input_scale);
  host.mutable_data_ptr<float>()[4] = float(linear.weight_scale);
  host.mutable_data_ptr<float>()[8] = float(1 / linear.input_scale);
  linear.scales = host.to(linear.eighth.device());
  linear.weight.reset();
}

/// Whether a device multiplies in 8 bits.
inline bool multiplies_e4m3(at::Device device) {
  return device.is_cuda() && compute_capability(device.index()) >= 89;
}

/// @param out [m, out], contiguous, is filled
/// @param x [m, in] e4m3, divided by the layer's input_scale
/// @param in_8_bits whether the device multiplies so; else in float32
inline void linear_e4m3(at::Tensor out, at::Tensor const& x, DiTLinear const& by, bool in_8_bits) {
  if (!in_8_bits) {
    const at::Tensor product = at::linear(x.to(at::kFloat), by.eighth.to(at::kFloat));
    out.copy_(product.mul(by.input_scale * by.weight_scale).add_(by.bias));
    return;
  }
  const at::Tensor given = x.contiguous();
  if (product_e4m3({given, by.eighth, by.bias, by.scale(0), by.scale(1)}, out)) return;
  const bool adds = out.scalar_type() != at::kFloat;  // cuBLAS adds no bias in float32
  const auto bias = adds ? std::optional<at::Tensor>(by.bias) : std::nullopt;
  at::_scaled_mm_out(out, given, by.eighth.t(), by.scale(0), by.scale(1), bias, {}, out.scalar_type(),
                     /*use_fast_accum=*/true);
  if (!adds) out.add_(by.bias);
}

}  // namespace tstitch::detail
