/// @file
/// Noise by address by a CUDA kernel, with the bits of the host's.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "../host_tensor.hpp"
#include "../noise.hpp"
#include "../philox.hpp"
#include "kernel.hpp"
#include "nvrtc.hpp"

namespace tstitch::detail {

/// CUDA C++ that makes `normal_source` complete, and a kernel. Each thread has one counter of one image; SEEDS is for
/// how many images there is room.
inline constexpr char noise_kernel_begin[] = R"cuda(
namespace std {
typedef unsigned uint32_t;
typedef int int32_t;
typedef unsigned long long uint64_t;
}
#define TSTITCH_INLINE __device__ inline
__device__ inline unsigned bits_of(float value) { return __float_as_uint(value); }
__device__ inline float float_of(unsigned bits) { return __uint_as_float(bits); }
)cuda";
inline constexpr char noise_kernel_end[] = R"cuda(
struct Seeds {
  unsigned long long each[SEEDS];
};

extern "C" __global__ void fill_noise(float* out, const __grid_constant__ Seeds seeds, long long count,
                                      unsigned blocks_each, unsigned step, unsigned draw) {
  const unsigned image = blockIdx.x / blocks_each;
  const unsigned k = (blockIdx.x - image * blocks_each) * blockDim.x + threadIdx.x;
  const long long first = 4ll * k;
  if (first >= count) return;
  unsigned key_0 = (unsigned)seeds.each[image], key_1 = (unsigned)(seeds.each[image] >> 32);
  unsigned words[4] = {k, 0, step, draw};
  for (int round = 0; round < philox_rounds; ++round) {
    philox_round(words, key_0, key_1);
    key_0 += philox_key_step_0;
    key_1 += philox_key_step_1;
  }
  float four[4];
  for (int pair = 0; pair < 2; ++pair) {
    const PolarNormal polar = polar_normal(words[2 * pair], words[2 * pair + 1]);
    const float radius = sqrtf(polar.radius_squared);
    four[2 * pair] = radius * polar.cosine;
    four[2 * pair + 1] = radius * polar.sine;
  }
  float* const place = out + image * count + first;
  for (int i = 0; i < 4; ++i) {
    if (first + i < count) place[i] = four[i];
  }
}
)cuda";

/// `fill_noise` in float, on a GPU.
class NoiseKernel {
 public:
  static constexpr std::size_t most_seeds = 256;

  /// Products and sums stay apart, as on the host.
  static CudaSource source() {
    return {"noise",
            std::string(noise_kernel_begin) + normal_source + noise_kernel_end,
            {"-fmad=false", "-DSEEDS=" + std::to_string(most_seeds)}};
  }

  /// @throws std::runtime_error when it cannot be had there
  explicit NoiseKernel(c10::Device device) : kernels_(source(), device), fill_(kernels_.function("fill_noise")) {}

  /// @param noise [n, ...] float32, contiguous
  void operator()(at::Tensor const& noise, std::vector<std::uint64_t> const& seeds, NoiseAddress address) const {
    long long count = noise.numel() / std::int64_t(seeds.size());
    unsigned blocks_each = unsigned((count / 4 + 256) / 256), step = address.step, draw = address.draw;
    for (std::size_t first = 0; first < seeds.size(); first += most_seeds) {
      const std::size_t images = std::min(most_seeds, seeds.size() - first);
      std::array<std::uint64_t, most_seeds> each{};
      std::copy_n(seeds.begin() + std::ptrdiff_t(first), images, each.begin());
      float* out = noise.mutable_data_ptr<float>() + std::int64_t(first) * count;
      std::array<void*, 6> arguments{&out, &each, &count, &blocks_each, &step, &draw};
      kernels_.start(fill_, std::int64_t(images) * blocks_each, 256, arguments.data());
    }
  }

  /// Whether it can number its threads.
  static bool fits(std::int64_t count) { return count > 0 && count < std::int64_t(1) << 31; }

 private:
  CudaKernels kernels_;
  void* fill_;
};

/// For `noise_on_gpu`.
inline at::Tensor noise_by_kernel(std::vector<std::uint64_t> const& seeds, NoiseAddress address, at::IntArrayRef shape,
                                  at::Device device) {
  if (!NoiseKernel::fits(c10::multiply_integers(shape.slice(1)))) return {};
  // A tensor without elements goes to the device without a wait, and the header of at::empty costs two seconds.
  const at::Tensor there = host_tensor({0}, at::kFloat).to(device);
  NoiseKernel const* const kernel = kernel_on<NoiseKernel>(there.device());
  if (!kernel) return {};
  const at::Tensor made = there.new_empty(shape);
  (*kernel)(made, seeds, address);
  return made;
}

}  // namespace tstitch::detail
