/// @file
/// What a network is, and what it costs.
#pragma once

#include <tstitch/file/fingerprint.hpp>
#include <tstitch/file/safetensors.hpp>
#include <tstitch/load.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
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

/// What is known of a file: for the report, and as lines of --details.
struct Described {
  Json json;
  std::vector<std::pair<std::string, std::string>> details = {};

  /// @param details what is said of it there
  void add(std::string const& name, std::string const& text) { details.emplace_back(name, text); }
};

inline std::string grouped(std::int64_t number) {
  std::string text = std::to_string(number);
  for (int at = int(text.size()) - 3; at > 0; at -= 3) text.insert(std::size_t(at), ",");
  return text;
}

/// How many weights there are, and the type of the first.
inline void describe_weights(std::int64_t count, std::string const& type, Described& described) {
  described.add("parameters", grouped(count) + (type.empty() ? "" : ", " + type));
  described.json["parameters"] = count;
  described.json["parameter_type"] = type;
}

/// Weights and operations of a TorchScript file.
inline void describe_module(std::string const& path, tstitch::Network const& network,
                            std::vector<tstitch::NamedCondition> const& conditions,
                            std::vector<std::int64_t> const& shape, Described& described) {
  const torch::jit::Module module = tstitch::load_torchscript_module(path);
  std::int64_t parameters = 0;
  std::string type;
  for (at::Tensor const& parameter : module.parameters()) {
    parameters += parameter.numel();
    if (type.empty()) type = at::toString(parameter.scalar_type());
  }
  describe_weights(parameters, type, described);
  const Call call(network, conditions, 1, shape);
  const double flop = flop_of(module, network.info(), call.x, call.t, call.condition);
  described.json["gflop"] = flop / 1e9;
  described.add("GFLOP a row", tstitch::words::text(std::round(flop / 1e6) / 1e3));
}

/// What an AOTInductor package was compiled for.
inline void describe_package(std::string const& path, Described& described) {
  const tstitch::CompiledFor compiled = tstitch::read_compiled_for(path);
  std::string dtype;
  for (std::string const& name : tstitch::dtype_names()) {
    if (tstitch::dtype_named(name) == compiled.dtype) dtype = name;
  }
  const std::string target = compiled.device + (compiled.device == "cuda" ? " " + compiled.compute_capability : "");
  described.add("compiled for", target + ", " + dtype + ", batches of " + compiled.batch);
  described.json["compiled_for"] = {{"device", compiled.device}, {"dtype", dtype}, {"batch", compiled.batch}};
}

/// How many layers can compute in 8 bits, and how many of them have weights for it.
inline void describe_eight_bits(tstitch::NetworkInfo::Architecture const& architecture, Described& described) {
  std::vector<double> const& inputs = architecture.e4m3_inputs;
  if (inputs.empty()) return;
  const auto layers = [](std::vector<double> const& of) {
    return std::int64_t(of.size()) - std::ranges::count(of, 0.0);
  };
  const std::int64_t eighth = layers(inputs), weights = layers(architecture.e4m3_weight_scales);
  described.add("8 bits", std::to_string(eighth) + " of " + std::to_string(inputs.size()) + " layers, " +
                              std::to_string(weights) + " with weights for it");
  described.json["e4m3_layers"] = eighth;
  described.json["e4m3_weights"] = weights;
}

/// How its makers draw with it; empty where they say nothing.
inline std::string recommended(tstitch::NetworkInfo const& info) {
  std::string text;
  if (!info.profile.empty()) text += ", profile " + info.profile;
  if (info.steps > 0) text += ", " + counted(info.steps, "step");
  if (info.guidance_scale != 1) text += ", guidance " + tstitch::words::text(info.guidance_scale);
  return text.empty() ? "" : text.substr(2);
}

