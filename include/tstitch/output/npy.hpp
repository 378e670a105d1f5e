/// @file
/// Tensors as files that numpy.load reads.
#pragma once

#include <ATen/core/Tensor.h>

#include <bit>
#include <cstdint>
#include <string>

#include "../base/error.hpp"
#include "../base/write_file.hpp"
#include "../tensor/host_tensor.hpp"

namespace tstitch {

/// @returns a .npy file, version 1.0 (NumPy Enhancement Proposal 1): float32 in C order
/// @param tensor of any shape and floating type, on any device
/// @throws std::invalid_argument for other types
inline std::string encode_npy(at::Tensor const& tensor) {
  static_assert(std::endian::native == std::endian::little, "tstitch::encode_npy writes little-endian numbers");
  if (!tensor.defined() || !tensor.is_floating_point()) {
    detail::refuse("encode_npy", "the tensor must be of a floating type",
                   tensor.defined() ? at::toString(tensor.scalar_type()) : "an undefined tensor");
  }
  const at::Tensor values = tensor.to(at::kCPU, at::kFloat).contiguous();
  std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (";
  for (const std::int64_t size : values.sizes()) header += std::to_string(size) + ", ";
  header += "), }";
  header.append(63 - (10 + header.size()) % 64, ' ');  // data begins at a multiple of 64
  header += '\n';
  std::string file("\x93NUMPY\x01\x00", 8);
  file += char(header.size() & 0xFF);
  file += char(header.size() >> 8);
  file += header;
  return file.append(reinterpret_cast<char const*>(values.const_data_ptr<float>()), std::size_t(values.numel()) * 4);
}

/// @throws as encode_npy does; std::runtime_error when the file cannot be written; then there is no partial file
inline void write_npy(std::string const& path, at::Tensor const& tensor) {
  write_file(path, encode_npy(tensor));
}

}  // namespace tstitch
