/// @file
/// How deeply the code of a TorchScript file is nested.
#pragma once

#include <c10/util/Exception.h>

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace tstitch::detail {

/// Refuses code on which torch's parser and compiler, which recurse, would run out of stack. A line nests no deeper
/// than it has tokens between commas, and blocks no deeper than lines are indented.
class CodeDepth {
 public:
  /// @throws c10::Error
  explicit CodeDepth(std::string_view code) : code_(code) {
    while (position_ < code_.size()) {
      const char c = code_[position_];
      if (c == '\n') {
        ++position_;
        if (outer_.empty()) begin_line();
      } else if (starts_with("\\\n")) {
        position_ += 2;
      } else if (c == '#' && !starts_with("# type:")) {  // the lexer takes what follows those for code
        position_ = std::min(code_.find('\n', position_), code_.size());
      } else if (c == ' ' || c == '\t' || c == '\r' || c == '\f') {
        ++position_;
      } else {
        take_token(c);
      }
    }
  }

 private:
  static constexpr std::size_t most_brackets = 256, most_tokens = 2000, most_columns = 512, most_alternatives = 256;

  static void require(bool holds) { TORCH_CHECK(holds, "its code is nested too deeply"); }

  bool starts_with(std::string_view text) const { return code_.substr(position_).starts_with(text); }

  void begin_line() {
    tokens_ = 0;
    const std::size_t begin = position_;
    position_ = std::min(code_.find_first_not_of(" \t\r\f", position_), code_.size());
    require(position_ - begin <= most_columns);
  }

  void take_token(char c) {
    require(++tokens_ <= most_tokens);
    if (c == '"' || c == '\'') {
      skip_string(c);
    } else if (is_of_word(c)) {
      const std::size_t begin = position_;
      while (position_ < code_.size() && is_of_word(code_[position_])) ++position_;
      if (code_.substr(begin, position_ - begin) == "elif") require(++alternatives_ <= most_alternatives);
    } else {
      ++position_;
      if (c == '(' || c == '[' || c == '{') {
        outer_.push_back(tokens_);
        require(outer_.size() <= most_brackets);
      } else if (c == ')' || c == ']' || c == '}') {
        TORCH_CHECK(!outer_.empty(), "its code closes a bracket that is not open");
        tokens_ = outer_.back();
        outer_.pop_back();
      } else if (c == ',') {
        tokens_ = outer_.empty() ? 0 : outer_.back();
      }
    }
  }

  void skip_string(char quote) {
    const std::string three(3, quote);
    const bool is_long = starts_with(three);
    const std::string_view end = std::string_view(three).substr(0, is_long ? 3 : 1);
    for (position_ += end.size(); position_ < code_.size(); ++position_) {
      if (starts_with(end)) {
        position_ += end.size();
        return;
      }
      if (code_[position_] == '\n' && !is_long) break;
      if (code_[position_] == '\\') ++position_;
    }
    TORCH_CHECK(false, "its code has a string without an end");
  }

  static bool is_of_word(char c) {
    return c == '_' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  }

  std::string_view code_;
  std::size_t position_ = 0, tokens_ = 0, alternatives_ = 0;
  std::vector<std::size_t> outer_ = {};  // tokens before each open bracket
};

}  // namespace tstitch::detail
