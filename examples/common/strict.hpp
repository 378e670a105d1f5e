/// @file
/// Options of a command line that are what was written, or refused.
#pragma once

#include <tstitch/base/text.hpp>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

using tstitch::words::in_quotes;
using tstitch::words::joined;
using tstitch::words::kind_of_number;
using tstitch::words::names_in;
using tstitch::words::number_of;
using tstitch::words::numbers_of;
using tstitch::words::split;

/// "a, b and c".
inline std::string joined_with_and(std::vector<std::string> words) {
  if (words.size() < 2) return joined(words);
  const std::string last = words.back();
  words.pop_back();
  return joined(words) + " and " + last;
}

/// "1 step", "2 steps".
template <class Number>
std::string counted(Number number, std::string const& what) {
  return std::to_string(number) + " " + what + (number == 1 ? "" : "s");
}

/// The number that an option's value is.
template <class Value>
struct NumberIn {
  using type = Value;
};
template <class Value>
struct NumberIn<std::optional<Value>> : NumberIn<Value> {};

/// "[0, 1]".
template <class Number>
std::string range_text(Number least, Number most) {
  if constexpr (std::is_integral_v<Number>) return "[" + std::to_string(least) + ", " + std::to_string(most) + "]";
  return "[" + tstitch::words::text(double(least)) + ", " + tstitch::words::text(double(most)) + "]";
}

/// Refuses what is empty, and what is no number where `value` is one. CLI11 by itself takes "" for 0, "010" for 8 and
/// "-1" for 18446744073709551615.
template <class Value>
CLI::Option* strict(CLI::Option* option, Value const&) {
  return option->transform(CLI::Validator(
      [](std::string& text) -> std::string {
        if (text.empty()) return "must not be empty, got ''";
        using Number = typename NumberIn<Value>::type;
        if constexpr (std::is_arithmetic_v<Number>) {
          const std::optional<Number> number = number_of<Number>(text);
          if (!number) return "must be " + kind_of_number<Number>() + ", got " + in_quotes(text);
          if constexpr (std::is_integral_v<Number>) text = std::to_string(*number);
        }
        return {};
      },
      ""));
}

/// For `check` of an option that is a number.
template <class Number>
CLI::Validator in_range(Number least, Number most) {
  return CLI::Validator(
      [least, most](std::string& text) -> std::string {
        const std::optional<Number> number = number_of<Number>(text);
        if (number && *number >= least && *number <= most) return {};
        return "must be in " + range_text(least, most) + ", got " + in_quotes(text);
      },
      "");
}

/// An option of numbers with commas between, of which each is in the range.
template <class Number>
CLI::Option* add_numbers(CLI::App& app, std::string const& name, std::vector<Number>& values, std::string const& help,
                         Number least = std::numeric_limits<Number>::lowest(),
                         Number most = std::numeric_limits<Number>::max()) {
  // CLI11's own lists leave out what is empty between two commas.
  const auto read = [&values, name, least, most](std::vector<std::string> const& texts) {
    values.clear();
    for (std::string const& text : texts) {
      for (const Number number : numbers_of<Number>(name, text)) {
        if (!(number >= least && number <= most)) {
          throw std::invalid_argument(name + ": must be in " + range_text(least, most) + ", got " +
                                      tstitch::words::text(double(number)));
        }
        values.push_back(number);
      }
    }
  };
  return app.add_option_function<std::vector<std::string>>(name, read, help)->type_name("N")->allow_extra_args(false);
}

/// Turns what was written into one of these names, in which "_" may stand for "-".
/// @returns what is wrong with it; empty where nothing is
inline std::string find_name(std::string& text, std::vector<std::string> const& names) {
  std::string name = text;
  std::replace(name.begin(), name.end(), '_', '-');
  if (std::find(names.begin(), names.end(), name) == names.end()) {
    return "must be one of " + joined(names) + ", got " + in_quotes(text);
  }
  text = name;
  return {};
}

/// Lets an option be one of these names.
inline CLI::Option* one_of(CLI::Option* option, std::vector<std::string> const& names) {
  return option->transform(CLI::Validator([names](std::string& text) { return find_name(text, names); }, ""));
}

/// An option of names with commas between, of which each is one of these.
inline CLI::Option* add_names(CLI::App& app, std::string const& option, std::vector<std::string>& values,
                              std::string const& help, std::vector<std::string> const& names) {
  const auto read = [&values, option, names](std::vector<std::string> const& texts) {
    values.clear();
    for (std::string const& text : texts) {
      for (std::string& name : split(text, ',')) {
        if (const std::string error = find_name(name, names); !error.empty()) {
          throw std::invalid_argument(option + ": " + error);
        }
        values.push_back(name);
      }
    }
  };
  return app.add_option_function<std::vector<std::string>>(option, read, help)
      ->type_name("NAME")
      ->allow_extra_args(false);
}

/// Lets an option be a file whose name says that it is of this format, or says nothing.
inline CLI::Option* file_of(CLI::Option* option, std::string const& extension) {
  return option->check(CLI::Validator(
      [extension](std::string& text) -> std::string {
        std::string end = std::filesystem::path(text).extension().string();
        std::transform(end.begin(), end.end(), end.begin(), [](unsigned char c) { return char(std::tolower(c)); });
        if (end.empty() || end == extension) return {};
        return "must end in " + extension + ", which is what is written, got " + in_quotes(text);
      },
      ""));
}

/// Help of 80 columns.
class HelpFormatter : public CLI::Formatter {
 public:
  static constexpr std::size_t width = 80;

