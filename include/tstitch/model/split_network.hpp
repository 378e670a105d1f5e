/// @file
/// Networks in parts, which can forecast what the large part of them would make.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "../tensor/shape.hpp"
#include "condition.hpp"
#include "evaluation.hpp"
#include "feature_memory.hpp"

namespace tstitch {

/// A network of three parts, a callable for Network: what comes before its blocks, the blocks, in which nearly all of
/// its time goes, and what comes after them. In a forecast step the blocks do not run.
///
///     tstitch::SplitNetwork parts{
///         .embed = [=](at::Tensor const& x, at::Tensor const& t, tstitch::Condition const& condition) {
///           return std::vector{model->embed(x), model->modulation(t, condition.labels)};
///         },
///         .blocks = [=](std::vector<at::Tensor> const& embedded) { return model->blocks(embedded[0], embedded[1]); },
///         .head = [=](std::vector<at::Tensor> const& embedded, at::Tensor const& feature) {
///           return model->head(feature, embedded[1]);
///         }};
///     const tstitch::Network network(parts, info);
struct SplitNetwork {
  static constexpr bool forecasts = true;

  /// @returns what the other parts take, one tensor at least; the first is [n, ...]
  std::function<std::vector<at::Tensor>(at::Tensor const& x, at::Tensor const& t, Condition const& condition)> embed;
  /// @returns [n, ...], like the first where `residual` is true
  std::function<at::Tensor(std::vector<at::Tensor> const& embedded)> blocks;
  /// @returns the network's output
  std::function<at::Tensor(std::vector<at::Tensor> const& embedded, at::Tensor const& feature)> head;
  /// Whether it is what the blocks add to the first tensor that is extrapolated, as suits transformers; or all that
  /// they return, as suits the deep part of a U-Net.
  bool residual = true;

  /// @throws std::invalid_argument for a part that is empty
  /// @throws std::runtime_error for a part that returns what it must not
  at::Tensor operator()(at::Tensor const& x, at::Tensor const& t, Condition const& condition,
                        Evaluation const& evaluation) const {
    if (!embed || !blocks || !head) {
      detail::refuse("SplitNetwork", "embed, blocks and head must be callable", "an empty function");
    }
    const std::vector<at::Tensor> embedded = embed(x, t, condition);
    if (embedded.empty() || !embedded[0].defined() || embedded[0].dim() < 1) {
      throw std::runtime_error("tstitch::SplitNetwork: embed must return tensors, the first [n, ...], got " +
                               std::to_string(embedded.size()));
    }
    if (FeatureMemory::forecasts(evaluation)) {
      const at::Tensor made = evaluation.memory->as<FeatureMemory>().forecast(evaluation);
      return head(embedded, residual ? embedded[0].add(made) : made);
    }
    // The blocks may change it in place.
    const bool keeps = FeatureMemory::keeps(evaluation);
    const at::Tensor before = keeps && residual ? embedded[0].clone() : at::Tensor();
    const at::Tensor feature = blocks(embedded);
    require(embedded[0], feature);
    if (keeps)
      evaluation.memory->as<FeatureMemory>().keep(evaluation, residual ? feature.sub(before) : feature.clone());
    return head(embedded, feature);
  }

 private:
  void require(at::Tensor const& embedded, at::Tensor const& feature) const {
    if (feature.defined() && feature.dim() > 0 &&
        (residual ? feature.sizes() == embedded.sizes() : feature.size(0) == embedded.size(0))) {
      return;
    }
    throw std::runtime_error(
        "tstitch::SplitNetwork: blocks must return " +
        (residual ? detail::shape_text(embedded.sizes()) : "[" + std::to_string(embedded.size(0)) + ", ...]") +
        ", got " + (feature.defined() ? detail::shape_text(feature.sizes()) : "an undefined tensor"));
  }
};

}  // namespace tstitch
