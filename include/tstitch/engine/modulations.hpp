/// @file
/// The adaLN modulations of a DiT.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/index_select.h>
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
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "../model/condition.hpp"
#include "../tensor/host_tensor.hpp"
#include "dit_weights.hpp"
#include "sinusoids.hpp"
#include "writer.hpp"

namespace tstitch::detail {

/// What depends on timestep and label alone, all blocks' and the final layer's modulations: computed once for a run,
/// kept in a table, and looked up in each step. Several threads and streams may ask.
class Modulations {
 public:
  /// @param weights outlive this
  /// @param bytes see DiTOptions::modulation_bytes
  Modulations(DiTWeights const& weights, std::int64_t bytes) : weights_(weights), bytes_(bytes) {}

  /// Computes those of a run ahead; nothing where they would not fit.
  void prepare(std::span<const double> timesteps, std::vector<std::int64_t> const& of_rows) {
    const std::vector<std::int64_t> labels = distinct(of_rows);
    const std::lock_guard lock(mutex_);
    keep(timesteps, labels);
  }

  /// Those of n rows, out of the table where the host knows timestep and labels and there is room.
  /// @param t [n]; may be undefined where the timestep is given
  /// @param condition of which labels are used, [n]
  /// @returns [n, slots, width]
  at::Tensor operator()(at::Tensor const& t, Condition const& condition, std::optional<double> timestep) {
    std::vector<std::int64_t> const& of_rows = condition.host_labels;
    at::Tensor const& labels = condition.labels;
    const auto compute = [&] {
      const auto type = labels.options().dtype(at::kFloat);
      const at::Tensor made = weights_.pos_embed.new_empty({labels.size(0), slots(), width()});
      modulate(t.defined() ? t : labels.new_full(labels.sizes(), *timestep, type), labels, made);
      return made;
    };
    if (!timestep || std::int64_t(of_rows.size()) != labels.size(0)) return compute();
    const std::lock_guard lock(mutex_);
    const std::int64_t by = weights_.pos_embed.is_cuda() ? std::int64_t(current_stream(weights_.pos_embed).id()) : 0;
    const std::int64_t key = std::bit_cast<std::int64_t>(*timestep);
    if (Lookups const& known = lookups_of_[by]; known.labels == of_rows) {
      if (const auto rows = known.rows_of.find(key); rows != known.rows_of.end()) return look_up(rows->second);
    }
    const std::vector<std::int64_t> labels_once = distinct(of_rows);
    const double only = *timestep;
    if (!keep({&only, 1}, labels_once)) return compute();
    std::vector<std::int64_t> found;
    for (const std::int64_t label : of_rows) found.push_back(row_of_.at({key, label}));
    TableRows rows{.first = found.empty() ? 0 : found[0], .count = std::int64_t(found.size())};
    const auto apart = [](std::int64_t before, std::int64_t after) { return after != before + 1; };
    if (std::adjacent_find(found.begin(), found.end(), apart) != found.end()) {
      rows.each = to_device(found, weights_.pos_embed.device());
    }
    Lookups& own = lookups_of_[by];  // which keep() may have emptied
    if (own.labels != of_rows) own = {of_rows, {}};
    return look_up(own.rows_of[key] = rows);
  }

 private:
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

  std::int64_t width() const { return weights_.pos_embed.size(2); }
  std::int64_t slots() const { return weights_.modulation.bias.size(0) / width(); }

  /// How many modulations may be kept.
  std::int64_t capacity() const {
    return bytes_ / (slots() * width() * std::int64_t(weights_.pos_embed.element_size()));
  }

  static std::vector<std::int64_t> distinct(std::vector<std::int64_t> labels) {
    std::sort(labels.begin(), labels.end());
    labels.erase(std::unique(labels.begin(), labels.end()), labels.end());
    return labels;
  }

