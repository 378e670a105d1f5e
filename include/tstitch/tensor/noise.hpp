/// @file
/// Noise by address: the noise of an image depends on its seed, the step and the element, and on nothing else.
///
/// A counter-based generator has no state to share or to restore, so that a picture is the same in a batch of 1 and of
/// 64, at any position, in a ratio sweep, on another process and after a resume.
#pragma once

#include <ATen/core/Tensor.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "../base/diagnostics.hpp"
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

/// The noise [n, ...] of that shape in float32, made on that GPU; undefined where it cannot be had. Null unless a
/// translation unit of the program includes cuda/kernels.hpp, which sets it before main.
using NoiseOnGpu = at::Tensor(std::vector<std::uint64_t> const& seeds, NoiseAddress address, at::IntArrayRef shape,
                              at::Device device);
inline constinit std::atomic<NoiseOnGpu*> noise_on_gpu = nullptr;

/// Says that there is none, once.
inline void miss_noise_on_gpu() {
  [[maybe_unused]] static const bool said = [] {
    diagnose("noise",
             "the host takes the place of a kernel, which a program has that includes "
             "<tstitch/tensor/cuda/kernels.hpp> in one of its files");
    return true;
  }();
}

}  // namespace detail

/// Standard normal noise. On a GPU it is made there where float32 is asked for, else on the host and sent without a
/// wait; devices have the same bits.
/// @param seeds one an image, n of them
/// @param image_shape [C, ...]; an image may have at most 2^34 elements
/// @param options float32 or float64, and the device
/// @returns [n, C, ...]; the same bits for a seed in any batch
inline at::Tensor noise(std::vector<std::uint64_t> const& seeds, NoiseAddress address, at::IntArrayRef image_shape,
                        at::TensorOptions options) {
  std::vector<std::int64_t> shape{std::int64_t(seeds.size())};
  shape.insert(shape.end(), image_shape.begin(), image_shape.end());
  const at::Device device = options.device();
  if (device.is_cuda() && options.dtype() == at::kFloat && !seeds.empty()) {
    if (auto* const noise_on_gpu = detail::noise_on_gpu.load(std::memory_order_relaxed)) {
      if (at::Tensor made = noise_on_gpu(seeds, address, shape, device); made.defined()) return made;
    } else {
      detail::miss_noise_on_gpu();
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

/// Draws standard normal noise [n, C, ...]; called as `noise` is, and must answer the same for the same arguments.
using NoiseSource = std::function<at::Tensor(std::vector<std::uint64_t> const& seeds, NoiseAddress address,
                                             at::IntArrayRef image_shape, at::TensorOptions options)>;

}  // namespace tstitch
