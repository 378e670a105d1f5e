/// @file
/// A native engine for the transformers of Stable Diffusion 3 and 3.5. Opt-in; file/dit.hpp loads networks for it.
///
/// Tokens come before pictures, [tokens, n, width]: then the picture's tokens and the text's are each one piece of what
/// the joint attention takes and makes. A product of all three projections writes there, the queries' and keys' norm
/// changes it in place, and nothing is put together or taken apart. The rest is as for a DiT (dit.hpp).
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/sub.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "../model/condition.hpp"
#include "../model/evaluation.hpp"
#include "../model/feature_memory.hpp"
#include "../model/network.hpp"
#include "../tensor/cuda/kernels.hpp"
#include "../tensor/host_tensor.hpp"
#include "attention.hpp"
#include "dit_layers.hpp"
#include "dit_options.hpp"
#include "mmdit_modulations.hpp"
#include "mmdit_weights.hpp"
#include "qk_norm.hpp"
#include "residual_norm.hpp"

namespace tstitch {

/// An MMDiT (Esser et al. 2024, arXiv 2403.03206) as Stable Diffusion 3 and 3.5 have it: a callable for Network.
/// Height, width and text may be of any size; the picture of any that the table of positions covers.
class MMDiT {
 public:
  // See Network.
  static constexpr bool knows_timestep = true, repeats_x = true, settles_at_once = true, forecasts = true;

  /// The names of its conditions: [n, text tokens, text width] and [n, pooled width].
  static constexpr char text_name[] = "text_embedding", pooled_name[] = "pooled_embedding";

  /// @param weights on one device, in one floating type
  MMDiT(MMDiTWeights weights, DiTOptions options = {}) : self_(std::make_shared<Self>(std::move(weights), options)) {
    MMDiTWeights& w = self_->weights;
    if (w.blocks.empty() || w.patch < 1 || w.heads < 1 || w.grid < 1) {
      detail::refuse("MMDiT", "weights must have blocks, heads, a patch and a grid",
                     std::to_string(w.blocks.size()) + " blocks");
    }
    constexpr std::int64_t about = 1024;  // tokens of a picture
    detail::prepare_layers("MMDiT", w.layers(), options, about);
    self_->bind(self_.get(), [](TensorFunction function) { return function; });
  }

  /// @param x [n, channels, height, width]; or [n / 2, ...], which comes twice
  /// @param t [n], floating; may be undefined where the timestep is given
  /// @param condition has both of the network's
  /// @returns [n, out_channels, height, width] in the type of the weights; without gradients
  /// @throws std::invalid_argument for other shapes, and where neither t nor the timestep is given
  at::Tensor operator()(at::Tensor const& x, at::Tensor const& t, Condition const& condition,
                        Evaluation const& evaluation) const {
    return (*self_)(x, t, condition, evaluation);
  }

  /// The same outside of a run.
  at::Tensor operator()(at::Tensor const& x, at::Tensor const& t, Condition const& condition,
                        std::optional<double> timestep) const {
    return (*self_)(x, t, condition, {.timestep = timestep});
  }

  /// Computes the modulations of a run ahead.
  void prepare(std::span<const double> timesteps, Condition const& condition) const {
    for (auto const& [name, tensor] : condition.tensors) {
      if (name == pooled_name && self_->is_pooled(tensor)) self_->table.prepare(timesteps, tensor);
    }
  }

  /// Replays what comes after the modulations, which are looked up by what the host knows.
  MMDiT captured(Capture const& capture) const {
    MMDiT made = *this;
    made.self_ = std::make_shared<Self>(self_->weights, self_->options);
    // The original owns what is captured, so that the graph has no reference to its own owner.
    made.self_->bind(self_, capture);
    return made;
  }

 private:
  struct Self {
    Self(MMDiTWeights given, DiTOptions how)
        : weights(std::move(given)),
          options(std::move(how)),
          layers(options, weights.pos_embed),
          table(weights, options.modulation_bytes) {}

    MMDiTWeights weights;
    DiTOptions options;
    detail::DiTLayers layers;
    detail::MMDiTModulations table;
    TensorFunction forward = {}, forward_and_keep = {}, forecast = {};

    /// Of x, modulations and text; forecast also of what the blocks would make, in place of the text.
    /// @param by whose weights do it
    template <class Pointer>
    void bind(Pointer by, Capture const& how) {
      using Given = std::vector<at::Tensor> const&;
      forward = how([by](Given given) { return by->evaluate(given[0], given[1], given[2]); });
      forward_and_keep = how([by](Given given) { return by->evaluate_and_keep(given[0], given[1], given[2]); });
      forecast = how([by](Given given) { return by->evaluate_forecast(given[0], given[1], given[2]); });
    }

