/// @file
/// A request that networks accept, where it does not matter what is drawn.
#pragma once

#include <ATen/ops/zeros.h>
#include <tstitch/sampler/trajectory.hpp>
#include <tstitch/tensor/host_tensor.hpp>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

/// What a condition must be for one sample, in which a size that is left open is that of x at the same place from the
/// end, as a mask has it, or the last of x where there is none.
inline std::vector<std::int64_t> sizes_for(tstitch::ConditionInfo const& wanted,
                                           std::vector<std::int64_t> const& shape) {
  std::vector<std::int64_t> sizes = wanted.shape;
  for (std::size_t d = 0; d < sizes.size(); ++d) {
    const std::size_t from_the_end = sizes.size() - d;
    if (sizes[d] == 0) sizes[d] = from_the_end < shape.size() ? shape[shape.size() - from_the_end] : shape.back();
  }
  return sizes;
}

/// A request of n rows: every class in turn, and zeros for conditions that are not given.
/// @param shape [C, ...] of x for one sample
/// @param given conditions of 1 row, or of as many as are asked for; of others the first row is taken
inline tstitch::Request request_for(std::vector<tstitch::Network> const& networks,
                                    std::vector<tstitch::NamedCondition> const& given, std::int64_t rows,
                                    std::vector<std::int64_t> const& shape) {
  for (tstitch::NamedCondition const& each : given) {
    for (at::Tensor const* tensor : {&each.value, &each.null}) {
      if (!tensor->defined() || (tensor->dim() > 0 && tensor->size(0) > 0)) continue;
      throw std::invalid_argument("--condition: '" + each.name + "' must have a row at least, got " +
                                  tstitch::words::shape_text(tensor->sizes()));
    }
  }
  tstitch::Request request{.conditions = given, .count = rows, .shape = shape};
  for (tstitch::Network const& network : networks) {
    tstitch::NetworkInfo const& info = network.info();
    if (info.num_classes > 0 && request.labels.empty()) {
      for (std::int64_t i = 0; i < rows; ++i) request.labels.push_back(i % info.num_classes);
    }
    for (tstitch::ConditionInfo const& wanted : info.conditions) {
      const auto same = [&](tstitch::NamedCondition const& each) { return each.name == wanted.name; };
      if (std::any_of(request.conditions.begin(), request.conditions.end(), same)) continue;
      std::vector<std::int64_t> sizes = sizes_for(wanted, shape);
      sizes.insert(sizes.begin(), 1);
      const at::ScalarType type = wanted.floating ? at::kFloat : at::kLong;
      request.conditions.push_back({wanted.name, at::zeros(sizes, type)});
    }
  }
  for (tstitch::NamedCondition& each : request.conditions) {
    if (each.value.size(0) != 1 && each.value.size(0) != rows) each.value = each.value.narrow(0, 0, 1);
  }
  return request;
}
