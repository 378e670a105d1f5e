/// @file
/// The machine on a command line: a device by its name, and the versions of what runs on it.
#pragma once

#include <tstitch/file/loading.hpp>
#include <tstitch/version.hpp>

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/Device.h>
#include <torch/headeronly/version.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "strict.hpp"

/// @param name auto (the first GPU where there is one), cpu, cuda or cuda:N
inline at::Device device_of(std::string const& name) {
  if (name == "auto") return tstitch::default_device();
  if (name == "cpu") return at::kCPU;
  if (name == "cuda") return {at::kCUDA, 0};
  if (name.starts_with("cuda:")) {
    const std::optional<int> index = number_of<int>(name.substr(5));
    if (index && *index >= 0 && *index < 128) return {at::kCUDA, at::DeviceIndex(*index)};
  }
  throw std::invalid_argument("--device: must be auto, cpu, cuda or cuda:N, got " + in_quotes(name));
}

/// Until the device has done all that it was given.
inline void wait(at::Device device) {
  if (device.is_cuda()) at::detail::getCUDAHooks().deviceSynchronize(device.index());
}

/// "tstitch_sample 0.2.0, torch 2.11.0, CUDA 13.0".
inline std::string version_of(std::string const& program) {
  const auto& cuda = at::detail::getCUDAHooks();
  std::string text = program + " " TSTITCH_VERSION ", torch " TORCH_VERSION ", ";
  if (!cuda.hasCUDART()) return text + "no CUDA";
  const long version = cuda.versionCUDART();
  return text + "CUDA " + std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}
