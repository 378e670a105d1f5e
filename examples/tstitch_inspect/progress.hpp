/// @file
/// How much of the measuring is done.
#pragma once

#include <tstitch/output/progress.hpp>

#include <cstddef>
#include <cstdint>
#include <string>

#include "arguments.hpp"

inline constexpr int timed_runs = 12;

/// How much of the measuring is done, in rows that networks are asked for.
class Progress {
 public:
  Progress(Arguments const& arguments, std::size_t networks) {
    for (const std::int64_t rows : arguments.rows) all_ += rows * timed_runs * std::int64_t(networks);
    if (networks > 1 && !arguments.no_probe) all_ += arguments.steps * arguments.count;
  }

  void add(std::int64_t rows, std::string const& what) {
    done_ += rows;
    line_.show(done_, all_, {what});
  }

  /// For what else is printed.
  void clear() { line_.clear(); }

 private:
  std::int64_t done_ = 0, all_ = 0;
  tstitch::ProgressLine line_;
};
