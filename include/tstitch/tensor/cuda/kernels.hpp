/// @file
/// Gives a program the CUDA kernels of weighted sums and of noise.
///
/// One of its translation units includes this, and all have them: samplers call them through pointers, so that who
/// includes a sampler compiles neither the use of NVRTC nor the cache. tstitch.hpp, the engines and what loads networks
/// include it.
#pragma once

#include <atomic>

#include "../noise.hpp"
#include "../weighted_sum.hpp"
#include "noise_kernel.hpp"
#include "sum_kernel.hpp"

namespace tstitch::detail {

inline bool register_kernels() {
  sum_on_gpu.store(sum_by_kernel, std::memory_order_relaxed);
  noise_on_gpu.store(noise_by_kernel, std::memory_order_relaxed);
  return true;
}

/// Nobody reads it: the compiler must keep it for its initialization.
[[gnu::used]] inline const bool kernels_are_registered = register_kernels();

}  // namespace tstitch::detail
