/// @file
/// A run in flight.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "../model/condition.hpp"
#include "../model/evaluation.hpp"
#include "../model/feature_memory.hpp"
#include "../model/guidance.hpp"
#include "../tensor/noise.hpp"
#include "../tensor/weighted_sum.hpp"
#include "observer.hpp"  // this and the next for programs of 0.1, which found all that here
#include "request.hpp"
#include "update_rule.hpp"

namespace tstitch {

/// What a run with a mask keeps.
struct Inpainting {
  at::Tensor mask;   ///< [1 or n, 1 or C, ...], 1 where the picture is drawn; undefined: nothing is kept
  at::Tensor image;  ///< [n, C, ...]
  at::Tensor noise;  ///< [n, C, ...]

  /// x with the kept part in its place.
  /// @param x [n, C, ...] at `level`
  at::Tensor operator()(at::Tensor const& x, NoiseLevel level) const {
    return weighted_sum(level.alpha, image, level.sigma, noise).lerp(x, mask);
  }
};

/// A run in flight: a value. All that lives from step to step is in it; update rules, networks and samplers keep
/// nothing themselves. Copying it forks the run; tensors are never changed in place, so copies share them safely.
/// Advance it with any sampler that has the same timesteps, also one that routes the remaining steps differently.
struct Trajectory {
  int next = 0;                       ///< index of the step to come; also how many are done
  int count = 0;                      ///< steps of the whole run
  std::uint64_t timesteps = 0;        ///< timesteps_fingerprint of the plan that it follows; `advance` checks it
  std::uint64_t plan = 0;             ///< fingerprint of the plan that it was begun with
  NoiseLevel level;                   ///< of x, as the step to come takes it
  at::Tensor x;                       ///< [n, C, ...]
  at::Tensor x_0 = {};                ///< newest prediction; undefined before the first step
  std::vector<Past> history = {};     ///< steps just before this one, oldest first, as many as the update rule wanted
  at::Tensor momentum = {};           ///< newest Prediction::momentum of a step's first evaluation
  Memory rule_state = {};             ///< the update rule's State
  std::vector<Memory> memories = {};  ///< one a network, see Evaluation::memory
  ForecastHistory forecasts = {};     ///< of the steps so far
  KeptSteps differences = {};         ///< that guidance made in them, as far as they are needed for forecasts
  std::vector<std::uint64_t> seeds;
  BatchCondition condition;
  Guidance guidance;
  NoiseSource noise_source = noise;
  GradientGuidance gradient = {};
  Inpainting inpainting = {};
  int first = 0;  ///< index of the step that it was begun at

  bool finished() const { return next >= count; }
};

}  // namespace tstitch
