/// @file
/// What the kernels for attention have in common.
#pragma once

#include <cmath>
#include <compare>
#include <string>
#include <utility>
#include <vector>

#include "../tensor/cuda/nvrtc.hpp"
#include "../tensor/cuda/prelude.hpp"

namespace tstitch::detail {

/// What a kernel is compiled for.
struct AttentionKind {
  int element;        ///< 1 float16, 2 bfloat16
  int head;           ///< width of a head
  bool e4m3 = false;  ///< whether the result is

  friend auto operator<=>(AttentionKind const&, AttentionKind const&) = default;
};

/// CUDA C++ that comes behind `number_conversions`. ELEMENT, HEAD and QUANTISE are what AttentionKind has.
inline constexpr char attention_prelude[] = R"cuda(
#if ELEMENT == 1
#define TYPE "f16"
#else
#define TYPE "bf16"
#endif
#define INFINITE __int_as_float(0x7f800000)
#if QUANTISE && __CUDA_ARCH__ < 890
#error "e4m3 needs compute capability 8.9"
#endif

constexpr int PIECES = HEAD / 8;  // of 16 bytes in a row

__device__ unsigned pack(float low, float high) {
  return ELEMENT == 1 ? floats_to_halves(low, high) : floats_to_bfloat16s(low, high);
}

__device__ float exp2_of(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
)cuda";

/// @param options of NVRTC beside those for the kind
inline CudaSource attention_source(char const* name, std::string const& text, AttentionKind kind,
                                   std::vector<std::string> options = {}) {
  options.push_back("-DELEMENT=" + std::to_string(kind.element));
  options.push_back("-DHEAD=" + std::to_string(kind.head));
  options.push_back("-DQUANTISE=" + std::to_string(kind.e4m3));
  return {name, std::string(number_conversions) + attention_prelude + text, std::move(options)};
}

/// CUdevice_attribute
inline constexpr int multiprocessors = 16, shared_of_multiprocessor = 81;

/// With which scores are multiplied, in units of log2(e): exponentials are powers of two.
inline float attention_scale(int head) {
  return float(1 / (std::log(2.0) * std::sqrt(double(head))));
}

}  // namespace tstitch::detail
