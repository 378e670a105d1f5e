/// @file
/// What of a run's computed steps is kept for forecasts, and forecasts made of it.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "../plan/forecast.hpp"
#include "../tensor/weighted_sum.hpp"
#include "evaluation.hpp"

namespace tstitch {

/// A tensor of each of the last computed steps of a run: a value, copied with the run. Rules that evaluate a network
/// several times in a step have one for each evaluation. Programs that keep runs in files write down `kept`.
class KeptSteps {
 public:
  struct Kept {
    int step, number;   ///< Step::index, and which of its evaluations, from 0
    at::Tensor tensor;  ///< what was kept, of any shape
  };

  KeptSteps() = default;

  /// @throws std::invalid_argument for an evaluation twice, or without a tensor
  explicit KeptSteps(std::vector<Kept> kept) : kept_(std::move(kept)) {
    for (Kept const& each : kept_) {
      const std::string name = "evaluation " + std::to_string(each.number) + " of step " + std::to_string(each.step);
      if (!each.tensor.defined()) detail::refuse("KeptSteps", "each evaluation must have a tensor", name);
      if (find(each.step, each.number) != &each)
        detail::refuse("KeptSteps", "evaluations must differ", name + " twice");
    }
  }

  /// In the order in which they were kept.
  std::vector<Kept> const& kept() const { return kept_; }

  /// @param number of the evaluation in the step, from 0
  /// @param tensor is kept without its gradients
  /// @param most how many steps are kept with this one
  void keep(int step, int number, at::Tensor const& tensor, std::size_t most) {
    std::size_t others = 0;
    for (std::size_t k = kept_.size(); k-- > 0;) {
      const bool again = kept_[k].step == step, same = kept_[k].number == number;
      if (same && (again || ++others >= most)) kept_.erase(kept_.begin() + std::ptrdiff_t(k));
    }
    kept_.push_back({step, number, tensor.detach()});
  }

  /// Calls `add` with the weight of each term and what was kept there.
  /// @throws std::runtime_error where a step was not kept
  template <class Add>
  void each(std::span<const ForecastTerm> terms, int number, Add add) const {
    for (ForecastTerm const& term : terms) {
      Kept const* const kept = find(term.step, number);
      if (!kept) {
        throw std::runtime_error(
            "tstitch::KeptSteps: a forecast must be made of evaluations that were kept, got evaluation " +
            std::to_string(number) + " of step " + std::to_string(term.step) +
            " (an update rule's `evaluations` must be how many it makes)");
      }
      add(term.weight, kept->tensor);
    }
  }

  /// The sum of weight times what was kept, computed in float32 at least and of the type that was kept.
  /// @throws std::runtime_error where a step was not kept
  at::Tensor sum(std::span<const ForecastTerm> terms, int number) const {
    WeightedSum all;
    at::ScalarType type = at::kFloat;
    each(terms, number, [&](double weight, at::Tensor const& tensor) {
      all.add(weight, tensor);
      type = tensor.scalar_type();
    });
    return all.value(type == at::kDouble ? at::kDouble : at::kFloat).to(type);
  }

  /// Whether all of the steps are there.
  bool has(std::span<const ForecastTerm> terms, int number) const {
    return std::all_of(terms.begin(), terms.end(), [&](ForecastTerm const& term) { return find(term.step, number); });
  }

 private:
  Kept const* find(int step, int number) const {
    for (Kept const& each : kept_) {
      if (each.step == step && each.number == number) return &each;
    }
    return nullptr;
  }

  std::vector<Kept> kept_;
};

/// What a network that forecasts keeps in Evaluation::memory: what its blocks made of each computed step. Rows with the
/// condition and rows without it have a history each, so that one which was not computed is never extrapolated from.
/// With one Evaluation a network is asked once, for all rows: a wrapper that asks it for some of them and then for
/// others would have the second take the place of the first.
class FeatureMemory {
 public:
  /// All of it.
  struct State {
    KeptSteps conditional = {}, unconditional = {};  ///< [rows, ...], halves of rows
    KeptSteps both = {};  ///< of steps with both halves, whose tensors those two are parts of
  };

  FeatureMemory() = default;
  explicit FeatureMemory(State state) : state_(std::move(state)) {}
  State const& state() const { return state_; }

  /// Whether this evaluation is to be forecast.
  static bool forecasts(Evaluation const& evaluation) { return evaluation.forecast && evaluation.forecast->network; }

  /// Whether this evaluation is to be kept.
  static bool keeps(Evaluation const& evaluation) {
    return evaluation.forecast && !evaluation.forecast->network && evaluation.forecast->keep > 0;
  }

  /// @param feature [rows, ...] of a computed step
  void keep(Evaluation const& evaluation, at::Tensor const& feature) {
    const int step = evaluation.step->index, number = evaluation.number;
    if (evaluation.forecast->anew && number == 0) *this = {};
    const std::size_t most = evaluation.forecast->keep;
    if (!evaluation.both_halves) {
      state_.conditional.keep(step, number, feature, most);
      return;
    }
    const std::int64_t half = feature.size(0) / 2;
    state_.conditional.keep(step, number, feature.narrow(0, 0, half), most);
    state_.unconditional.keep(step, number, feature.narrow(0, half, half), most);
    state_.both.keep(step, number, feature, most);
  }

  /// What the blocks would make.
  /// @returns [rows, ...]
  /// @throws std::runtime_error where a step was not kept
  at::Tensor forecast(Evaluation const& evaluation) const {
    auto const& [with, without] =
        std::pair(std::span(evaluation.forecast->conditional), std::span(evaluation.forecast->unconditional));
    const int number = evaluation.number;
    if (!evaluation.both_halves) return state_.conditional.sum(with, number);
    if (std::ranges::equal(with, without) && state_.both.has(with, number)) {
      return state_.both.sum(with, number);
    }
    const at::Tensor first = state_.conditional.sum(with, number);
    std::vector<std::int64_t> sizes = first.sizes().vec();
    sizes[0] *= 2;
    const at::Tensor both = first.new_empty(sizes);
    both.narrow(0, 0, first.size(0)).copy_(first);
    both.narrow(0, first.size(0), first.size(0)).copy_(state_.unconditional.sum(without, number));
    return both;
  }

 private:
  State state_;
};

}  // namespace tstitch
