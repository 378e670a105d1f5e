/// @file
/// A device by its name on a command line.
#pragma once

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/Device.h>

#include <charconv>
#include <stdexcept>
#include <string>
#include <system_error>

/// @param name auto (the first GPU where there is one), cpu, cuda or cuda:N
inline at::Device device_of(std::string const& name) {
  const auto& cuda = at::detail::getCUDAHooks();
  if (name == "auto") return cuda.hasCUDA() && cuda.deviceCount() > 0 ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU);
  if (name == "cpu") return at::kCPU;
  if (name == "cuda") return {at::kCUDA, 0};
  int index = -1;
  if (name.rfind("cuda:", 0) == 0) {
    const auto [rest, error] = std::from_chars(name.data() + 5, name.data() + name.size(), index);
    if (error == std::errc{} && rest == name.data() + name.size() && index >= 0 && index < 128) {
      return {at::kCUDA, at::DeviceIndex(index)};
    }
  }
  throw std::invalid_argument("--device: must be auto, cpu, cuda or cuda:N, got '" + name + "'");
}
