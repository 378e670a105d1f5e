/// @file
/// Update rules and samplers that are chosen at run time.
#pragma once

#include <concepts>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

#include "sampler.hpp"

namespace tstitch {

/// Any update rule, as a value: copies share the rule, which nobody can change. An update rule itself, and to a sampler
/// the same as the one in it: its name, its history, its evaluations, its direction, what it keeps from step to step.
class AnyUpdateRule {
 public:
  /// What the rule in it keeps.
  using State = Memory;

  /// @throws std::invalid_argument for options that make no sense
  template <class Rule>
  requires(!std::same_as<std::remove_cvref_t<Rule>, AnyUpdateRule> && UpdateRule<std::remove_cvref_t<Rule>>)
      AnyUpdateRule(Rule&& rule) {  // NOLINT: conversion is the purpose
    using Value = std::remove_cvref_t<Rule>;
    const auto shared = std::make_shared<const Value>(detail::validated<Value>(std::forward<Rule>(rule)));
    view_ = detail::view_of(*shared);
    rule_ = shared;
  }

  // Without moves, which would leave a rule behind that is none.
  AnyUpdateRule(AnyUpdateRule const&) = default;
  AnyUpdateRule& operator=(AnyUpdateRule const&) = default;

  std::string name() const { return view_.name(view_.rule); }
  int history() const { return int(view_.history); }
  int evaluations(Step const& step) const { return view_.evaluations(view_.rule, step); }
  void validate(NetworkInfo const& info) const { view_.validate(view_.rule, info); }

  at::Tensor operator()(StepInput const& in, State& state) const { return view_.step(view_.rule, in, state); }

  /// What a sampler sees of it.
  detail::RuleView view() const { return view_; }

 private:
  detail::RuleView view_{};
  std::shared_ptr<const void> rule_;
};

/// Any sampler, as a value: what `Sampler` is, with a rule and a model schedule that are chosen at run time. Its
/// results are those of the sampler that it was made from, to the bit.
///
///     const AnySampler sampler = heun ? AnySampler(Heun{noise, schedule}) : DDIM{noise, schedule};
///     const AnySampler by_name{noise, Stitch{.ratio = 0.4}, {.steps = 20}, update_rule_by_name("unipc", {{"order",
///     3}})};
class AnySampler : public Sampler<AnyUpdateRule, AnyModelSchedule> {
 public:
  AnySampler(NoiseSchedule noise_schedule, AnyModelSchedule model_schedule, SamplingOptions options, AnyUpdateRule rule)
      : Sampler(std::move(noise_schedule), std::move(model_schedule), std::move(options), std::move(rule)) {}

  template <class Rule, class Schedule>
  AnySampler(Sampler<Rule, Schedule> const& sampler)  // NOLINT: conversion is the purpose
      : AnySampler(sampler.noise_schedule(), sampler.model_schedule(), sampler.options(), sampler.rule()) {}
};

}  // namespace tstitch
