/// @file
/// Noise by address: the noise of an image depends on its seed, the step and the element, and on nothing else.
///
/// A counter-based generator has no state to share or to restore, so that a picture is the same in a batch of 1 and of
/// 64, at any position, in a ratio sweep, on another process and after a resume.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cuda/kernel.hpp"
#include "host_tensor.hpp"
#include "philox.hpp"

namespace tstitch {

/// Which noise of an image's run is meant.
struct NoiseAddress {
  std::uint32_t step;      ///< see `initial` and `of_step`
  std::uint32_t draw = 0;  ///< for update rules that need several draws in a step

  /// x at the start of the trajectory.
  static constexpr NoiseAddress initial() { return {0}; }
  static constexpr NoiseAddress of_step(int index, int draw = 0) {
    return {std::uint32_t(index) + 1, std::uint32_t(draw)};
  }
};

/// The noise of one image as plain numbers.
///
/// Elements 4k to 4k + 3 come from Philox 4x32-10 with counter (k, 0, step, draw) and key (low, high word of the seed),
/// by Box and Muller's transform: its words 0 and 1 make elements 4k and 4k + 1, its words 2 and 3 the other two.
/// @param noise [count] is filled; at most 2^34
/// @tparam Real float or double. They differ by at most 1e-6; float is some ten times as fast.
template <class Real>
void fill_noise(Real* noise, std::int64_t count, std::uint64_t seed, NoiseAddress address) {
  detail::fill_normals(noise, count, {0, 0, address.step, address.draw},
                       detail::philox_keys({std::uint32_t(seed), std::uint32_t(seed >> 32)}));
}

namespace detail {

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

}  // namespace detail

/// Standard normal noise. On a GPU it is made there where float32 is asked for, else on the host and sent without a
/// wait; devices have the same bits.
/// @param seeds one an image, n of them
/// @param image_shape [C, H, W]; an image may have at most 2^34 elements
/// @param options float32 or float64, and the device
/// @returns [n, C, H, W]; the same bits for a seed in any batch
inline at::Tensor noise(std::vector<std::uint64_t> const& seeds, NoiseAddress address, at::IntArrayRef image_shape,
                        at::TensorOptions options) {
  std::vector<std::int64_t> shape{std::int64_t(seeds.size())};
  shape.insert(shape.end(), image_shape.begin(), image_shape.end());
  const at::Device device = options.device();
  if (device.is_cuda() && options.dtype() == at::kFloat && !seeds.empty() &&
      detail::NoiseKernel::fits(c10::multiply_integers(image_shape))) {
    // A tensor without elements goes to the device without a wait, and the header of at::empty costs two seconds.
    const at::Tensor there = detail::host_tensor({0}, at::kFloat).to(device);
    if (detail::NoiseKernel const* const kernel = detail::kernel_on<detail::NoiseKernel>(there.device())) {
      const at::Tensor made = there.new_empty(shape);
      (*kernel)(made, seeds, address);
      return made;
    }
  }
  const at::Tensor host = detail::host_tensor(shape, at::typeMetaToScalarType(options.dtype()), device.is_cuda());
  const std::int64_t count = seeds.empty() ? 0 : host.numel() / std::int64_t(seeds.size());
  for (std::size_t i = 0; i < seeds.size(); ++i) {
    if (options.dtype() == at::kDouble) {
      fill_noise(host.mutable_data_ptr<double>() + std::int64_t(i) * count, count, seeds[i], address);
    } else {
      fill_noise(host.mutable_data_ptr<float>() + std::int64_t(i) * count, count, seeds[i], address);
    }
  }
  return device.is_cpu() ? host : host.to(device, host.scalar_type(), /*non_blocking=*/true);
}

/// Draws standard normal noise [n, C, H, W]; called as `noise` is, and must answer the same for the same arguments.
using NoiseSource = std::function<at::Tensor(std::vector<std::uint64_t> const& seeds, NoiseAddress address,
                                             at::IntArrayRef image_shape, at::TensorOptions options)>;

}  // namespace tstitch
