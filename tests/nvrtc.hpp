/// @file
/// Whether kernels can be compiled here.
#pragma once

#include <tstitch/tensor/cuda/nvrtc.hpp>

#include "skip.hpp"

/// Where not, the test is skipped, with the reason.
inline bool has_nvrtc() {
  try {
    tstitch::detail::compile_cuda({"empty", "extern \"C\" __global__ void empty() {}"}, 80);
    return true;
  } catch (std::runtime_error const& error) {
    if (std::string(error.what()).find("must find NVRTC") == std::string::npos) throw;
    skip(error.what());
    return false;
  }
}
