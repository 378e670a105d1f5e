/// @file
/// Noise by address: the noise of an image depends on its seed, the step and the element, and on nothing else.
///
/// A counter-based generator has no state to share or to restore, so that a picture is the same in a batch of 1 and of
/// 64, at any position, in a ratio sweep, on another process and after a resume.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <functional>
#include <numbers>
#include <vector>

#include "../model/host_tensor.hpp"

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

namespace detail {

/// Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), once for host words and once for
/// tensors: `Words` gives the operations.
template <class Word, class Words>
std::array<Word, 4> philox(std::array<Word, 4> counter, std::array<Word, 2> key, Words const& words) {
  for (int round = 0; round < 10; ++round) {
    const auto [high0, low0] = words.multiply(counter[0], 0xD2511F53);
    const auto [high1, low1] = words.multiply(counter[2], 0xCD9E8D57);
    counter = {words.exclusive_or(words.exclusive_or(high1, counter[1]), key[0]), low1,
               words.exclusive_or(words.exclusive_or(high0, counter[3]), key[1]), low0};
    key = {words.add(key[0], 0x9E3779B9), words.add(key[1], 0xBB67AE85)};
  }
  return counter;
}

struct HostWords {
  using Word = std::uint32_t;
  static std::array<Word, 2> multiply(Word a, Word b) {
    const std::uint64_t product = std::uint64_t{a} * b;
    return {Word(product >> 32), Word(product)};
  }
  static Word exclusive_or(Word a, Word b) { return a ^ b; }
  static Word add(Word a, Word b) { return a + b; }
};

/// 32-bit words in int64 tensors. A product may wrap to a negative number; its 64 bits are right all the same.
struct TensorWords {
  static at::Tensor low(at::Tensor const& a) { return a.bitwise_and(at::Scalar(std::int64_t{0xFFFFFFFF})); }
  static std::array<at::Tensor, 2> multiply(at::Tensor const& a, std::int64_t b) {
    const at::Tensor product = a.mul(b);
    return {low(product.__rshift__(at::Scalar(32))), low(product)};
  }
  static at::Tensor exclusive_or(at::Tensor const& a, at::Tensor const& b) { return a.bitwise_xor(b); }
  static at::Tensor add(at::Tensor const& a, std::int64_t b) { return low(a.add(b)); }
};

/// Two uniform words to two standard normals (Box and Muller 1958). In double, so that devices agree after rounding to
/// float32 but for the rarest cases, and the tails reach 6.7.
inline std::array<double, 2> box_muller(std::uint32_t a, std::uint32_t b) {
  const double radius = std::sqrt(-2 * std::log((a + 0.5) * 0x1p-32));
  const double angle = 2 * std::numbers::pi * 0x1p-32 * (b + 0.5);
  return {radius * std::cos(angle), radius * std::sin(angle)};
}

inline std::array<at::Tensor, 2> box_muller(at::Tensor const& a, at::Tensor const& b) {
  const at::Tensor radius = a.to(at::kDouble).add_(0.5).mul_(0x1p-32).log_().mul_(-2).sqrt_();
  const at::Tensor angle = b.to(at::kDouble).add_(0.5).mul_(2 * std::numbers::pi * 0x1p-32);
  return {radius.mul(angle.cos()), radius.mul(angle.sin())};
}

}  // namespace detail

/// The noise of one image as plain numbers; the definition that tensors on every device follow.
///
/// Elements 4k to 4k + 3 come from Philox 4x32-10 with counter (k, 0, step, draw) and key (low, high word of the seed):
/// its words 0 and 1 make elements 4k and 4k + 1, its words 2 and 3 the other two.
/// @param noise [count] is filled
template <class Real>
void fill_noise(Real* noise, std::int64_t count, std::uint64_t seed, NoiseAddress address) {
  for (std::int64_t i = 0; i < count; i += 4) {
    const auto words =
        detail::philox<std::uint32_t>({std::uint32_t(i / 4), std::uint32_t(i / 4 >> 32), address.step, address.draw},
                                      {std::uint32_t(seed), std::uint32_t(seed >> 32)}, detail::HostWords{});
    const auto first = detail::box_muller(words[0], words[1]);
    const auto second = detail::box_muller(words[2], words[3]);
    const std::array<double, 4> four{first[0], first[1], second[0], second[1]};
    for (std::int64_t j = 0; j < 4 && i + j < count; ++j) noise[i + j] = Real(four[std::size_t(j)]);
  }
}

