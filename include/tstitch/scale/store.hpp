/// @file
/// Where the workers of a run meet: a few texts and numbers by name.
#pragma once

#include <concepts>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>

namespace tstitch {

/// What workers meet in. Each call is one action that no other comes between, from any thread or process.
template <class Store>
concept WorkerStore = requires(Store store, std::string const& key, std::string const& value, std::int64_t amount) {
  /// The text; empty where there is none.
  { store.get(key) } -> std::convertible_to<std::string>;
  /// Replaces the text where it is the expected one; one that is not there is empty.
  /// @returns what is there afterwards
  { store.compare_set(key, value, value) } -> std::convertible_to<std::string>;
  /// @returns the sum; a number that is not there is 0. Numbers and texts have different names.
  { store.add(key, amount) } -> std::convertible_to<std::int64_t>;
};

/// A store for the threads of one process, and for tests.
class MemoryStore {
 public:
  std::string get(std::string const& key) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return texts_[key];
  }

  std::string compare_set(std::string const& key, std::string const& expected, std::string const& desired) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::string& value = texts_[key];
    if (value == expected) value = desired;
    return value;
  }

  std::int64_t add(std::string const& key, std::int64_t amount) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return numbers_[key] += amount;
  }

 private:
  std::mutex mutex_;
  std::map<std::string, std::string> texts_ = {};
  std::map<std::string, std::int64_t> numbers_ = {};
};

}  // namespace tstitch
