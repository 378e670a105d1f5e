/// @file
/// Tensors as the pickles in torch's files describe them.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tstitch::detail {

/// A tensor as a pickle describes it: a view of a record of the archive.
struct PickledTensor {
  std::string record = {};  ///< name of the record that holds the elements, such as "data/0"
  at::ScalarType type = at::kFloat;
  std::int64_t elements = 0;  ///< how many the record holds
  std::int64_t offset = 0;    ///< index of the tensor's first element in the record
  std::vector<std::int64_t> sizes = {}, strides = {};
};

/// The element type of one of torch's storage classes, by name: at::kFloat for "FloatStorage".
inline std::optional<at::ScalarType> storage_type(std::string_view name) {
#define TSTITCH_STORAGE_TYPE(_, type) \
  if (name == #type "Storage") return at::ScalarType::type;
  AT_FORALL_SCALAR_TYPES_WITH_COMPLEX_AND_QINTS(TSTITCH_STORAGE_TYPE)
#undef TSTITCH_STORAGE_TYPE
  return {};
}

}  // namespace tstitch::detail
