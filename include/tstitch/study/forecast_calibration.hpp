/// @file
/// Which steps of a network are best forecast: measured along trajectories, and the best for a wished number.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <iterator>
#include <limits>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../model/network_wrapper.hpp"
#include "../sampler/any_sampler.hpp"

namespace tstitch {

/// What forecasts of a network would cost at each of its steps.
struct ForecastErrors {
  int order = 1;                ///< of the polynomial
  std::size_t network = 0;      ///< whose
  int count = 0;                ///< steps of the whole plan
  std::vector<int> steps = {};  ///< Step::index of those that the network takes, in their order
  int longest = 0;              ///< at most so many steps may be forecast in a row
  /// By the positions in `steps` of the computed ones that a forecast is made of, oldest first, and its own: by how
  /// much x after the step differs from the computed one, root mean square over the images.
  std::map<std::vector<int>, double> errors = {};
  /// By the positions in `steps`: how much larger a difference of x after the step is at the end of the run.
  std::vector<double> growth = {};

  /// What a forecast would change in the last x, root mean square; infinite where that was not measured.
  /// @param nodes a key of `errors`
  double effect(std::vector<int> const& nodes) const {
    const auto error = errors.find(nodes);
    if (error == errors.end()) return std::numeric_limits<double>::infinity();
    return error->second * growth.at(std::size_t(nodes.back()));
  }

  /// The table of the least `sum` over all ways to compute so many of the steps, which is the shortest path from step
  /// to step. The first order + 1 steps and the last are computed.
  /// @param computed at least order + 1, at most as many as there are steps, and enough for `longest`
  /// @throws std::invalid_argument for another number
  ForecastTable best(int computed) const;

  /// What the effects of a table come to: those of steps that are forecast in a row add up, because they are much
  /// alike, and the sums of different rows add up in squares. Infinite where it forecasts what was not measured.
  double sum(ForecastTable const& table) const;
};

/// Measures along a sampler's own trajectories, in which nothing is forecast, what every forecast from steps nearby
/// would make. A forecast costs what comes before and after the blocks, 12 of them a step for order 1, 18 for order 2.
/// How these errors grow until the end is measured by up to 8 more runs, in each of which one step is forecast.
///
/// What they come to (ForecastErrors::sum) is a heuristic for the error of the picture.
/// @param network of `networks`: takes its steps in one row, and forecasts (Network::forecasts)
/// @param order in [0, 2]
/// @throws std::invalid_argument for another order, and for a network that has no steps, or several rows of them
/// @throws as sampling does
ForecastErrors measure_forecasts(AnySampler const& sampler, std::vector<Network> const& networks,
                                 Request const& request, std::size_t network, int order = 1);

namespace detail {

/// How far apart the computed steps of a forecast may lie, and how many of the last steps are kept for all of them.
struct ForecastWindow {
  int gap;
  int kept;
};

inline ForecastWindow window_of(int order) {
  return order < 2 ? ForecastWindow{4, 4 * (order + 1)} : ForecastWindow{3, 9};
}

/// All computed steps for a forecast at position k: the last at most gap - 1 before it, the others at most gap apart.
inline std::vector<std::vector<int>> nodes_before(int k, int order) {
  const int gap = window_of(order).gap;
  std::vector<std::vector<int>> found;
  for (int back = 1; back < gap; ++back) found.push_back({k - back});
  for (int more = 0; more < order; ++more) {
    std::vector<std::vector<int>> longer;
    for (std::vector<int> const& nodes : found) {
      for (int back = 1; back <= gap; ++back) {
        longer.push_back(nodes);
        longer.back().insert(longer.back().begin(), nodes.front() - back);
      }
    }
    found = std::move(longer);
  }
  std::erase_if(found, [](std::vector<int> const& nodes) { return nodes.front() < 0; });
  return found;
}

/// Asks for forecasts beside each computed step, and adds up what they miss.
class ForecastWatch : public NetworkWrapper<ForecastWatch> {
 public:
  struct Sums {
    std::map<std::vector<int>, at::Tensor> squares = {};  ///< scalars on the device, by positions
    std::map<std::vector<int>, int> counts = {};
    int first = 0;  ///< position from which on everything is kept
    bool both_halves = false;
  };

  ForecastWatch(Network network, std::vector<int> steps, int order, Sums& sums)
      : NetworkWrapper(std::move(network)), steps_(std::move(steps)), order_(order), sums_(&sums) {}