    at::Tensor operator()(at::Tensor const& x, at::Tensor const& t, Condition const& condition,
                          Evaluation const& evaluation) {
      at::Tensor const &text = condition.at(text_name), &pooled = condition.at(pooled_name);
      require(x, t, text, pooled, evaluation.timestep);
      const std::int64_t n = pooled.size(0);
      const at::Tensor modulations = table(t, pooled, evaluation.timestep), halves = detail::in_halves(x, n);
      if (FeatureMemory::forecasts(evaluation)) {
        return forecast({halves, modulations, evaluation.memory->as<FeatureMemory>().forecast(evaluation)});
      }
      if (!FeatureMemory::keeps(evaluation)) return forward({halves, modulations, text});
      const at::Tensor both = forward_and_keep({halves, modulations, text});
      const std::int64_t p = weights.patch, tokens = x.size(2) / p * (x.size(3) / p), added = n * tokens * width();
      evaluation.memory->as<FeatureMemory>().keep(evaluation, both.narrow(0, 0, added).view({n, tokens, width()}));
      return both.narrow(0, added, both.size(0) - added).view({n, -1, x.size(2), x.size(3)});
    }

    std::int64_t width() const { return weights.pos_embed.size(2); }

    /// Whether it is [n, pooled width].
    bool is_pooled(at::Tensor const& of) const {
      return of.defined() && of.dim() == 2 && of.size(0) > 0 && of.size(1) == weights.pooled0.weight.size(1);
    }

    void require(at::Tensor const& x, at::Tensor const& t, at::Tensor const& text, at::Tensor const& pooled,
                 std::optional<double> timestep) const {
      const auto shape = [](at::Tensor const& of) { return of.defined() ? detail::shape_text(of.sizes()) : "none"; };
      if (!is_pooled(pooled)) {
        detail::refuse(
            "MMDiT", std::string(pooled_name) + " must be [n, " + std::to_string(weights.pooled0.weight.size(1)) + "]",
            shape(pooled));
      }
      const std::int64_t text_width = weights.text_embedder.weight.size(1);
      const std::int64_t n = pooled.size(0);
      if (!text.defined() || text.dim() != 3 || text.size(0) != n || text.size(1) < 1 || text.size(2) != text_width) {
        detail::refuse(
            "MMDiT",
            std::string(text_name) + " must be [" + std::to_string(n) + ", tokens, " + std::to_string(text_width) + "]",
            shape(text));
      }
      const std::int64_t p = weights.patch, most = weights.grid * p,
                         channels = weights.x_embedder.weight.size(1) / (p * p);
      const auto is_side = [&](std::int64_t size) { return size >= p && size <= most && size % p == 0; };
      if (!x.defined() || x.dim() != 4 || (x.size(0) != n && 2 * x.size(0) != n) || x.size(1) != channels ||
          !is_side(x.size(2)) || !is_side(x.size(3))) {
        detail::refuse("MMDiT",
                       "x must be [n or n / 2, " + std::to_string(channels) + ", H, W] with n of " + std::to_string(n) +
                           ", H and W multiples of " + std::to_string(p) + " up to " + std::to_string(most),
                       shape(x));
      }
      if (t.defined() ? t.dim() != 1 || t.size(0) != n : !timestep) {
        detail::refuse("MMDiT", "t must be [" + std::to_string(n) + "], or the timestep given", shape(t));
      }
    }

    /// The network behind its modulations.
    /// @param x [halves, rows, channels, height, width], n rows in all
    /// @param modulations [n, slots, width]
    /// @param text [n, text tokens, text width]
    /// @returns [n, out_channels, height, width]
    at::Tensor evaluate(at::Tensor const& x, at::Tensor const& modulations, at::Tensor const& text) const {
      return head(run_blocks(embed(x), embed_text(text), modulations), x);
    }

    /// The same, and what the blocks add to what they begin with.
    /// @returns one vector: [n, tokens, width] of what they add, then the output
    at::Tensor evaluate_and_keep(at::Tensor const& x, at::Tensor const& modulations, at::Tensor const& text) const {
      const at::Tensor tokens = embed(x), before = tokens.clone();
      const at::Tensor out = head(run_blocks(tokens, embed_text(text), modulations), x);
      const at::Tensor both = tokens.new_empty({tokens.numel() + out.numel()});
      at::Tensor added =
          both.narrow(0, 0, tokens.numel()).view({tokens.size(1), tokens.size(0), tokens.size(2)}).transpose(0, 1);
      at::sub_out(added, tokens, before);
      both.narrow(0, tokens.numel(), out.numel()).copy_(out.view(-1));
      return both;
    }

