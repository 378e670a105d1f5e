/// @file
/// A native engine for diffusion transformers. Opt-in; file/dit.hpp loads networks for it.
///
/// It runs a DiT as C++: matrix products with what can be folded into them, attention, and one kernel for the residual,
/// gate, layer norm and modulation between them. What depends on timestep and class alone, all blocks' adaLN
/// modulations, is computed once for a run instead of in each step. The TorchScript network is the oracle that tests
/// hold it to, and what to load for everything that is not a DiT.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/sub.h>

#include <cstddef>
#include <cstdint>
#include <functional>
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
#include "dit_weights.hpp"
#include "modulations.hpp"
#include "positions.hpp"
#include "residual_norm.hpp"

namespace tstitch {

/// A DiT (Peebles and Xie 2023, arXiv 2212.09748) with adaLN-zero: a callable for Network.
class DiT {
 public:
  // See Network.
  static constexpr bool knows_timestep = true, repeats_x = true, settles_at_once = true, forecasts = true;

  /// @param weights on one device, in one floating type
  DiT(DiTWeights weights, DiTOptions options = {}) : self_(std::make_shared<Self>(std::move(weights), options)) {
    std::vector<DiTWeights::Block>& blocks = self_->weights.blocks;
    const std::int64_t base = self_->weights.base, tokens = self_->weights.pos_embed.size(1);
    if (base && (base < 1 || base > tokens || base * base != tokens)) {
      detail::refuse("DiT", "weights must have pos_embed of base * base tokens",
                     std::to_string(tokens) + " tokens and base " + std::to_string(base));
    }
    if (blocks.empty() || self_->weights.patch < 1 || self_->weights.heads < 1) {
      detail::refuse("DiT", "weights must have blocks, heads and a patch", std::to_string(blocks.size()) + " blocks");
    }
    detail::prepare_layers("DiT", self_->weights.layers(), options, self_->weights.pos_embed.size(1));
    self_->bind(self_.get(), [](TensorFunction function) { return function; });
  }

  /// @param x [n, channels, height, width]; or [n / 2, ...], which comes twice
  /// @param t [n], int64 or floating; may be undefined where the timestep is given
  /// @param condition of which labels are used, [n]
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
    self_->table.prepare(timesteps, condition.host_labels);
  }

  /// Replays what comes after the modulations, which are looked up by what the host knows.
  DiT captured(Capture const& capture) const {
    DiT made = *this;
    made.self_ = std::make_shared<Self>(self_->weights, self_->options);
    // The original owns what is captured, so that the graph has no reference to its own owner.
    made.self_->bind(self_, capture);
    return made;
  }

 private:
  struct Self {
    Self(DiTWeights given, DiTOptions how)
        : weights(std::move(given)),
          options(how),
          layers(options, weights.pos_embed),
          table(weights, options.modulation_bytes),
          positions(weights.pos_embed, weights.base) {}

    DiTWeights weights;
    DiTOptions options;
    detail::DiTLayers layers;
    detail::Modulations table;
    detail::Positions positions;  // of networks whose x has any size
    TensorFunction forward = {}, forward_and_keep = {}, forecast = {};

    /// Of x and modulations, and positions where x has any size; forecast also of what the blocks would make.
    /// @param by whose weights do it
    template <class Pointer>
    void bind(Pointer by, Capture const& how) {
      using Given = std::vector<at::Tensor> const&;
      const auto positions_in = [by](Given given) { return given.size() > 2 ? given[2] : by->weights.pos_embed; };
      forward = how([=](Given given) { return by->evaluate(given[0], given[1], positions_in(given)); });
      forward_and_keep =
          how([=](Given given) { return by->evaluate_and_keep(given[0], given[1], positions_in(given)); });
      forecast = how([by](Given given) { return by->evaluate_forecast(given[0], given[1], given[2]); });
    }

