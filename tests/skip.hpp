/// @file
/// Tests that cannot be run here. Catch2 2 has no word for them, and its exit code is the number of failures.
#pragma once

#include <cstdio>
#include <set>
#include <string>

#include "catch.hpp"

namespace skipping {

/// Why tests were skipped.
inline std::set<std::string>& reasons() {
  static std::set<std::string> all;
  return all;
}

/// CTest takes a program that prints a line that begins with "skipped: " for skipped, which is said only where nothing
/// was tested.
struct Listener : catch_listener {
  using catch_listener::catch_listener;
  void testRunEnded(Catch::TestRunStats const& stats) override {
    const char* const word = stats.totals.assertions.total() == 0 ? "skipped" : "not run";
    for (std::string const& reason : reasons()) std::printf("%s: %s\n", word, reason.c_str());
  }
};
CATCH_REGISTER_LISTENER(Listener)

}  // namespace skipping

/// For a test that returns at once: `reason` is what is missing here.
inline void skip(std::string const& reason) {
  skipping::reasons().insert(reason);
}