  at::Tensor operator()(at::Tensor const& x, at::Tensor const& t, Condition const& condition,
                        Evaluation const& evaluation) const {
    at::Tensor output = inner()(x, t, condition, evaluation);
    if (!FeatureMemory::keeps(evaluation)) return output;
    const auto here = std::find(steps_.begin(), steps_.end(), evaluation.step->index);
    const int k = int(here - steps_.begin());
    // What was kept before forecasts began anew, or before there was guidance, is not there or not whole.
    if (evaluation.number == 0 && (evaluation.forecast->anew || evaluation.both_halves != sums_->both_halves)) {
      sums_->first = k;
      sums_->both_halves = evaluation.both_halves;
    }
    const std::int64_t channels = x.size(1);
    const at::Tensor exact = output.narrow(1, 0, channels).to(at::kFloat);
    for (std::vector<int> nodes : nodes_before(k, order_)) {
      if (nodes.front() < sums_->first) continue;
      std::vector<int> indexes;
      for (const int node : nodes) indexes.push_back(steps_[std::size_t(node)]);
      StepForecast forecast{.network = true, .conditional = extrapolation(indexes, evaluation.step->index)};
      if (evaluation.both_halves) forecast.unconditional = forecast.conditional;
      Evaluation asked = evaluation;
      asked.forecast = &forecast;
      const at::Tensor square =
          inner()(x, t, condition, asked).narrow(1, 0, channels).to(at::kFloat).sub(exact).square().mean();
      nodes.push_back(k);
      at::Tensor& sum = sums_->squares[nodes];
      sum = sum.defined() ? sum.add(square) : square;
      ++sums_->counts[nodes];
    }
    return output;
  }