    /// The same without the blocks.
    /// @param added [n, tokens, width], what they would add
    at::Tensor evaluate_forecast(at::Tensor const& x, at::Tensor const& modulations, at::Tensor const& added) const {
      const at::Tensor tokens = embed(x).add_(added.transpose(0, 1));
      const int last = int(modulations.size(1)) - 2;
      // The end has the scale before the shift.
      return head(norm({.x = tokens, .modulation = modulations, .shift = last + 1, .scale = last, .eps = eps},
                       weights.final_layer),
                  x);
    }

    static constexpr double eps = 1e-6;

    /// The patches of x, each with its position.
    /// @returns [tokens, n, width], to be changed in place
    at::Tensor embed(at::Tensor const& x) const {
      MMDiTWeights const& w = weights;
      const std::int64_t halves = x.size(0), images = x.size(1), n = halves * images, channels = x.size(2), p = w.patch,
                         rows = x.size(3) / p, columns = x.size(4) / p;
      // [..., channel, row, y, column, x] -> [row, column, ..., channel, y, x], and the type, in one copy
      const at::Tensor patches = w.pos_embed.new_empty({rows * columns, n, channels * p * p});
      patches.view({rows, columns, halves, images, channels, p, p})
          .copy_(x.reshape({halves, images, channels, rows, p, columns, p}).permute({3, 5, 0, 1, 2, 4, 6}));
      const at::Tensor tokens = detail::linear(patches, w.x_embedder);
      const at::Tensor positions = w.pos_embed.view({w.grid, w.grid, 1, width()})
                                       .narrow(0, (w.grid - rows) / 2, rows)
                                       .narrow(1, (w.grid - columns) / 2, columns);
      tokens.view({rows, columns, n, width()}).add_(positions);
      return tokens;
    }

    /// @returns [text tokens, n, width], to be changed in place
    at::Tensor embed_text(at::Tensor const& text) const {
      const at::Tensor tokens = text.transpose(0, 1).to(weights.pos_embed.scalar_type()).contiguous();
      return detail::linear(tokens, weights.text_embedder);
    }

    /// Makes the input of the layer that follows, in its type.
    at::Tensor norm(detail::ResidualNorm of, DiTLinear const& next) const {
      of.tokens_first = true;
      of.plain = options.plain;
      of.e4m3_scale = next.eighth.defined() ? next.input_scale : 0;
      return detail::residual_norm_modulate(std::move(of));
    }

    /// Changes the tokens and the text, and returns the input of the final layer.
    at::Tensor run_blocks(at::Tensor const& tokens, at::Tensor const& text, at::Tensor const& modulations) const {
      std::vector<MMDiTWeights::Block> const& blocks = weights.blocks;
      /// What comes before a block: the residual of the one before it, and the norm for its attention.
      const auto begin_text = [&](MMDiTWeights::Block const& block, int slot, at::Tensor const& y, int gate) {
        const int first = slot + block.slots_of_picture(), ends = block.text.ends();
        return norm({.x = text,
                     .y = y,
                     .modulation = modulations,
                     .gate = gate,
                     .shift = first + ends,  // the last block's norm has the scale before the shift
                     .scale = first + 1 - ends,
                     .eps = eps},
                    block.text.qkv);
      };
      at::Tensor normed =
          norm({.x = tokens, .modulation = modulations, .shift = 0, .scale = 1, .eps = eps}, blocks[0].picture.qkv);
      at::Tensor normed_text = begin_text(blocks[0], 0, {}, 0);
      int slot = 0;
      std::size_t layer = 0;
      for (std::size_t b = 0; b < blocks.size(); ++b) {
        MMDiTWeights::Block const& block = blocks[b];
        const bool last = b + 1 == blocks.size();
        const int of_text = slot + block.slots_of_picture(), next = slot + block.slots();
        const std::size_t of_dual = layer + 4, text_layer = of_dual + (block.dual ? 2 : 0);
        const at::Tensor joint = attention(normed, normed_text, block, layer, text_layer);
        at::Tensor alone;
        if (block.dual) {
          const at::Tensor of =
              norm({.x = tokens, .modulation = modulations, .shift = slot + 6, .scale = slot + 7, .eps = eps},
                   block.dual->qkv);
          alone = attention_alone(of, *block.dual, of_dual);
        }
        const std::int64_t count = tokens.size(0);
        normed = norm({.x = tokens,
                       .y = layers(joint.narrow(0, 0, count), block.picture.proj, layer + 1),
                       .modulation = modulations,
                       .gate = slot + 2,
                       .shift = slot + 3,
                       .scale = slot + 4,
                       .eps = eps,
                       .z = alone,
                       .gate_z = slot + 8},
                      block.picture.fc1);
        // The end has the scale before the shift.
        normed = norm({.x = tokens,
                       .y = layers.mlp(normed, block.picture.fc1, block.picture.fc2, layer + 2),
                       .modulation = modulations,
                       .gate = slot + 5,
                       .shift = next + last,
                       .scale = next + 1 - last,
                       .eps = eps},
                      last ? weights.final_layer : blocks[b + 1].picture.qkv);
        if (!block.text.ends()) {
          MMDiTWeights::Stream const& stream = block.text;
          normed_text = norm({.x = text,
                              .y = layers(joint.narrow(0, count, text.size(0)), stream.proj, text_layer + 1),
                              .modulation = modulations,
                              .gate = of_text + 2,
                              .shift = of_text + 3,
                              .scale = of_text + 4,
                              .eps = eps},
                             stream.fc1);
          const at::Tensor y = layers.mlp(normed_text, stream.fc1, stream.fc2, text_layer + 2);
          if (!last) normed_text = begin_text(blocks[b + 1], next, y, of_text + 5);
        }
        slot = next;
        layer = text_layer + (block.text.ends() ? 1 : 4);
      }
      return normed;
    }

