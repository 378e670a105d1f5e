/// @file
/// What a network is, and what it costs.
#pragma once

#include <tstitch/load.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "../common/device.hpp"
#include "../common/flops.hpp"
#include "../common/moment.hpp"
#include "arguments.hpp"
#include "call.hpp"
#include "progress.hpp"

using Json = nlohmann::ordered_json;

inline void print(std::string const& key, std::string const& value) {
  std::printf("  %-16s %s\n", key.c_str(), tstitch::words::printable(value).c_str());
}

inline std::string grouped(std::int64_t number) {
  std::string text = std::to_string(number);
  for (int at = int(text.size()) - 3; at > 0; at -= 3) text.insert(std::size_t(at), ",");
  return text;
}

/// Weights and operations of a TorchScript file.
inline void describe_module(std::string const& path, tstitch::Network const& network,
                            std::vector<tstitch::NamedCondition> const& conditions,
                            std::vector<std::int64_t> const& shape, Json& json) {
  const torch::jit::Module module = tstitch::load_torchscript_module(path);
  std::int64_t parameters = 0;
  std::string type;
  for (at::Tensor const& parameter : module.parameters()) {
    parameters += parameter.numel();
    if (type.empty()) type = at::toString(parameter.scalar_type());
  }
  print("parameters", grouped(parameters) + ", " + type);
  json["parameters"] = parameters;

  const Call call(network, conditions, 1, shape);
  const double flop = flop_of(module, network.info(), call.x, call.t, call.condition);
  json["gflop"] = flop / 1e9;
  print("GFLOP a row", tstitch::words::text(std::round(flop / 1e6) / 1e3));
}

/// What an AOTInductor package was compiled for.
inline void describe_package(std::string const& path, Json& json) {
  const tstitch::CompiledFor compiled = tstitch::read_compiled_for(path);
  std::string dtype;
  for (std::string const& name : tstitch::dtype_names()) {
    if (tstitch::dtype_named(name) == compiled.dtype) dtype = name;
  }
  const std::string target = compiled.device + (compiled.device == "cuda" ? " " + compiled.compute_capability : "");
  print("compiled for", target + ", " + dtype + ", batches of " + compiled.batch);
  json["compiled_for"] = {{"device", compiled.device}, {"dtype", dtype}, {"batch", compiled.batch}};
}

/// How many layers can compute in 8 bits, and how many of them have weights for it.
inline void describe_eight_bits(tstitch::NetworkInfo::Architecture const& architecture, Json& json) {
  std::vector<double> const& inputs = architecture.e4m3_inputs;
  if (inputs.empty()) return;
  const auto layers = [](std::vector<double> const& of) {
    return std::int64_t(of.size()) - std::ranges::count(of, 0.0);
  };
  const std::int64_t eighth = layers(inputs), weights = layers(architecture.e4m3_weight_scales);
  print("8 bits", std::to_string(eighth) + " of " + std::to_string(inputs.size()) + " layers, " +
                      std::to_string(weights) + " with weights for it");
  json["e4m3_layers"] = eighth;
  json["e4m3_weights"] = weights;
}

/// What the file says of itself.
inline void describe_info(tstitch::Network const& network, Json& json) {
  tstitch::NetworkInfo const& info = network.info();
  print("name", info.name);
  std::string input = tstitch::words::sizes_text(info.shape);
  if (info.num_classes) input += ", " + std::to_string(info.num_classes) + " classes";
  if (info.null_class) input += ", null class " + std::to_string(*info.null_class);
  for (tstitch::ConditionInfo const& wanted : info.conditions) {
    input += ", " + wanted.name + " " + tstitch::text_of(wanted);
    json["conditions"].push_back(wanted.name + " " + tstitch::text_of(wanted));
  }
  print("input", input);
  for (const std::int64_t size : info.shape) json["input"].push_back(size ? Json(size) : Json("*"));
  json["num_classes"] = info.num_classes;
  print("predicts", to_string(info.prediction_type) + (info.learned_variance ? " and a variance" : ""));
  json["prediction"] = to_string(info.prediction_type);
  print("noise schedule", network.noise_schedule().name());
  json["noise_schedule"] = network.noise_schedule().name();
  print("makes", info.decoding == tstitch::Decoding::pixels ? "pictures" : "latents");
  describe_eight_bits(info.architecture, json);
  for (auto const& [key, value] : {std::pair{"trained on", info.training_data}, std::pair{"licence", info.license}}) {
    if (!value.empty()) print(key, value);
  }
}

/// Milliseconds of one evaluation of so many rows, the median.
inline double time_rows(tstitch::Network const& network, std::vector<tstitch::NamedCondition> const& conditions,
                        std::vector<std::int64_t> const& shape, std::int64_t rows, Progress& progress) {
  const Call call(network, conditions, rows, shape);
  std::vector<double> milliseconds;
  for (int run = 0; run < timed_runs; ++run) {
    wait(network.device());
    const Clock::time_point start = Clock::now();
    network(call.x, call.t, call.condition);
    wait(network.device());
    if (run > 3) milliseconds.push_back(1e3 * seconds_since(start));  // TorchScript compiles in the first ones
    progress.add(rows, "timing " + std::to_string(rows) + " rows");
  }
  progress.clear();
  std::nth_element(milliseconds.begin(), milliseconds.begin() + 4, milliseconds.end());
  return milliseconds[4];
}

inline Json describe(std::string const& path, tstitch::Network const& network, Arguments const& arguments,
                     std::vector<tstitch::NamedCondition> const& conditions, Progress& progress) {
  Json json{{"file", path}, {"name", network.info().name}};
  std::printf("%s\n", tstitch::words::printable(path).c_str());
  describe_info(network, json);
  const c10::AutoGradMode no_gradients(false);
  if (tstitch::is_aot_inductor(path)) {
    describe_package(path, json);
  } else {
    describe_module(path, network, conditions, arguments.shape, json);
  }
  for (const std::int64_t rows : arguments.rows) {
    const double each = time_rows(network, conditions, arguments.shape, rows, progress) / double(rows);
    print("ms a row", tstitch::words::text(std::round(each * 1e3) / 1e3) + " of " + std::to_string(rows) + " on " +
                          network.device().str());
    json["milliseconds_a_row"][std::to_string(rows)] = each;
  }
  return json;
}
