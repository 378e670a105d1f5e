/// @file
/// Pictures in the terminal: by kitty's graphics protocol, in sixels by chafa where the program is built with it, and
/// in half blocks.
#pragma once

#include <tstitch/output/image.hpp>

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#ifdef TSTITCH_WITH_CHAFA
#include <chafa.h>
#endif

#include "../common/signals.hpp"
#include "../common/small_picture.hpp"
#include "../common/strict.hpp"
#include "../common/terminal.hpp"

/// What --preview takes; `automatic` becomes one of the others.
inline std::vector<std::string> const& preview_kinds() {
  static const std::vector<std::string> kinds{"auto", "kitty", "sixel", "blocks", "none"};
  return kinds;
}

/// Refuses what this program cannot draw.
inline void require_preview([[maybe_unused]] std::string const& kind) {
#ifndef TSTITCH_WITH_CHAFA
  if (kind != "sixel") return;
  throw std::invalid_argument(
      "--preview: must be auto, kitty, blocks or none, for this program was built without libchafa, got " +
      in_quotes(kind));
#endif
}

/// A variable of the environment; empty where it is not set.
inline std::string environment(char const* name) {
  char const* const value = std::getenv(name);
  return value ? value : "";
}

/// The controlling terminal while it is asked what it can do: what it answers is not shown, and comes at once. Ctrl-C
/// stays a signal, and also then it is given back as it was.
class AskedTerminal {
 public:
  AskedTerminal() : file_(open("/dev/tty", O_RDWR | O_NOCTTY | O_CLOEXEC)) {
    // Who stands in the background would be stopped for this.
    if (file_ < 0 || tcgetpgrp(file_) != getpgrp() || tcgetattr(file_, &before_) != 0) return;
    termios changed = before_;
    changed.c_lflag &= ~tcflag_t(ICANON | ECHO);
    changed.c_cc[VMIN] = 0;
    changed.c_cc[VTIME] = 0;
    asked_ = this;
    before_exit = [] {
      if (AskedTerminal* const now = asked_) now->give_back();
    };
    open_ = tcsetattr(file_, TCSADRAIN, &changed) == 0;
  }
  AskedTerminal(AskedTerminal const&) = delete;
  AskedTerminal& operator=(AskedTerminal const&) = delete;
  ~AskedTerminal() {
    if (open_) give_back();
    before_exit = nullptr;
    asked_ = nullptr;
    if (file_ >= 0) close(file_);
  }

  /// @param question control sequences
  /// @param last the character that ends the answer
  /// @returns the answer; empty where none comes in half a second
  std::string answer(std::string_view question, char last) const {
    using namespace std::chrono;
    if (!open_ || write(file_, question.data(), question.size()) != ssize_t(question.size())) return "";
    std::string answer;
    const auto end = steady_clock::now() + milliseconds(500);
    while (answer.size() < 256) {
      pollfd waits{file_, POLLIN, 0};
      const auto left = duration_cast<milliseconds>(end - steady_clock::now()).count();
      char next = 0;
      if (left <= 0 || poll(&waits, 1, int(left)) != 1 || read(file_, &next, 1) != 1) return "";
      answer += next;
      if (next == last) return answer;
    }
    return "";
  }

 private:
  /// Throws away what has come too late.
  void give_back() const { tcsetattr(file_, TCSAFLUSH, &before_); }

  static inline std::atomic<AskedTerminal*> asked_ = nullptr;
  int file_;
  termios before_ = {};
  bool open_ = false;
};

/// Whether the terminal says that it knows sixels: 4 among its attributes (DA1).
inline bool answers_sixel() {
  const std::string answer = AskedTerminal().answer("\033[c", 'c');  // ESC [ ? 62 ; 4 c
  const std::size_t begin = answer.rfind("\033[?");
  if (begin == answer.npos) return false;
  const std::vector<std::string> attributes =
      split(std::string_view(answer).substr(begin + 3, answer.size() - begin - 4), ';');
  return std::ranges::count(attributes, "4") > 0;
}

/// What standard output's terminal can show: first by the environment, then by its own answer.
/// @param why receives the reason for "none"
inline std::string detect_preview(std::string& why) {
  const std::string term = environment("TERM"), program = environment("TERM_PROGRAM");
  if (isatty(STDOUT_FILENO) != 1) {
    why = "the output is no terminal";
  } else if (term == "dumb" || term.empty()) {
    why = "the terminal is " + (term.empty() ? "unknown (TERM is not set)" : in_quotes(term));
  }
  for (char const* const name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    const std::string locale = environment(name);
    if (locale.empty()) continue;
    const std::string set = locale.substr(std::min(locale.find('.'), locale.size()));
    if (!set.empty() && set.find("UTF") == set.npos && set.find("utf") == set.npos && why.empty()) {
      why = "the characters of the terminal are not UTF-8 (" + std::string(name) + " is " + in_quotes(locale) + ")";
    }
    break;
  }
  if (!why.empty()) return "none";
  // What runs inside of these has the variables of the terminal around them.
  const bool multiplexed = !environment("TMUX").empty() || !environment("STY").empty();
  const bool kitty = !environment("KITTY_WINDOW_ID").empty() || term.find("kitty") != term.npos ||
                     term.find("ghostty") != term.npos || program == "ghostty";
  if (kitty && !multiplexed) return "kitty";
#ifdef TSTITCH_WITH_CHAFA
  if (program != "Apple_Terminal" && answers_sixel()) return "sixel";
#endif
  return "blocks";
}

