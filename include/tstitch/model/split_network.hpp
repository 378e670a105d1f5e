/// @file
/// Networks in parts, which can forecast what the large part of them would make.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "../tensor/shape.hpp"
#include "condition.hpp"
#include "evaluation.hpp"
#include "feature_memory.hpp"
#include "network.hpp"

namespace tstitch {

namespace detail {
class CapturedSplitNetwork;
}

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
  /// @returns the network's output, [n, ...]
  std::function<at::Tensor(std::vector<at::Tensor> const& embedded, at::Tensor const& feature)> head;
  /// Whether it is what the blocks add to the first tensor that is extrapolated, as suits transformers; or all that
  /// they return, as suits the deep part of a U-Net.
  bool residual = true;
  /// The three in one, where there is a faster way, for steps of which nothing is forecast or kept. Empty: one after
  /// another.
  std::function<at::Tensor(at::Tensor const& x, at::Tensor const& t, Condition const& condition)> whole = {};

  /// @throws std::invalid_argument for a part that is empty
  /// @throws std::runtime_error for a part that returns what it must not
  at::Tensor operator()(at::Tensor const& x, at::Tensor const& t, Condition const& condition,
                        Evaluation const& evaluation) const {
    if (FeatureMemory::forecasts(evaluation)) {
      return forecast(x, t, condition, evaluation.memory->as<FeatureMemory>().forecast(evaluation));
    }
    const bool keeps = FeatureMemory::keeps(evaluation);
    if (!keeps && whole) return whole(x, t, condition);
    auto [output, feature] = compute(x, t, condition, keeps);
    if (keeps) evaluation.memory->as<FeatureMemory>().keep(evaluation, feature);
    return output;
  }

  /// What a network computes.
  struct Computed {
    at::Tensor output;
    at::Tensor feature;  ///< what is kept for forecasts, [n, ...], a tensor of its own; undefined if it is not wanted
  };

  Computed compute(at::Tensor const& x, at::Tensor const& t, Condition const& condition, bool keeps) const {
    const std::vector<at::Tensor> embedded = embed_all(x, t, condition);
    // The blocks may change it in place.
    const at::Tensor before = keeps && residual ? embedded[0].clone() : at::Tensor();
    const at::Tensor feature = blocks(embedded);
    if (!feature.defined() || feature.dim() == 0 || feature.size(0) != embedded[0].size(0) ||
        (residual && feature.sizes() != embedded[0].sizes())) {
      throw std::runtime_error(
          "tstitch::SplitNetwork: blocks must return " +
          (residual ? detail::shape_text(embedded[0].sizes()) : "[" + std::to_string(embedded[0].size(0)) + ", ...]") +
          ", got " + (feature.defined() ? detail::shape_text(feature.sizes()) : "an undefined tensor"));
    }
    const at::Tensor kept = !keeps ? at::Tensor() : residual ? feature.sub(before) : feature.clone();
    return {head(embedded, feature), kept};
  }

  /// @param feature as `compute` made it in other steps
  at::Tensor forecast(at::Tensor const& x, at::Tensor const& t, Condition const& condition,
                      at::Tensor const& feature) const {
    const std::vector<at::Tensor> embedded = embed_all(x, t, condition);
    return head(embedded, residual ? embedded[0].add(feature) : feature);
  }

  /// See Network: each of the three ways through it is replayed as one.
  detail::CapturedSplitNetwork captured(Capture const& capture) const;

 private:
  std::vector<at::Tensor> embed_all(at::Tensor const& x, at::Tensor const& t, Condition const& condition) const {
    if (!embed || !blocks || !head) {
      detail::refuse("SplitNetwork", "embed, blocks and head must be callable", "an empty function");
    }
    std::vector<at::Tensor> embedded = embed(x, t, condition);
    if (embedded.empty() || !embedded[0].defined() || embedded[0].dim() == 0) {
      throw std::runtime_error("tstitch::SplitNetwork: embed must return tensors, the first [n, ...], got " +
                               std::to_string(embedded.size()));
    }
    return embedded;
  }
};

namespace detail {

/// A SplitNetwork that is replayed.
class CapturedSplitNetwork {
 public:
  static constexpr bool forecasts = true;