/// What the file says of itself.
inline void describe_info(tstitch::Network const& network, Described& described) {
  tstitch::NetworkInfo const& info = network.info();
  Json& json = described.json;
  std::string input = tstitch::words::sizes_text(info.shape);
  if (info.num_classes) input += ", " + std::to_string(info.num_classes) + " classes";
  if (info.null_class) input += ", null class " + std::to_string(*info.null_class);
  for (tstitch::ConditionInfo const& wanted : info.conditions) {
    input += ", " + wanted.name + " " + tstitch::text_of(wanted);
    json["conditions"].push_back(wanted.name + " " + tstitch::text_of(wanted));
  }
  described.add("input", input);
  for (const std::int64_t size : info.shape) json["input"].push_back(size ? Json(size) : Json("*"));
  json["num_classes"] = info.num_classes;
  const std::string predicts = to_string(info.prediction_type);
  described.add("predicts", predicts + (info.learned_variance ? " and a variance" : ""));
  json["prediction"] = predicts;
  json["learned_variance"] = info.learned_variance;
  described.add("noise schedule", network.noise_schedule().name());
  json["noise_schedule"] = network.noise_schedule().name();
  const std::string makes = info.decoding == tstitch::Decoding::pixels ? "pictures" : "latents";
  described.add("makes", makes);
  json["makes"] = makes;
  if (!info.architecture.kind.empty()) {
    tstitch::NetworkInfo::Architecture const& a = info.architecture;
    json["architecture"] = {{"kind", a.kind}, {"width", a.width}, {"depth", a.depth}, {"patch_size", a.patch_size}};
    described.add("architecture", a.kind + ", " + std::to_string(a.depth) + " blocks of width " +
                                      std::to_string(a.width) + ", patches of " + std::to_string(a.patch_size));
  }
  describe_eight_bits(info.architecture, described);
  for (auto const& [name, key, value] : {std::tuple{"recommended", "recommended", recommended(info)},
                                         std::tuple{"trained on", "training_data", info.training_data},
                                         std::tuple{"licence", "licence", info.license}}) {
    if (value.empty()) continue;
    described.add(name, value);
    json[key] = value;
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

inline Described describe(std::string const& path, tstitch::Network const& network, Arguments const& arguments,
                          std::vector<tstitch::NamedCondition> const& conditions, Progress& progress) {
  Described described{{{"file", path}, {"name", network.info().name}}};
  described.add("file", path);
  described.add("fingerprint", tstitch::fingerprint_text(path));
  described.json["fingerprint"] = tstitch::fingerprint_text(path);
  describe_info(network, described);
  const c10::AutoGradMode no_gradients(false);
  if (tstitch::is_safetensors(path)) {
    const tstitch::StoredWeights weights = tstitch::read_stored_weights(path);
    describe_weights(weights.count, at::toString(weights.type), described);
  } else if (tstitch::is_aot_inductor(path)) {
    describe_package(path, described);
  } else {
    describe_module(path, network, conditions, arguments.shape, described);
  }
  described.json["device"] = network.device().str();
  for (const std::int64_t rows : arguments.rows) {
    const double each = time_rows(network, conditions, arguments.shape, rows, progress) / double(rows);
    described.add("ms a row", tstitch::words::text(std::round(each * 1e3) / 1e3) + " of " + std::to_string(rows) +
                                  " on " + network.device().str());
    described.json["milliseconds_a_row"][std::to_string(rows)] = each;
  }
  return described;
}

/// What a half of an autoencoder is.
/// @param kind decoder or encoder
inline Described describe_autoencoder(std::string const& path, std::string const& kind,
                                      tstitch::AutoencoderInfo const& info) {
  Described described{{{"file", path}, {"name", info.name}, {"kind", kind}}};
  described.json["fingerprint"] = tstitch::fingerprint_text(path);
  described.json["latent_channels"] = info.latent_channels;
  described.json["picture_channels"] = info.picture_channels;
  described.json["upsampling"] = info.upsampling;
  for (auto const& [key, numbers] :
       {std::pair{"latent_scale", &info.latent_scale}, std::pair{"latent_shift", &info.latent_shift}}) {
    std::vector<double> const& all = numbers->values();
    described.json[key] = all.size() == 1 ? Json(all[0]) : Json(all);
  }
  if (info.temporal_upsampling > 0) described.json["temporal_upsampling"] = info.temporal_upsampling;
  described.json["scaled_latents"] = info.scaled_latents;
  described.add("file", path);
  described.add("fingerprint", tstitch::fingerprint_text(path));
  described.add("latents", info.scaled_latents ? "as networks know them"
                                               : "of scale " + tstitch::words::text(info.latent_scale) + " and shift " +
                                                     tstitch::words::text(info.latent_shift));
  if (!info.license.empty()) described.add("licence", info.license);
  return described;
}