/// Pictures as lines of half blocks: each character is two pixels, one over the other.
/// @param true_color in 24 bits; else in the 256 colours of a table that terminals share
inline std::string half_blocks(tstitch::Picture const& picture, bool true_color) {
  using Color = std::array<int, 3>;
  const auto pixel = [&](int x, int y) {
    std::uint8_t const* const from =
        picture.pixels.data() +
        (std::size_t(y) * std::size_t(picture.width) + std::size_t(x)) * std::size_t(picture.channels);
    return picture.channels == 3 ? Color{from[0], from[1], from[2]} : Color{from[0], from[0], from[0]};
  };
  const auto code = [&](Color const& c) {
    if (true_color) return "2;" + std::to_string(c[0]) + ";" + std::to_string(c[1]) + ";" + std::to_string(c[2]);
    const auto distance = [&](Color const& other) {
      int sum = 0;
      for (std::size_t i = 0; i < 3; ++i) sum += (c[i] - other[i]) * (c[i] - other[i]);
      return sum;
    };
    // A cube of 6 levels a colour from 16 on, and 24 greys from 232 on.
    const auto level = [](int v) { return v < 48 ? 0 : v < 115 ? 1 : (v - 35) / 40; };
    const auto of_level = [](int l) { return l == 0 ? 0 : 55 + 40 * l; };
    const Color at{level(c[0]), level(c[1]), level(c[2])};
    const int grey = std::clamp(((c[0] + c[1] + c[2]) / 3 - 3) / 10, 0, 23), shown = 8 + 10 * grey;
    const bool is_grey =
        distance({shown, shown, shown}) < distance({of_level(at[0]), of_level(at[1]), of_level(at[2])});
    return "5;" + std::to_string(is_grey ? 232 + grey : 16 + 36 * at[0] + 6 * at[1] + at[2]);
  };
  std::string text;
  for (int y = 0; y < picture.height; y += 2) {
    std::string upper, lower;  // the colours that are set
    for (int x = 0; x < picture.width; ++x) {
      const std::string over = "38;" + code(pixel(x, y));
      const std::string under = y + 1 < picture.height ? "48;" + code(pixel(x, y + 1)) : "49";
      if (over != upper || under != lower) {
        text += "\033[" + (over != upper ? over : "") + (over != upper && under != lower ? ";" : "") +
                (under != lower ? under : "") + "m";
      }
      upper = over, lower = under;
      text += "\xE2\x96\x80";  // upper half block
    }
    text += "\033[0m\n";
  }
  return text;
}

/// Draws pictures into the terminal, as wide as fits.
class Preview {
 public:
  /// @param kind as `detect_preview` gives it; empty or none: draws nothing
  /// @param beside how many pictures stand side by side where there is room; 0: as many as fit
  /// @param scale of pictures in pixels of the terminal
  Preview(std::string kind, std::int64_t beside, int scale) : kind_(std::move(kind)), beside_(beside), scale_(scale) {}

  explicit operator bool() const { return !kind_.empty() && kind_ != "none"; }

  /// What is to be taken off the screen first, such as a line of progress.
  void above(std::function<void()> clear) { clear_ = std::move(clear); }

