/// @file
/// The weights of a DiT, and products with them.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/linear.h>

#include <cstdint>
#include <exception>
#include <optional>
#include <string_view>
#include <vector>

#include "../base/diagnostics.hpp"
#include "../tensor/processor.hpp"
#include "../tensor/torch_error.hpp"

namespace tstitch {

/// A matrix and what is added: x -> x weight^T + bias.
struct DiTLinear {
  at::Tensor weight;       ///< [out, in]
  at::Tensor bias;         ///< [out]
  at::Tensor packed = {};  ///< the weight as oneDNN likes it, on a CPU where that is faster; else undefined

  /// In 8 bits: the weight is `eighth` [out, in], in e4m3, times weight_scale, and inputs are divided by input_scale
  /// and rounded to e4m3. Undefined: in the type of the network.
  at::Tensor eighth = {};
  double weight_scale = 0, input_scale = 0;
  /// Both, and one over input_scale, on the device: float32 [3, 4] with three zeros behind each, for cuBLAS wants 16
  /// bytes.
  at::Tensor scales = {};

  at::Tensor scale(int k) const { return scales.select(0, k).narrow(0, 0, 1); }
};

/// The weights of a DiT, under the names of the official checkpoints but for the modulations.
struct DiTWeights {
  struct Block {
    DiTLinear qkv, proj, fc1, fc2;
  };
  DiTLinear x_embedder;  ///< [width, channels patch patch]
  DiTLinear t_embedder0, t_embedder2;
  at::Tensor y_embedder;  ///< [classes + 1, width]
  at::Tensor pos_embed;   ///< [1, tokens, width]
  /// Patches a side of the picture that pos_embed is for, where others may have any size: their positions are scaled to
  /// the extent of these. 0: all have as many patches as pos_embed.
  std::int64_t base = 0;
  DiTLinear modulation;  ///< of all blocks and the final layer, [(6 depth + 2) width, width]
  std::vector<Block> blocks;
  DiTLinear final_layer;  ///< [patch patch out_channels, width]
  std::int64_t heads = 0;
  std::int64_t patch = 0;
  double frequency_steps = 128;  ///< the k-th frequency of t is 10000^(-k / frequency_steps)
  double mlp_norm_eps = 1e-6;
  bool flow = false;  ///< SiT: the embedder is told 1 - t / 1000

  /// Those that may be in 8 bits, in the order of DiTOptions::e4m3_inputs.
  std::vector<DiTLinear*> layers() {
    std::vector<DiTLinear*> all;
    for (Block& block : blocks) all.insert(all.end(), {&block.qkv, &block.proj, &block.fc1, &block.fc2});
    return all;
  }
};

namespace detail {

/// x weight^T + bias by oneDNN, then GELU in its tanh form if that is wanted. The bias costs nothing there, and GELU
/// little.
inline at::Tensor packed_linear(at::Tensor const& x, DiTLinear const& by, bool gelu) {
  using Linear = at::Tensor(at::Tensor const&, at::Tensor const&, std::optional<at::Tensor> const&, std::string_view,
                            c10::List<std::optional<at::Scalar>>, std::optional<std::string_view>);
  static const auto linear =
      c10::Dispatcher::singleton().findSchemaOrThrow("mkldnn::_linear_pointwise", "").typed<Linear>();
  return linear.call(x, by.packed, by.bias, gelu ? "gelu" : "none", c10::List<std::optional<at::Scalar>>(),
                     gelu ? std::optional<std::string_view>("tanh") : std::nullopt);
}

/// Gives the weight to oneDNN where torch has it and it can compute in this type.
/// @param rows that x will have, about
inline void pack(DiTLinear& linear, std::int64_t rows) {
  if (!linear.weight.is_cpu() || linear.weight.scalar_type() == at::kHalf) return;
  // In float32 without AVX512 oneDNN rounds the last rows of a product in another way than the others (torch 2.11: they
  // go by six), so that an image would have other bits at the end of a batch, and is no faster.
  if (linear.weight.scalar_type() == at::kFloat && cpu_capability() != "AVX512") return;
  try {
    using Reorder = at::Tensor(at::Tensor const&, std::optional<c10::SymInt>);
    static const auto reorder =
        c10::Dispatcher::singleton().findSchemaOrThrow("mkldnn::_reorder_linear_weight", "").typed<Reorder>();
    linear.packed = reorder.call(linear.weight, c10::SymInt(rows));
    packed_linear(linear.weight.new_empty({1, linear.weight.size(1)}).zero_(), linear, false);
    linear.weight.reset();
  } catch (std::exception const& error) {  // another build of torch, or a processor without bfloat16
    linear.packed.reset();
    diagnose("DiT", "torch's products take the place of oneDNN's: " + reason(error));
  }
}

/// [..., out] of x [..., in], in the type of the network.
inline at::Tensor linear(at::Tensor const& x, DiTLinear const& by) {
  return by.packed.defined() ? packed_linear(x, by, false) : at::linear(x, by.weight, by.bias);
}

}  // namespace detail
}  // namespace tstitch
