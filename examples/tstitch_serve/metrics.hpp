/// @file
/// What a service has done, in the text format of Prometheus.
#pragma once

#include <tstitch/scale/batcher.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <type_traits>
#include <vector>

#include "../common/strict.hpp"

/// Counters that threads add to.
class Metrics {
 public:
  void responded(int status) {
    const std::lock_guard lock(mutex_);
    ++responses_[status];
  }

  /// A request of pictures is there.
  void drawn(std::int64_t pictures, double seconds) {
    const std::lock_guard lock(mutex_);
    pictures_ += std::uint64_t(pictures);
    seconds_ += seconds;
    ++requests_;
    for (std::size_t i = 0; i < bounds.size(); ++i) within_[i] += seconds <= bounds[i];
  }

  /// A client hung up before its pictures were there.
  void hung_up() {
    const std::lock_guard lock(mutex_);
    ++hung_up_;
  }

  /// A request failed behind the beginning of its response.
  void failed_in_stream() {
    const std::lock_guard lock(mutex_);
    ++failed_in_stream_;
  }

  /// @param drawing requests that are drawn or wait
  std::string text(tstitch::Batcher const& batcher, std::int64_t drawing) const {
    std::string text;
    const auto begin = [&](std::string const& name, char const* type, char const* help) {
      text += "# HELP " + name + " " + help + "\n# TYPE " + name + " " + type + "\n";
    };
    const auto add = [&](std::string const& name, auto value, std::string const& labels = "") {
      text += name + (labels.empty() ? "" : "{" + labels + "}") + " " + number(value) + "\n";
    };
    const auto one = [&](std::string const& name, char const* type, char const* help, auto value) {
      begin(name, type, help);
      add(name, value);
    };
    const std::vector<tstitch::BatcherCounters> counters = batcher.counters();
    const std::size_t waiting = batcher.waiting();
    const std::lock_guard lock(mutex_);
    begin("tstitch_responses_total", "counter", "Responses by status; 499 where the client hung up before.");
    for (auto const& [status, count] : responses_) {
      add("tstitch_responses_total", count, "status=\"" + std::to_string(status) + "\"");
    }
    one("tstitch_hang_ups_total", "counter", "Requests that were cancelled because the client hung up.", hung_up_);
    one("tstitch_stream_failures_total", "counter", "Streams that ended with an error.", failed_in_stream_);
    one("tstitch_requests_in_progress", "gauge", "Requests that are drawn or wait.", drawing);
    one("tstitch_requests_waiting", "gauge", "Requests that wait for their first step.", waiting);
    one("tstitch_pictures_total", "counter", "Pictures of requests that were drawn whole.", pictures_);
    const auto each = [&](std::string const& name, char const* help, std::uint64_t tstitch::BatcherCounters::*what) {
      begin(name, "counter", help);
      for (std::size_t k = 0; k < counters.size(); ++k) {
        add(name, counters[k].*what,
            "network=\"" + std::to_string(k) + "\",name=\"" + escaped(batcher.networks()[k].info().name) + "\"");
      }
    };
    each("tstitch_network_calls_total", "Calls of the network.", &tstitch::BatcherCounters::calls);
    each("tstitch_network_pictures_total", "Pictures in these calls that requests asked for.",
         &tstitch::BatcherCounters::images);
    each("tstitch_network_slots_total", "Pictures in these calls, with those that fill them up.",
         &tstitch::BatcherCounters::filled_up);
    const std::string histogram = "tstitch_request_seconds";
    begin(histogram, "histogram", "From a request of pictures to its last picture.");
    for (std::size_t i = 0; i < bounds.size(); ++i) {
      add(histogram + "_bucket", within_[i], "le=\"" + tstitch::words::text(bounds[i]) + "\"");
    }
    add(histogram + "_bucket", requests_, "le=\"+Inf\"");
    add(histogram + "_sum", seconds_);
    add(histogram + "_count", requests_);
    return text;
  }

 private:
  static constexpr std::array bounds{0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0};

  template <class Number>
  static std::string number(Number value) {
    if constexpr (std::is_floating_point_v<Number>) return tstitch::words::text(value);
    return std::to_string(value);
  }

  static std::string escaped(std::string const& label) {
    std::string text;
    for (const char c : tstitch::words::printable(label, 100)) {
      if (c == '\\' || c == '"') text += '\\';
      text += c;
    }
    return text;
  }

  mutable std::mutex mutex_ = {};
  std::map<int, std::uint64_t> responses_ = {};
  std::uint64_t hung_up_ = 0, failed_in_stream_ = 0, pictures_ = 0, requests_ = 0;
  std::array<std::uint64_t, bounds.size()> within_ = {};
  double seconds_ = 0;
};
