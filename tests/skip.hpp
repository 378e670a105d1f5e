/// @file
/// Tests that cannot be run here. Catch2 2 has no word for them, and its exit code is the number of failures.
#pragma once

#include <cstdio>
#include <string>

#include "catch.hpp"

namespace skipping {

/// Why tests were skipped, a line each.
inline std::string& reasons() {
  static std::string text;
  return text;
}

/// CTest takes a program that prints a line that begins with "skipped: " for skipped, so nothing is printed where a test failed.
struct Listener : catch_listener {
  using catch_listener::catch_listener;
  void testRunEnded(Catch::TestRunStats const& stats) override {
    if (stats.totals.assertions.allPassed()) std::fputs(reasons().c_str(), stdout);
  }
};
CATCH_REGISTER_LISTENER(Listener)

}  // namespace skipping

/// For a test that returns at once: `reason` is what is missing here.
inline void skip(std::string const& reason) {
  const std::string line = "skipped: " + reason + "\n";
  if (skipping::reasons().find(line) == std::string::npos) skipping::reasons() += line;
}
