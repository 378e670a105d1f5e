/// @file
/// What torch throws, in our words.
#pragma once

#include <c10/util/Exception.h>

#include <exception>
#include <string>

#include "../base/error.hpp"

namespace tstitch::detail {

/// The one line of what torch or the standard library throws that says why: the first, or, where TorchScript shows the
/// code that failed first, the last.
inline std::string reason(std::exception const& error) {
  auto const* const of_torch = dynamic_cast<c10::Error const*>(&error);
  std::string text = of_torch ? of_torch->what_without_backtrace() : error.what();
  constexpr char blank[] = " \t\r\n";
  text.erase(0, text.find_first_not_of(blank));
  text.erase(text.find_last_not_of(blank) + 1);
  const bool shows_code = text.starts_with("The following operation failed in the TorchScript interpreter");
  return printable(shows_code ? text.substr(text.rfind('\n') + 1) : text.substr(0, text.find('\n')), 1000);
}

}  // namespace tstitch::detail