    at::Tensor operator()(at::Tensor const& x, at::Tensor const& t, Condition const& condition,
                          Evaluation const& evaluation) {
      require(x, t, condition.labels, evaluation.timestep);
      const at::Tensor modulations = table(t, condition, evaluation.timestep);
      const std::int64_t n = modulations.size(0);
      const at::Tensor halves = detail::in_halves(x, n);
      if (FeatureMemory::forecasts(evaluation)) {
        return forecast({halves, modulations, evaluation.memory->as<FeatureMemory>().forecast(evaluation)});
      }
      const std::int64_t p = weights.patch, rows = x.size(2) / p, columns = x.size(3) / p;
      std::vector<at::Tensor> given{halves, modulations};
      if (weights.base) given.push_back(positions(rows, columns));
      if (!FeatureMemory::keeps(evaluation)) return forward(given);
      const at::Tensor both = forward_and_keep(given);
      const std::int64_t tokens = rows * columns, width = weights.pos_embed.size(2), added = n * tokens * width;
      evaluation.memory->as<FeatureMemory>().keep(evaluation, both.narrow(0, 0, added).view({n, tokens, width}));
      return both.narrow(0, added, both.size(0) - added).view({n, -1, x.size(2), x.size(3)});
    }

    void require(at::Tensor const& x, at::Tensor const& t, at::Tensor const& labels,
                 std::optional<double> timestep) const {
      const auto shape = [](at::Tensor const& of) { return of.defined() ? detail::shape_text(of.sizes()) : "none"; };
      const auto is_vector = [](at::Tensor const& of) { return of.defined() && of.dim() == 1 && of.size(0) > 0; };
      if (!is_vector(labels)) detail::refuse("DiT", "labels must be [n]", shape(labels));
      const std::int64_t n = labels.size(0), p = weights.patch, tokens = weights.pos_embed.size(1),
                         channels = weights.x_embedder.weight.size(1) / (p * p);
      const auto has_patches = [&] {
        if (x.size(2) % p || x.size(3) % p) return false;
        return weights.base ? x.size(2) > 0 && x.size(3) > 0 : x.size(2) / p * (x.size(3) / p) == tokens;
      };
      if (!x.defined() || x.dim() != 4 || (x.size(0) != n && 2 * x.size(0) != n) || x.size(1) != channels ||
          !has_patches()) {
        detail::refuse("DiT",
                       "x must be [n or n / 2, " + std::to_string(channels) + ", H, W] with " + std::to_string(n) +
                           " labels and " + (weights.base ? "" : std::to_string(tokens) + " ") + "patches of " +
                           std::to_string(p) + " by " + std::to_string(p),
                       shape(x));
      }
      if (t.defined() ? !is_vector(t) || t.size(0) != n : !timestep) {
        detail::refuse("DiT", "t must be [" + std::to_string(n) + "], or the timestep given", shape(t));
      }
    }

    /// The network behind its modulations.
    /// @param x [halves, rows, channels, height, width], n rows in all
    /// @param modulations [n, slots, width]
    /// @param of_tokens [1, tokens, width], their position embedding
    /// @returns [n, out_channels, height, width]
    at::Tensor evaluate(at::Tensor const& x, at::Tensor const& modulations, at::Tensor const& of_tokens) const {
      return head(run_blocks(embed(x), modulations, of_tokens), x);
    }

    /// The same, and what the blocks and the position embedding add to the patches.
    /// @returns one vector: [n, tokens, width] of what they add, then the output
    at::Tensor evaluate_and_keep(at::Tensor const& x, at::Tensor const& modulations,
                                 at::Tensor const& of_tokens) const {
      const at::Tensor tokens = embed(x), before = tokens.clone();
      const at::Tensor out = head(run_blocks(tokens, modulations, of_tokens), x);
      const at::Tensor both = tokens.new_empty({tokens.numel() + out.numel()});
      at::Tensor added = both.narrow(0, 0, tokens.numel()).view(tokens.sizes());
      at::sub_out(added, tokens, before);
      both.narrow(0, tokens.numel(), out.numel()).copy_(out.view(-1));
      return both;
    }

    /// The same without the blocks.
    /// @param added [n, tokens, width], what they would add
    at::Tensor evaluate_forecast(at::Tensor const& x, at::Tensor const& modulations, at::Tensor const& added) const {
      const at::Tensor tokens = embed(x).add_(added);
      const int last = 6 * int(weights.blocks.size());
      return head(norm(tokens, {}, modulations, 0, last, last_norm_eps, weights.final_layer), x);
    }

    static constexpr double last_norm_eps = 1e-6;

