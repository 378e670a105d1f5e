/// @file
/// Residual, gate, layer norm and modulation of a DiT block in one pass: by a CUDA kernel, or a loop for the CPU.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/addcmul.h>
#include <ATen/ops/layer_norm.h>

#include <cmath>
#include <cstdint>
#include <utility>

#include "../base/vector_code.hpp"
#include "../tensor/host_tensor.hpp"
#include "dit_kernels.hpp"
#include "e4m3.hpp"

namespace tstitch::detail {

/// What the loop over tokens on the host works on, all float32: x, y, z and normed [rows, width], modulation
/// [images, slots, width]; without y nothing is added. `tokens` rows in turn are of one image, and after the last image
/// comes the first again. The width is a multiple of 8.
struct ModulatedRows {
  float* x;
  float const* y;
  float const* z;
  float const* modulation;
  float* normed;
  std::int64_t tokens, images, slots, width;
  int gate, gate_z, shift, scale;
  float eps;
};

/// Eight neighbours. Left to itself a compiler adds floats one by one, because their order matters.
typedef float EightFloats __attribute__((vector_size(32), aligned(4), may_alias));

inline EightFloats* eights(float* row) {
  return reinterpret_cast<EightFloats*>(row);
}
inline EightFloats const* eights(float const* row) {
  return reinterpret_cast<EightFloats const*>(row);
}

[[gnu::always_inline]] inline float sum_of(EightFloats const& v) {
  return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
}

/// Token by token in one pass.
[[gnu::always_inline]] inline void residual_norm_modulate_rows(ModulatedRows const& rows, std::int64_t first,
                                                               std::int64_t last) {
  const std::int64_t eighths = rows.width / 8;
  for (std::int64_t row = first; row < last; ++row) {
    float const* const of_image = rows.modulation + row / rows.tokens % rows.images * rows.slots * rows.width;
    auto const scales = eights(of_image + rows.scale * rows.width), shifts = eights(of_image + rows.shift * rows.width);
    auto const x = eights(rows.x + row * rows.width), normed = eights(rows.normed + row * rows.width);
    EightFloats sums = {}, squares = {};
    if (rows.z) {
      auto const z = eights(rows.z + row * rows.width), gates = eights(of_image + rows.gate_z * rows.width);
      for (std::int64_t c = 0; c < eighths; ++c) x[c] += gates[c] * z[c];
    }
    if (rows.y) {
      auto const y = eights(rows.y + row * rows.width), gates = eights(of_image + rows.gate * rows.width);
      for (std::int64_t c = 0; c < eighths; ++c) sums += x[c] += gates[c] * y[c];
    } else {
      for (std::int64_t c = 0; c < eighths; ++c) sums += x[c];
    }
    const float mean = sum_of(sums) / float(rows.width);
    for (std::int64_t c = 0; c < eighths; ++c) squares += (x[c] - mean) * (x[c] - mean);
    const float inverse = 1 / std::sqrt(sum_of(squares) / float(rows.width) + rows.eps);
    for (std::int64_t c = 0; c < eighths; ++c) normed[c] = (x[c] - mean) * inverse * (1 + scales[c]) + shifts[c];
  }
}

#ifdef TSTITCH_X86
[[gnu::target("avx2,fma")]] inline void residual_norm_modulate_rows_avx2(ModulatedRows const& rows, std::int64_t first,
                                                                         std::int64_t last) {
  residual_norm_modulate_rows(rows, first, last);
}
#endif

/// @returns the result, like x
inline at::Tensor residual_norm_modulate(ResidualNorm of) {
  at::Tensor const& x = of.x;
  const std::int64_t width = x.size(2);
  if (of.y.defined()) of.y = of.y.contiguous();
  if (of.z.defined()) of.z = of.z.contiguous();
  if (!of.plain && x.is_cuda()) {
    DiTKernels const* const kernels = dit_kernels(x);
    if (kernels && (of.e4m3_scale == 0 || kernels->has_e4m3())) {
      at::Tensor normed =
          of.e4m3_scale == 0 ? x.new_empty(x.sizes()) : x.new_empty(x.sizes(), x.options().dtype(at::kFloat8_e4m3fn));
      kernels->modulate(of, normed);
      return normed;
    }
  }
  if (of.y.defined() && of.gate < 0) {
    x.add_(of.y);
    of.y.reset();
    return residual_norm_modulate(std::move(of));
  }
  if (of.e4m3_scale != 0) {
    const double scale = std::exchange(of.e4m3_scale, 0.0);
    return to_e4m3(residual_norm_modulate(std::move(of)), scale);
  }
  if (!of.plain && x.is_cpu() && x.scalar_type() == at::kFloat && width % 8 == 0) {
    at::Tensor normed = x.new_empty(x.sizes());
    const ModulatedRows rows{.x = x.mutable_data_ptr<float>(),
                             .y = of.y.defined() ? values_of<float>(of.y) : nullptr,
                             .z = of.z.defined() ? values_of<float>(of.z) : nullptr,
                             .modulation = values_of<float>(of.modulation),
                             .normed = normed.mutable_data_ptr<float>(),
                             .tokens = of.tokens_first ? 1 : x.size(1),
                             .images = of.modulation.size(0),
                             .slots = of.modulation.size(1),
                             .width = width,
                             .gate = of.gate,
                             .gate_z = of.gate_z,
                             .shift = of.shift,
                             .scale = of.scale,
                             .eps = float(of.eps)};
    at::parallel_for(0, x.size(0) * x.size(1), 32, [&](std::int64_t first, std::int64_t last) {
#ifdef TSTITCH_X86
      if (has_avx2()) return residual_norm_modulate_rows_avx2(rows, first, last);
#endif
      residual_norm_modulate_rows(rows, first, last);
    });
    return normed;
  }
  const auto slot = [&](int k) {  // for each token the same
    return of.tokens_first ? of.modulation.select(1, k) : of.modulation.narrow(1, k, 1);
  };
  if (of.y.defined()) x.addcmul_(slot(of.gate), of.y);
  if (of.z.defined()) x.addcmul_(slot(of.gate_z), of.z);
  return at::addcmul(slot(of.shift), at::layer_norm(x, {width}, {}, {}, of.eps), slot(of.scale).add(1));
}

}  // namespace tstitch::detail
