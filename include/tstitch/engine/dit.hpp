/// @file
/// A native engine for diffusion transformers. Opt-in.
///
/// It takes the weights out of a TorchScript file whose metadata says that it holds a DiT (architecture dit,
/// dit_diffusers or sit) and runs them as C++: matrix products with what can be folded into them, attention, and one
/// kernel for the residual, gate, layer norm and modulation between them. What depends on timestep and class alone, all
/// blocks' adaLN modulations, is computed once for a run instead of in each step. The TorchScript network is the oracle
/// that tests hold it to, and what to load for everything that is not a DiT.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/_addmm_activation.h>
#include <ATen/ops/_scaled_mm.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/silu.h>
#include <c10/core/Event.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../file/file.hpp"
#include "../file/parallel_file.hpp"
#include "../file/torchscript.hpp"
#include "../method/ddim.hpp"
#include "../model/network.hpp"
#include "../tensor/cuda/kernel.hpp"
#include "../tensor/cuda/kernels.hpp"
#include "../tensor/host_tensor.hpp"
#include "attention.hpp"
#include "cublas_lt.hpp"
#include "dit_kernels.hpp"

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
  DiTLinear modulation;   ///< of all blocks and the final layer, [(6 depth + 2) width, width]
  std::vector<Block> blocks;
  DiTLinear final_layer;  ///< [patch patch out_channels, width]
  std::int64_t heads = 0;
  std::int64_t patch = 0;
  double frequency_steps = 128;  ///< the k-th frequency of t is 10000^(-k / frequency_steps)
  double mlp_norm_eps = 1e-6;
  bool flow = false;  ///< SiT: the embedder is told 1 - t / 1000
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

/// Gives the weight 8 bits, unless it has them.
/// @param largest_input see DiTOptions::e4m3_inputs
inline void quantise(DiTLinear& linear, double largest_input) {
  constexpr double largest = 448;  // of e4m3
  const auto scale_of = [&](double value) { return value > 0 ? value / largest : 1.0; };
  linear.input_scale = scale_of(1.1 * largest_input);  // other trajectories may go further
  if (!linear.eighth.defined()) {
    const double largest_weight = linear.weight.abs().max().item<double>();
    if (!std::isfinite(largest_weight)) refuse("DiT", "weights in 8 bits must be finite", largest_weight);
    linear.weight_scale = scale_of(largest_weight);
    linear.eighth = to_e4m3(linear.weight, linear.weight_scale);
  }
  const at::Tensor host = host_tensor({3, 4}, at::kFloat).zero_();
  host.mutable_data_ptr<float>()[0] = float(linear.input_scale);
  host.mutable_data_ptr<float>()[4] = float(linear.weight_scale);
  host.mutable_data_ptr<float>()[8] = float(1 / linear.input_scale);
  linear.scales = host.to(linear.eighth.device());
  linear.weight.reset();
}

/// Whether a device multiplies in 8 bits.
inline bool multiplies_e4m3(at::Device device) {
  return device.is_cuda() && compute_capability(device.index()) >= 89;
}

/// @param x [m, in] e4m3, divided by the layer's input_scale
/// @param in_8_bits whether the device multiplies so; else in float32
/// @returns [m, out] in this type
inline at::Tensor linear_e4m3(at::Tensor const& x, DiTLinear const& by, at::ScalarType type, bool in_8_bits) {
  if (in_8_bits) {
    const bool adds = type != at::kFloat;  // cuBLAS adds no bias in float32
    const auto bias = adds ? std::optional<at::Tensor>(by.bias) : std::nullopt;
    const at::Tensor product =
        at::_scaled_mm(x, by.eighth.t(), by.scale(0), by.scale(1), bias, {}, type, /*use_fast_accum=*/true);
    return adds ? product : product.add(by.bias);
  }
  const at::Tensor product = at::linear(x.to(at::kFloat), by.eighth.to(at::kFloat));
  return product.mul(by.input_scale * by.weight_scale).add(by.bias).to(type);
}

}  // namespace detail

/// How a DiT is run.
struct DiTOptions {
  /// Bytes on the device for modulations that are kept, by timestep and class; what does not fit is computed in each
  /// step. DiT-XL/2 in 16 bits has 0.39 MB for each pair of a timestep and a class.
  std::int64_t modulation_bytes = std::int64_t(1) << 30;
  /// With torch's operations one after another instead of the fused kernels.
  bool plain = false;
  /// The largest absolute input of each linear layer (qkv, proj, fc1 and fc2 of the first block, then of the next)
  /// along trajectories, as `largest_inputs` finds them. Given, these layers compute in 8 bits (e4m3, one scale a
  /// tensor), but for those of 0: on GPUs of compute capability 8.9 and above faster, elsewhere slower. Their weights
  /// are the e4m3 ones of the file where it has them, else the nearest to its others. For proj that is faster only
  /// where the attention before it is by a kernel of ours; others leave the rounding to a pass of its own.
  std::vector<double> e4m3_inputs = {};
  /// Sees the input of each of those layers, by the same order.
  std::function<void(std::size_t, at::Tensor const&)> observer = {};
};

