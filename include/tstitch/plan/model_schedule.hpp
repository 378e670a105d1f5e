/// @file
/// Model schedules: which network takes which step. Host only; includes no torch.
///
/// A model schedule is any callable `std::size_t (Step const&) const` that returns the index of a network. It is asked
/// once a step while the plan is made, before any network runs. "Model schedule" is the word of OMS-DPM
/// (arXiv 2306.08860).
#pragma once

#include <cmath>
#include <concepts>
#include <cstddef>
#include <functional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "../base/contraction.hpp"
#include "step.hpp"

TSTITCH_NO_CONTRACTION

namespace tstitch {

template <class Schedule>
concept ModelSchedule = requires(Schedule const& schedule, Step const& step) {
  { schedule(step) } -> std::convertible_to<std::size_t>;
  // A fraction would be cut off without a word.
  requires !std::is_floating_point_v<std::remove_cvref_t<decltype(schedule(step))>>;
};

/// Every step to one network.
struct SingleNetwork {
  std::size_t network = 0;

  std::size_t operator()(Step const&) const { return network; }
};

/// T-Stitch (arXiv 2402.14167, section 3.2): the first round(ratio x steps) steps to network 0, the small one, the rest
/// to network 1. The ratio is a share of the *steps*, whatever their timesteps are; ties go to the even number of
/// steps, so that 0.5 of 25 is 12. T-Stitch's own code for DiT gives network 0 the steps with t / T >= 1 - ratio
/// instead, which are 13 there, because the first and the last step have t = T - 1 and t = 0: routing::DiT
/// (reference_routing.hpp) is that rule.
struct Stitch {
  double ratio = 0.4;  ///< in [0, 1]

  std::size_t operator()(Step const& step) const {
    return step.index < share_of_steps("Stitch", "ratio", ratio, step.count) ? 0 : 1;
  }
};

/// T-Stitch with any number of networks: network k takes fractions[k] of the steps, in order.
struct Fractions {
  std::vector<double> fractions;  ///< each in [0, 1], adding up to 1

  std::size_t operator()(Step const& step) const {
    double sum = 0;
    std::size_t network = fractions.size();
    for (std::size_t k = 0; k < fractions.size(); ++k) {
      if (!(fractions[k] >= 0 && fractions[k] <= 1)) {
        detail::refuse("Fractions", "each fraction must be in [0, 1]", fractions[k]);
      }
      sum += fractions[k];
      const int boundary = share_of_steps("Fractions", "running sum", std::min(sum, 1.0), step.count);
      if (network == fractions.size() && step.index < boundary) network = k;
    }
    if (!(std::abs(sum - 1) < 1e-6)) detail::refuse("Fractions", "fractions must add up to 1", sum);
    return network;
  }
};

/// By training timestep: network k takes t >= boundaries[k], the last network the rest. This is the rule of models
/// trained as experts for a range of t. t is compared as the spacing has it, fractions too: 599.6 is below 600,
/// although a network with integer timesteps is told 600 there. T-Stitch's own DiT code routes so, with boundary T -
/// round(ratio x T).
struct ByTimestep {
  std::vector<int> boundaries;  ///< strictly decreasing

  std::size_t operator()(Step const& step) const {
    for (std::size_t k = 1; k < boundaries.size(); ++k) {
      if (boundaries[k] >= boundaries[k - 1]) {
        detail::refuse("ByTimestep", "boundaries must be strictly decreasing",
                       std::to_string(boundaries[k]) + " after " + std::to_string(boundaries[k - 1]));
      }
    }
    std::size_t network = 0;
    while (network < boundaries.size() && step.t < boundaries[network]) ++network;
    return network;
  }
};

/// By log signal-to-noise ratio, 2 lambda: network k takes what is noisier than boundaries[k], the last network the
/// rest.
struct ByLogSnr {
  std::vector<double> boundaries;  ///< strictly increasing

  std::size_t operator()(Step const& step) const {
    for (std::size_t k = 0; k < boundaries.size(); ++k) {
      if (std::isnan(boundaries[k]) || (k && boundaries[k] <= boundaries[k - 1])) {
        detail::refuse("ByLogSnr", "boundaries must be strictly increasing numbers",
                       detail::text(boundaries[k]) + " at position " + std::to_string(k));
      }
    }
    std::size_t network = 0;
    while (network < boundaries.size() && 2 * step.from.lambda() >= boundaries[network]) ++network;
    return network;
  }
};

/// An explicit list, one network a step.
struct Table {
  std::vector<std::size_t> networks;

  std::size_t operator()(Step const& step) const {
    if (networks.size() != std::size_t(step.count)) {
      detail::refuse("Table", "one entry for each of the " + std::to_string(step.count) + " steps is needed",
                     double(networks.size()));
    }
    return networks[std::size_t(step.index)];
  }
};

/// Any model schedule, for programs that choose one at run time.
using AnyModelSchedule = std::function<std::size_t(Step const&)>;

}  // namespace tstitch

TSTITCH_USUAL_CONTRACTION
