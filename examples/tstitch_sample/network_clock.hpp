/// @file
/// How long each network works.
#pragma once

#include <tstitch/plan/plan.hpp>
#include <tstitch/sampler/observer.hpp>

#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

#include "../common/moment.hpp"

/// Seconds that each network took.
class NetworkClock {
 public:
  NetworkClock(tstitch::Plan const& plan, at::Device device, std::size_t networks)
      : plan_(plan), device_(device), seconds_(networks) {}

  /// A batch begins, and the one before is finished.
  void start() {
    settle();
    began_.emplace(device_);
  }

  void operator()(tstitch::StepReport const& report) {
    const std::size_t next = std::size_t(report.step.index) + 1;
    if (next < plan_.steps.size() && plan_.steps[next].network == report.network) return;
    changes_.emplace_back(report.network, Moment(device_));
  }

  /// Of the steps that are done.
  std::vector<double> const& seconds() {
    settle();
    return seconds_;
  }

 private:
  void settle() {
    for (auto& [network, moment] : changes_) {
      seconds_[network] += began_->seconds_until(moment);
      began_ = std::move(moment);
    }
    changes_.clear();
  }

  tstitch::Plan const& plan_;
  at::Device device_;
  std::vector<double> seconds_;
  std::optional<Moment> began_;
  std::vector<std::pair<std::size_t, Moment>> changes_;  ///< where a network's steps end
};
