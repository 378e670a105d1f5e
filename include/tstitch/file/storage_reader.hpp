/// @file
/// The tensors that a pickle describes, with the numbers of its archive.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstring>
#include <map>
#include <string>
#include <utility>

#include "../tensor/host_tensor.hpp"
#include "archive.hpp"
#include "pickled_tensor.hpp"

namespace tstitch::detail {

/// All elements of the storages of a pickle, each made once.
class StorageReader {
 public:
  explicit StorageReader(Archive const& archive) : archive_(archive) {}

  at::Tensor operator()(PickledTensor const& pickled) {
    at::Tensor& storage = storages_[{pickled.record, pickled.type}];
    if (!storage.defined()) {
      storage = host_tensor({pickled.elements}, pickled.type);
      if (pickled.elements > 0) {
        const auto [bytes, size] = archive_.data(pickled.record);
        std::memcpy(storage.mutable_data_ptr(), bytes.get(), storage.nbytes());
      }
    }
    return storage.as_strided(pickled.sizes, pickled.strides, pickled.offset);
  }

 private:
  Archive const& archive_;
  std::map<std::pair<std::string, at::ScalarType>, at::Tensor> storages_ = {};
};

}  // namespace tstitch::detail
