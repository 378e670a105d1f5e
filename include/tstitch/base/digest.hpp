/// @file
/// Numbers that tell texts apart, in digits for the names of files.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

namespace tstitch::detail {

/// 16 hexadecimal digits.
inline std::string hexadecimal(std::uint64_t value) {
  char digits[17];
  std::snprintf(digits, sizeof digits, "%016llx", static_cast<unsigned long long>(value));
  return digits;
}

/// 16 digits that are others for other texts (FNV-1a; Fowler, Noll and Vo).
inline std::string digest(std::vector<std::string> const& texts) {
  std::uint64_t hash = 0xcbf29ce484222325;
  for (std::string const& text : texts) {
    for (const char c : text + '\n') hash = (hash ^ std::uint64_t(static_cast<unsigned char>(c))) * 0x100000001b3;
  }
  return hexadecimal(hash);
}

}  // namespace tstitch::detail
