/// @file
/// Whether functions can be compiled for AVX2 beside the baseline, to be chosen when the program runs.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define TSTITCH_X86 1
#endif

namespace tstitch::detail {

#ifdef TSTITCH_X86
/// And FMA, which hypervisors may hide.
inline bool has_avx2() {
  static const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return has;
}
#endif

}  // namespace tstitch::detail
