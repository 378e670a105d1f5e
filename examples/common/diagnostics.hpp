/// @file
/// What the library did in another way than the fastest or the one asked for, at the end of a program.
#pragma once

#include <tstitch/base/diagnostics.hpp>
#include <tstitch/base/error.hpp>

#include <cstdio>
#include <string>
#include <utility>

/// As much of a sentence as a note on stderr has; reports have all of it.
inline std::string in_a_note(std::string const& sentence) {
  return tstitch::words::printable(sentence, 300);
}

/// Prints `tstitch::diagnostics()` on stderr where a program ends, before the error if there is one.
class DiagnosticsAtEnd {
 public:
  explicit DiagnosticsAtEnd(std::string program, bool quiet = false) : program_(std::move(program)), quiet_(quiet) {}
  DiagnosticsAtEnd(DiagnosticsAtEnd const&) = delete;
  DiagnosticsAtEnd& operator=(DiagnosticsAtEnd const&) = delete;
  ~DiagnosticsAtEnd() {
    if (quiet_) return;
    for (std::string const& sentence : tstitch::diagnostics()) {
      std::fprintf(stderr, "%s: note: %s\n", program_.c_str(), in_a_note(sentence).c_str());
    }
  }

 private:
  std::string program_;
  bool quiet_;
};
