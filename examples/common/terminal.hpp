/// @file
/// Lines that fit the terminal.
#pragma once

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>

/// How wide the terminal is; where there is none, or it does not say so, 80 columns.
inline int terminal_columns(int file = STDOUT_FILENO) {
  winsize size = {};
  return ioctl(file, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

/// Text in lines of at most so many columns, broken at spaces; a longer word has a line of its own. All lines but the
/// first begin with `hanging` spaces, behind which the first one stands already.
/// @param end what a line has behind it where another follows, such as " \" in a shell
inline std::string in_lines(std::string_view text, std::size_t columns, std::size_t hanging,
                            std::string_view end = "") {
  std::string lines;
  std::size_t column = hanging;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t space = std::min(text.find(' ', begin + 1), text.size());
    std::string_view word = text.substr(begin, space - begin);
    const bool first = lines.empty();
    if (!first && column + word.size() + end.size() > columns) {
      lines += std::string(end) + "\n" + std::string(hanging, ' ');
      column = hanging;
      if (word.starts_with(' ')) word.remove_prefix(1);
    }
    lines += word;
    column += word.size();
    begin = space;
  }
  return lines;
}
