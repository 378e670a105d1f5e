/// @file
/// The elementwise halves of a DiT block in one pass: a CUDA kernel compiled for the width at its first use, and a loop
/// for the CPU. Everything else in a block is a matrix product.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/addcmul.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/layer_norm.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <exception>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>

#include "../base/vector_code.hpp"
#include "../tensor/cuda/kernel.hpp"
#include "../tensor/cuda/prelude.hpp"

namespace tstitch::detail {

/// CUDA C++ of the kernels, behind `number_conversions`. ELEMENT is 0 for float, 1 for __half, 2 for __nv_bfloat16;
/// WIDTH is the number of channels, a multiple of 8 up to 8192.
///
/// One thread block has one token [WIDTH]; each of its threads has 8 channels, or 8 times CHUNKS.
inline constexpr char dit_kernel_source[] = R"cuda(
#if ELEMENT == 0
typedef float Element;
__device__ float to_float(Element value) { return value; }
__device__ Element from_float(float value) { return value; }
#elif ELEMENT == 1
typedef unsigned short Element;
__device__ float to_float(Element value) { return half_to_float(value); }
__device__ Element from_float(float value) { return float_to_half(value); }
#else
typedef unsigned short Element;
__device__ float to_float(Element value) { return bfloat16_to_float(value); }
__device__ Element from_float(float value) { return float_to_bfloat16(value); }
#endif

struct alignas(16) Eight { Element values[8]; };

constexpr int THREADS = (WIDTH / 8 + CHUNKS - 1) / CHUNKS;  // that have channels; a block is whole warps
constexpr int WARPS = (THREADS + 31) / 32;

// Of all threads of the block. `shared` is for one sum alone, so that none waits until an earlier one has been read.
__device__ float sum(float value, float (&shared)[WARPS]) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  if (WARPS == 1) return value;
  const int warp = threadIdx.x / 32;
  if (threadIdx.x % 32 == 0) shared[warp] = value;
  __syncthreads();
  float total = 0;
  for (int i = 0; i < WARPS; ++i) total += shared[i];
  return total;
}

#if __CUDA_ARCH__ >= 890
__device__ uint2 to_e4m3(const float* values) {
  unsigned short pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) pairs[i] = floats_to_e4m3s(values[2 * i], values[2 * i + 1]);
  return make_uint2(pairs[0] | (unsigned)pairs[1] << 16, pairs[2] | (unsigned)pairs[3] << 16);
}
#endif

// x += gate * y, then normed = layer_norm(x) * (1 + scale) + shift; with QUANTISE that times `factor` in e4m3.
//
// x, y, normed [images * tokens, WIDTH]; modulation [images, slots, WIDTH], of which gate, shift and scale are the slots.
// Without y nothing is added; of a gate below 0, y is [tokens, WIDTH] and added as it is.
template <bool QUANTISE>
__device__ void modulated(Element* x, const Element* y, const Element* modulation, void* normed, int tokens, int slots,
                          int gate, int shift, int scale, float eps, float factor) {
  __shared__ float of_values[WARPS], of_squares[WARPS];
  const long long row = blockIdx.x;
  const Element* const of_image = modulation + row / tokens * slots * WIDTH;
  Element* const x_row = x + row * WIDTH;
  float values[CHUNKS][8];
  Eight scales[CHUNKS], shifts[CHUNKS];
  float total = 0;
#pragma unroll
  for (int chunk = 0; chunk < CHUNKS; ++chunk) {
    const int channel = (chunk * THREADS + threadIdx.x) * 8;
    const bool mine = threadIdx.x < THREADS && channel < WIDTH;
    Eight own = {};
    if (mine) {
      own = *reinterpret_cast<const Eight*>(x_row + channel);
      // Long before they are needed: the sums below wait for the whole block.
      scales[chunk] = *reinterpret_cast<const Eight*>(of_image + scale * WIDTH + channel);
      shifts[chunk] = *reinterpret_cast<const Eight*>(of_image + shift * WIDTH + channel);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) values[chunk][i] = mine ? to_float(own.values[i]) : 0;
    if (y && mine) {
      const long long of_y = gate < 0 ? row % tokens : row;
      const Eight added = *reinterpret_cast<const Eight*>(y + of_y * WIDTH + channel);
      Eight gates = {};
      if (gate >= 0) gates = *reinterpret_cast<const Eight*>(of_image + gate * WIDTH + channel);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float times = gate < 0 ? 1 : to_float(gates.values[i]);
        own.values[i] = from_float(values[chunk][i] + times * to_float(added.values[i]));
        values[chunk][i] = to_float(own.values[i]);  // the norm is of what is stored
      }
      *reinterpret_cast<Eight*>(x_row + channel) = own;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) total += values[chunk][i];
  }
  const float mean = sum(total, of_values) / WIDTH;
  float squares = 0;