  /// How many pairs of a timestep and a label have their modulations computed at once, on a GPU and on a CPU: always
  /// so many, for a product of another shape rounds in another way, and those of a pair must have the same bits
  /// whatever was asked for before and whatever comes along. Few enough that a pair alone costs little.
  std::int64_t modulated_at_once() const { return weights_.pos_embed.is_cuda() ? 128 : 16; }

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
    if (weights_.flow) time = time.div(1000).neg().add(1);
    const at::Tensor waves = sinusoids(time, weights_.frequency_steps).to(weights_.pos_embed.scalar_type());
    const at::Tensor hidden = at::silu(linear(waves, weights_.t_embedder0));
    const at::Tensor c = linear(hidden, weights_.t_embedder2).add(at::index_select(weights_.y_embedder, 0, y));
    return linear(at::silu(c), weights_.modulation).view({t.size(0), slots(), width()});
  }

  /// Computes what is not in the table yet; nothing when it would not fit.
  bool keep(std::span<const double> timesteps, std::vector<std::int64_t> const& labels) {
    // A table that is made under InferenceMode could not be written to without.
    const c10::InferenceMode as_usual(false);
    const c10::AutoGradMode no_gradients(false);
    std::vector<double> times;
    std::vector<std::int64_t> of_labels;
    std::set<std::int64_t> seen;
    for (const double timestep : timesteps) {
      if (!seen.insert(std::bit_cast<std::int64_t>(timestep)).second) continue;
      for (const std::int64_t label : labels) {
        if (row_of_.contains({std::bit_cast<std::int64_t>(timestep), label})) continue;
        times.push_back(timestep);
        of_labels.push_back(label);
      }
    }
    if (times.empty()) return true;
    const std::int64_t count = std::int64_t(times.size());
    if (std::int64_t(timesteps.size() * labels.size()) > capacity()) return false;
    if (std::int64_t(row_of_.size()) + count > capacity()) {  // makes room for the new run
      row_of_.clear();
      lookups_of_.clear();
      table_.reset();  // not overwritten: what was looked up may be a part of it
      return keep(timesteps, labels);
    }
    const std::int64_t used = std::int64_t(row_of_.size());
    if (table_.defined()) shared_.wait(table_);  // who waits for what is written now, waits for what was before
    if (!table_.defined() || table_.size(0) < used + count) {
      const std::int64_t rows = std::min(capacity(), std::max(used + count, table_.defined() ? 2 * table_.size(0) : 0));
      const at::Tensor larger = weights_.pos_embed.new_empty({rows, slots(), width()});
      if (used) larger.narrow(0, 0, used).copy_(table_.narrow(0, 0, used));
      table_ = larger;
      shared_.mark_written(table_);  // also when what follows fails
    }
    lookups_of_.clear();
    const at::Device device = weights_.pos_embed.device();
    modulate(host_times(times, device.is_cuda()).to(device, /*non_blocking=*/true), to_device(of_labels, device),
             table_.narrow(0, used, count));
    shared_.mark_written(table_);
    for (std::int64_t i = 0; i < count; ++i) {
      row_of_[{std::bit_cast<std::int64_t>(times[std::size_t(i)]), of_labels[std::size_t(i)]}] = used + i;
    }
    return true;
  }

  /// [rows, slots, width]
  at::Tensor look_up(TableRows const& rows) const {
    shared_.wait(table_);
    return rows.each.defined() ? at::index_select(table_, 0, rows.each) : table_.narrow(0, rows.first, rows.count);
  }

  /// In float32, as a network would make them of its int64 or float32 timesteps.
  static at::Tensor host_times(std::vector<double> const& times, bool pinned) {
    const at::Tensor host = host_tensor({std::int64_t(times.size())}, at::kFloat, pinned);
    std::transform(times.begin(), times.end(), host.mutable_data_ptr<float>(), [](double t) { return float(t); });
    return host;
  }

  DiTWeights const& weights_;
  std::int64_t bytes_;
  std::mutex mutex_ = {};
  at::Tensor table_ = {};                                                      ///< [rows, slots, width]
  std::map<std::pair<std::int64_t, std::int64_t>, std::int64_t> row_of_ = {};  ///< of bits of a timestep, and label
  Writer shared_ = {};                                                         ///< of the table
  std::map<std::int64_t, Lookups> lookups_of_ = {};                            ///< by stream; 0 on a CPU
};

}  // namespace tstitch::detail
