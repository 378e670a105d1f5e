/// @file
/// The contract of the update rules that plug into the samplers.
#pragma once

#include <ATen/core/Tensor.h>

#include <concepts>
#include <cstddef>
#include <functional>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "../base/error.hpp"
#include "../base/member_name.hpp"
#include "../base/options.hpp"
#include "../model/denoiser.hpp"
#include "../plan/step.hpp"
#include "state_members.hpp"

TSTITCH_HAS_NAMED(State)
TSTITCH_HAS_NAMED(direction)
TSTITCH_HAS_NAMED(evaluations)
TSTITCH_HAS_NAMED(history)
TSTITCH_HAS_NAMED(long_steps)
TSTITCH_HAS_NAMED(name)
TSTITCH_HAS_NAMED(validate)

namespace tstitch {

/// An earlier step, as multistep rules remember it.
struct Past {
  Step step;
  std::size_t network;
  at::Tensor x;    ///< before the step
  at::Tensor x_0;  ///< what was predicted in it first
};

/// Which way an update rule goes through the steps.
enum class Direction {
  to_picture,  ///< from step.from to step.to, noisiest step first
  to_noise,    ///< from step.to to step.from, noisiest step last: inversion
};

/// All that an update rule gets. Everything is a value or a callable, so that a rule can be tried without a sampler.
struct StepInput {
  Step const& step;
  at::Tensor const& x;            ///< [n, C, ...] at step.from; not to be changed in place
  std::span<const Past> history;  ///< oldest first; at most history() entries, fewer in the first steps
  NoiseSchedule const& noise_schedule;
  /// Asks the step's network at any x and point of the trajectory; a network evaluation each time.
  std::function<Prediction(at::Tensor const& x, Timestep const& point)> denoise;
  /// The same with each image at a point of its own; as many points as images.
  std::function<Prediction(at::Tensor const& x, std::span<const Timestep> points)> denoise_each;
  /// Standard normal noise like x; another `draw` gives independent noise, and the same one again is refused.
  std::function<at::Tensor(int draw)> noise;

