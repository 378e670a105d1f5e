/// @file
/// Options of a command line that are what was written, or refused.
#pragma once

#include <CLI/CLI.hpp>
#include <charconv>
#include <filesystem>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

namespace strict_detail {

template <class Value>
struct NumberIn {
  using type = Value;
};
template <class Value>
struct NumberIn<std::vector<Value>> : NumberIn<Value> {};
template <class Value>
struct NumberIn<std::optional<Value>> : NumberIn<Value> {};

}  // namespace strict_detail

/// Refuses what is empty, and what is no number where `value` is or holds numbers. CLI11 by itself takes "" for 0,
/// "010" for 8 and "-1" for 18446744073709551615.
template <class Value>
CLI::Option* strict(CLI::Option* option, Value const&) {
  return option->transform(CLI::Validator(
      [](std::string& text) -> std::string {
        if (text.empty()) return "must not be empty, got ''";
        using Number = typename strict_detail::NumberIn<Value>::type;
        if constexpr (std::is_arithmetic_v<Number>) {
          Number number{};
          const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), number);
          if (error != std::errc{} || rest != text.data() + text.size()) {
            const std::string kind = std::is_unsigned_v<Number>   ? "a whole number that is not negative"
                                     : std::is_integral_v<Number> ? "a whole number"
                                                                  : "a number";
            return "must be " + kind + ", got '" + text + "'";
          }
          if constexpr (std::is_integral_v<Number>) text = std::to_string(number);
        }
        return {};
      },
      ""));
}

/// @param files options and what they name; empty where they are not given
/// @throws std::invalid_argument for two options with one file
inline void require_different(std::vector<std::pair<std::string, std::string>> const& files) {
  const auto place = [](std::string const& path) {
    std::error_code error;
    const std::filesystem::path real = std::filesystem::weakly_canonical(std::filesystem::absolute(path), error);
    return error ? std::filesystem::path(path) : real;
  };
  for (auto one = files.begin(); one != files.end(); ++one) {
    std::error_code error;
    const std::filesystem::file_status there = std::filesystem::status(one->second, error);
    if (std::filesystem::exists(there) && !std::filesystem::is_regular_file(there)) continue;  // such as /dev/null
    for (auto other = files.begin(); other != one; ++other) {
      if (one->second.empty() || other->second.empty() || place(one->second) != place(other->second)) continue;
      throw std::invalid_argument(one->first + ": must be another file than that of " + other->first + ", got '" +
                                  one->second + "'");
    }
  }
}