  /// @param examples of groups, a command each
  explicit HelpFormatter(std::map<std::string, std::string> examples = {}) : examples_(std::move(examples)) {
    column_width(30);
  }

  /// The text with its spaces turned into ends of lines where one would be longer.
  static std::string wrapped(std::string text, std::size_t columns) {
    std::size_t line = 0, space = std::string::npos;
    for (std::size_t i = 0; i < text.size(); ++i) {
      if (text[i] == '\n') line = i + 1, space = std::string::npos;
      if (text[i] == ' ') space = i;
      if (i - line < columns || space == std::string::npos) continue;
      text[space] = '\n';
      line = space + 1;
      space = std::string::npos;
    }
    return text;
  }

  std::string make_option_desc(CLI::Option const* option) const override {
    return wrapped(option->get_description(), width - get_column_width());
  }

  /// Without what an option excludes, which is said to who gives both.
  std::string make_option_opts(CLI::Option const* option) const override {
    const std::string all = CLI::Formatter::make_option_opts(option);
    return all.substr(0, all.find(" Excludes:"));
  }

  std::string make_group(std::string group, bool is_positional,
                         std::vector<CLI::Option const*> options) const override {
    std::string text = CLI::Formatter::make_group(group, is_positional, std::move(options));
    const auto example = examples_.find(group);
    const std::string heading = group + ":\n";
    if (const std::size_t at = text.find(heading); example != examples_.end() && at != std::string::npos) {
      text.insert(at + heading.size(), wrapped("  " + example->second, width) + "\n\n");
    }
    return text;
  }

 private:
  std::map<std::string, std::string> examples_;
};

/// Gives a program's options the help, and the version that the flag prints.
/// @param examples of groups of options, a command each
inline void set_up(CLI::App& app, std::string const& version, std::map<std::string, std::string> examples = {}) {
  app.formatter(std::make_shared<HelpFormatter>(std::move(examples)));
  app.description(HelpFormatter::wrapped(app.get_description(), HelpFormatter::width));
  app.set_version_flag("--version", version, "print the versions of the program, of torch and of CUDA, and stop");
}

/// What CLI11 refuses, in the words of the other messages: place, rule, value got. A sentence that is not known here
/// stays as it is, for versions of CLI11 differ.
inline std::string plain_sentence(CLI::App const& app, CLI::ParseError const& error) {
  const std::string sentence = error.what();
  if (dynamic_cast<CLI::ExtrasError const*>(&error)) {
    std::vector<std::string> extras;
    for (std::string const& extra : app.remaining()) extras.push_back(in_quotes(extra));
    return "arguments: must be those that --help lists, got also " + joined(extras);
  }
  struct Known {
    char const* error;
    char const* middle;  ///< of CLI11's sentence: behind the option's name
    char const* rule;    ///< what stands there instead
    char const* got;     ///< behind the rest of CLI11's sentence; null: the rest is left out
  };
  constexpr Known known[]{{"ArgumentMismatch", ": 1 required ", ": must have a value, got none", nullptr},
                          {"ArgumentMismatch", ": At Most 1 required but received ", ": must be given once, got ", ""},
                          {"RequiresError", " requires ", ": must come with ", ", got it alone"},
                          {"ExcludesError", " excludes ", ": must come without ", ", got both"}};
  for (Known const& each : known) {
    const std::size_t at = sentence.find(each.middle);
    if (error.get_name() != each.error || at == std::string::npos) continue;
    const std::string rest = sentence.substr(at + std::string_view(each.middle).size());
    return sentence.substr(0, at) + each.rule + (each.got ? rest + each.got : "");
  }
  return sentence;
}

/// @returns nothing when the program is to go on, else its exit code; help or version have been printed then
/// @throws std::invalid_argument for what an option refuses, in one line
inline std::optional<int> read_arguments(CLI::App& app, int count, char** values) {
  try {
    app.parse(count, values);
  } catch (CLI::Success const& printed) {
    return app.exit(printed);
  } catch (CLI::ParseError const& error) {
    throw std::invalid_argument(tstitch::words::printable(plain_sentence(app, error), 400));
  }
  return {};
}

/// Where a path leads, for comparing.
inline std::filesystem::path place_of(std::string const& path) {
  std::error_code error;
  const std::filesystem::path real = std::filesystem::weakly_canonical(std::filesystem::absolute(path), error);
  if (error) return path;
  return real.has_filename() ? real : real.parent_path();  // of "folder/"
}

/// @param written options and the files that they write; empty where they are not given
/// @param read likewise, what is only read
/// @throws std::invalid_argument for a file that is written and has another option, too
inline void require_different(std::vector<std::pair<std::string, std::string>> const& written,
                              std::vector<std::pair<std::string, std::string>> const& read = {}) {
  for (auto one = written.begin(); one != written.end(); ++one) {
    std::error_code error;
    const std::filesystem::file_status there = std::filesystem::status(one->second, error);
    if (std::filesystem::exists(there) && !std::filesystem::is_regular_file(there)) continue;  // such as /dev/null
    const auto compare = [&](std::pair<std::string, std::string> const& other) {
      if (one->second.empty() || other.second.empty() || place_of(one->second) != place_of(other.second)) return;
      throw std::invalid_argument(one->first + ": must be another file than that of " + other.first + ", got " +
                                  in_quotes(one->second));
    };
    std::for_each(written.begin(), one, compare);
    std::for_each(read.begin(), read.end(), compare);
  }
}
