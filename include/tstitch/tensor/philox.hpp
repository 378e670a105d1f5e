/// @file
/// Counter-based random numbers, and standard normals made of them.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numbers>

#include "../base/contraction.hpp"
#include "../base/vector_code.hpp"
#ifdef TSTITCH_X86
#include <xmmintrin.h>
#endif

TSTITCH_NO_CONTRACTION

namespace tstitch::detail {

using PhiloxKey = std::array<std::uint32_t, 2>;
using PhiloxCounter = std::array<std::uint32_t, 4>;

// What stands in this macro is compiled by the host's compiler and, as text, by NVRTC for GPUs, so that there is one
// formula and both make the same bits. It is told what TSTITCH_INLINE, bits_of and float_of are there.
#define TSTITCH_ALSO_AS_TEXT(name, ...) \
  __VA_ARGS__                           \
  inline constexpr char name[] = #__VA_ARGS__;
#define TSTITCH_INLINE [[gnu::always_inline]] inline

TSTITCH_INLINE std::uint32_t bits_of(float value) {
  return std::bit_cast<std::uint32_t>(value);
}
TSTITCH_INLINE float float_of(std::uint32_t bits) {
  return std::bit_cast<float>(bits);
}

// clang-format off
TSTITCH_ALSO_AS_TEXT(normal_source,

/// Philox 4x32-10 (Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3").
inline constexpr int philox_rounds = 10;
inline constexpr std::uint32_t philox_multiplier_0 = 0xD2511F53;
inline constexpr std::uint32_t philox_multiplier_1 = 0xCD9E8D57;
inline constexpr std::uint32_t philox_key_step_0 = 0x9E3779B9;
inline constexpr std::uint32_t philox_key_step_1 = 0xBB67AE85;

/// One round.
/// @param counter [4]
TSTITCH_INLINE void philox_round(std::uint32_t* counter, std::uint32_t key_0, std::uint32_t key_1) {
  const std::uint64_t a = std::uint64_t{philox_multiplier_0} * counter[0];
  const std::uint64_t b = std::uint64_t{philox_multiplier_1} * counter[2];
  counter[0] = std::uint32_t(b >> 32) ^ counter[1] ^ key_0;
  counter[1] = std::uint32_t(b);
  counter[2] = std::uint32_t(a >> 32) ^ counter[3] ^ key_1;
  counter[3] = std::uint32_t(a);
}

/// What Box and Muller's transform has before the square root: normals are sqrt(radius_squared) times cosine and sine.
struct PolarNormal {
  float radius_squared;
  float cosine;
  float sine;
};

TSTITCH_INLINE float select(std::uint32_t mask, float yes, float no) {
  return float_of((bits_of(yes) & mask) | (bits_of(no) & ~mask));
}

TSTITCH_INLINE float with_sign(std::uint32_t sign, float value) {
  return float_of(bits_of(value) ^ (sign & 0x80000000));
}

/// Off by at most 8e-7 from box_muller. Without branches and calls, so that loops over it become vector code, and by
/// sums, products, a quotient and a root alone, which all machines round alike: every processor has the same noise.
TSTITCH_INLINE PolarNormal polar_normal(std::uint32_t a, std::uint32_t b) {
  // The number in (0, 1/2) whose distance from 0 is known best: u = (a + 1/2) / 2^32, or 1 - u in the upper half.
  const std::uint32_t upper = std::uint32_t(std::int32_t(a) >> 31);  // all bits or none
  const float x = (float(std::int32_t(a ^ upper)) + 0.5f) * 0x1p-32f;
  // u = 2^e (1 + f), with 1 + f in [sqrt(1/2), sqrt(2)) in the lower half and e = 0 in the upper. 0x3F3504F3 is the
  // float sqrt(1/2).
  const std::uint32_t bits = bits_of(x);
  const std::int32_t exponent = std::int32_t(bits - 0x3F3504F3) >> 23;
  const float mantissa = float_of(bits - (std::uint32_t(exponent) << 23));
  const float f = select(upper, -x, mantissa - 1);
  const float e = float(std::int32_t(std::uint32_t(exponent) & ~upper));
  // log(1 + f) = 2 atanh(s), s = f / (2 + f); the best polynomial in s^2, to 5e-9. The last constant is log 2.
  const float s = f / (f + 2);
  const float z = s * s;
  const float half_square = 0.5f * f * f;
  const float series = z * (0.66666413f + z * (0.40021699f + z * (0.27999141f + z * 0.28024459f)));
  const float log_1p = f - (half_square - s * (half_square + series));
  const float radius_squared = -2 * (log_1p + e * 0.693147182f);
  // The angle is (b + 1/2) / 2^32 of a turn: quarters, the upper two bits of `turn`, and d, at most an eighth of a turn
  // either way. The best polynomials in d^2, to 4e-9. Odd quarters exchange cosine and sine; the second and third have
  // a negative cosine, the third and fourth a negative sine.
  const std::uint32_t turn = b + 0x20000000;
  const float d = (float(std::int32_t(turn & 0x3FFFFFFF) - 0x20000000) + 0.5f) * 0x1p-32f;
  const float d2 = d * d;
  const float sine = d * (6.28318529f + d2 * (-41.34166145f + d2 * (81.59235355f + d2 * -75.39356273f)));
  const float cosine = 1 + d2 * (-19.73920863f + d2 * (64.93931074f + d2 * (-85.44229797f + d2 * 59.20279605f)));
  const std::uint32_t odd = std::uint32_t(std::int32_t(turn << 1) >> 31);
  return {radius_squared, with_sign(turn + 0x40000000, select(odd, sine, cosine)),
          with_sign(turn, select(odd, cosine, sine))};
}

)
// clang-format on
#undef TSTITCH_INLINE
#undef TSTITCH_ALSO_AS_TEXT

/// The key of each round, two words in the low halves of 64 bits.
using PhiloxKeys = std::array<std::array<std::uint64_t, 2>, philox_rounds>;

inline PhiloxKeys philox_keys(PhiloxKey key) {
  PhiloxKeys keys;
  for (auto& round : keys) {
    round = {key[0], key[1]};
    key = {key[0] + philox_key_step_0, key[1] + philox_key_step_1};
  }
  return keys;
}

[[gnu::always_inline]] inline std::array<std::uint32_t, 4> philox(PhiloxCounter counter, PhiloxKeys const& keys) {
#pragma GCC unroll 10
  for (auto const& key : keys) philox_round(counter.data(), std::uint32_t(key[0]), std::uint32_t(key[1]));
  return counter;
}

/// How many counters are worked on at once: enough that what a stage writes has reached the cache when the next one
/// reads it in pieces of another size.
inline constexpr int philox_lanes = 64;

/// words[k][i] is word k for counter + (i, 0, 0, 0).
using PhiloxWords = std::uint32_t[4][philox_lanes];

inline void philox_block(PhiloxCounter const& counter, PhiloxKeys const& keys, PhiloxWords& words) {
  for (int i = 0; i < philox_lanes; ++i) {
    const auto four = philox({counter[0] + std::uint32_t(i), counter[1], counter[2], counter[3]}, keys);
    for (int k = 0; k < 4; ++k) words[k][i] = four[std::size_t(k)];
  }
}

#ifdef TSTITCH_X86
/// The same with four counters in a register, each word in the low half of 64 bits, where its product has room.
[[gnu::target("avx2")]] inline void philox_block_avx2(PhiloxCounter const& counter, PhiloxKeys const& keys,
                                                      PhiloxWords& words) {
  using Lanes [[gnu::vector_size(32)]] = std::uint64_t;
  using Packed [[gnu::vector_size(16)]] = std::uint32_t;
  constexpr int registers = 4;
  const Lanes zero{};
  const Lanes multiplier_0 = zero + philox_multiplier_0, multiplier_1 = zero + philox_multiplier_1;
  for (int i = 0; i < philox_lanes; i += 4 * registers) {
    Lanes c0[registers], c1[registers], c2[registers], c3[registers];
    for (int r = 0; r < registers; ++r) {
      const std::uint64_t first = counter[0] + std::uint32_t(i + 4 * r);
      c0[r] = Lanes{first, first + 1, first + 2, first + 3};
      c1[r] = zero + counter[1];
      c2[r] = zero + counter[2];
      c3[r] = zero + counter[3];
    }
#pragma GCC unroll 10
    for (auto const& key : keys) {
      const Lanes key_0 = zero + key[0], key_1 = zero + key[1];
#pragma GCC unroll 4
      for (int r = 0; r < registers; ++r) {
        // The low halves' products. Clang sees it in the plain expression and has had no stable builtin for it.
#ifdef __clang__
        const Lanes low = zero + 0xFFFFFFFF, a = (c0[r] & low) * multiplier_0, b = (c2[r] & low) * multiplier_1;
#else
        using Words [[gnu::vector_size(32)]] = int;
        const Lanes a = Lanes(__builtin_ia32_pmuludq256(Words(c0[r]), Words(multiplier_0)));
        const Lanes b = Lanes(__builtin_ia32_pmuludq256(Words(c2[r]), Words(multiplier_1)));
#endif
        c0[r] = (b >> 32) ^ c1[r] ^ key_0;
        c2[r] = (a >> 32) ^ c3[r] ^ key_1;
        c1[r] = b;
        c3[r] = a;
      }
    }
    for (int r = 0; r < registers; ++r) {
      int k = 0;
      for (Lanes const& word : {c0[r], c1[r], c2[r], c3[r]}) {
        const Packed packed = __builtin_convertvector(word, Packed);
        std::memcpy(words[k++] + i + 4 * r, &packed, sizeof packed);
      }
    }
  }
}
#endif

/// Two uniform words to two standard normals (Box and Muller 1958). The tails reach 6.7.
inline std::array<double, 2> box_muller(std::uint32_t a, std::uint32_t b) {
  const double radius = std::sqrt(-2 * std::log((a + 0.5) * 0x1p-32));
  const double angle = 2 * std::numbers::pi * 0x1p-32 * (b + 0.5);
  return {radius * std::cos(angle), radius * std::sin(angle)};
}

/// The roots of so many numbers at once, in place. std::sqrt may have to set errno, which keeps it out of vectors.
#ifdef TSTITCH_X86
inline constexpr int square_roots = 4;
inline void take_roots(float* x) {
  _mm_storeu_ps(x, _mm_sqrt_ps(_mm_loadu_ps(x)));
}
#else
inline constexpr int square_roots = 1;
inline void take_roots(float* x) {
  *x = std::sqrt(*x);
}
#endif

/// @param block [4 philox_lanes] is filled
[[gnu::always_inline]] inline void normal_block(PhiloxWords const& words, float* block) {
  float radius[2][philox_lanes], cosine[2][philox_lanes], sine[2][philox_lanes];
  for (int pair = 0; pair < 2; ++pair) {
    for (int i = 0; i < philox_lanes; ++i) {
      const PolarNormal polar = polar_normal(words[2 * pair][i], words[2 * pair + 1][i]);
      radius[pair][i] = polar.radius_squared;
      cosine[pair][i] = polar.cosine;
      sine[pair][i] = polar.sine;
    }
    for (int i = 0; i < philox_lanes; i += square_roots) take_roots(radius[pair] + i);
  }
  for (int i = 0; i < philox_lanes; ++i) {
    block[4 * i] = radius[0][i] * cosine[0][i];
    block[4 * i + 1] = radius[0][i] * sine[0][i];
    block[4 * i + 2] = radius[1][i] * cosine[1][i];
    block[4 * i + 3] = radius[1][i] * sine[1][i];
  }
}

/// Normals of the counters from (0, counter[1], ...) on, four each.
/// @param normals [count] is filled
template <auto PhiloxBlock>
[[gnu::always_inline]] inline void fill_blocks(float* normals, std::int64_t count, PhiloxCounter counter,
                                               PhiloxKeys const& keys) {
  constexpr std::int64_t whole = 4 * philox_lanes;
  PhiloxWords words;
  float block[whole];
  for (std::int64_t i = 0; i < count; i += whole, counter[0] += philox_lanes) {
    PhiloxBlock(counter, keys, words);
    if (count - i >= whole) {
      normal_block(words, normals + i);
    } else {
      normal_block(words, block);
      std::copy(block, block + (count - i), normals + i);
    }
  }
}

#ifdef TSTITCH_X86
[[gnu::target("avx2")]] inline void fill_normals_avx2(float* normals, std::int64_t count, PhiloxCounter const& counter,
                                                      PhiloxKeys const& keys) {
  fill_blocks<philox_block_avx2>(normals, count, counter, keys);
}
#endif

inline void fill_normals(float* normals, std::int64_t count, PhiloxCounter const& counter, PhiloxKeys const& keys) {
#ifdef TSTITCH_X86
  if (has_avx2()) return fill_normals_avx2(normals, count, counter, keys);
#endif
  fill_blocks<philox_block>(normals, count, counter, keys);
}

/// In double, of which there is no fast form.
inline void fill_normals(double* normals, std::int64_t count, PhiloxCounter counter, PhiloxKeys const& keys) {
  for (std::int64_t i = 0; i < count; i += 4, ++counter[0]) {
    const auto words = philox(counter, keys);
    const auto first = box_muller(words[0], words[1]), second = box_muller(words[2], words[3]);
    const std::array<double, 4> four{first[0], first[1], second[0], second[1]};
    std::copy_n(four.begin(), std::min<std::int64_t>(4, count - i), normals + i);
  }
}

}  // namespace tstitch::detail

TSTITCH_USUAL_CONTRACTION