    /// The patches of x.
    /// @returns [n, tokens, width], to be changed in place
    at::Tensor embed(at::Tensor const& x) const {
      DiTWeights const& w = weights;
      const std::int64_t halves = x.size(0), rows = x.size(1), n = halves * rows, channels = x.size(2), p = w.patch,
                         grid = x.size(3) / p, columns = x.size(4) / p;
      // [..., channel, row, y, column, x] -> [..., row, column, channel, y, x], and the type, in one copy
      const at::Tensor patches = w.pos_embed.new_empty({n, grid, columns, channels, p, p});
      patches.view({halves, rows, grid, columns, channels, p, p})
          .copy_(x.reshape({halves, rows, channels, grid, p, columns, p}).permute({0, 1, 3, 5, 2, 4, 6}));
      return detail::linear(patches.view({n, grid * columns, channels * p * p}), w.x_embedder);
    }

    /// Adds y to the tokens and makes the input of the layer that follows.
    at::Tensor norm(at::Tensor const& tokens, at::Tensor const& y, at::Tensor const& modulations, int gate, int shift,
                    double eps, DiTLinear const& next) const {
      return detail::residual_norm_modulate({.x = tokens,
                                             .y = y,
                                             .modulation = modulations,
                                             .gate = gate,
                                             .shift = shift,
                                             .scale = shift + 1,
                                             .eps = eps,
                                             .plain = options.plain,
                                             .e4m3_scale = next.eighth.defined() ? next.input_scale : 0});
    }

    /// Changes the tokens, and returns the input of the final layer.
    at::Tensor run_blocks(at::Tensor const& tokens, at::Tensor const& modulations, at::Tensor const& of_tokens) const {
      DiTWeights const& w = weights;
      constexpr double eps = last_norm_eps;
      const std::size_t depth = w.blocks.size();
      at::Tensor normed = norm(tokens, of_tokens, modulations, -1, 0, eps, w.blocks[0].qkv);
      for (std::size_t b = 0; b < depth; ++b) {
        DiTWeights::Block const& block = w.blocks[b];
        // Slots of a block: shift, scale and gate of the attention, then of the MLP.
        const int slot = 6 * int(b);
        normed =
            norm(tokens, attention(normed, block, 4 * b), modulations, slot + 2, slot + 3, w.mlp_norm_eps, block.fc1);
        DiTLinear const& next = b + 1 < depth ? w.blocks[b + 1].qkv : w.final_layer;
        normed = norm(tokens, layers.mlp(normed, block.fc1, block.fc2, 4 * b + 2), modulations, slot + 5, slot + 6, eps,
                      next);
      }
      return normed;
    }

    /// @param x as evaluate takes it
    at::Tensor head(at::Tensor const& normed, at::Tensor const& x) const {
      const std::int64_t n = normed.size(0), p = weights.patch, grid = x.size(3) / p, columns = x.size(4) / p;
      const at::Tensor out = detail::linear(normed, weights.final_layer);
      const std::int64_t out_channels = out.size(2) / (p * p);
      // [n, row, column, y, x, channel] -> [n, channel, row, y, column, x]
      return out.view({n, grid, columns, p, p, out_channels})
          .permute({0, 5, 1, 3, 2, 4})
          .reshape({n, out_channels, x.size(3), x.size(4)});
    }

    /// @param first the first of the block's layers
    at::Tensor attention(at::Tensor const& x, DiTWeights::Block const& block, std::size_t first) const {
      const at::Tensor qkv =
          layers(x, block.qkv, first).view({x.size(0), x.size(1), 3, weights.heads, x.size(2) / weights.heads});
      at::Tensor values;
      if (!options.plain) {
        const bool rounds = block.proj.eighth.defined() && !options.observer;
        values = detail::attention_kernel(qkv, rounds ? 1 / block.proj.input_scale : 0);
      }
      if (!values.defined()) {
        const at::Tensor parts = qkv.permute({2, 0, 3, 1, 4});  // [3, n, heads, tokens, head width]
        values = at::scaled_dot_product_attention(parts.select(0, 0), parts.select(0, 1), parts.select(0, 2))
                     .transpose(1, 2);
      }
      return layers(values.flatten(2), block.proj, first + 1);
    }
  };

  std::shared_ptr<Self> self_;
};

}  // namespace tstitch
