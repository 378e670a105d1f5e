/// @file
/// A progress bar for terminals.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#if __has_include(<unistd.h>)
#include <sys/ioctl.h>
#include <unistd.h>
#endif

#include "../base/error.hpp"
#include "../sampler/observer.hpp"

namespace tstitch {
namespace detail {

/// The most columns that printable text may take on a terminal. Characters from U+0800 on count as two, for many are.
inline int columns_of(std::string_view text) {
  int columns = 0;
  while (!text.empty()) {
    const std::size_t size = std::max<std::size_t>(printable_character(text), 1);
    columns += size > 2 ? 2 : 1;
    text.remove_prefix(size);
  }
  return columns;
}

/// The time left as text: "0:12 left". Empty where it is unknown.
inline std::string time_left(double seconds) {
  if (!(seconds >= 0 && seconds < 1e7)) return "";
  char text[32];
  const int whole = int(seconds + 0.5);
  if (whole < 6000)
    std::snprintf(text, sizeof text, "%d:%02d left", whole / 60, whole % 60);
  else
    std::snprintf(text, sizeof text, "%d h %02d min left", whole / 3600, whole / 60 % 60);
  return text;
}

/// A progress bar: "[####....]  50%  step 5/10  0:12 left". Parts that do not fit are left out.
/// @param columns the most that the text may take
/// @param done how much of the work is done, in [0, all]
/// @param all the whole work, in [1, 10^16], in the same unit
/// @param about texts to show after the percentage, the most important first: the others are left out before it
/// @param left the time left, shown last; left out only where it does not fit beside the percentage alone
inline std::string progress_text(int columns, std::int64_t done, std::int64_t all,
                                 std::vector<std::string> const& about, std::string const& left) {
  if (columns < 4) return "";
  char percent[8];
  std::snprintf(percent, sizeof percent, "%3d%%", int(done * 100 / all));
  int room = columns - 4;
  const auto takes = [&](std::string const& part) {
    const int wanted = columns_of(part) + 2;
    if (part.empty() || wanted > room) return false;
    room -= wanted;
    return true;
  };
  const bool has_left = takes(left);
  std::string text = percent;
  for (std::string const& part : about) {
    if (takes(part)) text += "  " + part;
  }
  if (has_left) text += "  " + left;
  const int width = std::min(room - 3, 24);
  if (width < 8) return text;
  const int filled = int(done * width / all);
  return "[" + std::string(std::size_t(filled), '#') + std::string(std::size_t(width - filled), '.') + "] " + text;
}

}  // namespace detail

/// Shows progress. On a terminal it redraws one line, never wider than the window. Elsewhere, such as in a log file, it
/// prints a plain line after one second, at each tenth of the work, and after ten seconds without a line.
class ProgressLine {
 public:
  explicit ProgressLine(std::FILE* stream = stderr) : stream_(stream), terminal_(is_terminal(stream)) {}

  ProgressLine(ProgressLine const&) = delete;
  ProgressLine& operator=(ProgressLine const&) = delete;
  ~ProgressLine() { finish(); }

  /// Since this object was made.
  double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

  /// @param done how much of the work is done, in [0, all]
  /// @param all the whole work, in [1, 10^16], in the same unit
  /// @param about texts behind the percentage, the most important first: where there is no room for all, the others are
  ///   left out before it
  /// @param now draw even if little has changed since the last time
  void show(std::int64_t done, std::int64_t all, std::vector<std::string> about, bool now = false) {
    all_ = std::max<std::int64_t>(all, 1);
    done_ = std::clamp<std::int64_t>(done, 0, all_);
    about_ = std::move(about);
    // In integers, so that each tenth is exact.
    const std::int64_t tenth = done_ * 10 / all_;
    const double since = std::chrono::duration<double>(Clock::now() - shown_).count();
    const bool last = done_ == all_;
    const bool due =
        terminal_ ? last || !drawn_ || since >= 0.1 : tenth != tenth_ || since >= (shown_ == start_ ? 1 : 10);
    if (!due && !now) return;
    if (due) shown_ = Clock::now();
    tenth_ = tenth;
    draw();
    if (last) finish();
  }

  /// Ends the line; what is printed later begins on the next.
  void finish() {
    if (!terminal_ || !drawn_) return;
    draw();  // the terminal may have printed over the line, such as ^C
    std::fputs("\n", stream_);
    std::fflush(stream_);
    drawn_ = false;
  }

