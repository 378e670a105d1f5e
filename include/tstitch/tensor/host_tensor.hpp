/// @file
/// Tensors from host numbers, and their shapes as text.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace tstitch::words {

/// "[2, 3]"
inline std::string shape_text(at::IntArrayRef sizes) {
  std::string text = "[";
  for (std::size_t i = 0; i < sizes.size(); ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + "]";
}

}  // namespace tstitch::words

namespace tstitch::detail {

using words::shape_text;

/// What at::empty makes on the host, without the two seconds of compile time of its header.
inline at::Tensor host_tensor(at::IntArrayRef shape, at::ScalarType type, bool pinned = false) {
  return at::Tensor(at::detail::empty_cpu(shape, type, pinned));
}

/// Host numbers to a device without waiting for it.
/// @returns [values.size()] int64
inline at::Tensor to_device(std::vector<std::int64_t> const& values, at::Device device) {
  const at::Tensor host = host_tensor({std::int64_t(values.size())}, at::kLong, device.is_cuda());
  std::copy(values.begin(), values.end(), host.mutable_data_ptr<std::int64_t>());
  return device.is_cpu() ? host : host.to(device, at::kLong, /*non_blocking=*/true);
}

}  // namespace tstitch::detail
