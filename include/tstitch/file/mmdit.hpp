/// @file
/// The weights of the transformers of Stable Diffusion 3 and 3.5, under the names of published checkpoints. dit.hpp
/// loads them.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/stack.h>

#include <cstdint>
#include <string>
#include <vector>

#include "../engine/mmdit.hpp"
#include "../engine/mmdit_weights.hpp"
#include "../model/network_info.hpp"
#include "transformer_tensors.hpp"

namespace tstitch::detail {

/// Takes the blocks of an MMDiT.
class MMDiTBlocks {
 public:
  MMDiTBlocks(TransformerTensors const& tensors, NetworkInfo::Architecture const& a, std::int64_t hidden)
      : tensors_(tensors), width_(a.width), head_(a.width / a.heads), hidden_(hidden), depth_(a.depth) {}

  void take(MMDiTWeights& weights) {
    const bool norms = tensors_.has("transformer_blocks.0.attn.norm_q.weight");
    for (std::int64_t b = 0; b < depth_; ++b) weights.blocks.push_back(block(b, norms));
    modulate("norm_out", 2);
    weights.modulation = {at::cat(modulations_), at::cat(biases_)};
  }

 private:
  DiTLinear square(std::string const& name) const { return tensors_.linear(name, width_, width_); }

  /// Three projections as one.
  DiTLinear joined(std::string const& q, std::string const& k, std::string const& v) const {
    const DiTLinear parts[]{square(q), square(k), square(v)};
    return {at::cat({parts[0].weight, parts[1].weight, parts[2].weight}),
            at::cat({parts[0].bias, parts[1].bias, parts[2].bias})};
  }

  /// [2, head]
  at::Tensor norms_of(std::string const& q, std::string const& k) const {
    return at::stack({tensors_.get(q + ".weight", {head_}), tensors_.get(k + ".weight", {head_})});
  }

  void modulate(std::string const& name, std::int64_t slots) {
    const DiTLinear modulation = tensors_.linear(name + ".linear", slots * width_, width_);
    modulations_.push_back(modulation.weight);
    biases_.push_back(modulation.bias);
  }

  void take_mlp(MMDiTWeights::Stream& stream, std::string const& name) const {
    stream.fc1 = tensors_.linear(name + ".net.0.proj", hidden_, width_);
    stream.fc2 = tensors_.linear(name + ".net.2", width_, hidden_);
  }

  MMDiTWeights::Block block(std::int64_t b, bool norms) {
    const std::string name = "transformer_blocks." + std::to_string(b), attn = name + ".attn.",
                      attn2 = name + ".attn2.";
    const bool last = b + 1 == depth_;
    MMDiTWeights::Block made;
    made.picture.qkv = joined(attn + "to_q", attn + "to_k", attn + "to_v");
    made.picture.proj = square(attn + "to_out.0");
    take_mlp(made.picture, name + ".ff");
    made.text.qkv = joined(attn + "add_q_proj", attn + "add_k_proj", attn + "add_v_proj");
    if (!last) {
      made.text.proj = square(attn + "to_add_out");
      take_mlp(made.text, name + ".ff_context");
    }
    if (norms) {
      made.qk_norm = at::stack(
          {norms_of(attn + "norm_q", attn + "norm_k"), norms_of(attn + "norm_added_q", attn + "norm_added_k")});
    }
    if (tensors_.has(attn2 + "to_q.weight")) {
      made.dual = {joined(attn2 + "to_q", attn2 + "to_k", attn2 + "to_v"), square(attn2 + "to_out.0"), {}};
      if (norms) made.dual->qk_norm = norms_of(attn2 + "norm_q", attn2 + "norm_k").unsqueeze(0);
    }
    modulate(name + ".norm1", made.slots_of_picture());
    modulate(name + ".norm1_context", last ? 2 : 6);
    return made;
  }

  TransformerTensors const& tensors_;
  std::int64_t width_, head_, hidden_, depth_;
  std::vector<at::Tensor> modulations_ = {}, biases_ = {};
};

/// The weights of an MMDiT.
/// @throws std::runtime_error for another network
inline MMDiTWeights mmdit_weights(TransformerTensors const& tensors, NetworkInfo const& info) {
  const std::int64_t hidden = tensors.hidden_width(info);
  NetworkInfo::Architecture const& a = info.architecture;
  const std::int64_t width = a.width, p = a.patch_size;
  std::vector<ConditionInfo> const& asked = info.conditions;
  if (asked.size() != 2 || asked[0].name != MMDiT::text_name || asked[0].shape.size() != 2 || !asked[0].shape[1] ||
      asked[1].name != MMDiT::pooled_name || asked[1].shape.size() != 1 || !asked[1].shape[0] || info.num_classes) {
    std::string got = info.num_classes ? "a label" : "none";
    for (ConditionInfo const& each : asked) got += ", '" + printable(each.name) + "' of " + text_of(each);
    tensors.fail("must take text_embedding of two sizes and pooled_embedding of one, and no label", got);
  }
  if (shape_of(info).size() != 3) tensors.fail("must take x of [n, C, H, W]", "[n, ...] of " + sizes_text(info.shape));
  if (info.learned_variance) tensors.fail("must have no variance", "a learned one");
  MMDiTWeights w;
  w.heads = a.heads;
  w.patch = p;
  w.grid = tensors.side_of("pos_embed.pos_embed", width);
  if (info.height > w.grid * p || info.width > w.grid * p) {
    tensors.fail("must take x of at most " + std::to_string(w.grid * p) + " a side, which pos_embed.pos_embed covers",
                 sizes_text(shape_of(info)));
  }
  w.pos_embed = tensors.get("pos_embed.pos_embed", {1, w.grid * w.grid, width});
  w.x_embedder = {tensors.get("pos_embed.proj.weight", {width, info.channels, p, p}).flatten(1),
                  tensors.get("pos_embed.proj.bias", {width})};
  const auto embedder = [&](std::string const& name, std::int64_t in, DiTLinear& first, DiTLinear& second) {
    first = tensors.linear("time_text_embed." + name + ".linear_1", width, in);
    second = tensors.linear("time_text_embed." + name + ".linear_2", width, width);
  };
  embedder("timestep_embedder", 256, w.t_embedder0, w.t_embedder2);
  embedder("text_embedder", asked[1].shape[0], w.pooled0, w.pooled2);
  w.text_embedder = tensors.linear("context_embedder", width, asked[0].shape[1]);
  w.final_layer = tensors.linear("proj_out", p * p * info.channels, width);
  MMDiTBlocks(tensors, a, hidden).take(w);
  return w;
}

}  // namespace tstitch::detail
