/// @file
/// A file of a module whose tensors are in all places where a module can have some.
#pragma once

#include <ATen/ops/arange.h>
#include <torch/csrc/jit/api/module.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

/// Numbers that nowhere repeat.
inline at::Tensor numbers(std::int64_t count, double first, at::ScalarType type = at::kFloat) {
  return at::arange(double(count), at::kFloat).mul(0.001).add(first).to(type);
}

/// Tensors of up to 9 MB, which several threads read in several pieces.
inline torch::jit::Module module_of_many_places(std::string const& code = {}) {
  torch::jit::Module module("places");
  module.register_parameter("weight", numbers(9 * (std::int64_t(1) << 18) + 5, 1), false);
  module.register_parameter("half", numbers(1234567, 2, at::kHalf).view({-1, 1}), false);
  module.register_parameter("wanted", numbers(70, 3), true);
  module.register_parameter("every_second", numbers(4001, 4).slice(0, 1, 3999, 2), false);
  module.register_parameter("across", numbers(600, 5, at::kBFloat16).view({20, 30}).t(), false);
  module.register_parameter("none", numbers(0, 6), false);
  module.register_buffer("whole", numbers(3333, 7, at::kLong));
  module.register_buffer("truth", numbers(999, -0.5).gt(0));
  module.register_buffer("number", numbers(1, 8).squeeze());
  module.register_attribute("beside", c10::TensorType::get(), numbers(5000, 9));
  c10::List<at::Tensor> list;
  for (int k = 0; k < 3; ++k) list.push_back(numbers(2000, 10 + k));
  module.register_attribute("list", c10::ListType::ofTensors(), list);
  c10::Dict<std::string, at::Tensor> dict;
  dict.insert("a", numbers(2000, 20));
  dict.insert("b", list[1]);
  module.register_attribute("dict", c10::DictType::create(c10::StringType::get(), c10::TensorType::get()), dict);
  torch::jit::Module inner("inner");
  inner.register_parameter("weight", numbers(4000, 30), false);
  module.register_module("inner", inner);
  module.define("def forward(self, x, t):\n  return x\n");
  if (!code.empty()) module.define(code);
  return module;
}

/// All tensors of such a module, wherever they are.
inline std::vector<at::Tensor> tensors_in_places(torch::jit::Module const& module) {
  std::vector<at::Tensor> found;
  for (at::Tensor const& each : module.parameters()) found.push_back(each);
  for (at::Tensor const& each : module.buffers()) found.push_back(each);
  found.push_back(module.attr("beside").toTensor());
  for (at::Tensor const& each : module.attr("list").toTensorVector()) found.push_back(each);
  for (auto const& each : module.attr("dict").toGenericDict()) found.push_back(each.value().toTensor());
  return found;
}

inline std::string saved_in_places(std::string const& name, torch::jit::Module const& module) {
  std::filesystem::create_directories(TSTITCH_TEST_DATA);
  const std::string path = TSTITCH_TEST_DATA "/" + name;
  module.save(path);
  return path;
}
