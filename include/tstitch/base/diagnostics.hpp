/// @file
/// What the library did in another way than the fastest or the one asked for, without failing.
#pragma once

#include <algorithm>
#include <cstddef>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace tstitch {
namespace detail {

class Diagnostics {
 public:
  void add(std::string sentence) {
    const std::lock_guard lock(mutex_);
    if (sentences_.size() >= most || std::find(sentences_.begin(), sentences_.end(), sentence) != sentences_.end()) {
      return;
    }
    sentences_.push_back(std::move(sentence));
  }

  std::vector<std::string> all() const {
    const std::lock_guard lock(mutex_);
    return sentences_;
  }

 private:
  static constexpr std::size_t most = 1000;  // a long-lived process must not grow by them
  mutable std::mutex mutex_;
  std::vector<std::string> sentences_;
};

inline Diagnostics& all_diagnostics() {
  static Diagnostics diagnostics;
  return diagnostics;
}

/// Notes a fallback, once a process however often it happens.
/// @param place the function or class, as in error messages
/// @param sentence what is done instead, and why
inline void diagnose(std::string const& place, std::string const& sentence) {
  all_diagnostics().add("tstitch::" + place + ": " + sentence);
}

}  // namespace detail

/// Every fallback since the process began, one sentence each in the order of their first times: a kernel that could not
/// be compiled, a graph that could not be captured, a cache that is not trusted. Empty where all went as intended. Safe
/// to call from any thread.
inline std::vector<std::string> diagnostics() {
  return detail::all_diagnostics().all();
}

}  // namespace tstitch
