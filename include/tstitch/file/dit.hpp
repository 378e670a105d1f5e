/// @file
/// Transformers for the native engine from TorchScript files. Opt-in.
///
/// The weights are taken out of a file whose metadata says that it holds a DiT (architecture dit, dit_diffusers or sit)
/// or an MMDiT (sd3).
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/jit/api/module.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "../engine/dit.hpp"
#include "../engine/dit_weights.hpp"
#include "../engine/mmdit.hpp"
#include "../engine/positions.hpp"
#include "../model/network.hpp"
#include "../tensor/host_tensor.hpp"
#include "archive.hpp"
#include "file.hpp"
#include "loading.hpp"
#include "metadata.hpp"
#include "mmdit.hpp"
#include "parallel_file.hpp"
#include "stored_module.hpp"
#include "torchscript.hpp"
#include "transformer_tensors.hpp"

namespace tstitch {
namespace detail {

/// The blocks, and all modulations as one product.
inline void take_blocks(DiTWeights& weights, TransformerTensors const& tensors, NetworkInfo::Architecture const& a,
                        std::int64_t hidden) {
  const std::int64_t width = a.width;
  std::vector<at::Tensor> modulations, biases;
  const auto modulate = [&](std::string const& name, std::int64_t slots) {
    const DiTLinear modulation = tensors.linear(name, slots * width, width);
    modulations.push_back(modulation.weight);
    biases.push_back(modulation.bias);
  };
  for (std::int64_t b = 0; b < a.depth; ++b) {
    const std::string block = "blocks." + std::to_string(b) + ".";
    weights.blocks.push_back(
        {tensors.linear(block + "attn.qkv", 3 * width, width), tensors.linear(block + "attn.proj", width, width),
         tensors.linear(block + "mlp.fc1", hidden, width), tensors.linear(block + "mlp.fc2", width, hidden)});
    modulate(block + "adaLN_modulation.1", 6);
  }
  modulate("final_layer.adaLN_modulation.1", 2);
  weights.modulation = {at::cat(modulations), at::cat(biases)};
  if (const std::string next = "blocks." + std::to_string(a.depth) + ".attn.qkv.weight"; tensors.all.contains(next)) {
    tensors.fail("must hold " + std::to_string(a.depth) + " blocks", "also " + next);
  }
}

/// The table of positions; of a network whose x has any size that of the size which it was trained with, from which the
/// others are known.
inline void take_positions(DiTWeights& weights, TransformerTensors const& tensors, NetworkInfo const& info) {
  const std::int64_t width = info.architecture.width, p = info.architecture.patch_size;
  if (is_closed(shape_of(info))) {
    weights.pos_embed = tensors.get("pos_embed", {1, info.height / p * (info.width / p), width});
    return;
  }
  weights.base = tensors.side_of("pos_embed", width);
  weights.pos_embed = tensors.get("pos_embed", {1, weights.base * weights.base, width});
  // bfloat16 rounds numbers up to 1 by 4e-3 at most. A table that was learnt is further away.
  const double off = width % 4 ? 1
                               : weights.pos_embed.to(at::kCPU, at::kFloat)
                                     .sub(position_table(weights.base, weights.base, weights.base, width))
                                     .abs()
                                     .max()
                                     .item<double>();
  if (!(off <= 5e-3)) {
    tensors.fail("must have the sine-cosine table of its grid as pos_embed where x has any size",
                 "one " + text(off) + " off");
  }
}

/// The weights of a DiT.
/// @throws std::runtime_error for another network
inline DiTWeights dit_weights(TransformerTensors const& tensors, NetworkInfo const& info) {
  const std::int64_t hidden = tensors.hidden_width(info);
  NetworkInfo::Architecture const& a = info.architecture;
  const std::int64_t width = a.width, p = a.patch_size, out_channels = info.channels * (info.learned_variance ? 2 : 1);
  DiTWeights w;
  w.heads = a.heads;
  w.patch = p;
  w.x_embedder = {tensors.get("x_embedder.proj.weight", {width, info.channels, p, p}).flatten(1),
                  tensors.get("x_embedder.proj.bias", {width})};
  w.t_embedder0 = tensors.linear("t_embedder.mlp.0", width, 256);
  w.t_embedder2 = tensors.linear("t_embedder.mlp.2", width, width);
  const std::int64_t labels = std::max(info.num_classes, info.null_class.value_or(-1) + 1);
  w.y_embedder = tensors.get("y_embedder.embedding_table.weight", {labels, width});
  take_positions(w, tensors, info);
  w.final_layer = tensors.linear("final_layer.linear", p * p * out_channels, width);
  take_blocks(w, tensors, a, hidden);
  return w;
}

/// What a scripted DiT computes with beside its weights.
inline void take_constants(DiTWeights& weights, torch::jit::Module const& module) {
  const torch::jit::Module embedder = module.attr("t_embedder").toModule();
  weights.frequency_steps = constant_of(embedder, "frequency_steps", weights.frequency_steps);
  weights.flow = constant_of(embedder, "flow", 0) != 0;
  for (auto const& block : module.attr("blocks").toModule().named_children()) {
    if (block.name == "0") {
      weights.mlp_norm_eps = constant_of(block.value.attr("norm2").toModule(), "eps", weights.mlp_norm_eps);
    }
  }
}

/// Gives layers of the blocks the weights in e4m3 that the file has for those whose scale is not 0. Its exporter
/// rounded them so that each makes up for the errors of others (calibrate.py), which the nearest values do not.
inline void take_e4m3(std::vector<DiTLinear*> const& layers, Archive const& archive, NetworkInfo const& info,
                      std::string const& source) {
  std::vector<double> const& scales = info.architecture.e4m3_weight_scales;
  if (scales.empty()) return;
  if (scales.size() != layers.size()) {
    throw std::runtime_error("tstitch::load_dit: " + source + ": must state a scale of 8 bits for each of the " +
                             std::to_string(layers.size()) + " layers, got " + std::to_string(scales.size()));
  }
  std::size_t bytes = 0;
  for (std::size_t k = 0; k < layers.size(); ++k) {
    if (scales[k] > 0) bytes += std::size_t(layers[k]->weight.numel());
  }
  constexpr char record[] = "extra/tstitch/e4m3_weights";
  const auto found = archive.records().find(record);
  const std::uint64_t size = found == archive.records().end() ? 0 : found->second.size;
  if (size != bytes) {
    throw std::runtime_error("tstitch::load_dit: " + source + ": tstitch/e4m3_weights must have " +
                             std::to_string(bytes) + " bytes, got " + std::to_string(size));
  }
  if (bytes == 0) return;
  const at::DataPtr data = archive.data(record).first;
  auto const* next = static_cast<std::uint8_t const*>(data.get());
  for (std::size_t k = 0; k < layers.size(); ++k) {
    if (!(scales[k] > 0)) continue;
    at::Tensor const& weight = layers[k]->weight;
    const std::size_t count = std::size_t(weight.numel());
    std::uint8_t largest = 0;
    for (std::size_t i = 0; i < count; ++i) largest = std::max(largest, std::uint8_t(next[i] & 0x7f));
    if (largest == 0x7f) {
      throw std::runtime_error("tstitch::load_dit: " + source +
                               ": tstitch/e4m3_weights must be finite, got NaN in layer " + std::to_string(k));
    }
    const at::Tensor codes = host_tensor(weight.sizes(), at::kFloat8_e4m3fn);
    std::copy_n(next, count, static_cast<std::uint8_t*>(codes.mutable_data_ptr()));
    next += count;
    layers[k]->eighth = codes.to(weight.device());
    layers[k]->weight_scale = scales[k];
  }
}

/// @throws std::runtime_error for what the engine would ignore
inline void require_plain_dit(NetworkInfo const& info, TransformerTensors const& tensors) {
  if (!info.conditions.empty()) {
    tensors.fail("must take no conditions but a label", "'" + printable(info.conditions[0].name) + "'");
  }
  const std::vector<std::int64_t> shape = shape_of(info);
  if (shape.size() != 3) tensors.fail("must take x of [n, C, H, W]", "[n, ...] of " + sizes_text(shape));
}

}  // namespace detail

/// Whether `load_dit` knows the network of this file.
inline bool is_dit(NetworkInfo const& info) {
  std::string const& kind = info.architecture.kind;
  return kind == "dit" || kind == "dit_diffusers" || kind == "sit" || kind == "sd3";
}

namespace detail {

/// @param place, source for messages
/// @throws std::runtime_error for a network that the engine does not run
inline void require_of_engine(NetworkInfo const& info, char const* place, std::string const& source) {
  const std::string begin = "tstitch::" + std::string(place) + ": " + source;
  if (!is_dit(info)) {
    throw std::runtime_error(begin + ": must have the architecture dit, dit_diffusers, sit or sd3, got '" +
                             printable(info.architecture.kind) + "'");
  }
  if (!info.forecasts_residual) {
    throw std::runtime_error(begin + ": tstitch/forecast must be residual for the engine, got 'feature'");
  }
}

/// A network of the engine, from these tensors.
/// @param info of one that it runs
/// @param take_constants is given the weights of a DiT
/// @param take_eighths is given the layers that may be in 8 bits where they are to be
/// @throws std::runtime_error for tensors that are not of this network
template <class TakeConstants, class TakeEighths>
Network network_of(TransformerTensors const& tensors, NetworkInfo info, DiTOptions const& how,
                   TakeConstants const& take_constants, TakeEighths const& take_eighths) {
  const auto network = [&]<class Transformer>(auto weights) {
    if (!how.e4m3_inputs.empty()) take_eighths(weights.layers());
    return Network(Transformer(std::move(weights), how), std::move(info), tensors.device);
  };
  if (info.architecture.kind == "sd3") return network.template operator()<MMDiT>(mmdit_weights(tensors, info));
  require_plain_dit(info, tensors);
  DiTWeights weights = dit_weights(tensors, info);
  take_constants(weights);
  return network.template operator()<DiT>(std::move(weights));
}

}  // namespace detail

/// Loads a DiT, or the MMDiT of Stable Diffusion 3, for the native engine. Runs code of the file, so load what you
/// trust.
/// @param options as for load_torchscript; warm_up_rows do nothing, because no shape needs it
/// @throws std::runtime_error naming the file and what is wrong with it, or that it is no such transformer
inline Network load_dit(std::string const& path, TorchScriptOptions const& options = {}, DiTOptions const& how = {}) {
  const auto file = detail::open_file(detail::torchscript_file, path);
  const std::string source = detail::quoted(path);
  require_device(options.device);
  return detail::reading(detail::torchscript_file, source, [&] {
    const auto archive = detail::open_torchscript(source, file);
    NetworkInfo info = detail::read_network_info(*archive, source, options.info);
    detail::require_of_engine(info, "load_dit", source);
    const c10::AutoGradMode no_gradients(false);
    const auto stored = std::make_shared<detail::StoredModule>(archive);
    const detail::TransformerTensors tensors{detail::tensors_of(stored), options.device,
                                             detail::type_of(stored->module(), options), source};
    const auto take_constants = [&](DiTWeights& weights) { detail::take_constants(weights, stored->module()); };
    const auto take_eighths = [&](std::vector<DiTLinear*> const& layers) {
      detail::take_e4m3(layers, *archive, info, source);
    };
    return detail::network_of(tensors, info, how, take_constants, take_eighths);
  });
}

}  // namespace tstitch