  /// What the network predicts from x, where most rules begin.
  Prediction predict() const { return denoise(x, {step.t, step.from}); }
};

namespace detail {

/// What a rule throws that looks at values and finds what is no number; `sample` adds whose it is.
class NotFinite : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <class Rule>
concept KeepsState = requires {
  typename Rule::State;
};

/// A State that trajectories can begin with and copy.
template <class Rule>
concept KeepsValue = !KeepsState<Rule> || (std::is_default_constructible_v<typename Rule::State> &&
                                           std::is_copy_constructible_v<typename Rule::State>);

/// Takes a copy of its State, or one that it cannot change, so that nothing is kept.
template <class Rule>
concept LosesState = KeepsState<Rule> && std::is_invocable_v<Rule const&, StepInput const&, typename Rule::State>;

/// A State that files can keep.
template <class State>
concept ListsMembers = requires(State& state, SeesMembers const& see) {
  State::members(state, see);
};

template <class Rule>
struct TakesStep : std::is_invocable_r<at::Tensor, Rule const&, StepInput const&> {};
template <KeepsState Rule>
struct TakesStep<Rule> : std::is_invocable_r<at::Tensor, Rule const&, StepInput const&, typename Rule::State&> {};

}  // namespace detail

/// An update rule is any callable `at::Tensor (StepInput const&) const` that takes x from step.from to step.to.
///
/// Besides it may have:
///   std::string name() const                 with its options, for plans and reports; none if absent
///   int history() const                      how many earlier steps it wants to see; 0 if absent
///   int evaluations(Step const&) const       network evaluations that it makes in a step, for the plan; 1 if absent
///   void validate() const                    throws std::invalid_argument for options that make no sense
///   void validate(NetworkInfo const&) const  throws std::invalid_argument for networks that it cannot use
///   static constexpr Direction direction     to_picture if absent; to_noise takes x from step.to to step.from
///   static constexpr bool long_steps         true: observers see each evaluation of a step, and may cancel there
///   class State                              what it keeps from step to step of one run; it is then called as
///                                            `at::Tensor (StepInput const&, State&) const`. State{} at first, a copy
///                                            for a fork, and as it was after a step that threw (see Memory).
///                                            With `static void members(auto& self, auto const& see)`, which calls
///                                            see("h", self.h) for each member, runs can be kept in files
///                                            (file/trajectory_file.hpp); they are numbers, tensors, and vectors and
///                                            arrays of them
/// One of these names in another form is an error of the compiler.
///
/// It must leave x as it is.
template <class Rule>
concept UpdateRule = detail::TakesStep<Rule>::value;

namespace detail {

/// Refuses optional members that have the name and not the form.
template <class Rule>
constexpr void require_members() {
  static_assert(
      !HasNamed_name<Rule> ||
          requires(Rule const& rule) {
            { rule.name() } -> std::convertible_to<std::string>;
          },
      "tstitch::UpdateRule: name must be 'std::string name() const'");
  static_assert(
      !HasNamed_history<Rule> ||
          requires(Rule const& rule) {
            { rule.history() } -> std::same_as<int>;
          },
      "tstitch::UpdateRule: history must be 'int history() const'");
  static_assert(
      !HasNamed_evaluations<Rule> ||
          requires(Rule const& rule, Step const& step) {
            { rule.evaluations(step) } -> std::same_as<int>;
          },
      "tstitch::UpdateRule: evaluations must be 'int evaluations(tstitch::Step const&) const'");
  static_assert(
      !HasNamed_validate<Rule> ||
          requires(Rule const& rule) {
            { rule.validate() } -> std::same_as<void>;
          } ||
          requires(Rule const& rule, NetworkInfo const& info) {
            { rule.validate(info) } -> std::same_as<void>;
          },
      "tstitch::UpdateRule: validate must be 'void validate() const', "
      "'void validate(tstitch::NetworkInfo const&) const' or both");
  static_assert(
      !HasNamed_direction<Rule> || requires { requires std::same_as<decltype(Rule::direction), const Direction>; },
      "tstitch::UpdateRule: direction must be 'static constexpr tstitch::Direction direction'");
  static_assert(
      !HasNamed_long_steps<Rule> || requires { requires std::same_as<decltype(Rule::long_steps), const bool>; },
      "tstitch::UpdateRule: long_steps must be 'static constexpr bool long_steps'");
  static_assert((!HasNamed_State<Rule> || KeepsState<Rule>)&&KeepsValue<Rule>,
                "tstitch::UpdateRule: State must be a type that can be copied and has a value State{}");
  static_assert(!LosesState<Rule>,
                "tstitch::UpdateRule: State must be taken as 'State&', because a rule that is given another one keeps "
                "nothing");
  if constexpr (KeepsState<Rule>) {
    static_assert(
        !HasNamed_members<typename Rule::State> || ListsMembers<typename Rule::State>,
        "tstitch::UpdateRule: members must be 'static void members(auto& self, auto const& see)' of its State");
  }
}

template <class Rule>
int evaluations_of([[maybe_unused]] Rule const& rule, [[maybe_unused]] Step const& step) {
  if constexpr (requires { rule.evaluations(step); }) return rule.evaluations(step);
  return 1;
}

/// What the loop knows of a rule, without being a template. As long as the rule lives.
struct RuleView {
  void const* rule;
  at::Tensor (*step)(void const* rule, StepInput const& in, Memory& memory);
  int (*evaluations)(void const* rule, Step const& step);
  void (*validate)(void const* rule, NetworkInfo const& info);
  std::string (*name)(void const* rule);
  void (*see_state)(Memory& memory, StateMembers& members);  ///< null where no file can keep it
  std::size_t history;
  Direction direction;
  bool long_steps;
  bool keeps_state;
};

template <class Rule>
RuleView view_of_itself(Rule const& rule) {
  RuleView view{};
  view.rule = &rule;
  view.step = [](void const* it, StepInput const& in, [[maybe_unused]] Memory& memory) -> at::Tensor {
    Rule const& self = *static_cast<Rule const*>(it);
    if constexpr (KeepsState<Rule>) {
      return self(in, memory.as<typename Rule::State>());
    } else {
      return self(in);
    }
  };
  view.evaluations = [](void const* it, Step const& step) {
    return evaluations_of(*static_cast<Rule const*>(it), step);
  };
  view.validate = []([[maybe_unused]] void const* it, [[maybe_unused]] NetworkInfo const& info) {
    if constexpr (requires(Rule const& self) { self.validate(info); }) static_cast<Rule const*>(it)->validate(info);
  };
  view.name = []([[maybe_unused]] void const* it) -> std::string {
    if constexpr (requires(Rule const& self) { self.name(); }) return static_cast<Rule const*>(it)->name();
    return "";
  };
  if constexpr (requires { rule.history(); }) {
    if (rule.history() < 0) refuse("UpdateRule", "history must not be negative", rule.history());
    view.history = std::size_t(rule.history());
  }
  if constexpr (requires { Rule::direction; }) view.direction = Rule::direction;
  if constexpr (requires { Rule::long_steps; }) view.long_steps = Rule::long_steps;
  view.keeps_state = KeepsState<Rule>;
  if constexpr (KeepsState<Rule>) {
    if constexpr (ListsMembers<typename Rule::State>) {
      view.see_state = [](Memory& memory, StateMembers& members) {
        using State = typename Rule::State;
        State::members(memory.as<State>(), SeesMembers(members));
      };
    }
  }
  return view;
}

/// A rule that stands for another one, which is known at run time.
template <class Rule>
concept ViewsRule = requires(Rule const& rule) {
  { rule.view() } -> std::same_as<RuleView>;
};

/// @throws std::invalid_argument for a negative history
template <class Rule>
RuleView view_of(Rule const& rule) {
  if constexpr (ViewsRule<Rule>) {
    return rule.view();
  } else {
    return view_of_itself(rule);
  }
}

}  // namespace detail
}  // namespace tstitch
