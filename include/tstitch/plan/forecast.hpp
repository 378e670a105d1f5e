/// @file
/// Forecast schedules: at which steps a network's work is not done but extrapolated from its last computed steps. Host
/// only; includes no torch.
///
/// From one step to the next, what the blocks of a large network add to their input changes smoothly. A forecast step
/// runs the small parts before and after them and extrapolates the rest (Liu et al. 2025, arXiv 2503.06923, who do it
/// for each module and by finite differences). All of it is known before the run: which steps, from which others, with
/// which weights.
///
/// A forecast schedule is any callable `bool (Step const&, std::size_t network) const`, or `bool (Step const&,
/// std::size_t network, ForecastPlace const&) const`: true asks for a forecast. Its answer depends on nothing but its
/// arguments, for it is asked when a plan is made and again when the run goes its way. What it cannot have, because too
/// few steps were computed, is computed. The same kind of schedule says when guidance is forecast, see
/// Guidance::forecast.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "../base/member_name.hpp"
#include "step.hpp"

TSTITCH_HAS_NAMED(first_network)
TSTITCH_HAS_NAMED(order)

namespace tstitch {

/// Where in a run a forecast schedule is asked.
struct ForecastPlace {
  /// Steps since forecasts began anew, computed or forecast. Where guidance is asked about: those with guidance whose
  /// network was computed.
  int taken;
  bool last;             ///< step of the run
  bool network = false;  ///< where guidance is asked about: the network itself is forecast in this step
};

/// One of `every` steps is computed. Of guidance it counts the steps whose network is computed; where that is forecast,
/// guidance is, too.
struct ForecastEvery {
  int every = 2;     ///< at least 1, which forecasts nothing
  int order = 1;     ///< in [0, 8], of the polynomial; 0 repeats what was computed last
  int warm_up = 3;   ///< at least 0: steps that are computed before the first forecast; order + 1 are needed anyway
  bool last = true;  ///< whether the last step of a run is always computed
  std::size_t first_network = 0;  ///< networks before this one, small ones that cost little, are always computed

  bool operator()(Step const& step, std::size_t network, ForecastPlace const& place) const;

  /// @throws std::invalid_argument
  void validate() const;
};

/// Step by step, as measured for a pair of networks or made elsewhere.
struct ForecastTable {
  std::vector<bool> forecast;     ///< one a step of the whole plan, by Step::index
  int order = 1;                  ///< in [0, 8]
  std::size_t first_network = 0;  ///< networks before this one are always computed

  bool operator()(Step const& step, std::size_t network) const;
};

/// Any forecast schedule, or none.
class Forecast {
 public:
  Forecast() = default;

  /// @param schedule its `int order`, if it has one, is the order of the polynomial; else that is 1. Of networks before
  ///        its `std::size_t first_network`, if it has one, nothing is forecast or kept
  /// @throws std::invalid_argument for an order outside of [0, 8], and what its `void validate() const` throws, if it
  /// has
  ///         one
  template <class Schedule>
  requires(!std::is_same_v<std::remove_cvref_t<Schedule>, Forecast>)
      Forecast(Schedule schedule) {  // NOLINT: conversion is the purpose
    using Place = ForecastPlace const&;
    constexpr bool placed = requires(Schedule const& given, Step const& step, Place place) {
      { given(step, std::size_t(), place) } -> std::same_as<bool>;
    };
    constexpr bool plain = requires(Schedule const& given, Step const& step) {
      { given(step, std::size_t()) } -> std::same_as<bool>;
    };
    static_assert(placed || plain,
                  "tstitch::Forecast: the schedule must be callable as 'bool (tstitch::Step const&, std::size_t) "
                  "const' or 'bool (tstitch::Step const&, std::size_t, tstitch::ForecastPlace const&) const'");
    constexpr bool ordered = requires(Schedule const& given) {
      { given.order } -> std::same_as<int const&>;
    };
    static_assert(ordered || !detail::HasNamed_order<Schedule>, "tstitch::Forecast: order must be 'int order'");
    constexpr bool limited = requires(Schedule const& given) {
      { given.first_network } -> std::same_as<std::size_t const&>;
    };
    static_assert(limited || !detail::HasNamed_first_network<Schedule>,
                  "tstitch::Forecast: first_network must be 'std::size_t first_network'");
    detail::require_callable("Forecast", schedule);
    if constexpr (requires { schedule.validate(); }) schedule.validate();
    if constexpr (limited) first_network_ = schedule.first_network;
    if constexpr (ordered) order_ = schedule.order;
    if (!(order_ >= 0 && order_ <= 8)) detail::refuse("Forecast", "order must be in [0, 8]", order_);
    if constexpr (placed) {
      schedule_ = std::move(schedule);
    } else if constexpr (plain) {
      schedule_ = Placed<Schedule>{std::move(schedule)};
    }
  }

