/// @file
/// How the library refuses: every message names the place, the rule and the value it got.
#pragma once

#include <cstdio>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace tstitch::detail {

/// `value` as a person would write it: the shortest of up to 10 significant digits.
inline std::string text(double value) {
  char buffer[32];
  std::snprintf(buffer, sizeof buffer, "%.10g", value);
  return buffer;
}

/// Throws std::invalid_argument "tstitch::<place>: <rule>, got <value>".
[[noreturn]] inline void refuse(std::string const& place, std::string const& rule, std::string const& value) {
  throw std::invalid_argument("tstitch::" + place + ": " + rule + ", got " + value);
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

}  // namespace tstitch::detail
