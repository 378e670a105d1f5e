/// @file
/// What the CUDA C++ of kernels begins with: numbers of 16 and 8 bits, and float.
#pragma once

namespace tstitch::detail {

/// A half, a bfloat16 or an e4m3 is the bits of one, because the source includes no headers. To the nearest; an e4m3 is
/// the largest for what is beyond it, and needs compute capability 8.9. In pairs, `low` is the first in memory.
inline constexpr char number_conversions[] = R"cuda(
__device__ inline float half_to_float(unsigned short value) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value));
  return result;
}
__device__ inline unsigned short float_to_half(float value) {
  unsigned short result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result) : "f"(value));
  return result;
}
__device__ inline unsigned floats_to_halves(float low, float high) {
  unsigned result;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}

__device__ inline float bfloat16_to_float(unsigned short value) { return __uint_as_float((unsigned)value << 16); }
__device__ inline unsigned short float_to_bfloat16(float value) {
  unsigned short result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result) : "f"(value));
  return result;
}
__device__ inline unsigned floats_to_bfloat16s(float low, float high) {
  unsigned result;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}

__device__ inline unsigned short floats_to_e4m3s(float low, float high) {
  unsigned short result;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(result) : "f"(high), "f"(low));
  return result;
}
)cuda";

/// The elements of tensors, behind that: ELEMENT is 0 for float, 1 for __half, 2 for __nv_bfloat16. Eight of them are
/// read and written at once.
inline constexpr char element_conversions[] = R"cuda(
#if ELEMENT == 0
typedef float Element;
__device__ float to_float(Element value) { return value; }
__device__ Element from_float(float value) { return value; }
#elif ELEMENT == 1
typedef unsigned short Element;
__device__ float to_float(Element value) { return half_to_float(value); }
__device__ Element from_float(float value) { return float_to_half(value); }
#else
typedef unsigned short Element;
__device__ float to_float(Element value) { return bfloat16_to_float(value); }
__device__ Element from_float(float value) { return float_to_bfloat16(value); }
#endif

struct alignas(16) Eight { Element values[8]; };
)cuda";

}  // namespace tstitch::detail
