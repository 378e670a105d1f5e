/// @file
/// Residual, gate, layer norm and modulation of a DiT block in one pass: by a CUDA kernel, or a loop for the CPU.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/addcmul.h>
#include <ATen/ops/layer_norm.h>

#include <cmath>
#include <cstdint>

#include "../base/vector_code.hpp"
#include "../tensor/host_tensor.hpp"
#include "dit_kernels.hpp"
#include "e4m3.hpp"

namespace tstitch::detail {

/// What the loop over tokens on the host works on, all float32: x, y and normed [rows, width], modulation
/// [rows / tokens, slots, width]; without y nothing is added. The width is a multiple of 8.
struct ModulatedRows {
  float* x;
  float const* y;
  float const* modulation;
  float* normed;
  std::int64_t tokens, slots, width;
  int gate, shift, scale;
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
    float const* const of_image = rows.modulation + row / rows.tokens * rows.slots * rows.width;
    auto const scales = eights(of_image + rows.scale * rows.width), shifts = eights(of_image + rows.shift * rows.width);
    auto const x = eights(rows.x + row * rows.width), normed = eights(rows.normed + row * rows.width);
    EightFloats sums = {}, squares = {};
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

/// x += gate y, in place, and then layer_norm(x) (1 + scale) + shift.
///
/// @param x [n, tokens, width], contiguous
/// @param y the same, or undefined: nothing is added
/// @param modulation [n, slots, width], contiguous; `gate`, `shift` and `scale` are slots; of a gate below 0, y is
///   [1, tokens, width] and added as it is
/// @param plain with torch's operations, one after another
/// @param e4m3_scale not 0: the result is divided by it and rounded to e4m3
/// @returns [n, tokens, width]
inline at::Tensor residual_norm_modulate(at::Tensor const& x, at::Tensor const& y, at::Tensor const& modulation,
                                         int gate, int shift, int scale, double eps, bool plain = false,
                                         double e4m3_scale = 0) {
  const std::int64_t tokens = x.size(1), width = x.size(2);
  if (!plain && x.is_cuda()) {
    DiTKernels const* const kernels = dit_kernels(x);
    if (kernels && (e4m3_scale == 0 || kernels->has_e4m3())) {
      at::Tensor normed =
          e4m3_scale == 0 ? x.new_empty(x.sizes()) : x.new_empty(x.sizes(), x.options().dtype(at::kFloat8_e4m3fn));
      kernels->modulate(x, y.defined() ? y.contiguous() : y, modulation, normed, gate, shift, scale, eps,
                        e4m3_scale == 0 ? 1 : 1 / e4m3_scale);
      return normed;
    }
  }
  if (y.defined() && gate < 0) {
    x.add_(y);
    return residual_norm_modulate(x, {}, modulation, 0, shift, scale, eps, plain, e4m3_scale);
  }
  if (e4m3_scale != 0) {
    return to_e4m3(residual_norm_modulate(x, y, modulation, gate, shift, scale, eps, plain), e4m3_scale);
  }
  if (!plain && x.is_cpu() && x.scalar_type() == at::kFloat && width % 8 == 0) {
    at::Tensor normed = x.new_empty(x.sizes());
    const at::Tensor added = y.defined() ? y.contiguous() : y;
    const ModulatedRows rows{.x = x.mutable_data_ptr<float>(),
                             .y = added.defined() ? values_of<float>(added) : nullptr,
                             .modulation = values_of<float>(modulation),
                             .normed = normed.mutable_data_ptr<float>(),
                             .tokens = tokens,
                             .slots = modulation.size(1),
                             .width = width,
                             .gate = gate,
                             .shift = shift,
                             .scale = scale,
                             .eps = float(eps)};
    at::parallel_for(0, x.size(0) * tokens, 32, [&](std::int64_t first, std::int64_t last) {
#ifdef TSTITCH_X86
      if (has_avx2()) return residual_norm_modulate_rows_avx2(rows, first, last);
#endif
      residual_norm_modulate_rows(rows, first, last);
    });
    return normed;
  }
  const auto slot = [&](int k) { return modulation.narrow(1, k, 1); };  // [n, 1, width]
  if (y.defined()) x.addcmul_(slot(gate), y);
  return at::addcmul(slot(shift), at::layer_norm(x, {width}, {}, {}, eps), slot(scale).add(1));
}

}  // namespace tstitch::detail
