/// @file
/// Time on the device that works, without a wait in the work.
#pragma once

#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <chrono>
#include <optional>

using Clock = std::chrono::steady_clock;

inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// On the CPU when it is made; on a GPU when its current stream comes to what it is given next.
class Moment {
 public:
  explicit Moment(at::Device device) {
    if (device.is_cpu()) return;
    event_.emplace(device.type(), c10::EventFlag::BACKEND_DEFAULT);  // the other kind keeps no times
    event_->record(c10::impl::VirtualGuardImpl(device.type()).getStream(device));
  }

  /// Waits on a GPU until the later moment has come.
  double seconds_until(Moment const& later) const {
    if (!event_) return std::chrono::duration<double>(later.time_ - time_).count();
    later.event_->synchronize();
    return event_->elapsedTime(*later.event_) / 1e3;
  }

 private:
  Clock::time_point time_ = Clock::now();
  std::optional<c10::Event> event_;
};