/// The same numbers made where the tensor is to be, by tensor operations and without a wait.
inline at::Tensor noise_on_device(std::vector<std::uint64_t> const& seeds, NoiseAddress address,
                                  at::IntArrayRef image_shape, at::TensorOptions options) {
  std::int64_t count = 1;
  for (std::int64_t size : image_shape) count *= size;
  const std::int64_t n = std::int64_t(seeds.size()), blocks = (count + 3) / 4;
  std::vector<std::int64_t> halves;
  for (std::uint64_t seed : seeds) halves.push_back(std::int64_t(seed & 0xFFFFFFFF));
  for (std::uint64_t seed : seeds) halves.push_back(std::int64_t(seed >> 32));
  const at::Tensor key = detail::to_device(halves, options.device()).view({2, n, 1});

  const at::Tensor block = key.new_ones({1, blocks}).cumsum(1).sub_(1).expand({n, blocks});
  const auto constant = [&](std::int64_t value) { return key.new_full({1, 1}, value).expand({n, blocks}); };
  const auto words = detail::philox<at::Tensor>(
      {block, constant(0), constant(address.step), constant(address.draw)},
      {key.select(0, 0).expand({n, blocks}), key.select(0, 1).expand({n, blocks})}, detail::TensorWords{});
  const auto first = detail::box_muller(words[0], words[1]);
  const auto second = detail::box_muller(words[2], words[3]);
  const at::Tensor four = key.new_empty({n, blocks, 4}, options);
  four.select(2, 0).copy_(first[0]);
  four.select(2, 1).copy_(first[1]);
  four.select(2, 2).copy_(second[0]);
  four.select(2, 3).copy_(second[1]);

  std::vector<std::int64_t> shape{n};
  shape.insert(shape.end(), image_shape.begin(), image_shape.end());
  return four.view({n, 4 * blocks}).narrow(1, 0, count).reshape(shape);
}

/// Standard normal noise.
/// @param seeds one an image, n of them
/// @param image_shape [C, H, W]; an image may have at most 2^34 elements
/// @param options float32 or float64, and the device
/// @returns [n, C, H, W]; the same bits for a seed in any batch. Between devices single values may differ by one unit
///          in the last place of `options`' type, because log and cos may.
inline at::Tensor noise(std::vector<std::uint64_t> const& seeds, NoiseAddress address, at::IntArrayRef image_shape,
                        at::TensorOptions options) {
  if (!options.device().is_cpu()) return noise_on_device(seeds, address, image_shape, options);
  std::vector<std::int64_t> shape{std::int64_t(seeds.size())};
  shape.insert(shape.end(), image_shape.begin(), image_shape.end());
  const at::Tensor result = detail::host_tensor(shape, at::typeMetaToScalarType(options.dtype()));
  const std::int64_t count = seeds.empty() ? 0 : result.numel() / std::int64_t(seeds.size());
  for (std::size_t i = 0; i < seeds.size(); ++i) {
    if (options.dtype() == at::kDouble) {
      fill_noise(result.mutable_data_ptr<double>() + std::int64_t(i) * count, count, seeds[i], address);
    } else {
      fill_noise(result.mutable_data_ptr<float>() + std::int64_t(i) * count, count, seeds[i], address);
    }
  }
  return result;
}

/// Draws standard normal noise [n, C, H, W]; called as `noise` is, and must answer the same for the same arguments.
using NoiseSource = std::function<at::Tensor(std::vector<std::uint64_t> const& seeds, NoiseAddress address,
                                             at::IntArrayRef image_shape, at::TensorOptions options)>;

}  // namespace tstitch
