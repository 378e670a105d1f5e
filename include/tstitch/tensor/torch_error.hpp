/// @file
/// What torch throws, in our words.
#pragma once

#include <c10/util/Exception.h>

#include <exception>
#include <string>
#include <string_view>

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

/// Whether memory ran out, of a GPU or of the host. TorchScript's interpreter makes another exception of what it
/// caught, with the same words.
inline bool is_out_of_memory(std::exception const& error) {
  if (dynamic_cast<c10::OutOfMemoryError const*>(&error)) return true;
  const std::string_view said = error.what();
  return said.find("out of memory") != said.npos || said.find("DefaultCPUAllocator: can't allocate") != said.npos ||
         said.find("DefaultCPUAllocator: not enough memory") != said.npos;
}

}  // namespace tstitch::detail
