/// @file
/// The weights of an MMDiT.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "dit_weights.hpp"

namespace tstitch {

/// The weights of an MMDiT (Esser et al. 2024, arXiv 2403.03206): of Stable Diffusion 3 and 3.5. Width is that of the
/// tokens, head that of one head.
struct MMDiTWeights {
  /// Of one stream of tokens in a block.
  struct Stream {
    DiTLinear qkv;             ///< [3 width, width]
    DiTLinear proj, fc1, fc2;  ///< undefined for the text in the last block, which is only attended to
    bool ends() const { return !proj.bias.defined(); }
  };
  /// Attention of the picture to itself alone, beside the joint one.
  struct Dual {
    DiTLinear qkv, proj;
    at::Tensor qk_norm;  ///< [1, 2, head], of queries and keys; undefined: they are as they are
  };
  struct Block {
    Stream picture, text;
    at::Tensor qk_norm;  ///< [2, 2, head], of the picture and of the text; undefined: as they are
    std::optional<Dual> dual = {};

    /// Slots of the modulation: shift, scale and gate of the picture's attention, then of its MLP, then of its dual
    /// attention; then of the text's. Of a text that ends scale and shift.
    int slots_of_picture() const { return dual ? 9 : 6; }
    int slots() const { return slots_of_picture() + (text.ends() ? 2 : 6); }
  };

  DiTLinear x_embedder;                ///< [width, channels patch patch]
  at::Tensor pos_embed;                ///< [1, grid grid, width], from whose middle a picture takes its own
  DiTLinear t_embedder0, t_embedder2;  ///< [width, 256], [width, width]
  DiTLinear pooled0, pooled2;          ///< [width, pooled width], [width, width]
  DiTLinear text_embedder;             ///< [width, text width]
  DiTLinear modulation;                ///< of all blocks, and scale and shift of the end, [slots width, width]
  std::vector<Block> blocks;
  DiTLinear final_layer;  ///< [patch patch out_channels, width]
  std::int64_t heads = 0;
  std::int64_t patch = 0;
  std::int64_t grid = 0;

  /// Those that may be in 8 bits, in the order of DiTOptions::e4m3_inputs.
  std::vector<DiTLinear*> layers() {
    std::vector<DiTLinear*> all;
    for (Block& block : blocks) {
      Stream &picture = block.picture, &text = block.text;
      all.insert(all.end(), {&picture.qkv, &picture.proj, &picture.fc1, &picture.fc2});
      if (block.dual) all.insert(all.end(), {&block.dual->qkv, &block.dual->proj});
      all.push_back(&text.qkv);
      if (!text.ends()) all.insert(all.end(), {&text.proj, &text.fc1, &text.fc2});
    }
    return all;
  }
};

}  // namespace tstitch
