/// @file
/// Whether kernels can be compiled here.
#pragma once

#include <tstitch/model/cuda_kernel.hpp>

#include "catch.hpp"

/// Says why not.
inline bool has_nvrtc() {
  try {
    tstitch::detail::compile_cuda({"empty", "extern \"C\" __global__ void empty() {}"}, 80);
    return true;
  } catch (std::runtime_error const& error) {
    if (std::string(error.what()).find("must find NVRTC") == std::string::npos) throw;
    WARN("skipped: " << error.what());
    return false;
  }
}
