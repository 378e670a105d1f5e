/// @file
/// The elementwise parts of a DiT block by CUDA kernels, compiled for the width at their first use. Everything else in
/// a block is a matrix product, or attention.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <exception>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>

#include "../base/diagnostics.hpp"
#include "../tensor/cuda/kernel.hpp"
#include "../tensor/cuda/nvrtc.hpp"
#include "../tensor/cuda/prelude.hpp"

namespace tstitch::detail {

/// CUDA C++ of the kernels, behind `number_conversions` and `element_conversions`. WIDTH is the number of channels, a
/// multiple of 8 up to 8192.
///
/// One thread block has one token [WIDTH]; each of its threads has 8 channels, or 8 times CHUNKS.
inline constexpr char dit_kernel_source[] = R"cuda(
constexpr int THREADS = (WIDTH / 8 + CHUNKS - 1) / CHUNKS;  // that have channels; a block is whole warps
constexpr int WARPS = (THREADS + 31) / 32;
// Of many warps a block may keep so many registers that few blocks are there to wait for memory.
constexpr int BLOCKS = WARPS < 8 || sizeof(Element) > 2 ? 1 : 40 / WARPS;

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

// x += gate * y + gate_z * z, then normed = layer_norm(x) * (1 + scale) + shift; with QUANTISE that times `factor` in
// e4m3.
//
// x, y, z, normed [rows, WIDTH]; modulation [images, slots, WIDTH], of which gate, gate_z, shift and scale are the slots.
// `tokens` rows in turn are of one image, and after the last image comes the first again. Without y nothing is added; of
// a gate below 0, y is [tokens, WIDTH] and added as it is. z is added besides y, or not given.
template <bool QUANTISE>
__device__ void modulated(Element* x, const Element* y, const Element* z, const Element* modulation, void* normed,
                          int tokens, int images, int slots, int gate, int gate_z, int shift, int scale, float eps,
                          float factor) {
  __shared__ float of_values[WARPS], of_squares[WARPS];
  const long long row = blockIdx.x;
  const Element* const of_image = modulation + row / tokens % images * slots * WIDTH;
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
        values[chunk][i] += times * to_float(added.values[i]);
      }
      if (z) {
        const Eight more = *reinterpret_cast<const Eight*>(z + row * WIDTH + channel);
        gates = *reinterpret_cast<const Eight*>(of_image + gate_z * WIDTH + channel);
#pragma unroll
        for (int i = 0; i < 8; ++i) values[chunk][i] += to_float(gates.values[i]) * to_float(more.values[i]);
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        own.values[i] = from_float(values[chunk][i]);
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

extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS)
    residual_norm_modulate(Element* x, const Element* y, const Element* z, const Element* modulation, void* normed,
                           int tokens, int images, int slots, int gate, int gate_z, int shift, int scale, float eps,
                           float factor) {
  modulated<false>(x, y, z, modulation, normed, tokens, images, slots, gate, gate_z, shift, scale, eps, factor);
}

#if __CUDA_ARCH__ >= 890
extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS)
    residual_norm_modulate_e4m3(Element* x, const Element* y, const Element* z, const Element* modulation,
                                void* normed, int tokens, int images, int slots, int gate, int gate_z, int shift,
                                int scale, float eps, float factor) {
  modulated<true>(x, y, z, modulation, normed, tokens, images, slots, gate, gate_z, shift, scale, eps, factor);
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

/// What residual, gate, layer norm and modulation are of: x += gate y + gate_z z, in place, and then
/// layer_norm(x) (1 + scale) + shift.
struct ResidualNorm {
  at::Tensor x;           ///< [n, tokens, width], contiguous
  at::Tensor y = {};      ///< the same, or undefined: nothing is added
  at::Tensor modulation;  ///< [n, slots, width], contiguous
  int gate = 0;           ///< a slot; below 0: y is [1, tokens, width] and added as it is
  int shift, scale;       ///< slots
  double eps;
  at::Tensor z = {};  ///< like x: is added besides y; or undefined
  int gate_z = 0;
  bool tokens_first = false;  ///< x, y and z are [tokens, n, width], and the gate is not below 0
  bool plain = false;         ///< with torch's operations, one after another
  double e4m3_scale = 0;      ///< not 0: the result is divided by it and rounded to e4m3
};

/// Sizes of the kernel for a width.
struct DiTKernelShape {
  int width;
  int chunks() const { return (width / 8 + 511) / 512; }
  int threads() const { return ((width / 8 + chunks() - 1) / chunks() + 31) / 32 * 32; }
  static bool fits(std::int64_t width) { return width % 8 == 0 && width >= 8 && width <= 8192; }
};

/// The ELEMENT of kernels for this type; -1 where there is none.
inline int element_of(at::ScalarType type) {
  return type == at::kFloat ? 0 : type == at::kHalf ? 1 : type == at::kBFloat16 ? 2 : -1;
}

/// @param element see element_of
inline CudaSource dit_kernel(int element, DiTKernelShape shape) {
  return {"dit",
          std::string(number_conversions) + element_conversions + dit_kernel_source,
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

  /// @param normed like x, or e4m3
  void modulate(ResidualNorm const& of, at::Tensor const& normed) const {
    const auto data = [](at::Tensor const& tensor) { return tensor.defined() ? tensor.data_ptr() : nullptr; };
    void* x_data = data(of.x);
    void* y_data = data(of.y);
    void* z_data = data(of.z);
    void* modulation_data = data(of.modulation);
    void* normed_data = data(normed);
    int tokens = of.tokens_first ? 1 : int(of.x.size(1)), images = int(of.modulation.size(0)),
        slots = int(of.modulation.size(1)), gate = of.gate, gate_z = of.gate_z, shift = of.shift, scale = of.scale;
    float epsilon = float(of.eps), times = of.e4m3_scale == 0 ? 1 : float(1 / of.e4m3_scale);
    std::array<void*, 14> arguments{&x_data, &y_data, &z_data, &modulation_data, &normed_data, &tokens,  &images,
                                    &slots,  &gate,   &gate_z, &shift,           &scale,       &epsilon, &times};
    kernels_.start(of.e4m3_scale == 0 ? modulate_ : modulate_e4m3_, of.x.size(0) * of.x.size(1), shape_.threads(),
                   arguments.data());
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
  const int element = element_of(x.scalar_type());
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

}  // namespace tstitch::detail
