/// @file
/// What torch takes the processor for.
#pragma once

#include <c10/macros/Export.h>

#include <string>

namespace at {
// Of ATen/Version.h, which includes most of ATen.
TORCH_API std::string get_cpu_capability();
}  // namespace at

namespace tstitch::detail {

/// "DEFAULT", "AVX2", "AVX512" and others.
inline std::string cpu_capability() {
  return at::get_cpu_capability();
}

}  // namespace tstitch::detail
