/// @file
/// A clock that goes on only while networks work, so that what is measured by it is exact.
#pragma once

#include <chrono>
#include <cstdint>

struct WorkClock {
  using duration = std::chrono::nanoseconds;
  using rep = duration::rep;
  using period = duration::period;
  using time_point = std::chrono::time_point<WorkClock>;
  [[maybe_unused]] static constexpr bool is_steady = true;
  static inline time_point time = {};
  static time_point now() { return time; }
  static void work(double microseconds) { time += std::chrono::nanoseconds(std::int64_t(1e3 * microseconds)); }
};