/// A DiT (Peebles and Xie 2023, arXiv 2212.09748) with adaLN-zero: a callable for Network.
class DiT {
 public:
  static constexpr bool knows_timestep = true, repeats_x = true;  // see Network

  /// @param weights on one device, in one floating type
  DiT(DiTWeights weights, DiTOptions options = {}) : self_(std::make_shared<Self>(std::move(weights), options)) {
    std::vector<DiTWeights::Block>& blocks = self_->weights.blocks;
    std::vector<double> const& inputs = options.e4m3_inputs;
    if (!inputs.empty() && inputs.size() != 4 * blocks.size()) {
      detail::refuse("DiT", "e4m3_inputs must be one for each of the " + std::to_string(4 * blocks.size()) + " layers",
                     std::to_string(inputs.size()));
    }
    std::size_t layer = 0;
    for (DiTWeights::Block& block : blocks) {
      for (DiTLinear* const each : {&block.qkv, &block.proj, &block.fc1, &block.fc2}) {
        const double input = inputs.empty() ? 0 : inputs[layer++];
        // Scales and one over them are float32.
        if (!(input == 0 || (input >= 1e-30 && input <= 1e30))) {
          detail::refuse("DiT", "e4m3_inputs must be 0 or in [1e-30, 1e30]", input);
        }
        if (each->scales.defined() || each->packed.defined()) continue;  // of another engine's weights
        if (input > 0) {
          detail::quantise(*each, input);
          continue;
        }
        each->eighth.reset();
        if (!options.plain) detail::pack(*each, self_->weights.pos_embed.size(1));
      }
    }
    self_->forward = [self = self_.get()](std::vector<at::Tensor> const& given) {
      return self->evaluate(given[0], given[1]);
    };
  }

  /// @param x [n, channels, height, width]; or [n / 2, ...], which comes twice
  /// @param t [n], int64 or floating; may be undefined where the timestep is given
  /// @param condition of which labels are used, [n]
  /// @returns [n, out_channels, height, width] in the type of the weights; without gradients
  /// @throws std::invalid_argument for other shapes, and where neither t nor the timestep is given
  at::Tensor operator()(at::Tensor const& x, at::Tensor const& t, Condition const& condition,
                        std::optional<double> timestep) const {
    return (*self_)(x, t, condition, timestep);
  }

  /// Computes the modulations of a run ahead.
  void prepare(std::span<const double> timesteps, Condition const& condition) const {
    self_->prepare(timesteps, condition.host_labels);
  }

  /// Replays what comes after the modulations, which are looked up by what the host knows.
  DiT captured(Capture const& capture) const {
    DiT made = *this;
    made.self_ = std::make_shared<Self>(self_->weights, self_->options);
    // The original owns what is captured, so that the graph has no reference to its own owner.
    made.self_->forward = capture(
        [original = self_](std::vector<at::Tensor> const& inputs) { return original->evaluate(inputs[0], inputs[1]); });
    return made;
  }

 private:
  struct Self {
    Self(DiTWeights given, DiTOptions how)
        : weights(std::move(given)), options(how), in_8_bits(detail::multiplies_e4m3(weights.pos_embed.device())) {}

    DiTWeights weights;
    DiTOptions options;
    bool in_8_bits;  ///< whether the device multiplies so
    TensorFunction forward;

    /// Rows of the table, which are often neighbours: those of one class, with and without it.
    struct TableRows {
      std::int64_t first = 0, count = 0;
      at::Tensor each = {};  ///< [count], on the device; undefined: they are neighbours
    };

    /// What a stream has looked up. Each has its own, so that none reads a list that another is about to write.
    struct Lookups {
      std::vector<std::int64_t> labels = {};           ///< of the newest evaluation, and
      std::map<std::int64_t, TableRows> rows_of = {};  ///< their rows by timestep
    };

    std::mutex mutex = {};
    at::Tensor table = {};                                                      ///< [rows, slots, width]
    std::map<std::pair<std::int64_t, std::int64_t>, std::int64_t> row_of = {};  ///< of bits of a timestep, and label
    std::optional<c10::Stream> writer = {};                                     ///< of the table, the last, on a GPU
    std::optional<c10::Event> written = {};
    std::map<std::int64_t, Lookups> lookups_of = {};  ///< by stream; 0 on a CPU

