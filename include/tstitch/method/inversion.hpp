/// @file
/// Inversion: from a picture back to the noise from which a sampler draws it.
#pragma once

#include <string>
#include <utility>

#include "../base/contraction.hpp"
#include "../sampler/sampler.hpp"

TSTITCH_NO_CONTRACTION

namespace tstitch {

/// Takes each step of another update rule backwards: finds the x at step.from that the rule brings to the given x at
/// step.to. Sampling from what it finds, with the same plan, gives the picture again; the better the more iterations.
///
/// The rule's own step in the other direction is the first guess y; where step.to is the picture itself, which has no
/// slope, x is. Then y + alpha(from) / alpha(to) (x - rule(y)) is repeated, the fixed-point iteration of exact
/// inversion (Pan et al. 2023, arXiv 2309.04907; Hong et al. 2024, arXiv 2311.18387) for any rule: for DDIM it is y =
/// alpha(from) / alpha(to) (x - sigma(to) eps(y)) + sigma(from) eps(y). Anderson's acceleration of depth 1, for each
/// image, speeds it up. Steps from pure noise have sigma(from) / sigma(to) instead. How much comes back depends
/// on how smooth the networks are: where it is too little, take more iterations or more steps.
///
/// Rules that draw noise are refused when they do. A rule with State has State{} in each of its steps. Thresholding
/// loses what it cuts off.
template <class Rule>
struct InversionUpdate {
  Rule rule = {};      ///< without history
  int iterations = 3;  ///< in [1, 10000]

  static constexpr Direction direction = Direction::to_noise;

  static void options(auto& self, auto const& see) { see("iterations", self.iterations); }

  /// "Inversion of DDIM (eta 0.5) (iterations 5)"
  std::string name() const {
    const detail::RuleView view = detail::view_of(rule);
    const std::string inner = view.name(view.rule);
    return detail::name_with_options("Inversion" + (inner.empty() ? "" : " of " + inner), *this, {rule});
  }

  int evaluations(Step const& step) const {
    const int guess = has_slope(step) ? detail::evaluations_of(rule, reversed(step)) : 0;
    return guess + iterations * detail::evaluations_of(rule, step);
  }

  void validate() const {
    if (iterations < 1) detail::refuse("Inversion", "iterations must be at least 1", iterations);
    if (iterations > 10000) detail::refuse("Inversion", "iterations must be at most 10000", iterations);
    if constexpr (requires { rule.history(); }) {
      if (rule.history() > 0) detail::refuse("Inversion", "needs a rule without history", rule.history());
    }
    if constexpr (requires { rule.validate(); }) rule.validate();
  }

  void validate(NetworkInfo const& info) const {
    if constexpr (requires { rule.validate(info); }) rule.validate(info);
  }

  at::Tensor operator()(StepInput const& in) const {
    const auto [from, to] = std::pair{in.step.from, in.step.to};
    if (from.alpha == 0 && to.sigma == 0) {
      detail::refuse("Inversion", "a step must not lead from pure noise to the picture",
                     "step " + std::to_string(in.step.index));
    }
    const double ratio = from.alpha > 0 ? from.alpha / to.alpha : from.sigma / to.sigma;
    at::Tensor y = has_slope(in.step) ? step(in, reversed(in.step), in.x) : in.x;
    at::Tensor residual_before, next_before;
    for (int i = 0; i < iterations; ++i) {
      const at::Tensor residual = in.x.sub(step(in, in.step, y)).mul_(ratio);
      const at::Tensor next = y.add(residual);
      y = i == 0 ? next : next.sub(next.sub(next_before).mul_(still_to_go(residual, residual.sub(residual_before))));
      residual_before = residual;
      next_before = next;
    }
    return y;
  }

 private:
  /// How far along the line through the last two iterates the residual is smallest, [n, 1, ...]; 0 is the newer one.
  static at::Tensor still_to_go(at::Tensor const& residual, at::Tensor const& change) {
    const auto dot = [](at::Tensor const& a, at::Tensor const& b) {
      return a.mul(b).sum(detail::dims_of_an_image(a), true);
    };
    return dot(residual, change).div_(dot(change, change).clamp_min_(1e-30));
  }

  static bool has_slope(Step const& step) { return step.to.sigma > 0 && step.from.alpha > 0; }

  static Step reversed(Step step) {
    std::swap(step.from, step.to);
    std::swap(step.t, step.t_to);
    return step;
  }

  at::Tensor step(StepInput const& in, Step const& step, at::Tensor const& x) const {
    const auto no_noise = [](int draw) -> at::Tensor {
      detail::refuse("Inversion", "needs a rule without noise", "draw " + std::to_string(draw));
    };
    Memory state;
    const StepInput input{step, x, in.history, in.noise_schedule, in.denoise, in.denoise_each, no_noise};
    const detail::RuleView view = detail::view_of(rule);
    return view.step(view.rule, input, state);
  }
};

/// Inversion of an update rule under a model schedule; `samples.images` is the noise.
///
///     const Inversion invert{noise_schedule, Stitch{.ratio = 0.4}, {.steps = 50}, DDIMUpdate{}};
///     const at::Tensor noise = invert.sample(networks, {.initial_image = picture}).images;
///     DDIM{noise_schedule, Stitch{.ratio = 0.4}, {.steps = 50}}.sample(networks, {.initial_noise = noise});
template <class Rule, class Schedule>
class Inversion : public Sampler<InversionUpdate<Rule>, Schedule> {
 public:
  Inversion(NoiseSchedule noise_schedule, Schedule model_schedule, SamplingOptions options, Rule rule,
            int iterations = InversionUpdate<Rule>{}.iterations)
      : Sampler<InversionUpdate<Rule>, Schedule>(std::move(noise_schedule), std::move(model_schedule),
                                                 std::move(options), {std::move(rule), iterations}) {}
};

}  // namespace tstitch

TSTITCH_USUAL_CONTRACTION
