/// @file
/// What was measured, kept for the next program: names and seconds.
///
///     tstitch times 1
///     0.00130	cifar10-dit-large ... | [1, 3, 32, 32] both halves computed
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "../base/text.hpp"
#include "../base/write_file.hpp"
#include "text_file.hpp"

namespace tstitch {
namespace detail {

inline constexpr FileKind times_file{"TimesFile", "a file of times"};
inline constexpr auto times_magic = "tstitch times 1";

}  // namespace detail

/// Numbers by name in a file, which is written anew, whole or not at all, with each that is added. Of programs that add
/// at once the last one wins; what another added is measured again.
class TimesFile {
 public:
  /// @param path of a file, which need not be there
  /// @throws std::runtime_error for a file that is damaged, or cannot be read
  explicit TimesFile(std::string path) : path_(std::move(path)) {
    std::error_code none;
    if (!std::filesystem::exists(path_, none)) return;
    std::vector<std::string> lines = detail::split(detail::read_text(detail::times_file, path_, 1 << 24), '\n');
    if (lines[0] != detail::times_magic) refuse("another first line than '" + std::string(detail::times_magic) + "'");
    if (!lines.back().empty()) refuse("a last line that is cut off");
    for (std::size_t i = 1; i + 1 < lines.size(); ++i) {
      const std::size_t tab = lines[i].find('\t');
      const std::optional<double> seconds = detail::number_of<double>(lines[i].substr(0, tab));
      if (tab == std::string::npos || !seconds || !std::isfinite(*seconds) || *seconds < 0) {
        refuse(detail::in_quotes(lines[i]) + " where a line must be seconds, a tab and a name");
      }
      seconds_[lines[i].substr(tab + 1)] = *seconds;
    }
  }

  std::optional<double> find(std::string const& name) const {
    const auto found = seconds_.find(name);
    return found == seconds_.end() ? std::nullopt : std::optional(found->second);
  }

  /// @param name without a line break
  /// @throws std::runtime_error where the file cannot be written
  void add(std::string const& name, double seconds) {
    if (name.find('\n') != std::string::npos) detail::refuse("TimesFile::add", "name must be one line", "several");
    seconds_[name] = seconds;
    std::string text = std::string(detail::times_magic) + "\n";
    for (auto const& [each, time] : seconds_) text += detail::text(time) + "\t" + each + "\n";
    write_file(path_, text);
  }

 private:
  [[noreturn]] void refuse(std::string const& got) const {
    detail::refuse_file(detail::times_file, detail::quoted(path_), got + "; delete it to measure again");
  }

  std::string path_;
  std::map<std::string, double> seconds_;
};

}  // namespace tstitch
