/// @file
/// The adaLN modulations of an MMDiT.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/silu.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "../tensor/host_tensor.hpp"
#include "mmdit_weights.hpp"
#include "sinusoids.hpp"
#include "writer.hpp"

namespace tstitch::detail {

/// What depends on timestep and pooled text alone, all blocks' modulations and those of the end: computed ahead for a
/// run, or when they are asked for. Several threads and streams may ask.
class MMDiTModulations {
 public:
  /// @param weights outlive this
  /// @param bytes see DiTOptions::modulation_bytes
  MMDiTModulations(MMDiTWeights const& weights, std::int64_t bytes) : weights_(weights), bytes_(bytes) {}

  /// Computes those of a run ahead; nothing where they would not fit. What an earlier run had makes way.
  /// @param pooled [n, pooled width], to be left as it is while it is asked with
  void prepare(std::span<const double> timesteps, at::Tensor const& pooled) {
    // What is made under InferenceMode could not be used without.
    const c10::InferenceMode as_usual(false);
    const c10::AutoGradMode no_gradients(false);
    std::map<std::int64_t, std::int64_t> rows;  // by bits of a timestep
    std::vector<double> times;
    for (const double t : timesteps) {
      if (rows.try_emplace(std::bit_cast<std::int64_t>(t), std::int64_t(times.size())).second) times.push_back(t);
    }
    const std::int64_t count = std::int64_t(times.size()), n = pooled.size(0);
    const std::int64_t bytes = weights_.modulation.bias.numel() * std::int64_t(weights_.pos_embed.element_size());
    const std::lock_guard lock(mutex_);
    prepared_.reset();
    if (count == 0 || count * n > bytes_ / bytes) return;
    const at::Tensor host = host_tensor({count, 1}, at::kFloat, pooled.is_cuda());
    std::transform(times.begin(), times.end(), host.mutable_data_ptr<float>(), [](double t) { return float(t); });
    const at::Tensor each = host.to(pooled.device(), /*non_blocking=*/true).expand({count, n}).reshape({count * n});
    const at::Tensor texts = pooled.unsqueeze(0).expand({count, n, pooled.size(1)}).reshape({count * n, -1});
    prepared_.emplace(Prepared{pooled, version_of(pooled), std::move(rows), {}, {}});
    prepared_->table = compute(each, texts).view({count, n, -1, width()});
    prepared_->writer.mark_written(prepared_->table);
  }

  /// @param t [n]; may be undefined where the timestep is given
  /// @param pooled [n, pooled width]
  /// @returns [n, slots, width]
  at::Tensor operator()(at::Tensor const& t, at::Tensor const& pooled, std::optional<double> timestep) {
    if (timestep) {
      const std::lock_guard lock(mutex_);
      if (prepared_ && is_same(pooled)) {
        const auto row = prepared_->rows.find(std::bit_cast<std::int64_t>(*timestep));
        if (row != prepared_->rows.end()) {
          prepared_->writer.wait(prepared_->table);
          return prepared_->table.select(0, row->second);
        }
      }
    }
    const auto type = pooled.options().dtype(at::kFloat);
    return compute(t.defined() ? t.to(at::kFloat) : pooled.new_full({pooled.size(0)}, *timestep, type), pooled);
  }

 private:
  struct Prepared {
    at::Tensor pooled;  ///< kept, so that no other tensor has its place in memory
    std::int64_t version;
    std::map<std::int64_t, std::int64_t> rows;  ///< of the table, by bits of a timestep
    at::Tensor table;                           ///< [timesteps, n, slots, width]
    Writer writer;
  };

  /// Changes when a tensor is changed in place.
  static std::int64_t version_of(at::Tensor const& tensor) {
    return tensor.is_inference() ? 0 : std::int64_t(tensor._version());
  }

  bool is_same(at::Tensor const& pooled) const {
    at::Tensor const& known = prepared_->pooled;
    return known.const_data_ptr() == pooled.const_data_ptr() && known.sizes() == pooled.sizes() &&
           known.strides() == pooled.strides() && known.scalar_type() == pooled.scalar_type() &&
           version_of(pooled) == prepared_->version;
  }

  std::int64_t width() const { return weights_.pos_embed.size(2); }

  /// How many rows are computed at once, on a GPU and on a CPU: always so many, for a product of another shape rounds
  /// in another way, and those of a row must have the same bits whatever else is computed.
  std::int64_t at_once() const { return weights_.pos_embed.is_cuda() ? 64 : 16; }

  /// @param t [m], float32
  /// @param pooled [m, pooled width]
  /// @returns [m, slots, width]
  at::Tensor compute(at::Tensor const& t, at::Tensor const& pooled) const {
    const std::int64_t m = t.size(0), missing = (at_once() - m % at_once()) % at_once();
    const auto filled = [&](at::Tensor const& of) {  // with the last one
      if (missing == 0) return of;
      std::vector<std::int64_t> sizes = of.sizes().vec();
      sizes[0] = missing;
      return at::cat({of, of.narrow(0, m - 1, 1).expand(sizes)});
    };
    const at::Tensor times = filled(t), texts = filled(pooled);
    const at::Tensor made = weights_.pos_embed.new_empty({m, weights_.modulation.bias.size(0)});
    for (std::int64_t first = 0; first < m; first += at_once()) {
      const std::int64_t part = std::min(at_once(), m - first);
      const at::Tensor c = conditioning(times.narrow(0, first, at_once()), texts.narrow(0, first, at_once()));
      made.narrow(0, first, part).copy_(linear(c, weights_.modulation).narrow(0, 0, part));
    }
    return made.view({m, -1, width()});
  }

  /// The timestep and the pooled text, after SiLU.
  /// @returns [m, width]
  at::Tensor conditioning(at::Tensor const& t, at::Tensor const& pooled) const {
    constexpr double frequency_steps = 128;
    const at::ScalarType type = weights_.pos_embed.scalar_type();
    const auto embedded = [](at::Tensor const& of, DiTLinear const& first, DiTLinear const& second) {
      return linear(at::silu(linear(of, first)), second);
    };
    const at::Tensor waves = sinusoids(t, frequency_steps).to(type);
    return at::silu(embedded(waves, weights_.t_embedder0, weights_.t_embedder2)
                        .add(embedded(pooled.to(type), weights_.pooled0, weights_.pooled2)));
  }

  MMDiTWeights const& weights_;
  std::int64_t bytes_;
  std::mutex mutex_ = {};
  std::optional<Prepared> prepared_ = {};
};

}  // namespace tstitch::detail
