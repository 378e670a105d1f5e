/// @file
/// The plan of a run: what will happen at each step, known before anything is loaded. Includes no torch.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <limits>
#include <optional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "../base/contraction.hpp"
#include "model_schedule.hpp"

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

/// Guidance scales: one for all networks (`1.5`) or one for each (`{1.5, 4.0}`).
class GuidanceScale {
 public:
  GuidanceScale(double scale = 1.0) : each_{scale} {}  // NOLINT: conversion is the purpose
  GuidanceScale(std::initializer_list<double> each) : each_(each) {}
  explicit GuidanceScale(std::vector<double> each) : each_(std::move(each)) {}

  /// @throws std::out_of_range when there are several scales but none for the network
  double of(std::size_t network) const { return each_.size() == 1 ? each_[0] : each_.at(network); }

  /// One value, or as many as there are networks.
  std::vector<double> const& values() const { return each_; }

 private:
  std::vector<double> each_;
};

/// Adaptive projected guidance (Sadat et al. 2024, arXiv 2410.02416, Algorithm 1), which keeps high scales from
/// oversaturating: with c and u the two predictions of x_0, x_0 = c + (scale - 1) update, and the update is made of
/// c - u in three steps, for each image. With eta 1 and no threshold or momentum this is guidance as it was.
struct ProjectedGuidance {
  /// In [0, 1]: how much is left of the part of the update that is parallel to c.
  double eta = 0;
  /// Above 0, r there: the largest norm of an update before it is projected; longer ones are shortened to it.
  double norm_threshold = std::numeric_limits<double>::infinity();
  /// Inside (-1, 1), beta there: what c - u receives of the sum of earlier ones, before all else; below 0 in the paper.
  /// All evaluations of a step see the sum as it was before the step, and the first one's is remembered; a step that is
  /// not guided leaves it as it is.
  double momentum = 0;

  /// @throws std::invalid_argument
  void validate() const {
    if (!(eta >= 0 && eta <= 1)) detail::refuse("ProjectedGuidance", "eta must be in [0, 1]", eta);
    if (!(norm_threshold > 0)) {
      detail::refuse("ProjectedGuidance", "norm_threshold must be above 0", norm_threshold);
    }
    if (!(momentum > -1 && momentum < 1)) {
      detail::refuse("ProjectedGuidance", "momentum must be inside (-1, 1)", momentum);
    }
  }
};

/// Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598): u + scale (c - u), with c and u the conditional
/// and the unconditional output. 1 means no guidance: then the unconditional half is not computed.
///
/// From 1 up this is the scale of the published code; the papers' own "w" or "s" is often scale - 1. Below 1 it is the
/// formula still: 0 is the unconditional output, the same for every condition, and less leads away from the condition.
/// Much published code, diffusers among it, takes every scale up to 1 for "off", and cards of distilled networks write
/// that as 0: off is 1 here.
struct Guidance {
  GuidanceScale scale = 1.0;
  /// The share of the steps at which guidance begins and ends (arXiv 2404.07724); rounded as ratios are.
  double begin = 0.0;
  double end = 1.0;
  /// Only the first so many channels are guided, the others keep the conditional output; 0 means all. The pictures of
  /// the official DiT code were made with 3 of 4.
  int channels = 0;
  /// In [0, 1], phi of Lin et al. 2024 (arXiv 2305.08891, Eq. 14 to 16): the guided output is brought this much of the
  /// way to the standard deviation of the conditional one, for each image over its guided channels. They use 0.7.
  double rescale = 0;
  std::optional<ProjectedGuidance> projected = {};
  /// Autoguidance (Karras et al. 2024, arXiv 2406.02507): u is the conditional prediction of this network, a worse one
  /// of the run, in place of the unconditional one; guided in x_0. Needs no null class, and costs an evaluation of the
  /// guide with each of the network. In steps that are the guide's own, guidance is classifier-free; the scales {1, 2}
  /// leave it out there where the guide is network 0.
  std::optional<std::size_t> guide_network = {};

  /// The scale at a step: 1 outside of the interval.
  double at(Step const& step, std::size_t network) const {
    const bool inside = step.index >= share_of_steps("Guidance", "begin", begin, step.count) &&
                        step.index < share_of_steps("Guidance", "end", end, step.count);
    return inside ? scale.of(network) : 1.0;
  }