    std::int64_t width() const { return weights.pos_embed.size(2); }
    std::int64_t slots() const { return weights.modulation.bias.size(0) / width(); }

    /// How many modulations may be kept.
    std::int64_t capacity() const {
      return options.modulation_bytes / (slots() * width() * std::int64_t(weights.pos_embed.element_size()));
    }

    at::Tensor operator()(at::Tensor const& x, at::Tensor const& t, Condition const& condition,
                          std::optional<double> timestep) {
      require(x, t, condition.labels, timestep);
      const at::Tensor modulations = modulations_for(t, condition, timestep);
      return forward({in_halves(x, modulations.size(0)), modulations});
    }

    void require(at::Tensor const& x, at::Tensor const& t, at::Tensor const& labels,
                 std::optional<double> timestep) const {
      const auto shape = [](at::Tensor const& of) { return of.defined() ? detail::shape_text(of.sizes()) : "none"; };
      const auto is_vector = [](at::Tensor const& of) { return of.defined() && of.dim() == 1 && of.size(0) > 0; };
      if (!is_vector(labels)) detail::refuse("DiT", "labels must be [n]", shape(labels));
      const std::int64_t n = labels.size(0), p = weights.patch, tokens = weights.pos_embed.size(1),
                         channels = weights.x_embedder.weight.size(1) / (p * p);
      if (!x.defined() || x.dim() != 4 || (x.size(0) != n && 2 * x.size(0) != n) || x.size(1) != channels ||
          x.size(2) % p || x.size(3) % p || x.size(2) / p * (x.size(3) / p) != tokens) {
        detail::refuse("DiT",
                       "x must be [n or n / 2, " + std::to_string(channels) + ", H, W] with " + std::to_string(n) +
                           " labels and " + std::to_string(tokens) + " patches of " + std::to_string(p) + " by " +
                           std::to_string(p),
                       shape(x));
      }
      if (t.defined() ? !is_vector(t) || t.size(0) != n : !timestep) {
        detail::refuse("DiT", "t must be [" + std::to_string(n) + "], or the timestep given", shape(t));
      }
    }

    /// An even number of rows always as two halves, which may be the same one: one shape for a graph.
    /// @param x [n or n / 2, channels, size, size]
    /// @returns [1 or 2, rows, channels, size, size]
    static at::Tensor in_halves(at::Tensor const& x, std::int64_t n) {
      const at::Tensor once = x.unsqueeze(0);
      if (x.size(0) != n) return once.expand({2, -1, -1, -1, -1});
      const std::int64_t halves = n % 2 ? 1 : 2;
      return once.reshape({halves, n / halves, x.size(1), x.size(2), x.size(3)});
    }

    /// How many pairs of a timestep and a label have their modulations computed at once, on a GPU and on a CPU: always
    /// so many, for a product of another shape rounds in another way, and those of a pair must have the same bits
    /// whatever was asked for before and whatever comes along. Few enough that a pair alone costs little.
    std::int64_t modulated_at_once() const { return weights.pos_embed.is_cuda() ? 128 : 16; }

    /// @param t [m]
    /// @param y [m], labels
    /// @param modulations [m, slots, width] is filled
    void modulate(at::Tensor const& t, at::Tensor const& y, at::Tensor const& modulations) const {
      const std::int64_t m = t.size(0), at_once = modulated_at_once(), missing = (at_once - m % at_once) % at_once;
      const auto filled = [&](at::Tensor const& of) {  // with the last one
        return missing ? at::cat({of, of.narrow(0, m - 1, 1).expand({missing})}) : of;
      };
      const at::Tensor times = filled(t), labels = filled(y);
      for (std::int64_t first = 0; first < m; first += at_once) {
        const std::int64_t part = std::min(at_once, m - first);
        modulations.narrow(0, first, part)
            .copy_(modulate(times.narrow(0, first, at_once), labels.narrow(0, first, at_once)).narrow(0, 0, part));
      }
    }

    /// [m, slots, width] of m timesteps and labels, in one product.
    at::Tensor modulate(at::Tensor const& t, at::Tensor const& y) const {
      at::Tensor time = t.to(at::kFloat);
      if (weights.flow) time = time.div(1000).neg().add(1);
      // Multiplied and then divided, as the networks do: t is large, and the last bit of a frequency would show.
      const at::Tensor frequencies =
          at::arange(128, t.options().dtype(at::kFloat)).mul(-std::log(10000.0)).div(weights.frequency_steps).exp();
      const at::Tensor angles = time.unsqueeze(1).mul(frequencies);
      const at::Tensor waves = at::cat({angles.cos(), angles.sin()}, 1).to(weights.pos_embed.scalar_type());
      const at::Tensor hidden = at::silu(linear(waves, weights.t_embedder0));
      const at::Tensor c = linear(hidden, weights.t_embedder2).add(at::index_select(weights.y_embedder, 0, y));
      return linear(at::silu(c), weights.modulation).view({t.size(0), slots(), width()});
    }

