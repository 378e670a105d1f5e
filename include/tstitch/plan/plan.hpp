/// @file
/// The plan of a run: what will happen at each step, known before anything is loaded. Includes no torch.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <ostream>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "../base/contraction.hpp"
#include "guidance.hpp"
#include "model_schedule.hpp"
#include "timesteps.hpp"

TSTITCH_NO_CONTRACTION

namespace tstitch {

/// Where the last step leads (diffusers' final_sigmas_type).
enum class FinalSigma {
  zero,       ///< to x_0
  sigma_min,  ///< to the noise level of t = 0; the spacing must then not visit t = 0 itself
};

/// Which timestep a step leads to.
enum class PreviousTimestep {
  in_plan,    ///< the next one of the plan
  by_stride,  ///< t - floor(T / N), whether the plan visits it or not. diffusers' DDIM does this; where the plan's
              ///< stride is another (linspace, trailing when N does not divide T) steps then end at one level and the
              ///< next begins at another.
};

struct PlannedStep {
  Step step;
  std::size_t network;
  double guidance_scale;
  int evaluations = 1;            ///< network evaluations that the update rule makes
  std::size_t guide_network = 0;  ///< see Guidance::guide_network
  int guide_evaluations = 0;      ///< of the guide, beside them
  GuidedBy guided = GuidedBy::nothing;
  StepForecast forecast = {};
  int rows = 1;  ///< that an image has in all computed evaluations of the network in this step

  /// Whether an evaluation has two rows an image, the second without the condition.
  bool both_halves() const { return guided == GuidedBy::null_half && !forecast.guidance; }
};

/// What a network does in a run.
struct NetworkWork {
  int computed = 0;  ///< evaluations
  int forecast = 0;  ///< evaluations in which its blocks do not run
  int rows = 0;      ///< an image has in those that are computed: two where both halves of guidance are
};

struct Plan {
  std::string noise_schedule;
  std::string spacing;
  std::vector<PlannedStep> steps;
  std::string sampler = {};  ///< its name with its options; empty where it has none

  /// What each network does, indexed by network.
  /// @param networks how many there are; without, the last is the last one that the plan asks
  std::vector<NetworkWork> work(std::size_t networks = 0) const {
    std::vector<NetworkWork> work(networks);
    const auto of = [&](std::size_t network) -> NetworkWork& {
      if (network >= work.size()) work.resize(network + 1);
      return work[network];
    };
    for (PlannedStep const& planned : steps) {
      NetworkWork& own = of(planned.network);
      (planned.forecast.network ? own.forecast : own.computed) += planned.evaluations;
      own.rows += planned.rows;
      if (planned.guide_evaluations == 0) continue;
      NetworkWork& guide = of(planned.guide_network);
      guide.computed += planned.guide_evaluations;
      guide.rows += planned.guide_evaluations;
    }
    return work;
  }

  /// Computed evaluations of each network, indexed by network.
  /// @param networks see work
  std::vector<int> calls(std::size_t networks = 0) const {
    std::vector<int> calls;
    for (NetworkWork const& each : work(networks)) calls.push_back(each.computed);
    return calls;
  }

  /// Whether anything in it is forecast.
  bool has_forecasts() const {
    return std::any_of(steps.begin(), steps.end(), [](PlannedStep const& planned) {
      return planned.forecast.network || planned.forecast.guidance;
    });
  }
};

namespace detail {

/// A number made of numbers and texts, another one for others.
class Fingerprint {
 public:
  Fingerprint& add(std::uint64_t value) {
    // The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
    value_ += value + 0x9E3779B97F4A7C15;
    value_ = (value_ ^ (value_ >> 30)) * 0xBF58476D1CE4E5B9;
    value_ = (value_ ^ (value_ >> 27)) * 0x94D049BB133111EB;
    value_ ^= value_ >> 31;
    return *this;
  }

  Fingerprint& add(double value) { return add(std::bit_cast<std::uint64_t>(value)); }

  Fingerprint& add(std::string const& text) {
    add(std::uint64_t(text.size()));
    for (const char c : text) add(std::uint64_t(static_cast<unsigned char>(c)));
    return *this;
  }

  std::uint64_t value() const { return value_; }

