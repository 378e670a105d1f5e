/// @file
/// CRC-32, the checksum of zip archives and PNG files.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <wmmintrin.h>
#endif

namespace tstitch::detail {

/// CRC-32 as in zip, gzip and PNG (ISO 3309): polynomial 0x04C11DB7, each byte from its lowest bit to its highest.
class Crc32 {
 public:
  void add(void const* data, std::size_t count) {
    auto const* bytes = static_cast<unsigned char const*>(data);
#if defined(__x86_64__)
    static const bool multiplies = __builtin_cpu_supports("pclmul");
    if (multiplies && count >= 2 * block) {
      const std::size_t whole = count / block * block;
      state_ = fold(state_, bytes, whole);
      bytes += whole;
      count -= whole;
    }
#endif
    state_ = with_tables(state_, bytes, count);
  }

  /// Continues with `count` bytes whose own checksum is known: threads can compute the checksums of parts of the data,
  /// which this joins.
  void add_checksum(std::uint32_t of_these, std::uint64_t count) {
    state_ = ~(times(~state_, power(8 * count)) ^ of_these);
  }

  std::uint32_t value() const {
    return ~state_;
  }

 private:
  static constexpr std::size_t block = 64;
  static constexpr std::uint32_t polynomial = 0xEDB88320;

  using Tables = std::array<std::array<std::uint32_t, 256>, 8>;

  static constexpr Tables make_tables() {
    Tables tables{};
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
      std::uint32_t rest = byte;
      for (int bit = 0; bit < 8; ++bit) rest = rest & 1 ? polynomial ^ (rest >> 1) : rest >> 1;
      tables[0][byte] = rest;
    }
    for (std::size_t k = 1; k < tables.size(); ++k) {
      for (std::size_t byte = 0; byte < 256; ++byte) {
        const std::uint32_t before = tables[k - 1][byte];
        tables[k][byte] = (before >> 8) ^ tables[0][before & 255];
      }
    }
    return tables;
  }

  /// Table lookups, eight bytes at a time (Kounavis and Berry 2005, "slicing-by-8").
  static std::uint32_t with_tables(std::uint32_t state, unsigned char const* bytes, std::size_t count) {
    static constexpr Tables tables = make_tables();
    if constexpr (std::endian::native == std::endian::little) {
      for (; count >= 8; bytes += 8, count -= 8) {
        std::uint64_t word;
        std::memcpy(&word, bytes, 8);
        word ^= state;
        state = 0;
        for (std::size_t k = 0; k < 8; ++k) state ^= tables[7 - k][(word >> (8 * k)) & 255];
      }
    }
    for (; count > 0; ++bytes, --count) state = (state >> 8) ^ tables[0][(state ^ *bytes) & 255];
    return state;
  }

  /// The product of two polynomials over GF(2), modulo the checksum's polynomial. The highest bit is the coefficient of
  /// x^0.
  static constexpr std::uint32_t times(std::uint32_t a, std::uint32_t b) {
    std::uint32_t product = 0;
    for (std::uint32_t bit = 0x80000000; bit != 0; bit >>= 1) {
      if (a & bit) product ^= b;
      b = b & 1 ? polynomial ^ (b >> 1) : b >> 1;
    }
    return product;
  }

  /// x^exponent modulo the checksum's polynomial.
  static constexpr std::uint32_t power(std::uint64_t exponent) {
    std::uint32_t result = 0x80000000;
    for (std::uint32_t square = 0x40000000; exponent != 0; exponent >>= 1, square = times(square, square)) {
      if (exponent & 1) result = times(result, square);
    }
    return result;
  }

#if defined(__x86_64__)
  /// Carry-less multiplication of four vectors of 16 bytes at a time (Gopal et al. 2009, "Fast CRC Computation for
  /// Generic Polynomials Using PCLMULQDQ Instruction"). It is 16 times as fast as the tables.
  /// @param count a multiple of `block`
  __attribute__((target("pclmul"))) static std::uint32_t fold(std::uint32_t state, unsigned char const* bytes,
                                                              std::size_t count) {
    // To move a vector on by n bits, its first 64 bits are multiplied by x^(n + 64) and its second by x^n. A factor of
    // 32 bits in the lower half of 64 reflected ones has x^32 in it already, hence n + 32 and n - 32. The shift by one
    // is there because the product of two reflected polynomials has 127 bits, not 128.
    constexpr auto factor = [](std::uint64_t bits) { return std::int64_t(std::uint64_t(power(bits)) << 1); };
    const __m128i over_block = _mm_set_epi64x(factor(8 * block - 32), factor(8 * block + 32)),
                  over_16 = _mm_set_epi64x(factor(128 - 32), factor(128 + 32));
    const auto load = [](unsigned char const* from) { return _mm_loadu_si128(reinterpret_cast<__m128i const*>(from)); };
    __m128i sums[4];
    for (int k = 0; k < 4; ++k) sums[k] = load(bytes + 16 * k);
    sums[0] = _mm_xor_si128(sums[0], _mm_cvtsi32_si128(int(state)));
    for (bytes += block, count -= block; count > 0; bytes += block, count -= block) {
      for (int k = 0; k < 4; ++k) {
        const __m128i low = _mm_clmulepi64_si128(sums[k], over_block, 0x00);
        const __m128i high = _mm_clmulepi64_si128(sums[k], over_block, 0x11);
        sums[k] = _mm_xor_si128(_mm_xor_si128(low, high), load(bytes + 16 * k));
      }
    }
    for (int k = 1; k < 4; ++k) {
      const __m128i low = _mm_clmulepi64_si128(sums[k - 1], over_16, 0x00);
      const __m128i high = _mm_clmulepi64_si128(sums[k - 1], over_16, 0x11);
      sums[k] = _mm_xor_si128(_mm_xor_si128(low, high), sums[k]);
    }
    unsigned char rest[16];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(rest), sums[3]);
    return with_tables(0, rest, sizeof rest);
  }
#endif

  std::uint32_t state_ = 0xFFFFFFFF;
};

}  // namespace tstitch::detail