    static at::Tensor linear(at::Tensor const& x, DiTLinear const& by) {
      return by.packed.defined() ? detail::packed_linear(x, by, false) : at::linear(x, by.weight, by.bias);
    }

    void prepare(std::span<const double> timesteps, std::vector<std::int64_t> const& of_rows) {
      std::vector<std::int64_t> distinct = of_rows;
      std::sort(distinct.begin(), distinct.end());
      distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
      const std::lock_guard lock(mutex);
      keep(timesteps, distinct);
    }

    /// Computes what is not in the table yet; nothing when it would not fit.
    bool keep(std::span<const double> timesteps, std::vector<std::int64_t> const& distinct) {
      // A table that is made under InferenceMode could not be written to without.
      const c10::InferenceMode as_usual(false);
      const c10::AutoGradMode no_gradients(false);
      std::vector<double> times;
      std::vector<std::int64_t> of_labels;
      std::set<std::int64_t> seen;
      for (const double timestep : timesteps) {
        if (!seen.insert(std::bit_cast<std::int64_t>(timestep)).second) continue;
        for (const std::int64_t label : distinct) {
          if (row_of.contains({std::bit_cast<std::int64_t>(timestep), label})) continue;
          times.push_back(timestep);
          of_labels.push_back(label);
        }
      }
      if (times.empty()) return true;
      const std::int64_t count = std::int64_t(times.size());
      if (std::int64_t(timesteps.size() * distinct.size()) > capacity()) return false;
      if (std::int64_t(row_of.size()) + count > capacity()) {  // makes room for the new run
        row_of.clear();
        lookups_of.clear();
        table.reset();  // not overwritten: what was looked up may be a part of it
        return keep(timesteps, distinct);
      }
      const std::int64_t used = std::int64_t(row_of.size());
      if (table.defined()) share_table();  // who waits for what is written now, waits for what was before
      if (!table.defined() || table.size(0) < used + count) {
        const std::int64_t rows = std::min(capacity(), std::max(used + count, table.defined() ? 2 * table.size(0) : 0));
        const at::Tensor larger = weights.pos_embed.new_empty({rows, slots(), width()});
        if (used) larger.narrow(0, 0, used).copy_(table.narrow(0, 0, used));
        table = larger;
        mark_written();  // also when what follows fails
      }
      lookups_of.clear();
      const at::Device device = weights.pos_embed.device();
      modulate(host_times(times, device.is_cuda()).to(device, /*non_blocking=*/true),
               detail::to_device(of_labels, device), table.narrow(0, used, count));
      mark_written();
      for (std::int64_t i = 0; i < count; ++i) {
        row_of[{std::bit_cast<std::int64_t>(times[std::size_t(i)]), of_labels[std::size_t(i)]}] = used + i;
      }
      return true;
    }

    /// Remembers that the stream that is current has written to the table.
    void mark_written() {
      if (!table.is_cuda()) return;
      writer = stream();
      written.emplace(table.device().type());
      written->record(*writer);
    }

    /// The one that is current on the GPU of the weights.
    c10::Stream stream() const {
      const at::Device device = weights.pos_embed.device();
      return c10::impl::VirtualGuardImpl(device.type()).getStream(device);
    }

    /// Lets the stream that is current use the table, whichever has written it.
    void share_table() const {
      if (!writer) return;
      if (const c10::Stream now = stream(); now != *writer) {
        written->block(now);
        table.record_stream(now);
      }
    }

    /// [rows, slots, width]
    at::Tensor look_up(TableRows const& rows) const {
      share_table();
      return rows.each.defined() ? at::index_select(table, 0, rows.each) : table.narrow(0, rows.first, rows.count);
    }

    /// In float32, as a network would make them of its int64 or float32 timesteps.
    static at::Tensor host_times(std::vector<double> const& times, bool pinned) {
      const at::Tensor host = detail::host_tensor({std::int64_t(times.size())}, at::kFloat, pinned);
      std::transform(times.begin(), times.end(), host.mutable_data_ptr<float>(), [](double t) { return float(t); });
      return host;
    }

