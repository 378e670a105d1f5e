/// @file
/// CUDA code of a project that also uses the library. It must be compiled with the project's own settings: torch's
/// package appends architectures and flags to them, and the library's CMake takes those away again.

#ifdef CALLER_SETS
#ifndef CALLER_CUDA_FLAGS
#error "CMAKE_CUDA_FLAGS is not what the caller set"
#endif
// Torch's own architectures would make this a list of several.
static_assert(__CUDA_ARCH_LIST__ == 800, "CMAKE_CUDA_ARCHITECTURES is not what the caller set");
#endif

__global__ void twice(float* x) { x[threadIdx.x] *= 2; }