 private:
  std::uint64_t value_ = 0;
};

inline Fingerprint hash_of_timesteps(Plan const& plan) {
  Fingerprint fingerprint;
  fingerprint.add(std::uint64_t(plan.steps.size()));
  for (PlannedStep const& planned : plan.steps) {
    Step const& step = planned.step;
    for (const double value : {step.t, step.from.alpha, step.from.sigma, step.to.alpha, step.to.sigma, step.t_to}) {
      fingerprint.add(value);
    }
  }
  return fingerprint;
}

}  // namespace detail

/// A number that plans of the same steps share, whichever networks take them, with whatever guidance.
inline std::uint64_t timesteps_fingerprint(Plan const& plan) {
  return detail::hash_of_timesteps(plan).value();
}

/// A number that plans share which are alike in all that they state: timesteps, routing, guidance scales, evaluations,
/// and the sampler with its options. A run is told by it from one of another plan. What plans do not state, it does not
/// know: thresholding, the switch policy, and the rest of the guidance.
inline std::uint64_t fingerprint(Plan const& plan) {
  detail::Fingerprint fingerprint = detail::hash_of_timesteps(plan);
  fingerprint.add(plan.sampler);
  for (PlannedStep const& planned : plan.steps) {
    fingerprint.add(std::uint64_t(planned.network)).add(planned.guidance_scale);
    fingerprint.add(std::uint64_t(planned.evaluations));
    if (planned.guide_evaluations > 0) {
      fingerprint.add(std::uint64_t(planned.guide_network)).add(std::uint64_t(planned.guide_evaluations));
    }
    StepForecast const& forecast = planned.forecast;
    if (!forecast.network && !forecast.guidance) continue;
    for (auto const& terms : {forecast.conditional, forecast.unconditional, forecast.difference}) {
      fingerprint.add(std::uint64_t(terms.size()));
      for (ForecastTerm const& term : terms) fingerprint.add(std::uint64_t(term.step)).add(term.weight);
    }
  }
  return fingerprint.value();
}

namespace detail {

/// Where a step leads.
/// @param left the timesteps of the plan from this step on
inline Timestep end_of_step(NoiseSchedule const& noise_schedule, std::span<const Timestep> left, int steps,
                            FinalSigma final_sigma, PreviousTimestep previous) {
  if (previous == PreviousTimestep::by_stride) {
    const double t_to = left[0].t - noise_schedule.num_train_timesteps() / steps;
    if (t_to >= 0) return {t_to, noise_schedule.at(t_to)};
  } else if (left.size() > 1) {
    return left[1];
  }
  return {0, final_sigma == FinalSigma::zero ? NoiseLevel::clean() : noise_schedule.at(0)};
}

/// A step with its network and guidance.
/// @param network as the model schedule says
inline PlannedStep planned_step(Step const& step, std::size_t network, Guidance const& guidance) {
  // An index this large is a negative number that a user's schedule returned, not a network.
  constexpr std::size_t most_networks = 1u << 16;
  const std::size_t guide = guidance.guide_network.value_or(0);
  if (guide >= most_networks) {
    refuse("Guidance", "guide_network must be the index of a network",
           std::to_string(static_cast<std::ptrdiff_t>(guide)));
  }
  if (network >= most_networks) {
    refuse("Plan", "the model schedule must return the index of a network at step " + std::to_string(step.index),
           std::to_string(static_cast<std::ptrdiff_t>(network)));
  }
  if (const std::size_t scales = guidance.scale.values().size(); scales > 1 && network >= scales) {
    refuse("Guidance",
           "scale needs one value, or one for each network (step " + std::to_string(step.index) + " goes to network " +
               std::to_string(network) + ")",
           std::to_string(scales) + " values");
  }
  return {.step = step,
          .network = network,
          .guidance_scale = guidance.at(step, network),
          .guide_network = guide,
          .guide_evaluations = guidance.uses_guide(step, network) ? 1 : 0,
          .guided = guidance.by(step, network)};
}

/// Fills in what is forecast, and the rows.
/// @param plan its evaluations are those of the update rule, its steps in the order in which they are taken
inline void add_forecasts(Plan& plan, Forecast const& forecast, Forecast const& of_guidance) {
  ForecastHistory history;
  for (std::size_t i = 0; i < plan.steps.size(); ++i) {
    PlannedStep& planned = plan.steps[i];
    planned.forecast =
        history.next({planned.step, planned.network, planned.evaluations, planned.guided, i + 1 == plan.steps.size()},
                     forecast, of_guidance);
    planned.rows = planned.forecast.network ? 0 : planned.evaluations * (planned.both_halves() ? 2 : 1);
    if (planned.forecast.guidance) planned.guide_evaluations = 0;
  }
}

inline Plan make_plan(NoiseSchedule const& noise_schedule, int steps, Spacing const& spacing, FinalSigma final_sigma,
                      std::function<std::size_t(Step const&)> const& model_schedule, Guidance const& guidance,
                      PreviousTimestep previous) {
  guidance.validate();
  const std::vector<Timestep> timesteps = spacing(noise_schedule, steps);
  Plan plan{noise_schedule.name(), spacing.name(), {}};
  for (int i = 0; i < steps; ++i) {
    const auto left = std::span(timesteps).subspan(std::size_t(i));
    const auto [t, from] = left[0];
    if (!(from.sigma > 0)) {
      char const* const remedy = noise_schedule.is_flow() ? " (Spacing::shifted is for flow matching)" : "";
      refuse("Plan", std::string("no step may begin at the clean picture") + remedy,
             "t = " + text(t) + " by spacing " + spacing.name());
    }
    const Timestep to = end_of_step(noise_schedule, left, steps, final_sigma, previous);
    const Step step{i, steps, t, from, to.level, to.t};
    if (i + 1 == steps && !(to.level.lambda() > from.lambda())) {
      refuse("Plan", "with FinalSigma::sigma_min the last timestep must be above 0", t);
    }
    plan.steps.push_back(planned_step(step, model_schedule(step), guidance));
  }
  return plan;
}

}  // namespace detail

/// @param steps in [1, T]
/// @throws std::invalid_argument from whichever part refuses
template <class Schedule>
Plan make_plan(NoiseSchedule const& noise_schedule, int steps, Spacing const& spacing, FinalSigma final_sigma,
               Schedule const& model_schedule, Guidance const& guidance = {},
               PreviousTimestep previous = PreviousTimestep::in_plan) {
  static_assert(
      ModelSchedule<Schedule>,
      "tstitch::make_plan: the model schedule must be callable as 'std::size_t (tstitch::Step const&) const'");
  Plan plan =
      detail::make_plan(noise_schedule, steps, spacing, final_sigma, std::cref(model_schedule), guidance, previous);
  detail::add_forecasts(plan, {}, guidance.forecast);
  return plan;
}

namespace detail {

/// The line below a plan's table.
inline std::string text_of_work(Plan const& plan) {
  const std::vector<NetworkWork> work = plan.work();
  const bool one_each = std::all_of(plan.steps.begin(), plan.steps.end(), [](PlannedStep const& planned) {
    return planned.evaluations == 1 && planned.guide_evaluations == 0;
  });
  const bool forecasts = plan.has_forecasts();
  std::string line = one_each && !forecasts ? "steps: " : "evaluations: ";
  for (std::size_t k = 0; k < work.size(); ++k) {
    line += (k ? ", network " : "network ") + std::to_string(k) + " takes " + std::to_string(work[k].computed);
    if (!forecasts) continue;
    line += " (" + std::to_string(work[k].rows) + (work[k].rows == 1 ? " row" : " rows") + " an image)";
    if (work[k].forecast > 0) line += " and forecasts " + std::to_string(work[k].forecast);
  }
  return line + "\n";
}

}  // namespace detail

/// The plan as a table, one line a step, and the calls per network below it.
inline std::string to_string(Plan const& plan) {
  std::string table = (plan.sampler.empty() ? "" : "sampler " + plan.sampler + "\n") + "noise schedule " +
                      plan.noise_schedule + ", spacing " + plan.spacing + ", " + std::to_string(plan.steps.size()) +
                      " steps\n";
  const bool forecasts = plan.has_forecasts();
  table += std::string(" step         t     alpha     sigma    lambda  network") + (forecasts ? "  forecast" : "") +
           "  guidance\n";
  for (PlannedStep const& planned : plan.steps) {
    Step const& step = planned.step;
    auto const& forecast = planned.forecast;
    char const* const what = forecast.network    ? forecast.guidance ? "both" : "network"
                             : forecast.guidance ? "guidance"
                                                 : "-";
    char line[128];
    std::snprintf(line, sizeof line, "%5d  %8.3f  %8.6f  %8.6f  %8.4f  %7zu", step.index, step.t, step.from.alpha,
                  step.from.sigma, step.from.lambda(), planned.network);
    table += line;
    if (forecasts) table += std::string(10 - std::string_view(what).size(), ' ') + what;
    std::snprintf(line, sizeof line, "  %8.4g", planned.guidance_scale);
    table += line;
    if (planned.guide_evaluations > 0) table += " by network " + std::to_string(planned.guide_network);
    table += '\n';
  }
  return table + detail::text_of_work(plan);
}

inline std::ostream& operator<<(std::ostream& stream, Plan const& plan) {
  return stream << to_string(plan);
}

}  // namespace tstitch

TSTITCH_USUAL_CONTRACTION