  /// Whether the guide network is asked too when this network takes this step.
  bool uses_guide(Step const& step, std::size_t network) const {
    return guide_network && *guide_network != network && at(step, network) != 1;
  }

  /// @throws std::invalid_argument
  void validate() const {
    if (scale.values().empty()) detail::refuse("Guidance", "scale needs at least one value", 0);
    for (double value : scale.values()) {
      if (!std::isfinite(value)) detail::refuse("Guidance", "scale must be a finite number", value);
    }
    share_of_steps("Guidance", "begin", begin, 1);
    share_of_steps("Guidance", "end", end, 1);
    if (begin > end) detail::refuse("Guidance", "begin must not be above end (" + detail::text(end) + ")", begin);
    if (channels < 0) detail::refuse("Guidance", "channels must not be negative", channels);
    if (!(rescale >= 0 && rescale <= 1)) detail::refuse("Guidance", "rescale must be in [0, 1]", rescale);
    if (rescale > 0 && (projected || guide_network)) {
      detail::refuse("Guidance", "rescale, for outputs, must be 0 with projected or guide_network, which guide x_0",
                     rescale);
    }
    if (projected) projected->validate();
  }

  /// The same, for a run of so many networks.
  void validate(std::size_t networks) const {
    validate();
    if (const std::size_t scales = scale.values().size(); scales > 1 && scales != networks) {
      detail::refuse("Guidance",
                     "scale must be one value, or one for each of the " + std::to_string(networks) + " networks",
                     std::to_string(scales) + " values");
    }
    if (guide_network && *guide_network >= networks) {
      detail::refuse("Guidance",
                     "guide_network must be the index of one of the " + std::to_string(networks) + " networks",
                     std::to_string(*guide_network));
    }
  }
};

struct PlannedStep {
  Step step;
  std::size_t network;
  double guidance_scale;
  int evaluations = 1;            ///< network evaluations that the update rule makes
  std::size_t guide_network = 0;  ///< see Guidance::guide_network
  int guide_evaluations = 0;      ///< of the guide, beside them
};

struct Plan {
  std::string noise_schedule;
  std::string spacing;
  std::vector<PlannedStep> steps;

  /// Evaluations of each network, indexed by network.
  /// @param networks how many there are; without, the last is the last one that the plan asks
  std::vector<int> calls(std::size_t networks = 0) const {
    std::vector<int> calls(networks);
    const auto add = [&](std::size_t network, int evaluations) {
      if (network >= calls.size()) calls.resize(network + 1);
      calls[network] += evaluations;
    };
    for (PlannedStep const& planned : steps) {
      add(planned.network, planned.evaluations);
      if (planned.guide_evaluations > 0) add(planned.guide_network, planned.guide_evaluations);
    }
    return calls;
  }
};

/// A number that plans of the same steps share, whichever networks take them, with whatever guidance.
inline std::uint64_t timesteps_fingerprint(Plan const& plan) {
  std::uint64_t fingerprint = plan.steps.size();
  for (PlannedStep const& planned : plan.steps) {
    Step const& step = planned.step;
    for (const double value : {step.t, step.from.alpha, step.from.sigma, step.to.alpha, step.to.sigma, step.t_to}) {
      // The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
      fingerprint += std::bit_cast<std::uint64_t>(value) + 0x9E3779B97F4A7C15;
      fingerprint = (fingerprint ^ (fingerprint >> 30)) * 0xBF58476D1CE4E5B9;
      fingerprint = (fingerprint ^ (fingerprint >> 27)) * 0x94D049BB133111EB;
      fingerprint ^= fingerprint >> 31;
    }
  }
  return fingerprint;
}

