/// @file
/// Shapes [n, C, ...] of any rank: pictures [n, C, H, W], videos [n, C, F, H, W], signals [n, C, L].
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

namespace tstitch::detail {

/// All dimensions but the first.
inline std::vector<std::int64_t> dims_of_an_image(at::Tensor const& x) {
  std::vector<std::int64_t> dims(std::size_t(x.dim() - 1));
  std::iota(dims.begin(), dims.end(), 1);
  return dims;
}

/// [n], one value an image, as [n, 1, ...] of the rank of `like`.
inline at::Tensor one_an_image(at::Tensor const& values, at::Tensor const& like) {
  std::vector<std::int64_t> sizes(std::size_t(like.dim()), 1);
  sizes[0] = values.size(0);
  return values.view(sizes);
}

/// x twice, one after the other.
inline at::Tensor twice(at::Tensor const& x) {
  std::vector<std::int64_t> repeats(std::size_t(x.dim()), 1);
  repeats[0] = 2;
  return x.repeat(repeats);
}

}  // namespace tstitch::detail
