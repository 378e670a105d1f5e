/// @file
/// A progress bar for terminals.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#if __has_include(<unistd.h>)
#include <unistd.h>
#endif

#include "../plan/error.hpp"
#include "../sampler/trajectory.hpp"

namespace tstitch {

/// An observer that shows how far a run is: step, network, images a second, time left. One line that is redrawn on a
/// terminal; elsewhere a plain line at each tenth of the run.
///
/// Pass it by reference: `sampler.sample(networks, request, std::ref(progress))`. On a GPU it shows the work given out,
/// which runs a little ahead of the work done.
class ProgressBar {
 public:
  /// @param images of the whole run, at least 1
  /// @param names of the networks; an index is shown where there is no name
  /// @throws std::invalid_argument for no images
  explicit ProgressBar(std::int64_t images, std::vector<std::string> names = {}, std::FILE* stream = stderr)
      : images_(images), names_(std::move(names)), stream_(stream), terminal_(is_terminal(stream)) {
    if (images < 1) detail::refuse("ProgressBar", "images must be at least 1", double(images));
  }

  ProgressBar(ProgressBar const&) = delete;
  ProgressBar& operator=(ProgressBar const&) = delete;
  ~ProgressBar() { finish(); }

  void operator()(StepReport const& report) {
    // Image steps, in integers: a tenth of them is a tenth.
    show(report, report.first * report.steps + report.images * report.done, images_ * report.steps);
  }

  /// Ends the line. Later reports begin a new one.
  void finish() {
    if (terminal_ && drawn_) std::fputs("\n", stream_);
    drawn_ = false;
  }

 private:
  using Clock = std::chrono::steady_clock;

  static bool is_terminal([[maybe_unused]] std::FILE* stream) {
#if __has_include(<unistd.h>)
    return isatty(fileno(stream)) == 1;
#else
    return false;
#endif
  }

  void show(StepReport const& report, std::int64_t done, std::int64_t all) {
    const auto now = Clock::now();
    const bool last = done >= all;
    const double share = double(done) / double(all);
    if (terminal_) {
      if (!last && drawn_ && now - shown_ < std::chrono::milliseconds(100)) return;
    } else {
      if (done * 10 / all == tenths_) return;
      tenths_ = done * 10 / all;
    }
    shown_ = now;
    // The first report has already cost a step, so time counts from construction.
    const double seconds = std::chrono::duration<double>(now - start_).count();
    const double rate = share * double(images_) / seconds;
    const int left = int(seconds / share * (1 - share) + 0.5);
    const std::string name =
        report.network < names_.size() ? names_[report.network] : "network " + std::to_string(report.network);
    if (terminal_) {
      constexpr int width = 24;
      const int filled = std::min(width, int(share * width));
      std::fprintf(stream_, "\r[%s%s] %3d%%  step %d/%d  %s  %.3g images/s  %d:%02d left\033[K",
                   std::string(std::size_t(filled), '#').c_str(), std::string(std::size_t(width - filled), '.').c_str(),
                   int(done * 100 / all), report.done, report.steps, name.c_str(), rate, left / 60, left % 60);
      drawn_ = true;
    } else {
      std::fprintf(stream_, "%3d%%  step %d/%d  %s  %.3g images/s  %d:%02d left\n", int(done * 100 / all), report.done,
                   report.steps, name.c_str(), rate, left / 60, left % 60);
    }
    std::fflush(stream_);
    if (last) finish();
  }

  std::int64_t images_;
  std::vector<std::string> names_;
  std::FILE* stream_;
  bool terminal_;
  bool drawn_ = false;
  std::int64_t tenths_ = 0;
  Clock::time_point start_ = Clock::now();
  Clock::time_point shown_{};
};

}  // namespace tstitch