/// @param steps in [1, T]
/// @throws std::invalid_argument from whichever part refuses
template <class Schedule>
Plan make_plan(NoiseSchedule const& noise_schedule, int steps, Spacing const& spacing, FinalSigma final_sigma,
               Schedule const& model_schedule, Guidance const& guidance = {},
               PreviousTimestep previous = PreviousTimestep::in_plan) {
  static_assert(
      ModelSchedule<Schedule>,
      "tstitch::make_plan: the model schedule must be callable as 'std::size_t (tstitch::Step const&) const'");
  // An index this large is a negative number that a user's schedule returned, not a network.
  constexpr std::size_t most_networks = 1u << 16;
  guidance.validate();
  const std::size_t guide = guidance.guide_network.value_or(0);
  if (guide >= most_networks) {
    detail::refuse("Guidance", "guide_network must be the index of a network",
                   std::to_string(static_cast<std::ptrdiff_t>(guide)));
  }
  const std::vector<Timestep> timesteps = spacing(noise_schedule, steps);
  Plan plan{noise_schedule.name(), spacing.name(), {}};
  for (int i = 0; i < steps; ++i) {
    const auto [t, from] = timesteps[std::size_t(i)];
    if (!(from.sigma > 0)) {
      char const* const remedy = noise_schedule.is_flow() ? " (Spacing::shifted is for flow matching)" : "";
      detail::refuse("Plan", std::string("no step may begin at the clean picture") + remedy,
                     "t = " + detail::text(t) + " by spacing " + spacing.name());
    }
    const bool last = i + 1 == steps;
    Timestep to =
        final_sigma == FinalSigma::zero ? Timestep{0, NoiseLevel::clean()} : Timestep{0, noise_schedule.at(0)};
    if (previous == PreviousTimestep::by_stride) {
      const double t_to = t - noise_schedule.num_train_timesteps() / steps;
      if (t_to >= 0) to = {t_to, noise_schedule.at(t_to)};
    } else if (!last) {
      to = timesteps[std::size_t(i + 1)];
    }
    const Step step{i, steps, t, from, to.level, to.t};
    if (last && !(to.level.lambda() > from.lambda())) {
      detail::refuse("Plan", "with FinalSigma::sigma_min the last timestep must be above 0", t);
    }
    const std::size_t network = model_schedule(step);
    if (network >= most_networks) {
      detail::refuse("Plan", "the model schedule must return the index of a network at step " + std::to_string(i),
                     std::to_string(static_cast<std::ptrdiff_t>(network)));
    }
    if (const std::size_t scales = guidance.scale.values().size(); scales > 1 && network >= scales) {
      detail::refuse("Guidance",
                     "scale needs one value, or one for each network (step " + std::to_string(i) + " goes to network " +
                         std::to_string(network) + ")",
                     std::to_string(scales) + " values");
    }
    plan.steps.push_back({.step = step,
                          .network = network,
                          .guidance_scale = guidance.at(step, network),
                          .guide_network = guide,
                          .guide_evaluations = guidance.uses_guide(step, network) ? 1 : 0});
  }
  return plan;
}

/// The plan as a table, one line a step, and the calls per network below it.
inline std::string to_string(Plan const& plan) {
  std::string table = "noise schedule " + plan.noise_schedule + ", spacing " + plan.spacing + ", " +
                      std::to_string(plan.steps.size()) + " steps\n";
  table += " step         t     alpha     sigma    lambda  network  guidance\n";
  for (PlannedStep const& planned : plan.steps) {
    Step const& step = planned.step;
    char line[128];
    std::snprintf(line, sizeof line, "%5d  %8.3f  %8.6f  %8.6f  %8.4f  %7zu  %8.4g", step.index, step.t,
                  step.from.alpha, step.from.sigma, step.from.lambda(), planned.network, planned.guidance_scale);
    table += line;
    if (planned.guide_evaluations > 0) table += " by network " + std::to_string(planned.guide_network);
    table += '\n';
  }
  const std::vector<int> calls = plan.calls();
  const bool one_each = std::all_of(plan.steps.begin(), plan.steps.end(), [](PlannedStep const& planned) {
    return planned.evaluations == 1 && planned.guide_evaluations == 0;
  });
  table += one_each ? "steps: " : "evaluations: ";
  for (std::size_t k = 0; k < calls.size(); ++k) {
    table += (k ? ", network " : "network ") + std::to_string(k) + " takes " + std::to_string(calls[k]);
  }
  return table + "\n";
}

inline std::ostream& operator<<(std::ostream& stream, Plan const& plan) {
  return stream << to_string(plan);
}

}  // namespace tstitch

TSTITCH_USUAL_CONTRACTION
