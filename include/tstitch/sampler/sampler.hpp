/// @file
/// Samplers: an update rule under a model schedule.
#pragma once

#include <cstddef>
#include <functional>
#include <type_traits>
#include <utility>
#include <vector>

#include "loop.hpp"

namespace tstitch {

namespace detail {

/// Whether a sampler can be made of these, behind the noise schedule and the model schedule.
template <class Rule, class... Given>
inline constexpr bool are_options = sizeof...(Given) == 0;
template <class Rule, class Options>
inline constexpr bool are_options<Rule, Options> = std::is_convertible_v<Options, SamplingOptions>;
template <class Rule, class Options, class Own>
inline constexpr bool are_options<Rule, Options, Own> =
    std::is_convertible_v<Options, SamplingOptions>&& std::is_convertible_v<Own, Rule>;

/// The rule, checked.
template <class Rule>
Rule validated(Rule rule) {
  require_members<Rule>();
  if constexpr (requires { rule.validate(); }) rule.validate();
  return rule;
}

}  // namespace detail

/// Draws samples: follows a plan, asks the routed network at each step, and lets the update rule take the step.
///
/// Holds no run state: a const sampler may be used from several threads at once. `begin` and `advance` are the run
/// taken apart; `sample` is the loop over them.
///
/// @tparam Rule see UpdateRule
/// @tparam Schedule a model schedule, `std::size_t (Step const&) const`
template <class Rule, class Schedule>
class Sampler {
  static_assert(ModelSchedule<Schedule>,
                "tstitch::Sampler: the model schedule must be callable as 'std::size_t (tstitch::Step const&) const'");
  static_assert(UpdateRule<Rule> || detail::KeepsState<Rule>,
                "tstitch::Sampler: the update rule must be callable as 'at::Tensor (tstitch::StepInput const&) const'");
  static_assert(UpdateRule<Rule> || !detail::KeepsState<Rule>,
                "tstitch::Sampler: an update rule with a State must be callable as 'at::Tensor (tstitch::StepInput "
                "const&, State&) const'");

 public:
  /// @throws std::invalid_argument when any part refuses; nothing is loaded or computed for it
  Sampler(NoiseSchedule noise_schedule, Schedule model_schedule, SamplingOptions options = {}, Rule rule = {})
      : model_schedule_((detail::require_callable("Sampler", model_schedule), std::move(model_schedule))),
        rule_(detail::validated(std::move(rule))),
        loop_(std::move(noise_schedule), std::move(options), std::cref(model_schedule_), detail::view_of(rule_)) {}

  /// Says what the arguments are, where the compiler would list all that does not fit.
  template <class... Wrong>
  requires(!detail::are_options<Rule, Wrong...>)
      Sampler(NoiseSchedule noise_schedule, Schedule model_schedule, Wrong const&...)
      : Sampler(std::move(noise_schedule), std::move(model_schedule)) {
    static_assert(sizeof...(Wrong) == 0,
                  "tstitch::Sampler: after the noise schedule and the model schedule come the options, as in "
                  "{.steps = 20}, and the rule's own, as in {.order = 2}");
  }

  /// The whole run before it happens.
  Plan const& plan() const { return loop_.plan(); }

  /// The plan with the guidance of a request, in the order of the steps.
  /// @param strength of the request: below 1 the plan holds the steps that are left, as they are in the whole plan
  Plan plan(Guidance const& guidance, double strength = 1) const {
    return loop_.plan(std::cref(model_schedule_), detail::view_of(rule_), guidance, strength);
  }

  NoiseSchedule const& noise_schedule() const { return loop_.noise_schedule(); }
  Schedule const& model_schedule() const { return model_schedule_; }
  SamplingOptions const& options() const { return loop_.options(); }
  Rule const& rule() const { return rule_; }

  /// Refuses what `begin` and `sample` would refuse of a request, and computes nothing but whether a mask is one.
  /// @throws as begin does
  void check(std::vector<Network> const& networks, Request const& request) const { checked(networks, request); }

  /// Checks everything that can be checked and draws the initial noise. The whole request is one batch.
  /// Waits for the device where tensors of the request are to be sent there, and to see the values of a mask.
  /// @throws std::invalid_argument for a request that does not suit the networks
  /// @throws std::runtime_error for networks that do not fit together
  Trajectory begin(std::vector<Network> const& networks, Request const& request) const {
    return loop_.begin(networks, checked(networks, request), detail::view_of(rule_));
  }

  /// Takes one step. Never waits for a GPU, unless the rule must (AdaptiveDPMSolver). Where it throws, the trajectory
  /// is as it was.
  /// @throws std::invalid_argument when the trajectory is finished, was begun with other timesteps, or for other
  /// networks
  /// @throws std::runtime_error when a network or the update rule returns what it must not
  void advance(std::vector<Network> const& networks, Trajectory& trajectory) const {
    loop_.advance(networks, trajectory, detail::view_of(rule_), {});
  }

  /// Draws the whole request, batch after batch. When a batch fails, those before it are gone with the exception; a
  /// program that wants to keep them asks for a batch at a time, as tstitch_sample does.
  /// @param observer sees every step and may cancel; what exists then is returned, marked unfinished
  /// @throws as begin and advance do; std::runtime_error when a network made values that are not finite numbers
  Samples sample(std::vector<Network> const& networks, Request const& request, Observer const& observer = {}) const {
    return loop_.sample(networks, checked(networks, request), observer, detail::view_of(rule_));
  }

  /// Takes the steps that a run has left, as `sample` does: the run of `begin`, or one that `load_trajectory` read.
  /// @returns all rows of the run, padding too
  /// @throws as `advance` does; std::runtime_error when a network made values that are not finite numbers
  Samples finish(std::vector<Network> const& networks, Trajectory trajectory, Observer const& observer = {}) const {
    return loop_.finish(networks, std::move(trajectory), observer, detail::view_of(rule_));
  }

 private:
  detail::Checked checked(std::vector<Network> const& networks, Request const& request) const {
    return loop_.checked(networks, request, std::cref(model_schedule_), detail::view_of(rule_));
  }

  Schedule model_schedule_;
  Rule rule_;
  detail::Loop loop_;
};

}  // namespace tstitch