    /// [n, slots, width]
    at::Tensor modulations_for(at::Tensor const& t, Condition const& condition, std::optional<double> timestep) {
      std::vector<std::int64_t> const& of_rows = condition.host_labels;
      at::Tensor const& labels = condition.labels;
      const auto compute = [&] {
        const auto type = labels.options().dtype(at::kFloat);
        const at::Tensor made = weights.pos_embed.new_empty({labels.size(0), slots(), width()});
        modulate(t.defined() ? t : labels.new_full(labels.sizes(), *timestep, type), labels, made);
        return made;
      };
      if (!timestep || std::int64_t(of_rows.size()) != labels.size(0)) return compute();
      const std::lock_guard lock(mutex);
      const std::int64_t by = weights.pos_embed.is_cuda() ? std::int64_t(stream().id()) : 0;
      const std::int64_t key = std::bit_cast<std::int64_t>(*timestep);
      if (Lookups const& known = lookups_of[by]; known.labels == of_rows) {
        if (const auto rows = known.rows_of.find(key); rows != known.rows_of.end()) return look_up(rows->second);
      }
      std::vector<std::int64_t> distinct = of_rows;
      std::sort(distinct.begin(), distinct.end());
      distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
      const double only = *timestep;
      if (!keep({&only, 1}, distinct)) return compute();
      std::vector<std::int64_t> found;
      for (const std::int64_t label : of_rows) found.push_back(row_of.at({key, label}));
      TableRows rows{.first = found.empty() ? 0 : found[0], .count = std::int64_t(found.size())};
      const auto apart = [](std::int64_t before, std::int64_t after) { return after != before + 1; };
      if (std::adjacent_find(found.begin(), found.end(), apart) != found.end()) {
        rows.each = detail::to_device(found, weights.pos_embed.device());
      }
      Lookups& own = lookups_of[by];  // which keep() may have emptied
      if (own.labels != of_rows) own = {of_rows, {}};
      return look_up(own.rows_of[key] = rows);
    }

    /// The network behind its modulations.
    /// @param x [halves, rows, channels, size, size], n rows in all
    /// @param modulations [n, slots, width]
    /// @returns [n, out_channels, size, size]
    at::Tensor evaluate(at::Tensor const& x, at::Tensor const& modulations) const {
      DiTWeights const& w = weights;
      const std::int64_t halves = x.size(0), rows = x.size(1), n = modulations.size(0), channels = x.size(2),
                         p = w.patch, grid = x.size(3) / p, columns = x.size(4) / p;
      // [..., channel, row, y, column, x] -> [..., row, column, channel, y, x], and the type, in one copy
      const at::Tensor patches = w.pos_embed.new_empty({n, grid, columns, channels, p, p});
      patches.view({halves, rows, grid, columns, channels, p, p})
          .copy_(x.reshape({halves, rows, channels, grid, p, columns, p}).permute({0, 1, 3, 5, 2, 4, 6}));
      const at::Tensor tokens = linear(patches.view({n, grid * columns, channels * p * p}), w.x_embedder);
      // Adds y and makes the input of the layer that follows.
      const auto norm = [&](at::Tensor const& y, int gate, int shift, double eps, DiTLinear const& next) {
        return detail::residual_norm_modulate(tokens, y, modulations, gate, shift, shift + 1, eps, options.plain,
                                              next.eighth.defined() ? next.input_scale : 0);
      };
      constexpr double eps = 1e-6;
      const std::size_t depth = w.blocks.size();
      at::Tensor normed = norm(w.pos_embed, -1, 0, eps, w.blocks[0].qkv);
      for (std::size_t b = 0; b < depth; ++b) {
        DiTWeights::Block const& block = w.blocks[b];
        // Slots of a block: shift, scale and gate of the attention, then of the MLP.
        const int slot = 6 * int(b);
        normed = norm(attention(normed, block, b), slot + 2, slot + 3, w.mlp_norm_eps, block.fc1);
        DiTLinear const& next = b + 1 < depth ? w.blocks[b + 1].qkv : w.final_layer;
        normed = norm(mlp(normed, block, b), slot + 5, slot + 6, eps, next);
      }
      const at::Tensor out = linear(normed, w.final_layer);
      const std::int64_t out_channels = out.size(2) / (p * p);
      // [n, row, column, y, x, channel] -> [n, channel, row, y, column, x]
      return out.view({n, grid, columns, p, p, out_channels})
          .permute({0, 5, 1, 3, 2, 4})
          .reshape({n, out_channels, x.size(3), x.size(4)});
    }

    /// A layer of a block.
    /// @param x [n, tokens, in]; e4m3 where the layer is and what came before made it so
    at::Tensor layer(at::Tensor const& x, DiTLinear const& by, std::size_t index) const {
      if (options.observer) options.observer(index, x);
      if (!by.eighth.defined()) return linear(x, by);
      return detail::linear_e4m3(input_e4m3(x, by).flatten(0, 1), by, weights.pos_embed.scalar_type(), in_8_bits)
          .view({x.size(0), x.size(1), by.bias.size(0)});
    }

    /// What a layer in 8 bits is given, unless what came before has made it so.
    at::Tensor input_e4m3(at::Tensor const& x, DiTLinear const& by) const {
      return x.scalar_type() == at::kFloat8_e4m3fn ? x : to_e4m3(x, by.input_scale, false);
    }

