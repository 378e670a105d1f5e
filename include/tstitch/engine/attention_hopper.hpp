/// @file
/// What the attention kernels for Hopper have in common.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "../tensor/cuda/driver.hpp"
#include "../tensor/cuda/nvrtc.hpp"
#include "attention_kernel.hpp"

namespace tstitch::detail {

/// CUDA C++ of barriers, copies and products, behind `attention_prelude`.
///
/// What the instructions do, and how descriptors say where a matrix is, is in NVIDIA's PTX ISA under wgmma.mma_async,
/// cp.async.bulk.tensor and mbarrier.
inline constexpr char hopper_prelude[] = R"cuda(
typedef unsigned long long Descriptor;
struct __align__(64) TensorMap { unsigned long long opaque[16]; };

// What was written to shared memory by threads is seen by copies and products, and what they read may be overwritten.
__device__ void fence_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ void start_barrier(unsigned barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ void arrive(unsigned barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ void arrive_and_expect(unsigned barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ void wait(unsigned barrier, unsigned parity) {
  asm volatile("{\n.reg .pred p;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra again;\n}"
               ::"r"(barrier), "r"(parity) : "memory");
}

// Of a matrix in shared memory whose pieces of 8 rows and 16 bytes are together; bytes to the next piece.
__device__ Descriptor described(unsigned at, unsigned leading, unsigned stride) {
  return (Descriptor)((at & 0x3ffff) >> 4) | (Descriptor)(leading >> 4 & 0x3fff) << 16 |
         (Descriptor)(stride >> 4) << 32;
}
__device__ Descriptor swizzled(unsigned at) { return described(at, 16, 1024) | 1ull << 62; }

__device__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ void end_products() {
  asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
}
// Keeps the compiler from using them before: it does not know that products are on their way.
template <int COUNT>
__device__ void hold(float (&c)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(c[i])::"memory");
}

// The 32 accumulators of a thread, as asm names and as operands.
#define NAMES_32 \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define FOUR(c, i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define ACCUMULATORS_32(c) \
  FOUR(c, 0), FOUR(c, 4), FOUR(c, 8), FOUR(c, 12), FOUR(c, 16), FOUR(c, 20), FOUR(c, 24), FOUR(c, 28)

// c [64, 64] += a [64, 16] b [16, 64]
__device__ void multiply_values(float (&c)[32], const unsigned (&a)[4], Descriptor b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " " NAMES_32
               ", {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
               : ACCUMULATORS_32(c) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b) : "memory");
}
)cuda";

/// @throws std::runtime_error on another GPU
inline CudaSource hopper_only(CudaSource source, c10::Device device) {
  if (const int capability = compute_capability(device.index()); capability != 90) {
    throw std::runtime_error("tstitch: the GPU must have compute capability 9.0, got " +
                             std::to_string(capability / 10) + "." + std::to_string(capability % 10));
  }
  return source;
}

/// CUtensorMap
struct alignas(64) TensorMap {
  std::uint64_t opaque[16];
};

/// Of a tensor of 16-bit numbers, of which a box is copied at a time.
/// @param strides bytes, of all dimensions but the first
/// @param swizzled its rows are of 128 bytes, whose pieces are swizzled
inline TensorMap tensor_map(int element, void* data, std::array<std::uint64_t, 4> const& sizes,
                            std::array<std::uint64_t, 3> const& strides, std::array<unsigned, 4> const& box,
                            bool swizzled) {
  using Encode = int(TensorMap*, int, unsigned, void*, std::uint64_t const*, std::uint64_t const*, unsigned const*,
                     unsigned const*, int, int, int, int);
  static const auto encode = cuda_driver().get<Encode>("cuTensorMapEncodeTiled");
  const std::array<unsigned, 4> every{1, 1, 1, 1};
  constexpr int float16 = 6, bfloat16 = 9, swizzle_128 = 3, fetch_128 = 2;
  TensorMap made;
  const int error =
      encode(&made, element == 1 ? float16 : bfloat16, 4, data, sizes.data(), strides.data(), box.data(), every.data(),
             /*interleave=*/0, swizzled ? swizzle_128 : 0, fetch_128, /*zeros outside*/ 0);
  if (error) {
    throw std::runtime_error("tstitch: cuTensorMapEncodeTiled must succeed, got CUDA error " + std::to_string(error));
  }
  return made;
}

}  // namespace tstitch::detail
