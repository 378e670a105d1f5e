/// @file
/// What a call of a network is told beside its tensors, and what it may keep from step to step of one run.
#pragma once

#include <any>
#include <optional>
#include <utility>

#include "../plan/forecast.hpp"
#include "../plan/step.hpp"

namespace tstitch {

/// What a network or an update rule keeps from step to step of one run: a value of a type of its own, or nothing. It
/// lives in the Trajectory, so that a fork has a copy, two threads never share it, and a step that throws leaves it as
/// it was. Tensors in it are therefore to be replaced, never changed in place.
class Memory {
 public:
  /// What was kept; at first, and after a value of another type, State{}.
  template <class State>
  State& as() {
    if (!std::any_cast<State>(&value_)) value_.emplace<State>();
    return *std::any_cast<State>(&value_);
  }

  /// What was kept, or null where there is none of this type.
  template <class State>
  State const* find() const {
    return std::any_cast<State>(&value_);
  }

  bool empty() const { return !value_.has_value(); }

 private:
  std::any value_;
};

/// What a call of a network is told beside its tensors.
struct Evaluation {
  std::optional<double> timestep = {};  ///< what all of t is, where the host knows it
  /// The step that asks; null outside of a run. Earlier ones may ask again after a switch (SwitchPolicy::re_evaluate).
  Step const* step = nullptr;
  Memory* memory = nullptr;  ///< the network's own in this run; null outside of a run
  /// For networks that forecast (Network::forecasts): what they are to forecast, or to keep for later; null: neither.
  /// Where it is given, so are step and memory.
  StepForecast const* forecast = nullptr;
  int number = 0;            ///< which of the step's evaluations, from 0
  bool both_halves = false;  ///< the second half of the rows is without the condition
};

}  // namespace tstitch
