/// @file
/// Tests of GPUs.
#pragma once

#include <ATen/detail/CUDAHooksInterface.h>

#include <cstdio>
#include <cstdlib>

#include "../skip.hpp"

/// Ends the program where there are fewer GPUs; for the initialization of a variable, before the first test.
inline bool require_gpus(int count) {
  if (at::detail::getCUDAHooks().hasCUDA() && at::detail::getCUDAHooks().deviceCount() >= count) return true;
  std::printf("skipped: this machine has fewer CUDA devices than %d\n", count);
  std::fflush(stdout);
  std::_Exit(0);
}
