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

/// A request of n rows: every class in turn, and zeros for conditions that are not given.
/// @param given conditions of 1 row, or of as many as are asked for; of others the first row is taken
inline tstitch::Request request_for(std::vector<tstitch::Network> const& networks,
                                    std::vector<tstitch::NamedCondition> const& given, std::int64_t rows) {
  for (tstitch::NamedCondition const& each : given) {
    for (at::Tensor const* tensor : {&each.value, &each.null}) {
      if (!tensor->defined() || (tensor->dim() > 0 && tensor->size(0) > 0)) continue;
      throw std::invalid_argument("--condition: '" + each.name + "' must have a row at least, got " +
                                  tstitch::words::shape_text(tensor->sizes()));
    }
  }
  tstitch::Request request{.conditions = given, .count = rows};
  for (tstitch::Network const& network : networks) {
    tstitch::NetworkInfo const& info = network.info();
    if (info.num_classes > 0 && request.labels.empty()) {
      for (std::int64_t i = 0; i < rows; ++i) request.labels.push_back(i % info.num_classes);
    }
    for (tstitch::ConditionInfo const& wanted : info.conditions) {
      const auto same = [&](tstitch::NamedCondition const& each) { return each.name == wanted.name; };
      if (std::any_of(request.conditions.begin(), request.conditions.end(), same)) continue;
      std::vector<std::int64_t> sizes{1};
      for (const std::int64_t size : wanted.shape) sizes.push_back(size ? size : info.height);
      const at::ScalarType type = wanted.floating ? at::kFloat : at::kLong;
      request.conditions.push_back({wanted.name, at::zeros(sizes, type)});
    }
  }
  for (tstitch::NamedCondition& each : request.conditions) {
    if (each.value.size(0) != 1 && each.value.size(0) != rows) each.value = each.value.narrow(0, 0, 1);
  }
  return request;
}