    at::Tensor to_e4m3(at::Tensor const& x, double scale, bool gelu) const {
      // The kernels are those of the network's width, and this one looks at no width.
      const at::Tensor like = weights.pos_embed;
      return detail::to_e4m3(x, scale, gelu, options.plain ? nullptr : detail::dit_kernels(like));
    }

    at::Tensor attention(at::Tensor const& x, DiTWeights::Block const& block, std::size_t b) const {
      const at::Tensor qkv =
          layer(x, block.qkv, 4 * b).view({x.size(0), x.size(1), 3, weights.heads, x.size(2) / weights.heads});
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
      return layer(values.flatten(2), block.proj, 4 * b + 1);
    }

    at::Tensor mlp(at::Tensor const& x, DiTWeights::Block const& block, std::size_t b) const {
      const std::size_t first = 4 * b + 2;
      if (block.fc2.eighth.defined() && !options.observer) {
        if (x.is_cuda() && block.fc1.eighth.defined() && !options.plain) {
          const at::Tensor hidden = detail::gelu_product_e4m3({.x = input_e4m3(x, block.fc1).flatten(0, 1),
                                                               .weight = block.fc1.eighth,
                                                               .bias = block.fc1.bias,
                                                               .x_scale = block.fc1.scale(0),
                                                               .weight_scale = block.fc1.scale(1),
                                                               .out_factor = block.fc2.scale(2)});
          if (hidden.defined()) return layer(hidden.view({x.size(0), x.size(1), hidden.size(1)}), block.fc2, first + 1);
        }
        return layer(to_e4m3(layer(x, block.fc1, first), block.fc2.input_scale, true), block.fc2, first + 1);
      }
      if (options.observer && !block.fc1.eighth.defined()) options.observer(first, x);
      const auto second = [&](at::Tensor const& hidden) { return layer(hidden, block.fc2, first + 1); };
      if (block.fc1.packed.defined()) return second(detail::packed_linear(x, block.fc1, true));
      if (block.fc1.eighth.defined()) return second(detail::gelu_tanh(layer(x, block.fc1, first)));
      if (x.is_cuda() && !options.plain) {
        // cuBLASLt adds the bias and takes GELU, in its tanh form, while it writes the product.
        const at::Tensor hidden = at::_addmm_activation(block.fc1.bias, x.flatten(0, 1), block.fc1.weight.t(), 1, 1,
                                                        /*use_gelu=*/true);
        return second(hidden.view({x.size(0), x.size(1), hidden.size(1)}));
      }
      return second(detail::gelu_tanh(linear(x, block.fc1)));
    }
  };

  std::shared_ptr<Self> self_;
};