  /// Erases the line, so that something else can be printed. The next `show` draws it again.
  void clear() {
    if (!terminal_ || !drawn_) return;
    std::fprintf(stream_, "\r%s", rest(columns()));
    std::fflush(stream_);
    drawn_ = false;
  }

 private:
  using Clock = std::chrono::steady_clock;

  static bool is_terminal([[maybe_unused]] std::FILE* stream) {
#if __has_include(<unistd.h>)
    char const* const kind = std::getenv("TERM");
    return isatty(fileno(stream)) == 1 && (!kind || std::string_view(kind) != "dumb");
#else
    return false;
#endif
  }

  /// The width of the window now.
  int columns() const {
#if __has_include(<unistd.h>)
    winsize size = {};
    if (ioctl(fileno(stream_), TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
#endif
    return 80;
  }

  /// The escape sequence that erases what is left of an older line: to the end of the line, or to the end of the screen
  /// where the window became narrower and has wrapped the line.
  char const* rest(int columns) const {
    return columns < drawn_columns_ ? "\033[J" : "\033[K";
  }

  void draw() {
    const double share = double(done_) / double(all_);
    const std::string left = done_ ? detail::time_left(seconds() / share * (1 - share)) : "";
    if (!terminal_) {
      std::string line = detail::progress_text(4, done_, all_, {}, "");
      for (std::string const& part : about_) line += "  " + part;
      std::fprintf(stream_, "%s%s%s\n", line.c_str(), left.empty() ? "" : "  ", left.c_str());
    } else {
      // The last column stays free: some terminals begin a new line after it. The cursor is left at the beginning, so
      // that the next line is drawn over this one even if the window became narrower and wrapped it.
      const int width = columns();
      std::fprintf(stream_, "\r%s%s\r", detail::progress_text(width - 1, done_, all_, about_, left).c_str(),
                   rest(width));
      drawn_columns_ = width;
      drawn_ = true;
    }
    std::fflush(stream_);
  }

  std::FILE* stream_;
  bool terminal_;
  std::int64_t done_ = 0, all_ = 1;
  std::vector<std::string> about_ = {};
  bool drawn_ = false;
  int drawn_columns_ = 0;
  std::int64_t tenth_ = 0;
  Clock::time_point start_ = Clock::now();
  Clock::time_point shown_ = start_;
};

/// An observer that shows the progress of a run: step, network, images per second, time left. On a terminal it redraws
/// one line, never wider than the window; elsewhere it prints a plain line after one second, at each tenth of the run,
/// and after ten seconds without a line.
///
/// Pass it by reference: `sampler.sample(networks, request, std::ref(progress))`. On a GPU it shows the work that is
/// queued, which is a little ahead of the work that is done.
class ProgressBar {
 public:
  /// @param images how many the whole run draws, in [1, 10^12]
  /// @param names the networks' names; a network without one is shown by its index
  /// @throws std::invalid_argument for another number of images
  explicit ProgressBar(std::int64_t images, std::vector<std::string> names = {}, std::FILE* stream = stderr)
      : images_(images), names_(std::move(names)), line_(stream) {
    if (images < 1) detail::refuse("ProgressBar", "images must be at least 1", double(images));
    if (images > 1'000'000'000'000) detail::refuse("ProgressBar", "images must be at most 10^12", double(images));
  }

  /// Shows the line before the first step is done.
  void begin() { line_.show(0, 1, {std::to_string(images_) + (images_ == 1 ? " image" : " images")}, true); }

  void operator()(StepReport const& report) {
    const std::int64_t done = report.first * report.steps + report.images * report.done, all = images_ * report.steps;
    const std::string name = report.network < names_.size() ? detail::printable(names_[report.network], 40)
                                                            : "network " + std::to_string(report.network);
    char rate[32];
    std::snprintf(rate, sizeof rate, "%.3g images/s", double(done) / report.steps / line_.seconds());
    line_.show(done, all, {"step " + std::to_string(report.done) + "/" + std::to_string(report.steps), name, rate});
  }

  /// Erases the line, so that something else can be printed; the next report draws it again.
  void clear() { line_.clear(); }

  /// Ends the line; later reports begin a new one.
  void finish() { line_.finish(); }

 private:
  std::int64_t images_;
  std::vector<std::string> names_;
  ProgressLine line_;
};

}  // namespace tstitch
