/// @file
/// Work for many: ranges of indices that workers take, keep while they live, and finish.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "store.hpp"

namespace tstitch {

/// When a worker counts as gone.
struct LeaseOptions {
  /// A worker that has not said for so long that it lives has lost what it took, by the clock of whoever looks: clocks
  /// of different machines are never compared.
  double seconds = 60;
  /// A clock in seconds that never goes back; empty: the system's.
  std::function<double()> clock = {};
};

/// One of those who share work, and what it sees of the others. It may come later than they, and go before. `beat` may
/// be called from any thread.
template <WorkerStore Store>
class Worker {
 public:
  /// Comes: gets a number of its own, from 1 on.
  /// @param store outlives it
  /// @throws std::invalid_argument for a lease that is not above 0 and finite; what the store throws
  explicit Worker(Store& store, LeaseOptions options = {}) : store_(store), options_(std::move(options)) {
    if (!(options_.seconds > 0 && options_.seconds < 1e9)) {
      detail::refuse("Worker", "a lease must be above 0 and below 10^9 seconds", options_.seconds);
    }
    number_ = store_.add("workers", 1);
    beat();
  }

  std::int64_t number() const { return number_; }
  Store& store() const { return store_; }

  /// Says that it lives; several times in a lease.
  void beat() const { store_.add(beats(number_), 1); }

  /// Says that it goes. What it took and did not finish should have been given back.
  void leave() const { store_.compare_set(left(number_), "", "left"); }

  /// The same behind all others: for who hosts their store.
  /// @param all how many were to come, at least; some may not be there yet
  /// @param patience seconds that it waits for them
  void leave_last(std::int64_t all, double patience) {
    leave();
    const double begin = clock();
    while ((store_.add("workers", 0) < all || count() > 1) && clock() - begin < patience) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
  }

  /// Whether another worker has gone: it said so, or has been silent for a lease since this one began to look.
  bool is_gone(std::int64_t other) {
    if (!store_.get(left(other)).empty()) return true;
    const std::int64_t count = store_.add(beats(other), 0);
    const double now = clock();
    const auto [seen, is_new] = seen_.try_emplace(other, Seen{count, now});
    if (!is_new && seen->second.beats != count) seen->second = {count, now};
    return now - seen->second.since >= options_.seconds;
  }

  /// How many are there that have not gone, with this one.
  std::int64_t count() {
    std::int64_t there = 1;
    for (std::int64_t other = store_.add("workers", 0); other > 0; --other) {
      if (other != number_ && !is_gone(other)) ++there;
    }
    return there;
  }

 private:
  struct Seen {
    std::int64_t beats;
    double since;
  };

  static std::string beats(std::int64_t worker) { return "beats/" + std::to_string(worker); }
  static std::string left(std::int64_t worker) { return "left/" + std::to_string(worker); }

  double clock() const {
    if (options_.clock) return options_.clock();
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }

  Store& store_;
  LeaseOptions options_;
  std::int64_t number_ = 0;
  std::map<std::int64_t, Seen> seen_ = {};
};

/// Indices [first, first + count) that are taken together.
struct IndexRange {
  std::int64_t number = 0;  ///< of the range, from 0 on
  std::int64_t first = 0;
  std::int64_t count = 0;
};

/// Indices [0, all) in ranges of one size, the last one smaller, as one worker sees them. Each is finished once: a
/// range of a worker that has gone is taken by another, and what the lost one should still send does not count.
/// `finish` and `give_back` may be called from any thread, all else from one.
template <WorkerStore Store>
class Ranges {
 public:
  /// @param worker outlives it
  /// @param name the same of all workers, another one for other work in the same store
  /// @throws std::invalid_argument for numbers below 1
  Ranges(Worker<Store>& worker, std::string name, std::int64_t all, std::int64_t size)
      : worker_(worker), name_(std::move(name)), all_(all), size_(size) {
    if (all < 1) detail::refuse("Ranges", "there must be an index at least", double(all));
    if (size < 1) detail::refuse("Ranges", "a range must have an index at least", double(size));
    count_ = (all - 1) / size + 1;
  }

  std::int64_t count() const { return count_; }

  /// @throws std::invalid_argument for a number that none has
  IndexRange range(std::int64_t number) const {
    if (number < 0 || number >= count_) detail::refuse("Ranges", "number must be that of a range", double(number));
    return {number, number * size_, std::min(size_, all_ - number * size_)};
  }

  /// Takes a range that nobody has: in order, and at the end those that were given back or whose worker has gone.
  /// @returns nothing where others have all that are not finished
  std::optional<IndexRange> take() {
    while (!all_handed_out_) {
      const std::int64_t number = worker_.store().add(name_ + "/next", 1) - 1;
      all_handed_out_ = number >= count_;
      if (!all_handed_out_ && take_from(number, "")) return range(number);
    }
    if (!looks_back_) {
      for (std::int64_t number = 0; number < count_; ++number) open_.push_back(number);
      looks_back_ = true;
    }
    std::optional<IndexRange> taken;
    std::erase_if(open_, [&](std::int64_t number) {
      if (taken) return false;
      const std::string holder = worker_.store().get(key(number));
      if (holder.starts_with(done)) return true;
      const bool free = holder.empty() || holder == given_back || (holder != me() && is_gone(holder));
      if (free && take_from(number, holder)) taken = range(number);
      return false;
    });
    return taken;
  }

  /// Says that the work of a range is done.
  /// @returns whether it counts: not where another has taken the range meanwhile
  /// @throws std::invalid_argument for a range that this worker has not taken, or has finished
  bool finish(IndexRange const& range) {
    drop(range);
    return worker_.store().compare_set(key(range.number), me(), done + me()) == done + me();
  }

  /// Leaves a range to others, at once.
  /// @throws std::invalid_argument as `finish`
  void give_back(IndexRange const& range) {
    drop(range);
    worker_.store().compare_set(key(range.number), me(), given_back);
  }

  /// Whether all are finished, by whomever. Asks for those only that were not when it asked last.
  bool finished() {
    if (!all_handed_out_) return false;
    if (looks_back_) {
      std::erase_if(open_, [&](std::int64_t number) { return worker_.store().get(key(number)).starts_with(done); });
    }
    return looks_back_ && open_.empty();
  }

 private:
  static constexpr char given_back[] = "given back";
  static constexpr char done[] = "done by ";

  std::string key(std::int64_t number) const { return name_ + "/" + std::to_string(number); }
  std::string me() const { return std::to_string(worker_.number()); }

  /// @param holder "12": the worker 12
  bool is_gone(std::string const& holder) { return worker_.is_gone(std::stoll(holder)); }

  bool take_from(std::int64_t number, std::string const& holder) {
    if (worker_.store().compare_set(key(number), holder, me()) != me()) return false;
    const std::lock_guard<std::mutex> lock(mutex_);
    return taken_.insert(number).second;
  }

  void drop(IndexRange const& range) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (taken_.erase(range.number) == 1) return;
    detail::refuse("Ranges", "a range must have been taken by this worker, and be neither finished nor given back",
                   double(range.number));
  }

  Worker<Store>& worker_;
  std::string name_;
  std::int64_t all_, size_, count_ = 0;
  bool all_handed_out_ = false, looks_back_ = false;
  std::vector<std::int64_t> open_ = {};  ///< not known to be finished, once all were handed out
  std::mutex mutex_ = {};
  std::set<std::int64_t> taken_ = {};
};

}  // namespace tstitch
