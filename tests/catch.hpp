/// @file
/// Catch2, version 2 or 3, after the torch headers: torch leaks a macro named CHECK that aborts the program, and
/// whichever of the two is included last wins. This header is compiled ahead of all others, so what defines the macro
/// is included here.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Logging.h>
#undef CHECK

#if __has_include(<catch2/catch_test_macros.hpp>)
#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <catch2/reporters/catch_reporter_event_listener.hpp>
#include <catch2/reporters/catch_reporter_registrars.hpp>
using Catch::Approx;
using Catch::Matchers::ContainsSubstring;
using catch_listener = Catch::EventListenerBase;
#else
#define CATCH_CONFIG_EXTERNAL_INTERFACES
#include <catch2/catch.hpp>
using catch_listener = Catch::TestEventListenerBase;
inline auto ContainsSubstring(std::string const& text) {
  return Catch::Matchers::Contains(text);
}
#endif

#include <string>

/// The message of what `action` throws, which must be an `Exception`; for tests on what users read.
template <class Exception, class Action>
std::string message_of(Action action) {
  try {
    action();
  } catch (Exception const& error) {
    return error.what();
  }
  return "nothing was thrown";
}