    /// Of picture and text to both.
    /// @param layer that of the picture's projections
    /// @returns [tokens + text tokens, n, width], without the text where it ends
    at::Tensor attention(at::Tensor const& x, at::Tensor const& text, MMDiTWeights::Block const& block,
                         std::size_t layer, std::size_t text_layer) const {
      const std::int64_t n = x.size(1), of_x = x.size(0) * n, of_text = text.size(0) * n;
      const at::Tensor qkv = weights.pos_embed.new_empty({of_x + of_text, 3 * width()});
      layers.into(qkv.narrow(0, 0, of_x), x, block.picture.qkv, layer);
      layers.into(qkv.narrow(0, of_x, of_text), text, block.text.qkv, text_layer);
      DiTLinear const &proj = block.picture.proj, &of_others = block.text.ends() ? proj : block.text.proj;
      return attend(qkv, block.qk_norm, of_x, n, block.text.ends() ? x.size(0) : x.size(0) + text.size(0), proj,
                    of_others);
    }

    /// Of the picture to itself alone, and what it is projected to.
    at::Tensor attention_alone(at::Tensor const& x, MMDiTWeights::Dual const& dual, std::size_t layer) const {
      const std::int64_t n = x.size(1), rows = x.size(0) * n;
      const at::Tensor qkv = weights.pos_embed.new_empty({rows, 3 * width()});
      layers.into(qkv, x, dual.qkv, layer);
      return layers(attend(qkv, dual.qk_norm, rows, n, x.size(0), dual.proj, dual.proj), dual.proj, layer + 1);
    }

    /// @param qkv [tokens n, 3 width], of which the first rows have the first norm; is changed
    /// @param asking how many tokens ask
    /// @param of_first, of_others the layers that take what is made of the first rows and of others
    /// @returns [asking, n, width], in e4m3 where those layers are and a kernel rounds for them
    at::Tensor attend(at::Tensor const& qkv, at::Tensor const& qk_norm, std::int64_t first_rows, std::int64_t n,
                      std::int64_t asking, DiTLinear const& of_first, DiTLinear const& of_others) const {
      const std::int64_t heads = weights.heads, head = width() / heads;
      if (qk_norm.defined()) {
        detail::qk_norm(qkv.view({-1, 3, heads, head}), qk_norm, first_rows, options.plain);
      }
      const at::Tensor all = qkv.view({-1, n, 3, heads, head});
      if (!options.plain) {
        std::optional<detail::TokenFactors> factors;
        if (of_first.eighth.defined() && of_others.eighth.defined() && !options.observer) {
          factors = {first_rows / n, 1 / of_first.input_scale, 1 / of_others.input_scale};
        }
        const at::Tensor made = detail::attention_of_tokens(all, asking, factors);
        if (made.defined()) return made.flatten(2);
      }
      const at::Tensor parts = all.permute({2, 1, 3, 0, 4});  // [3, n, heads, tokens, head]
      const at::Tensor made = at::scaled_dot_product_attention(parts.select(0, 0).narrow(2, 0, asking),
                                                               parts.select(0, 1), parts.select(0, 2));
      return made.permute({2, 0, 1, 3}).flatten(2).contiguous();
    }

    /// @param x as evaluate takes it
    at::Tensor head(at::Tensor const& normed, at::Tensor const& x) const {
      const std::int64_t n = normed.size(1), p = weights.patch, rows = x.size(3) / p, columns = x.size(4) / p;
      const at::Tensor out = detail::linear(normed, weights.final_layer);
      const std::int64_t out_channels = out.size(2) / (p * p);
      // [row, column, n, y, x, channel] -> [n, channel, row, y, column, x]
      return out.view({rows, columns, n, p, p, out_channels})
          .permute({2, 5, 0, 3, 1, 4})
          .reshape({n, out_channels, x.size(3), x.size(4)});
    }
  };

  std::shared_ptr<Self> self_;
};

}  // namespace tstitch
