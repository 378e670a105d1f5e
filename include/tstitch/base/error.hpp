/// @file
/// How the library refuses: every message names the place, the rule and the value it got. And what it shows such values
/// with, for programs that print the same names and numbers.
#pragma once

#include <cstddef>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

namespace tstitch {

/// Words and numbers in text, as people write them, for programs whose options and messages go with the library's.
namespace words {

/// `value` as a person would write it: the shortest of up to 10 significant digits.
inline std::string text(double value) {
  char buffer[32];
  std::snprintf(buffer, sizeof buffer, "%.10g", value);
  return buffer;
}

/// How many bytes the character of UTF-8 at the front takes; 0 where there is none.
inline std::size_t utf8_character(std::string_view text) {
  const auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U; };
  const auto follows = [&](std::size_t i) { return (byte(i) & 0xC0U) == 0x80U; };
  const unsigned first = byte(0), second = byte(1);
  if (first < 0x80) return text.empty() ? 0 : 1;
  if (first < 0xC2) return 0;
  if (first < 0xE0) return follows(1) ? 2 : 0;
  if (first < 0xF0) {
    const bool overlong = first == 0xE0 && second < 0xA0, surrogate = first == 0xED && second >= 0xA0;
    return follows(1) && follows(2) && !overlong && !surrogate ? 3 : 0;
  }
  const bool in_range = first < 0xF4 ? first > 0xF0 || second >= 0x90 : first == 0xF4 && second < 0x90;
  return follows(1) && follows(2) && follows(3) && in_range ? 4 : 0;
}

/// Whether all of it is UTF-8.
inline bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const std::size_t size = utf8_character(text);
    if (size == 0) return false;
    text.remove_prefix(size);
  }
  return true;
}

/// How many bytes the character of UTF-8 at the front takes; 0 where there is none, or one that terminals take for a
/// command: U+0000 to U+001F and U+007F to U+009F.
inline std::size_t printable_character(std::string_view text) {
  const std::size_t size = utf8_character(text);
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const bool control = size == 1 ? byte(0) < 0x20 || byte(0) == 0x7F : size == 2 && byte(0) == 0xC2 && byte(1) < 0xA0;
  return control ? 0 : size;
}

/// Text of others for a message: what is no printable character as `\xNN`, and cut where it is long.
/// @param most bytes of the text that are shown
inline std::string printable(std::string_view text, std::size_t most = 200) {
  std::string shown;
  std::size_t done = 0;
  while (done < text.size() && done < most) {
    if (const std::size_t size = printable_character(text.substr(done))) {
      shown += text.substr(done, size);
      done += size;
      continue;
    }
    char escaped[8];
    std::snprintf(escaped, sizeof escaped, "\\x%02x", unsigned(static_cast<unsigned char>(text[done++])));
    shown += escaped;
  }
  if (done < text.size()) shown += "... (" + std::to_string(text.size()) + " bytes)";
  return shown;
}

}  // namespace words

namespace detail {

using words::is_utf8;
using words::printable;
using words::printable_character;
using words::text;

/// A path or a name of others for a message.
inline std::string quoted(std::string const& path) {
  return "'" + printable(path, 1000) + "'";
}

/// Throws std::invalid_argument "tstitch::<place>: <rule>, got <value>".
[[noreturn]] inline void refuse(std::string const& place, std::string const& rule, std::string const& value) {
  throw std::invalid_argument("tstitch::" + place + ": " + rule + ", got " + printable(value, 1000));
}
[[noreturn]] inline void refuse(std::string const& place, std::string const& rule, double value) {
  refuse(place, rule, text(value));
}

/// @throws std::invalid_argument for a std::function or a pointer that holds nothing
template <class Callable>
void require_callable(std::string const& place, Callable const& callable) {
  if constexpr (requires { callable.target_type(); } || std::is_pointer_v<Callable>) {
    if (!callable) refuse(place, "must be given something to call", "an empty function");
  }
}

}  // namespace detail
}  // namespace tstitch
