#include <tstitch/base/crc32.hpp>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "../catch.hpp"

using tstitch::detail::Crc32;

namespace {

std::uint32_t checksum(std::string const& bytes, std::size_t begin = 0, std::size_t size = std::string::npos) {
  Crc32 sum;
  sum.add(bytes.data() + begin, std::min(size, bytes.size() - begin));
  return sum.value();
}

/// Bytes of a linear congruential generator.
std::string pattern(std::size_t size) {
  std::string bytes;
  for (std::uint64_t state = 1; bytes.size() < size;) {
    state = state * 6364136223846793005 + 1442695040888963407;
    bytes += char(state >> 56);
  }
  return bytes;
}

}  // namespace

TEST_CASE("checksums are those of zlib") {
  CHECK(checksum("123456789") == 0xcbf43926);  // the check value of the standard
  // zlib.crc32 of Python.
  const std::string bytes = pattern(100'000);
  for (auto const& [size, expected] : std::vector<std::pair<std::size_t, std::uint32_t>>{
           {0, 0x00000000},
           {1, 0x9606c2fe},
           {7, 0x9e9a7d25},
           {8, 0x842fb1d3},
           {15, 0xb401f694},
           {63, 0x65cd49d2},
           {64, 0xa20dd64b},
           {127, 0x1f79fbda},
           {128, 0x6dcdf760},
           {129, 0xaa68ebd8},
           {191, 0xe2eed41b},
           {192, 0x63ebe87d},
           {1000, 0xe8be3e1e},
           {4096, 0xcf53ff1b},
           {99999, 0xe2d5bf7c},
           {100000, 0xcf572a56},
       }) {
    INFO(size);
    CHECK(checksum(bytes, 0, size) == expected);
  }
}

TEST_CASE("a checksum is the same however its bytes are shared out, and another for each changed bit") {
  const std::string bytes = pattern(3000);
  for (std::size_t begin = 0; begin < 20; ++begin) {
    const std::uint32_t whole = checksum(bytes, begin);
    for (const std::size_t first : {0, 1, 16, 127, 128, 500, 2048}) {
      Crc32 in_pieces, in_parts;
      in_pieces.add(bytes.data() + begin, first);
      in_pieces.add(bytes.data() + begin + first, bytes.size() - begin - first);
      CHECK(in_pieces.value() == whole);
      in_parts.add(bytes.data() + begin, first);
      in_parts.add_checksum(checksum(bytes, begin + first), bytes.size() - begin - first);
      CHECK(in_parts.value() == whole);
    }
  }
  const std::uint32_t expected = checksum(bytes);
  for (std::size_t bit = 0; bit < 8 * bytes.size(); bit += 5) {
    std::string changed = bytes;
    changed[bit / 8] = char(changed[bit / 8] ^ (1 << bit % 8));
    CHECK(checksum(changed) != expected);
  }
}