#pragma unroll
  for (int chunk = 0; chunk < CHUNKS; ++chunk) {
    const int channel = (chunk * THREADS + threadIdx.x) * 8;
    const bool mine = threadIdx.x < THREADS && channel < WIDTH;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float centred = values[chunk][i] - mean;
      if (mine) squares += centred * centred;
    }
  }
  const float inverse = rsqrtf(sum(squares, of_squares) / WIDTH + eps);
#pragma unroll
  for (int chunk = 0; chunk < CHUNKS; ++chunk) {
    const int channel = (chunk * THREADS + threadIdx.x) * 8;
    if (threadIdx.x >= THREADS || channel >= WIDTH) continue;
    float results[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float value = (values[chunk][i] - mean) * inverse;
      results[i] = value * (1 + to_float(scales[chunk].values[i])) + to_float(shifts[chunk].values[i]);
    }
    if (QUANTISE) {
#if __CUDA_ARCH__ >= 890
#pragma unroll
      for (int i = 0; i < 8; ++i) results[i] *= factor;
      *reinterpret_cast<uint2*>((unsigned char*)normed + row * WIDTH + channel) = to_e4m3(results);
#endif
    } else {
      Eight stored;
#pragma unroll
      for (int i = 0; i < 8; ++i) stored.values[i] = from_float(results[i]);
      *reinterpret_cast<Eight*>((Element*)normed + row * WIDTH + channel) = stored;
    }
  }
}

extern "C" __global__ void residual_norm_modulate(Element* x, const Element* y, const Element* modulation,
                                                  void* normed, int tokens, int slots, int gate, int shift, int scale,
                                                  float eps, float factor) {
  modulated<false>(x, y, modulation, normed, tokens, slots, gate, shift, scale, eps, factor);
}

#if __CUDA_ARCH__ >= 890
extern "C" __global__ void residual_norm_modulate_e4m3(Element* x, const Element* y, const Element* modulation,
                                                       void* normed, int tokens, int slots, int gate, int shift,
                                                       int scale, float eps, float factor) {
  modulated<true>(x, y, modulation, normed, tokens, slots, gate, shift, scale, eps, factor);
}

// x times `factor` in e4m3, after GELU in its tanh form if that is wanted; eight elements a thread.
extern "C" __global__ void quantise_e4m3(const Element* x, unsigned char* out, long long eighths, float factor,
                                         int gelu) {
  const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= eighths) return;
  const Eight given = reinterpret_cast<const Eight*>(x)[i];
  float values[8];
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    float value = to_float(given.values[k]);
    if (gelu) {
      float tangent;
      asm("tanh.approx.f32 %0, %1;"
          : "=f"(tangent)
          : "f"(0.7978845608028654f * (value + 0.044715f * value * value * value)));
      value = 0.5f * value * (1 + tangent);
    }
    values[k] = value * factor;
  }
  reinterpret_cast<uint2*>(out)[i] = to_e4m3(values);
}
#endif
)cuda";

/// Sizes of the kernel for a width.
struct DiTKernelShape {
  int width;
  int chunks() const { return (width / 8 + 255) / 256; }
  int threads() const { return ((width / 8 + chunks() - 1) / chunks() + 31) / 32 * 32; }
  static bool fits(std::int64_t width) { return width % 8 == 0 && width >= 8 && width <= 8192; }
};