  explicit operator bool() const { return bool(schedule_); }
  bool operator()(Step const& step, std::size_t network, ForecastPlace const& place) const {
    return schedule_(step, network, place);
  }
  int order() const { return order_; }

  /// Whether any step of this network may be forecast.
  bool concerns(std::size_t network) const { return schedule_ && network >= first_network_; }

  /// The schedule in it, or null where it is of another type.
  template <class Schedule>
  Schedule const* find() const {
    if (auto const* placed = schedule_.template target<Placed<Schedule>>()) return &placed->schedule;
    return schedule_.template target<Schedule>();
  }

 private:
  /// A schedule that is not told its place.
  template <class Schedule>
  struct Placed {
    Schedule schedule;
    bool operator()(Step const& step, std::size_t network, ForecastPlace const&) const {
      return schedule(step, network);
    }
  };

  std::function<bool(Step const&, std::size_t, ForecastPlace const&)> schedule_;
  int order_ = 1;
  std::size_t first_network_ = 0;
};

/// One of the computed steps that a forecast is made of.
struct ForecastTerm {
  int step;  ///< Step::index
  double weight;

  bool operator==(ForecastTerm const&) const = default;
};

/// The polynomial through what was at the nodes, at another place, as the sum of weight times what was there
/// (Lagrange).
/// @param nodes one at least, each another
inline std::vector<ForecastTerm> extrapolation(std::span<const int> nodes, int at) {
  std::vector<ForecastTerm> terms;
  for (const int node : nodes) {
    double above = 1, below = 1;  // products of whole numbers, and so exact
    for (const int other : nodes) {
      if (other == node) continue;
      above *= at - other;
      below *= node - other;
    }
    terms.push_back({node, above / below});
  }
  return terms;
}

/// What of a step is forecast, and from what.
struct StepForecast {
  bool network = false;   ///< the network's blocks do not run
  bool guidance = false;  ///< the network runs with the condition alone; what guidance adds is forecast
  /// Of a network that forecasts, for rows with the condition and for those without.
  std::vector<ForecastTerm> conditional = {}, unconditional = {};
  std::vector<ForecastTerm> difference = {};  ///< of guidance that is forecast
  /// How many of the last computed steps are to be kept with this one, of the network and of guidance; 0: this one is
  /// not.
  std::size_t keep = 0, keep_difference = 0;
  bool anew = false;  ///< what was kept in earlier steps is of no use
};

/// What guides a step.
enum class GuidedBy {
  nothing,
  null_half,  ///< twice the rows, the second half without the condition
  guide,      ///< Guidance::guide_network
};

/// How one step of a run is taken, as far as forecasts go.
struct ForecastInput {
  Step const& step;
  std::size_t network;
  int evaluations;  ///< that the update rule makes in it
  GuidedBy guided;
  bool last;               ///< of the run
  std::uint64_t rule = 0;  ///< a number for the update rule: forecasts begin anew with another
};

/// Tells step after step of a run what is forecast: for plans, and for the run itself, which therefore does what its
/// plan says. A value that holds host numbers only.
class ForecastHistory {
 public:
  /// All of it, for programs that keep runs in files.
  struct State {
    std::optional<std::size_t> network = {};  ///< of the last step; none: forecasts begin
    std::uint64_t rule = 0;                   ///< of it, see ForecastInput::rule
    int evaluations = 0;                      ///< in it
    int taken = 0, guided_taken = 0;          ///< see ForecastPlace::taken
    GuidedBy guided = GuidedBy::nothing;
    std::vector<int> conditional = {}, unconditional = {};  ///< steps of which features are kept, oldest first
    std::vector<int> differences = {};                      ///< the same for what guidance made
  };

  ForecastHistory() = default;