 private:
  std::vector<int> steps_;
  int order_;
  Sums* sums_;
};

/// What an error of the network's output makes of x after a step of DDIM.
inline double effect_of_output(NetworkInfo const& info, Step const& step) {
  const double of_x_0 = step.to.alpha - step.to.sigma / step.from.sigma * step.from.alpha;
  return std::abs(of_x_0 * to_x_0(info.prediction_type, step.from).of_output);
}

/// At most `most` positions, evenly spread from `first` to `last`.
inline std::set<int> spread(int first, int last, int most) {
  std::set<int> positions;
  for (int i = 0; i < most && first <= last; ++i) positions.insert(first + (last - first) * i / (most - 1));
  return positions;
}

/// A value for each of `count` positions: what is known, a geometric series between it, and 1 where nothing is known.
inline std::vector<double> between(std::map<int, double> const& known, int count) {
  std::vector<double> values(std::size_t(count), 1);
  for (int k = 0; k < count && !known.empty(); ++k) {
    const auto after = known.lower_bound(k);
    const auto before = after == known.begin() ? after : std::prev(after);
    if (after == known.end() || before == after || after->first == k) {
      values[std::size_t(k)] = after == known.end() ? before->second : after->second;
      continue;
    }
    const double share = double(k - before->first) / (after->first - before->first);
    values[std::size_t(k)] = std::pow(before->second, 1 - share) * std::pow(after->second, share);
  }
  return values;
}

/// The steps of a network in a plan.
/// @throws std::invalid_argument where there are none, or several rows of them
inline std::vector<int> steps_in_a_row(Plan const& plan, std::size_t network) {
  std::vector<int> steps;
  std::size_t last = 0;
  for (std::size_t i = 0; i < plan.steps.size(); ++i) {
    if (plan.steps[i].network != network) continue;
    if (!steps.empty() && last + 1 != i) {
      refuse("measure_forecasts", "the network must take its steps in one row",
             "step " + std::to_string(plan.steps[i].step.index) + " after " + std::to_string(steps.back()));
    }
    steps.push_back(plan.steps[i].step.index);
    last = i;
  }
  if (steps.empty())
    refuse("measure_forecasts", "the network must have steps", "none of network " + std::to_string(network));
  return steps;
}

}  // namespace detail

inline ForecastErrors measure_forecasts(AnySampler const& sampler, std::vector<Network> const& networks,
                                        Request const& request, std::size_t network, int order) {
  if (!(order >= 0 && order <= 2)) detail::refuse("measure_forecasts", "order must be in [0, 2]", order);
  if (network >= networks.size()) {
    detail::refuse("measure_forecasts", "network must be one of " + std::to_string(networks.size()),
                   std::to_string(network));
  }
  const Plan plan = sampler.plan(request.guidance, request.strength);
  ForecastErrors found{.order = order,
                       .network = network,
                       .count = sampler.options().steps,
                       .steps = detail::steps_in_a_row(plan, network),
                       .longest = detail::window_of(order).gap - 1};
  // Computes all steps, and keeps as many as any forecast is made of.
  struct KeepAll {
    int order;
    std::size_t first_network;
    bool operator()(Step const&, std::size_t) const { return false; }
  };
  SamplingOptions options = sampler.options();
  const auto sampler_with = [&](Forecast const& forecast) {
    options.forecast = forecast;
    return AnySampler{sampler.noise_schedule(), sampler.model_schedule(), options, sampler.rule()};
  };
  const AnySampler keeping = sampler_with(KeepAll{detail::window_of(order).kept - 1, network});
  detail::require_forecasts(networks[network], network);
  detail::ForecastWatch::Sums sums;
  std::vector<Network> watched = networks;
  watched[network] = detail::ForecastWatch(networks[network], found.steps, order, sums).network();
  Request plain = request;
  plain.guidance.forecast = {};
  const at::Tensor exact = keeping.sample(watched, plain).images;
  for (auto const& [nodes, squares] : sums.squares) {
    const int step = found.steps[std::size_t(nodes.back())];
    const auto planned = std::find_if(plan.steps.begin(), plan.steps.end(),
                                      [&](PlannedStep const& each) { return each.step.index == step; });
    found.errors[nodes] = std::sqrt(squares.item<double>() / sums.counts.at(nodes)) *
                          detail::effect_of_output(networks[network].info(), planned->step);
  }
  // One step is forecast from those right before it, and all others are computed.
  std::map<int, double> growth;
  const int steps = int(found.steps.size());
  for (const int k : detail::spread(order + 1, steps - 2, 8)) {
    std::vector<int> nodes;
    for (int node = k - order - 1; node <= k; ++node) nodes.push_back(node);
    const auto error = found.errors.find(nodes);
    if (error == found.errors.end() || !(error->second > 1e-6)) continue;  // of float32's rounding
    ForecastTable one{
        .forecast = std::vector<bool>(std::size_t(found.count)), .order = order, .first_network = network};
    one.forecast[std::size_t(found.steps[std::size_t(k)])] = true;
    const at::Tensor change = sampler_with(one).sample(networks, plain).images.sub(exact);
    const double grown = std::sqrt(change.square().mean().item<double>()) / error->second;
    if (grown > 0) growth[k] = grown;
  }
  found.growth = detail::between(growth, steps);
  return found;
}

inline double ForecastErrors::sum(ForecastTable const& table) const {
  std::vector<int> nodes;
  double squares = 0, row = 0;
  for (int k = 0; k < int(steps.size()); ++k) {
    if (!table.forecast.at(std::size_t(steps[std::size_t(k)]))) {
      nodes.push_back(k);
      squares += row * row;
      row = 0;
      continue;
    }
    if (nodes.size() <= std::size_t(order)) continue;  // computed all the same
    std::vector<int> asked(nodes.end() - (order + 1), nodes.end());
    asked.push_back(k);
    row += effect(asked);
  }
  return std::sqrt(squares + row * row);
}

inline ForecastTable ForecastErrors::best(int computed) const {
  // What is known of the way so far: how many steps are computed, and which were last.
  using Last = std::vector<int>;
  struct Way {
    double squares = 0;
    std::vector<int> computed = {};
  };
  const int all = int(steps.size()), first = order + 1;
  if (!(computed >= first && computed <= all) || first > all) {
    detail::refuse("ForecastErrors::best",
                   "computed must be in [" + std::to_string(first) + ", " + std::to_string(all) + "]", computed);
  }
  std::map<Last, Way> ways;
  Way begin;
  for (int k = 0; k < first; ++k) begin.computed.push_back(k);
  ways[begin.computed] = begin;
  for (int done = first; done < computed; ++done) {
    std::map<Last, Way> longer;
    for (auto const& [last, way] : ways) {
      double row = 0;
      for (int next = last.back() + 1; next < all; ++next) {
        Last now(last.begin() + 1, last.end());
        now.push_back(next);
        const auto known = longer.find(now);
        const double squares = way.squares + row * row;
        if (known == longer.end() || squares < known->second.squares) {
          Way& better = longer[now];
          better = {squares, way.computed};
          better.computed.push_back(next);
        }
        Last forecast = last;  // the next one comes later, and this step is forecast
        forecast.push_back(next);
        row += effect(forecast);
        if (!std::isfinite(row)) break;
      }
    }
    ways = std::move(longer);
  }
  Way const* best = nullptr;
  for (auto const& [last, way] : ways) {
    if (last.back() == all - 1 && (!best || way.squares < best->squares)) best = &way;
  }
  if (!best) {
    detail::refuse("ForecastErrors::best",
                   "computed must be enough for " + std::to_string(all) + " steps of which at most " +
                       std::to_string(longest) + " in a row are forecast",
                   computed);
  }
  ForecastTable table{.forecast = std::vector<bool>(std::size_t(count)), .order = order, .first_network = network};
  for (const int step : steps) table.forecast[std::size_t(step)] = true;
  for (const int k : best->computed) table.forecast[std::size_t(steps[std::size_t(k)])] = false;
  return table;
}

}  // namespace tstitch