  /// The first of these pictures, as many as the screen has lines for, and how many more there are.
  void operator()(std::vector<tstitch::Picture> const& pictures) const {
    if (!*this || pictures.empty()) return;
    if (clear_) clear_();
    winsize size = {};
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0) size = {};
    const int columns = std::max(size.ws_col > 0 ? size.ws_col - 1 : 79, 1);  // the last stays free, as some wrap there
    const int lines = std::max(size.ws_row > 0 ? size.ws_row - 2 : 48, 1);
    constexpr int narrowest = 16;  // columns of a picture among others
    const int most = std::max(1, (columns + gap) / (narrowest + gap));
    const int wanted = int(std::min<std::int64_t>(beside_ > 0 ? beside_ : most, std::int64_t(pictures.size())));
    const int row = std::clamp(wanted, 1, most);
    const int room = std::max(1, (columns - (row - 1) * gap) / row);  // columns of each
    tstitch::Picture const& first = pictures[0];
    const bool blocks = kind_ == "blocks";
    // In blocks a pixel is a column; else a cell is of many pixels.
    const int cell_width = !blocks && size.ws_col > 0 && size.ws_xpixel > 0 ? size.ws_xpixel / size.ws_col : 10;
    const int cell_height = !blocks && size.ws_row > 0 && size.ws_ypixel > 0 ? size.ws_ypixel / size.ws_row : 20;
    const int width = blocks ? std::min(first.width, room)
                             : std::min(std::max(1, first.width * scale_ / std::max(cell_width, 1)), room);
    const double pixels = blocks ? width : double(width) * cell_width;  // across
    const int height = std::max(1, int(pixels * first.height / first.width + 0.5));
    const int of_each = std::max(1, blocks ? (height + 1) / 2 : (height + cell_height - 1) / cell_height);
    const std::size_t shown = std::min(pictures.size(), std::size_t(row) * std::size_t(std::max(1, lines / of_each)));
    for (std::size_t begin = 0; begin < shown; begin += std::size_t(row)) {
      const std::size_t end = std::min(begin + std::size_t(row), shown);
      std::vector<tstitch::Picture> side_by_side(pictures.begin() + std::ptrdiff_t(begin),
                                                 pictures.begin() + std::ptrdiff_t(end));
      if (blocks) {
        for (tstitch::Picture& each : side_by_side) each = resized_picture(each, width, height);
        std::cout << half_blocks(tstitch::make_grid(side_by_side, int(side_by_side.size()), gap), in_true_color());
      } else {
        const int count = int(side_by_side.size()), across = width * count + count - 1;
        const tstitch::Picture row_of_them = tstitch::make_grid(side_by_side, count, gap);
        if (kind_ == "kitty") {
          write_kitty(row_of_them, across);
        } else {
          write_sixels(row_of_them, across, cell_width, cell_height);
        }
      }
    }
    if (shown < pictures.size()) std::cout << "and " << pictures.size() - shown << " more\n";
    std::cout << std::flush;
  }

 private:
  static constexpr int gap = 1;  // column or pixel between pictures

  static bool in_true_color() {
    const std::string color = environment("COLORTERM"), term = environment("TERM");
    return color == "truecolor" || color == "24bit" || term.find("direct") != term.npos;
  }

  /// A PNG file in pieces of base64, as many columns wide; the terminal knows how high that is. Not by chafa, whose
  /// version 1.12 makes some pixels a little transparent.
  void write_kitty(tstitch::Picture const& picture, int columns) const {
    const std::string text = base64(tstitch::encode_png(tstitch::enlarge(picture, scale_)));
    constexpr std::size_t piece = 4096;
    for (std::size_t i = 0; i < text.size(); i += piece) {
      std::cout << "\033_G" << (i == 0 ? "a=T,f=100,q=2,c=" + std::to_string(columns) + "," : "")
                << "m=" << (i + piece < text.size()) << ";" << text.substr(i, piece) << "\033\\";
    }
    std::cout << "\n";
  }

  /// @param columns of the picture in cells, each of so many pixels
  void write_sixels([[maybe_unused]] tstitch::Picture const& pictures, [[maybe_unused]] int columns,
                    [[maybe_unused]] int cell_width, [[maybe_unused]] int cell_height) const {
#ifdef TSTITCH_WITH_CHAFA
    const double lines = double(columns) * cell_width * pictures.height / pictures.width / cell_height;
    const int rows = std::max(1, int(std::ceil(lines)));
    // What is known of a terminal of the kind, whatever this one says that it is.
    std::string of_kind = "TERM=mlterm";
    std::array<gchar*, 2> variables{of_kind.data(), nullptr};
    ChafaTermInfo* const terminal = chafa_term_db_detect(chafa_term_db_get_default(), variables.data());
    ChafaCanvasConfig* const config = chafa_canvas_config_new();
    chafa_canvas_config_set_geometry(config, columns, rows);
    chafa_canvas_config_set_cell_geometry(config, cell_width, cell_height);
    chafa_canvas_config_set_pixel_mode(config, CHAFA_PIXEL_MODE_SIXELS);
    ChafaCanvas* const canvas = chafa_canvas_new(config);
    // In the size that it will have. Below it, what is left of its last row of cells is transparent.
    const tstitch::Picture picture =
        resized_picture(pictures, columns * cell_width, std::max(1, int(lines * cell_height + 0.5)));
    const int height = rows * cell_height;
    std::vector<std::uint8_t> colors(std::size_t(height) * std::size_t(picture.width) * 4);
    for (std::size_t i = 0; i < std::size_t(picture.height) * std::size_t(picture.width); ++i) {
      for (std::size_t c = 0; c < 3; ++c) {
        colors[4 * i + c] = picture.pixels[picture.channels == 3 ? 3 * i + c : i];
      }
      colors[4 * i + 3] = 255;
    }
    chafa_canvas_draw_all_pixels(canvas, CHAFA_PIXEL_RGBA8_UNASSOCIATED, colors.data(), picture.width, height,
                                 4 * picture.width);
    GString* const text = chafa_canvas_print(canvas, terminal);
    std::cout << std::string_view(text->str, text->len) << "\n";
    g_string_free(text, TRUE);
    chafa_canvas_unref(canvas);
    chafa_canvas_config_unref(config);
    chafa_term_info_unref(terminal);
#endif
  }

  std::string kind_;
  std::int64_t beside_;
  int scale_;
  std::function<void()> clear_ = {};
};
