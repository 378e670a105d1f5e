/// @file
/// Words and numbers in text, as people write them: what command lines and the library's functions "by name" read.
#pragma once

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <vector>

#include "error.hpp"

namespace tstitch::words {

/// What was written, for a message: short, and without what terminals obey.
inline std::string in_quotes(std::string_view text) {
  return "'" + printable(text, 60) + "'";
}

/// "a, b, c"; empty for none.
inline std::string joined(std::vector<std::string> const& words) {
  std::string text;
  for (std::string const& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

/// The names of a table's entries, such as tstitch::routing::named(), in order.
template <class Entry>
std::vector<std::string> names_in(std::vector<Entry> const& table) {
  std::vector<std::string> names;
  for (Entry const& entry : table) names.push_back(entry.name);
  return names;
}

/// What is between separators, which may be nothing: "a,,b" is a, nothing and b.
inline std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(separator, begin), text.size());
    parts.emplace_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

/// All of the text as a number in decimals; nothing for what is none, and for what is not finite.
template <class Number>
std::optional<Number> number_of(std::string_view text) {
  Number number{};
  char const* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc{} || rest != end) return {};
  if constexpr (std::is_floating_point_v<Number>) {
    if (!std::isfinite(number)) return {};
  }
  return number;
}

/// What number_of takes, for a message: "a whole number".
template <class Number>
std::string kind_of_number() {
  if (std::is_unsigned_v<Number>) return "a whole number that is not negative";
  return std::is_integral_v<Number> ? "a whole number" : "a finite number";
}

/// Numbers with separators between: "0.3,0.7".
/// @throws std::invalid_argument in the name of the option for what is none, and for another number of them than
/// `count` where that is not 0
template <class Number = double>
std::vector<Number> numbers_of(std::string const& option, std::string_view text, char separator = ',',
                               std::size_t count = 0) {
  std::vector<Number> numbers;
  bool good = true;
  for (std::string const& part : split(text, separator)) {
    const std::optional<Number> number = number_of<Number>(part);
    good = good && number.has_value();
    numbers.push_back(number.value_or(Number{}));
  }
  if (!good || (count && numbers.size() != count)) {
    if (count == 1)
      throw std::invalid_argument(option + ": must be " + kind_of_number<Number>() + ", got " + in_quotes(text));
    std::string range;
    if constexpr (std::is_unsigned_v<Number>) {
      range = "in [0, " + std::to_string(std::numeric_limits<Number>::max()) + "] ";
    }
    throw std::invalid_argument(option + ": must be " + (count ? std::to_string(count) + " " : "") +
                                (std::is_integral_v<Number> ? "whole " : "") + "numbers " + range + "with " +
                                (separator == ':' ? "colons" : "commas") + " between, got " + in_quotes(text));
  }
  return numbers;
}

}  // namespace tstitch::words

namespace tstitch::detail {

using words::in_quotes;
using words::joined;
using words::kind_of_number;
using words::names_in;
using words::number_of;
using words::numbers_of;
using words::split;

/// The entry of this name.
/// @throws std::invalid_argument in the name of `place`, with all names that there are
template <class Entry>
Entry const& find_named(std::string const& place, std::vector<Entry> const& table, std::string const& name) {
  for (Entry const& entry : table) {
    if (entry.name == name) return entry;
  }
  refuse(place, "name must be one of " + joined(names_in(table)), in_quotes(name));
}

}  // namespace tstitch::detail
