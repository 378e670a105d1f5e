/// @file
/// What a machine calls its parts.
#pragma once

#include <c10/core/Device.h>

#include <fstream>
#include <string>

#ifdef TSTITCH_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

/// What the processor calls itself.
inline std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const std::size_t colon = line.find(": ");
    if (line.rfind("model name", 0) == 0 && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

/// What the GPU calls itself; empty where it is not known.
inline std::string gpu_name([[maybe_unused]] at::Device device) {
#ifdef TSTITCH_WITH_CUDA
  cudaDeviceProp properties{};
  if (device.is_cuda() && cudaGetDeviceProperties(&properties, device.index()) == cudaSuccess) return properties.name;
#endif
  return {};
}
