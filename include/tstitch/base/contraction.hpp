/// @file
/// Products that are rounded before they are added, whatever the processor and the compiler's flags.
///
/// Where a processor has fused multiply-adds, compilers may contract a product and a sum into one of them, which rounds
/// once instead of twice: g++ wherever it sees both, clang within an expression. Numbers that are to have the same bits
/// everywhere, the noise and the tables, are computed by code between these two:
///   TSTITCH_NO_CONTRACTION       no contraction from here on
///   TSTITCH_USUAL_CONTRACTION    as the compiler was told, from here on
/// Outside of namespaces and functions, behind the last `#include`. By g++, functions that are always_inline follow
/// their callers. Against -ffast-math and clang's -ffp-contract=fast nothing helps.
#pragma once

#ifdef __clang__
#define TSTITCH_NO_CONTRACTION _Pragma("STDC FP_CONTRACT OFF")
#define TSTITCH_USUAL_CONTRACTION _Pragma("STDC FP_CONTRACT DEFAULT")
#elif defined(__CUDACC__)  // nvcc hands these pragmas on to g++, and warns that it does not know them itself
#define TSTITCH_NO_CONTRACTION                                                               \
  _Pragma("nv_diagnostic push") _Pragma("nv_diag_suppress 1675") _Pragma("GCC push_options") \
      _Pragma("GCC optimize(\"fp-contract=off\")")
#define TSTITCH_USUAL_CONTRACTION _Pragma("GCC pop_options") _Pragma("nv_diagnostic pop")
#else
#define TSTITCH_NO_CONTRACTION _Pragma("GCC push_options") _Pragma("GCC optimize(\"fp-contract=off\")")
#define TSTITCH_USUAL_CONTRACTION _Pragma("GCC pop_options")
#endif
