/// @file
/// The loops of weighted sums on the host. Includes no torch.
#pragma once

#include <cstdint>

#include "../base/contraction.hpp"

TSTITCH_NO_CONTRACTION

namespace tstitch::detail {

/// Elements that are summed at once, so that partial sums stay in the nearest cache.
inline constexpr std::int64_t sum_block = 1024;

/// out = a x + b y, and out = c out + a x, for a whole block or for less. Loops over a constant are vector code without
/// asking for more than -O2.
template <class Real>
[[gnu::always_inline]] inline void sum_of_two(Real* __restrict out, Real a, Real const* __restrict x, Real b,
                                              Real const* __restrict y, std::int64_t count) {
  if (count == sum_block) {
    for (std::int64_t i = 0; i < sum_block; ++i) out[i] = a * x[i] + b * y[i];
  } else {
    for (std::int64_t i = 0; i < count; ++i) out[i] = a * x[i] + b * y[i];
  }
}

template <class Real>
[[gnu::always_inline]] inline void add_term(Real* __restrict out, Real of_out, Real a, Real const* __restrict x,
                                            std::int64_t count) {
  if (count == sum_block) {
    for (std::int64_t i = 0; i < sum_block; ++i) out[i] = of_out * out[i] + a * x[i];
  } else {
    for (std::int64_t i = 0; i < count; ++i) out[i] = of_out * out[i] + a * x[i];
  }
}

}  // namespace tstitch::detail

TSTITCH_USUAL_CONTRACTION
