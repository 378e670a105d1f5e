/// @file
/// The options of a class by name. A class lists its options once; its name in plans and reports, and programs that
/// take options by name, read the list.
///
///     struct Rule {
///       int order = 2;
///       bool corrector = true;
///
///       static void options(auto& self, auto const& see) {
///         see("order", self.order);
///         see("corrector", self.corrector);
///       }
///     };
///
/// An option is a number, a bool, an enumeration that has `constexpr std::array<char const*, N> names_of(Enumeration)`
/// with the names of its values in their order, or an optional class that has options itself.
#pragma once

#include <array>
#include <charconv>
#include <cstddef>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "error.hpp"
#include "text.hpp"

namespace tstitch {

/// What an option is to be: a number, a bool, or text, which may say these too ("3", "0.5", "true").
struct OptionValue {
  OptionValue(std::string value) : text(std::move(value)) {}   // NOLINT: conversion is the purpose
  OptionValue(char const* value) : text(value) {}              // NOLINT
  OptionValue(bool value) : text(value ? "true" : "false") {}  // NOLINT
  template <class Number>
  requires(std::is_arithmetic_v<Number>) OptionValue(Number value);  // NOLINT

  std::string text;
};

/// Options by name: `{{"order", 3}, {"solver_type", "heun"}}`.
using OptionValues = std::map<std::string, OptionValue>;

/// An option as programs list it.
struct NamedOption {
  std::string name;
  std::string usual;                ///< its value where nothing is said
  std::vector<std::string> values;  ///< all that there are; empty for numbers
};

namespace detail {

template <class>
inline constexpr bool is_optional = false;
template <class Value>
inline constexpr bool is_optional<std::optional<Value>> = true;

struct SeesNothing {
  void operator()(char const*, auto const&) const {}
};

/// Whether it lists its options in this form.
template <class Class>
concept ListsOptions = requires(Class& object, Class const& constant) {
  Class::options(object, SeesNothing{});
  Class::options(constant, SeesNothing{});
};

template <class Value>
concept HasNames = requires(Value value) {
  names_of(value);
};

/// The number in as few digits as tell it from every other of its type.
template <class Number>
std::string exact_text(Number number) {
  if constexpr (std::is_floating_point_v<Number>) number += 0;  // -0 is 0
  char buffer[64];
  return {buffer, std::to_chars(buffer, buffer + sizeof buffer, number).ptr};
}

/// An option's value, another text for another value. Of an optional class whether it is there.
template <class Value>
std::string option_text(Value const& value) {
  if constexpr (std::is_same_v<Value, bool>) {
    return value ? "true" : "false";
  } else if constexpr (is_optional<Value>) {
    return value ? "true" : "false";
  } else if constexpr (std::is_enum_v<Value>) {
    static_assert(HasNames<Value>, "tstitch::NamedOption: an enumeration must have names_of, as options.hpp says");
    constexpr auto names = names_of(Value{});
    const std::size_t index = std::size_t(value);
    return index < names.size() ? names[index] : exact_text(index);
  } else {
    static_assert(std::is_arithmetic_v<Value>,
                  "tstitch::NamedOption: an option must be a number, a bool, an enumeration or an optional class");
    return exact_text(value);
  }
}

/// "solver_type" in words, "solver type". Formulas keep their letters: s_churn, x_0.
inline std::string in_words(std::string name) {
  for (std::size_t begin = 0, end; (end = name.find('_', begin)) != std::string::npos; begin = end + 1) {
    if (end - begin > 1) name[end] = ' ';
  }
  return name;
}

/// "order 3, no corrector": the options that are not what they are in `unchanged`; another text for other options.
template <class Class>
std::string unusual_options(Class const& object, Class const& unchanged) {
  static_assert(ListsOptions<Class>,
                "tstitch::NamedOption: options must be 'static void options(auto& self, auto const& see)' that calls "
                "see(\"name\", self.name) for each");
  std::vector<std::string> usual;
  Class::options(unchanged, [&](char const*, auto const& value) { usual.push_back(option_text(value)); });
  std::string list;
  std::size_t i = 0;
  Class::options(object, [&]<class Value>(char const* name, Value const& value) {
    const std::string text = option_text(value);
    if (text == usual[i++]) return;
    std::string phrase = in_words(name);
    if constexpr (std::is_same_v<Value, bool>) {
      if (!value) phrase = "no " + phrase;
    } else if constexpr (is_optional<Value>) {
      const std::string inner = value ? unusual_options(*value, {}) : "";
      if (!inner.empty()) phrase += " (" + inner + ")";
    } else {
      phrase += " " + in_words(text);
    }
    list += (list.empty() ? "" : ", ") + phrase;
  });
  return list;
}

/// "DDIM (eta 0.5)": a name, and behind it the options that are not the usual ones.
template <class Class>
std::string name_with_options(std::string name, Class const& object, Class const& unchanged = {}) {
  const std::string options = unusual_options(object, unchanged);
  return options.empty() ? name : name + " (" + options + ")";
}

/// All options; those of an optional class too, as "pid" and "pid_p".
template <class Class>
std::vector<NamedOption> list_options(Class const& object) {
  static_assert(ListsOptions<Class>,
                "tstitch::NamedOption: options must be 'static void options(auto& self, auto const& see)' that calls "
                "see(\"name\", self.name) for each");
  std::vector<NamedOption> list;
  Class::options(object, [&]<class Value>(char const* name, Value const& value) {
    NamedOption option{name, option_text(value), {}};
    if constexpr (std::is_enum_v<Value>) {
      for (char const* const each : names_of(Value{})) option.values.emplace_back(each);
    } else if constexpr (std::is_same_v<Value, bool> || is_optional<Value>) {
      option.values = {"false", "true"};
    }
    list.push_back(std::move(option));
    if constexpr (is_optional<Value>) {
      for (NamedOption& inner : list_options(value.value_or(typename Value::value_type{}))) {
        list.push_back({std::string(name) + "_" + inner.name, std::move(inner.usual), std::move(inner.values)});
      }
    }
  });
  return list;
}

/// Takes the value from its text. An optional class is there from now on, or no more.
/// @throws std::invalid_argument in the name of `place` for what is no such value
template <class Value>
void read_option(std::string const& place, std::string const& name, std::string const& text, Value& value) {
  if constexpr (std::is_same_v<Value, bool> || is_optional<Value>) {
    if (text != "true" && text != "false") refuse(place, name + " must be true or false", in_quotes(text));
    if constexpr (is_optional<Value>) {
      if (text == "false") value.reset();
      if (text == "true" && !value) value.emplace();
    } else {
      value = text == "true";
    }
  } else if constexpr (std::is_enum_v<Value>) {
    constexpr auto names = names_of(Value{});
    std::size_t index = 0;
    while (index < names.size() && text != names[index]) ++index;
    if (index == names.size()) {
      refuse(place, name + " must be one of " + joined({names.begin(), names.end()}), in_quotes(text));
    }
    value = Value(index);
  } else {
    std::optional<Value> number = number_of<Value>(text);
    if (std::is_floating_point_v<Value> && text == "inf") number = std::numeric_limits<Value>::infinity();
    if (!number) refuse(place, name + " must be " + kind_of_number<Value>(), in_quotes(text));
    value = *number;
  }
}

/// Sets the option of this name.
/// @returns whether there is one
/// @throws std::invalid_argument in the name of `place` for a value that it cannot have
template <class Class>
bool set_option(std::string const& place, std::string const& name, std::string const& text, Class& object) {
  bool found = false;
  Class::options(object, [&]<class Value>(char const* each, Value& value) {
    if (name == each) {
      read_option(place, name, text, value);
      found = true;
    }
    if constexpr (is_optional<Value>) {
      const std::string prefix = std::string(each) + "_";
      if (!name.starts_with(prefix)) return;
      typename Value::value_type inner = value.value_or(typename Value::value_type{});
      if (!set_option(place, name.substr(prefix.size()), text, inner)) return;
      value = inner;
      found = true;
    }
  });
  return found;
}

}  // namespace detail

template <class Number>
requires(std::is_arithmetic_v<Number>) OptionValue::OptionValue(Number value) : text(detail::exact_text(value)) {}

}  // namespace tstitch
