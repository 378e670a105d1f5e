/// @file
/// Tensors from host numbers, and their shapes as text.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
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

/// The numbers of a tensor of this type; what at::Tensor::const_data_ptr<T> gives. That is a function of torch's
/// libraries whose name clang 18 and later write in another way than the g++ that made them.
template <class T>
T const* values_of(at::Tensor const& tensor) {
  if (tensor.scalar_type() != c10::CppTypeToScalarType<T>::value) {
    throw std::logic_error("tstitch: numbers must be read as what they are, got " +
                           std::string(at::toString(tensor.scalar_type())));
  }
  return static_cast<T const*>(tensor.const_data_ptr());
}

/// Host numbers to a device without waiting for it.
/// @returns [values.size()] int64
inline at::Tensor to_device(std::vector<std::int64_t> const& values, at::Device device) {
  const at::Tensor host = host_tensor({std::int64_t(values.size())}, at::kLong, device.is_cuda());
  std::copy(values.begin(), values.end(), host.mutable_data_ptr<std::int64_t>());
  return device.is_cpu() ? host : host.to(device, at::kLong, /*non_blocking=*/true);
}

}  // namespace tstitch::detail
