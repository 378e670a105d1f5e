/// @file
/// Says again and again that a worker lives, behind its work.
#pragma once

#include <chrono>
#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#include "../base/error.hpp"

namespace tstitch {

/// Calls a function on a thread of its own until it is destroyed, or until the function throws.
class Heartbeat {
 public:
  /// @param beat what it uses must be there as long as the call may last, so it should own that
  /// @param every seconds from call to call
  /// @param patience seconds that a call may take
  /// @throws std::invalid_argument for times that are not above 0, and for an empty function
  Heartbeat(std::function<void()> beat, double every, double patience) : patience_(patience) {
    if (!beat) detail::refuse("Heartbeat", "must be given something to call", "an empty function");
    if (!(every > 0)) detail::refuse("Heartbeat", "seconds from call to call must be above 0", every);
    if (!(patience > 0)) detail::refuse("Heartbeat", "patience must be above 0", patience);
    std::thread([state = state_, beat = std::move(beat), every] {
      std::unique_lock<std::mutex> lock(state->mutex);
      while (!state->stopped) {
        state->called = Clock::now();
        state->in_call = true;
        lock.unlock();
        std::exception_ptr failure;
        try {
          beat();
        } catch (...) {
          failure = std::current_exception();
        }
        lock.lock();
        state->in_call = false;
        state->changed.notify_all();
        if (failure) {
          state->failure = failure;
          return;
        }
        state->changed.wait_for(lock, std::chrono::duration<double>(every), [&] { return state->stopped; });
      }
    }).detach();
  }

  Heartbeat(Heartbeat const&) = delete;
  Heartbeat& operator=(Heartbeat const&) = delete;

  /// Waits for a call that is being made, but not longer than the patience.
  ~Heartbeat() {
    std::unique_lock<std::mutex> lock(state_->mutex);
    state_->stopped = true;
    state_->changed.notify_all();
    state_->changed.wait_until(lock, state_->called + std::chrono::duration_cast<Clock::duration>(patience_),
                               [&] { return !state_->in_call; });
  }

  /// For between two pieces of work.
  /// @throws what the function threw; std::runtime_error where a call takes longer than the patience
  void check() const {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    if (state_->failure) std::rethrow_exception(state_->failure);
    if (state_->in_call && Clock::now() - state_->called > patience_) {
      throw std::runtime_error("tstitch::Heartbeat: the others must answer in " + detail::text(patience_.count()) +
                               " s, got no answer");
    }
  }

 private:
  using Clock = std::chrono::steady_clock;

  struct State {
    std::mutex mutex = {};
    std::condition_variable changed = {};
    bool stopped = false, in_call = false;
    Clock::time_point called = {};
    std::exception_ptr failure = {};
  };

  std::chrono::duration<double> patience_;
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

}  // namespace tstitch
