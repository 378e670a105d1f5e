/// @file
/// How a program ends.
#pragma once

#include <c10/util/Exception.h>

#include <exception>
#include <iostream>
#include <stdexcept>
#include <string>

/// What a program does, with its errors as one line on stderr.
/// @param program its name
/// @param action what it does, with no arguments; returns the exit code
/// @returns that, or 2 for bad arguments and 1 for what else went wrong
template <class Action>
int exit_code(std::string const& program, Action action) {
  const auto failed = [&](int code, char const* what) {
    std::cerr << program << ": " << what << "\n";
    return code;
  };
  try {
    return action();
  } catch (std::invalid_argument const& error) {
    return failed(2, error.what());
  } catch (c10::Error const& error) {  // what() would add pages of stack trace
    return failed(1, error.what_without_backtrace());
  } catch (std::exception const& error) {
    return failed(1, error.what());
  }
}