  CapturedSplitNetwork(SplitNetwork parts, Capture const& capture)
      : parts_(std::move(parts)),
        whole_(by([parts = parts_](Tensor x, Tensor t, Condition const& condition) {
                 return parts(x, t, condition, Evaluation{});
               }).captured(capture)),
        keeping_(by([parts = parts_, shapes = shapes_](Tensor x, Tensor t, Condition const& condition) {
                   return packed(parts.compute(x, t, condition, true), key_of(x, t, condition), *shapes);
                 }).captured(capture)),
        forecasting_(by([parts = parts_](Tensor x, Tensor t, Condition const& condition) {
                       Condition given = condition;
                       const at::Tensor feature = given.tensors.back().second;
                       given.tensors.pop_back();
                       return parts.forecast(x, t, given, feature);
                     }).captured(capture)) {}

  at::Tensor operator()(at::Tensor const& x, at::Tensor const& t, Condition const& condition,
                        Evaluation const& evaluation) const {
    if (FeatureMemory::forecasts(evaluation)) {
      Condition with_feature = condition;
      with_feature.tensors.emplace_back("the feature", evaluation.memory->as<FeatureMemory>().forecast(evaluation));
      return forecasting_(x, t, with_feature);
    }
    if (!FeatureMemory::keeps(evaluation)) return whole_(x, t, condition);
    const at::Tensor both = keeping_(x, t, condition);
    const std::lock_guard lock(shapes_->mutex);
    auto const& [feature, output] = shapes_->of.at(key_of(x, t, condition));
    const std::int64_t numel = c10::multiply_integers(feature.sizes);
    evaluation.memory->as<FeatureMemory>().keep(evaluation,
                                                both.narrow(0, 0, numel).view(feature.sizes).to(feature.type));
    return both.narrow(0, numel, both.size(0) - numel).view(output.sizes).to(output.type);
  }

  CapturedSplitNetwork captured(Capture const& capture) const { return {parts_, capture}; }

 private:
  using Tensor = at::Tensor const&;

  /// Of what is replayed one tensor comes back; what it was made of is written down while it is made.
  struct Shapes {
    struct Shape {
      std::vector<std::int64_t> sizes;
      at::ScalarType type;
    };
    std::mutex mutex = {};
    std::map<std::vector<std::int64_t>, std::pair<Shape, Shape>> of = {};
  };

  template <class Function>
  static Network by(Function function) {
    return Network(std::move(function));
  }

  /// Sizes and types of all that it is given.
  static std::vector<std::int64_t> key_of(Tensor x, Tensor t, Condition const& condition) {
    std::vector<std::int64_t> key;
    const auto add = [&](Tensor tensor) {
      key.push_back(tensor.defined() ? std::int64_t(tensor.scalar_type()) : -1);
      if (!tensor.defined()) return;
      key.push_back(tensor.dim());
      key.insert(key.end(), tensor.sizes().begin(), tensor.sizes().end());
    };
    add(x);
    add(t);
    add(condition.labels);
    for (auto const& [name, tensor] : condition.tensors) add(tensor);
    return key;
  }

  static at::Tensor packed(SplitNetwork::Computed const& computed, std::vector<std::int64_t> const& key,
                           Shapes& shapes) {
    auto const& [output, feature] = computed;
    const auto shape = [](Tensor of) { return Shapes::Shape{of.sizes().vec(), of.scalar_type()}; };
    {
      const std::lock_guard lock(shapes.mutex);
      shapes.of.insert_or_assign(key, std::pair(shape(feature), shape(output)));
    }
    const at::ScalarType type = c10::promoteTypes(feature.scalar_type(), output.scalar_type());
    const at::Tensor both = feature.new_empty({feature.numel() + output.numel()}, feature.options().dtype(type));
    both.narrow(0, 0, feature.numel()).copy_(feature.reshape(-1));
    both.narrow(0, feature.numel(), output.numel()).copy_(output.reshape(-1));
    return both;
  }

  SplitNetwork parts_;
  std::shared_ptr<Shapes> shapes_ = std::make_shared<Shapes>();
  Network whole_, keeping_, forecasting_;
};

}  // namespace detail

inline detail::CapturedSplitNetwork SplitNetwork::captured(Capture const& capture) const {
  return {*this, capture};
}

}  // namespace tstitch