namespace detail {

/// Tensors of a module by name.
inline std::map<std::string, at::Tensor> tensors_of(torch::jit::Module const& module) {
  std::map<std::string, at::Tensor> found;
  for (auto const& each : module.named_parameters()) found.emplace(each.name, each.value.detach());
  for (auto const& each : module.named_buffers()) found.emplace(each.name, each.value.detach());
  return found;
}

/// The weights of a scripted DiT in this type on this device.
inline DiTWeights dit_weights(torch::jit::Module const& module, NetworkInfo const& info, at::Device device,
                              at::ScalarType type, std::string const& source) {
  const std::map<std::string, at::Tensor> all = tensors_of(module);
  const auto tensor = [&](std::string const& name, std::vector<std::int64_t> const& shape) {
    const auto found = all.find(name);
    const std::string must = "tstitch::load_dit: " + source + ": must hold " + name + " of shape ";
    if (found == all.end()) throw std::runtime_error(must + shape_text(shape) + ", got none");
    if (found->second.sizes() != at::IntArrayRef(shape)) {
      throw std::runtime_error(must + shape_text(shape) + ", got " + shape_text(found->second.sizes()));
    }
    return found->second.to(device, type).contiguous();
  };
  const auto linear = [&](std::string const& name, std::int64_t out, std::int64_t in) {
    return DiTLinear{tensor(name + ".weight", {out, in}), tensor(name + ".bias", {out})};
  };
  // Constants that other programs' files may lack.
  const auto constant = [](torch::jit::Module const& of, char const* name, auto otherwise) {
    if (!of.hasattr(name) && !of.type()->findConstantSlot(name)) return otherwise;
    const c10::IValue value = of.attr(name);
    return decltype(otherwise)(value.isBool() ? double(value.toBool()) : value.toScalar().toDouble());
  };
  NetworkInfo::Architecture const& a = info.architecture;
  const std::int64_t width = a.width, p = a.patch_size;
  const bool in_range = width >= 4 && width <= 65536 && a.depth >= 1 && a.depth <= 1000 && a.heads >= 1 && p >= 1 &&
                        p <= 65536 && a.mlp_ratio > 0 && a.mlp_ratio <= 1000;
  const std::int64_t hidden = in_range ? std::int64_t(double(width) * a.mlp_ratio) : 0;
  if (!in_range || hidden < 1 || width % a.heads || info.height % p || info.width % p) {
    throw std::runtime_error("tstitch::load_dit: " + source +
                             ": must state the width, depth, heads, patch_size and mlp_ratio of a DiT, got width " +
                             std::to_string(width) + ", depth " + std::to_string(a.depth) + ", heads " +
                             std::to_string(a.heads) + ", patch_size " + std::to_string(p) + ", mlp_ratio " +
                             text(a.mlp_ratio));
  }
  const std::int64_t out_channels = info.channels * (info.learned_variance ? 2 : 1);
  DiTWeights w;
  w.heads = a.heads;
  w.patch = p;
  w.x_embedder = {tensor("x_embedder.proj.weight", {width, info.channels, p, p}).flatten(1),
                  tensor("x_embedder.proj.bias", {width})};
  w.t_embedder0 = linear("t_embedder.mlp.0", width, 256);
  w.t_embedder2 = linear("t_embedder.mlp.2", width, width);
  const std::int64_t labels = std::max(info.num_classes, info.null_class.value_or(-1) + 1);
  w.y_embedder = tensor("y_embedder.embedding_table.weight", {labels, width});
  w.pos_embed = tensor("pos_embed", {1, info.height / p * (info.width / p), width});
  w.final_layer = linear("final_layer.linear", p * p * out_channels, width);
  std::vector<at::Tensor> weights, biases;
  for (std::int64_t b = 0; b < a.depth; ++b) {
    const std::string block = "blocks." + std::to_string(b) + ".";
    w.blocks.push_back({linear(block + "attn.qkv", 3 * width, width), linear(block + "attn.proj", width, width),
                        linear(block + "mlp.fc1", hidden, width), linear(block + "mlp.fc2", width, hidden)});
    const DiTLinear modulation = linear(block + "adaLN_modulation.1", 6 * width, width);
    weights.push_back(modulation.weight);
    biases.push_back(modulation.bias);
  }
  const DiTLinear modulation = linear("final_layer.adaLN_modulation.1", 2 * width, width);
  weights.push_back(modulation.weight);
  biases.push_back(modulation.bias);
  w.modulation = {at::cat(weights), at::cat(biases)};
  if (const std::string next = "blocks." + std::to_string(a.depth) + ".attn.qkv.weight"; all.contains(next)) {
    throw std::runtime_error("tstitch::load_dit: " + source + ": must hold " + std::to_string(a.depth) +
                             " blocks, got also " + next);
  }
  const torch::jit::Module embedder = module.attr("t_embedder").toModule();
  w.frequency_steps = constant(embedder, "frequency_steps", w.frequency_steps);
  w.flow = constant(embedder, "flow", false);
  for (auto const& block : module.attr("blocks").toModule().named_children()) {
    if (block.name == "0") w.mlp_norm_eps = constant(block.value.attr("norm2").toModule(), "eps", w.mlp_norm_eps);
  }
  return w;
}

/// Gives layers of the blocks the weights in e4m3 that the file has for those whose scale is not 0. Its exporter
/// rounded them so that each makes up for the errors of others (calibrate.py), which the nearest values do not.
inline void take_e4m3(DiTWeights& weights, Archive const& archive, NetworkInfo const& info, std::string const& source) {
  std::vector<double> const& scales = info.architecture.e4m3_weight_scales;
  if (scales.empty()) return;
  if (scales.size() != 4 * weights.blocks.size()) {
    throw std::runtime_error("tstitch::load_dit: " + source + ": must state a scale of 8 bits for each of the " +
                             std::to_string(4 * weights.blocks.size()) + " layers, got " +
                             std::to_string(scales.size()));
  }
  std::vector<DiTLinear*> layers;
  std::size_t bytes = 0;
  for (DiTWeights::Block& block : weights.blocks) {
    for (DiTLinear* const each : {&block.qkv, &block.proj, &block.fc1, &block.fc2}) {
      if (scales[layers.size()] > 0) bytes += std::size_t(each->weight.numel());
      layers.push_back(each);
    }
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

}  // namespace detail

/// Whether `load_dit` knows the network of this file.
inline bool is_dit(NetworkInfo const& info) {
  std::string const& kind = info.architecture.kind;
  return kind == "dit" || kind == "dit_diffusers" || kind == "sit";
}

/// Loads a DiT for the native engine. Runs code of the file, so load what you trust.
/// @param options as for load_torchscript; warm_up_rows do nothing, because no shape needs it
/// @throws std::runtime_error naming the file and what is wrong with it, or that it is no DiT
inline Network load_dit(std::string const& path, TorchScriptOptions const& options = {}, DiTOptions const& how = {}) {
  const auto file = detail::open_file(detail::torchscript_file, path);
  const std::string source = detail::quoted(path);
  detail::require_device(options.device);
  return detail::reading(detail::torchscript_file, source, [&] {
    const auto archive = detail::open_torchscript(source, file);
    NetworkInfo info = detail::read_network_info(*archive, source, options.info);
    if (!is_dit(info)) {
      throw std::runtime_error("tstitch::load_dit: " + source +
                               ": must have the architecture dit, dit_diffusers or sit, got '" +
                               detail::printable(info.architecture.kind) + "'");
    }
    if (!info.conditions.empty()) {
      throw std::runtime_error("tstitch::load_dit: " + source + ": must take no conditions but a label, got '" +
                               detail::printable(info.conditions[0].name) + "'");
    }
    const c10::AutoGradMode no_gradients(false);
    const torch::jit::Module module = detail::load_module(archive);
    const at::ScalarType type = detail::type_of(module, options);
    DiTWeights weights = detail::dit_weights(module, info, options.device, type, source);
    if (!how.e4m3_inputs.empty()) detail::take_e4m3(weights, *archive, info, source);
    return Network(DiT(std::move(weights), how), std::move(info), options.device);
  });
}

/// Trajectories along which `largest_inputs` looks.
struct CalibrationOptions {
  int steps = 20;
  std::int64_t images = 16;   ///< of classes 0, 1, 2 ... in turn
  double guidance_scale = 0;  ///< 0: what the network recommends
  std::uint64_t seed = 0;
};

/// What DiTOptions::e4m3_inputs asks for, along DDIM trajectories by the network of this file in its own type. Waits
/// for the GPU.
///
/// It is 0 for proj unless the network has heads of 64 or 72 channels and up to 256 tokens. The inputs of others are
/// rounded in a pass of their own, which takes what 8 bits save in so small a product, and is not free of errors.
/// @throws as load_dit does; std::runtime_error for values that are not finite
inline std::vector<double> largest_inputs(std::string const& path, TorchScriptOptions const& options = {},
                                          CalibrationOptions const& calibration = {}) {
  std::vector<at::Tensor> largest;
  const auto look = [&](std::size_t layer, at::Tensor const& input) {
    if (largest.size() <= layer) largest.resize(layer + 1);
    const at::Tensor now = input.abs().max();
    largest[layer] = largest[layer].defined() ? largest[layer].maximum(now) : now;
  };
  const Network network = load_dit(path, options, {.plain = true, .observer = look});
  Request request{.count = calibration.images, .seed = calibration.seed};
  NetworkInfo const& info = network.info();
  for (std::int64_t i = 0; i < calibration.images && info.num_classes; ++i) {
    request.labels.push_back(i % info.num_classes);
  }
  const double scale = calibration.guidance_scale != 0 ? calibration.guidance_scale : info.guidance_scale;
  if (info.null_class) request.guidance = {.scale = scale};
  const bool flow = network.noise_schedule().is_flow();
  const DDIM sampler{network.noise_schedule(),
                     SingleNetwork{},
                     {.steps = calibration.steps, .spacing = flow ? Spacing::shifted() : Spacing::linspace()}};
  // Step by step: after the first that breaks all layers would be broken.
  Trajectory trajectory = sampler.begin({network}, request);
  bool finite = true;
  while (finite && !trajectory.finished()) {
    sampler.advance({network}, trajectory);
    finite = trajectory.x.isfinite().all().item<bool>();
  }
  std::vector<double> found;
  for (at::Tensor const& each : largest) {
    found.push_back(each.item<double>());
    if (std::isfinite(found.back())) continue;
    throw std::runtime_error("tstitch::largest_inputs: " + detail::quoted(path) + ": inputs must be finite, got " +
                             detail::text(found.back()) + " in layer " + std::to_string(found.size() - 1));
  }
  if (!finite) {
    throw std::runtime_error("tstitch::largest_inputs: " + detail::quoted(path) +
                             ": outputs must be finite, got nan or infinity at step " +
                             std::to_string(trajectory.next - 1));
  }
  NetworkInfo::Architecture const& a = info.architecture;
  if (!detail::ManyRowsAttention::fits(a.width / a.heads) ||
      !detail::ManyRowsAttention::has_room(info.height / a.patch_size * (info.width / a.patch_size))) {
    for (std::size_t proj = 1; proj < found.size(); proj += 4) found[proj] = 0;
  }
  return found;
}

}  // namespace tstitch
