/// @file
/// Parts of files in the memory of a device.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <vector>

#include "../base/crc32.hpp"
#include "../tensor/host_tensor.hpp"
#include "parallel_file.hpp"

namespace tstitch::detail {

/// Bytes of a file in the memory of a GPU, [count] uint8, and their checksum.
///
/// Several threads read them, piece by piece, into a few MiB of pinned memory each, from where the GPU takes them. Then
/// the host needs no room for the file, no memory that the system clears first, and no copy of what it cannot pin.
/// @param checksum becomes that of the bytes, which must lie within the file
/// @throws c10::Error when the file cannot be read, or memory runs out
inline at::Tensor onto_gpu(ParallelFile const& file, std::uint64_t position, std::size_t count, at::Device device,
                           std::uint32_t& checksum) {
  constexpr std::size_t largest_piece = std::size_t(2) << 20;
  struct Part {
    Crc32 sum = {};
    std::size_t size = 0;
    std::exception_ptr error = nullptr;
  };
  const at::Tensor bytes = host_tensor({0}, at::kByte).to(device).new_empty({std::int64_t(count)});
  const c10::Stream stream = c10::impl::VirtualGuardImpl(device.type()).getStream(device);
  const bool inference = bytes.is_inference();
  std::vector<Part> parts(part_count(count));
  in_parts(count, [&](std::size_t k, std::size_t begin, std::size_t end) {
    Part& part = parts[k];
    part.size = end - begin;
    try {
      const c10::InferenceMode mode(
          inference);  // else a thread of its own could not fill what one of the caller's made
      const c10::StreamGuard on_stream(stream);
      const std::size_t most = std::min(largest_piece, end - begin);
      const at::Tensor pinned = host_tensor({std::int64_t(most)}, at::kByte, /*pinned=*/true);
      for (std::size_t at = begin; at < end;) {
        const std::size_t size = std::min(most, end - at);
        file.read_alone(position + at, pinned.mutable_data_ptr(), size);
        part.sum.add(pinned.const_data_ptr(), size);
        bytes.narrow(0, std::int64_t(at), std::int64_t(size)).copy_(pinned.narrow(0, 0, std::int64_t(size)));
        at += size;
      }
    } catch (...) {
      part.error = std::current_exception();
    }
  });
  for (Part const& part : parts) {
    if (part.error) std::rethrow_exception(part.error);
  }
  for (std::size_t k = 1; k < parts.size(); ++k) parts[0].sum.add_checksum(parts[k].sum.value(), parts[k].size);
  checksum = parts[0].sum.value();
  return bytes;
}

}  // namespace tstitch::detail