/// @param element 0 float32, 1 float16, 2 bfloat16
inline CudaSource dit_kernel(int element, DiTKernelShape shape) {
  return {"dit",
          std::string(number_conversions) + dit_kernel_source,
          {"-DELEMENT=" + std::to_string(element), "-DWIDTH=" + std::to_string(shape.width),
           "-DCHUNKS=" + std::to_string(shape.chunks())}};
}

/// The kernels for an element and a width on a GPU.
class DiTKernels {
 public:
  /// @throws std::runtime_error when they cannot be had there
  DiTKernels(int element, DiTKernelShape shape, c10::Device device)
      : shape_(shape),
        kernels_(dit_kernel(element, shape), device),
        modulate_(kernels_.function("residual_norm_modulate")) {
    if (kernels_.architecture() >= 89) {
      modulate_e4m3_ = kernels_.function("residual_norm_modulate_e4m3");
      quantise_ = kernels_.function("quantise_e4m3");
    }
  }

  bool has_e4m3() const { return quantise_; }

  /// @param normed like x, or e4m3, then times `factor`
  void modulate(at::Tensor const& x, at::Tensor const& y, at::Tensor const& modulation, at::Tensor const& normed,
                int gate, int shift, int scale, double eps, double factor) const {
    void* x_data = x.data_ptr();
    void* y_data = y.defined() ? y.data_ptr() : nullptr;
    void* modulation_data = modulation.data_ptr();
    void* normed_data = normed.data_ptr();
    int tokens = int(x.size(1)), slots = int(modulation.size(1));
    float epsilon = float(eps), times = float(factor);
    std::array<void*, 11> arguments{&x_data, &y_data, &modulation_data, &normed_data, &tokens, &slots,
                                    &gate,   &shift,  &scale,           &epsilon,     &times};
    kernels_.start(normed.scalar_type() == x.scalar_type() ? modulate_ : modulate_e4m3_, x.size(0) * x.size(1),
                   shape_.threads(), arguments.data());
  }

  /// @param out e4m3, as many elements as x
  void quantise(at::Tensor const& x, at::Tensor const& out, double factor, bool gelu) const {
    void* x_data = x.data_ptr();
    void* out_data = out.data_ptr();
    long long eighths = x.numel() / 8;
    float times = float(factor);
    int with_gelu = gelu;
    std::array<void*, 5> arguments{&x_data, &out_data, &eighths, &times, &with_gelu};
    kernels_.start(quantise_, (eighths + 255) / 256, 256, arguments.data());
  }

 private:
  DiTKernelShape shape_;
  CudaKernels kernels_;
  void* modulate_;
  void* modulate_e4m3_ = nullptr;
  void* quantise_ = nullptr;
};

/// The kernels for tensors like x, which is [n, tokens, width]; null where there are none: for other types and widths,
/// on old GPUs and without NVRTC.
inline DiTKernels const* dit_kernels(at::Tensor const& x) {
  const int element = x.scalar_type() == at::kFloat      ? 0
                      : x.scalar_type() == at::kHalf     ? 1
                      : x.scalar_type() == at::kBFloat16 ? 2
                                                         : -1;
  if (!x.is_cuda() || element < 0 || !DiTKernelShape::fits(x.size(2))) return nullptr;
  static std::mutex mutex;
  static std::map<std::tuple<int, int, int>, std::optional<DiTKernels>> kernels;
  const std::lock_guard lock(mutex);
  const auto [found, is_new] = kernels.try_emplace({int(x.device().index()), element, int(x.size(2))});
  if (is_new) {
    try {
      found->second.emplace(element, DiTKernelShape{int(x.size(2))}, x.device());
    } catch (std::exception const& error) {
      diagnose("dit_kernels", std::string("torch's operations take the place of a kernel: ") + error.what());
    }
  }
  return found->second ? &*found->second : nullptr;
}

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
  constexpr double largest = 448;
  const at::Tensor values = (gelu ? gelu_tanh(x) : x).to(at::kFloat).div(scale).clamp(-largest, largest);
  return values.to(at::kFloat8_e4m3fn);
}

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
                             .y = added.defined() ? added.const_data_ptr<float>() : nullptr,
                             .modulation = modulation.const_data_ptr<float>(),
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