  /// @throws std::invalid_argument for a step twice, of which no polynomial is made
  explicit ForecastHistory(State state) : state_(std::move(state)) {
    for (std::vector<int> steps : {state_.conditional, state_.unconditional, state_.differences}) {
      std::sort(steps.begin(), steps.end());
      const auto twice = std::adjacent_find(steps.begin(), steps.end());
      if (twice != steps.end()) {
        detail::refuse("ForecastHistory", "steps must differ", "step " + std::to_string(*twice) + " twice");
      }
    }
  }

  State const& state() const { return state_; }

  /// The next step.
  /// @param forecast, of_guidance  the schedules, or none
  StepForecast next(ForecastInput const& in, Forecast const& forecast, Forecast const& of_guidance) {
    StepForecast made;
    made.anew = state_.network != in.network || state_.evaluations != in.evaluations || state_.rule != in.rule;
    if (made.anew) *this = {};
    state_.network = in.network;
    state_.evaluations = in.evaluations;
    state_.rule = in.rule;
    // What is long ago foretells nothing.
    if (state_.guided != in.guided) begin_guidance();
    state_.guided = in.guided;
    const bool keeps = forecast.concerns(in.network);
    const bool differs = of_guidance.concerns(in.network) && in.guided != GuidedBy::nothing;
    if (!keeps) state_.conditional.clear(), state_.unconditional.clear();
    if (!differs) state_.differences.clear();

    const std::size_t nodes = std::size_t(forecast.order()) + 1, of_difference = std::size_t(of_guidance.order()) + 1;
    // Schedules are asked of every step, so that what they refuse is refused wherever it stands.
    const auto forecasts_guidance = [&](bool network) {
      return of_guidance && of_guidance(in.step, in.network, {state_.guided_taken, in.last, network}) && differs &&
             state_.differences.size() >= of_difference;
    };
    const bool asked = forecast && forecast(in.step, in.network, {state_.taken, in.last}) && keeps;
    const bool guidance = forecasts_guidance(asked);
    const bool has_halves = state_.conditional.size() >= nodes &&
                            (in.guided != GuidedBy::null_half || guidance || state_.unconditional.size() >= nodes);
    made.network = asked && has_halves;
    made.guidance = made.network == asked ? guidance : forecasts_guidance(false);
    ++state_.taken;
    if (made.network) {
      made.conditional = extrapolation(std::span(state_.conditional).last(nodes), in.step.index);
      if (in.guided == GuidedBy::null_half && !made.guidance) {
        made.unconditional = extrapolation(std::span(state_.unconditional).last(nodes), in.step.index);
      }
    } else {
      if (in.guided != GuidedBy::nothing) ++state_.guided_taken;
      if (keeps) {
        made.keep = nodes;
        remember(state_.conditional, in.step.index, nodes);
        if (in.guided == GuidedBy::null_half && !made.guidance) remember(state_.unconditional, in.step.index, nodes);
      }
      if (differs && !made.guidance) {
        made.keep_difference = of_difference;
        remember(state_.differences, in.step.index, of_difference);
      }
    }
    if (made.guidance)
      made.difference = extrapolation(std::span(state_.differences).last(of_difference), in.step.index);
    return made;
  }

 private:
  static void remember(std::vector<int>& steps, int step, std::size_t most) {
    steps.push_back(step);
    if (steps.size() > most) steps.erase(steps.begin(), steps.end() - std::ptrdiff_t(most));
  }

  void begin_guidance() {
    state_.unconditional.clear();
    state_.differences.clear();
    state_.guided_taken = 0;
  }

  State state_;
};

inline void ForecastEvery::validate() const {
  constexpr auto where = "ForecastEvery";
  if (every < 1) detail::refuse(where, "every must be at least 1", every);
  if (!(order >= 0 && order <= 8)) detail::refuse(where, "order must be in [0, 8]", order);
  if (warm_up < 0) detail::refuse(where, "warm_up must not be negative", warm_up);
}

inline bool ForecastEvery::operator()(Step const&, std::size_t network, ForecastPlace const& place) const {
  if (every <= 1 || network < first_network || place.taken < warm_up || (place.last && last)) return false;
  return place.network || (place.taken - warm_up) % every != every - 1;
}

inline bool ForecastTable::operator()(Step const& step, std::size_t network) const {
  if (forecast.size() != std::size_t(step.count)) {
    detail::refuse("ForecastTable",
                   "forecast must have one value for each of the " + std::to_string(step.count) + " steps",
                   std::to_string(forecast.size()));
  }
  return network >= first_network && forecast[std::size_t(step.index)];
}

}  // namespace tstitch
