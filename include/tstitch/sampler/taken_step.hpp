/// @file
/// One step of a run, whichever rule takes it.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../model/denoiser.hpp"
#include "../plan/plan.hpp"
#include "checks.hpp"
#include "options.hpp"
#include "trajectory.hpp"
#include "update_rule.hpp"

namespace tstitch::detail {

/// Sees the x and the x_0 of an evaluation inside of a long step.
using Evaluated = std::function<void(at::Tensor const& x, at::Tensor const& x_0)>;

/// What a sampler is made of, but for its rule and its schedule.
struct SamplerParts {
  NoiseSchedule noise_schedule;
  SamplingOptions options;
  Plan plan = {};  ///< without guidance
};

/// The level of x before a step.
inline NoiseLevel begin_of(Step const& step, Direction direction) {
  return direction == Direction::to_noise ? step.to : step.from;
}

/// One step of a run, while it is taken: the trajectory itself is changed when all has gone well.
class TakenStep {
 public:
  TakenStep(SamplerParts const& parts, std::vector<Network> const& networks, Trajectory& trajectory,
            RuleView const& rule, Evaluated const& evaluated)
      : parts_(parts),
        networks_(networks),
        trajectory_(trajectory),
        rule_(rule),
        evaluated_(evaluated),
        step_(parts.plan.steps[std::size_t(trajectory.next)].step),
        index_(parts.plan.steps[std::size_t(trajectory.next)].network) {
    require_network(networks, step_.index, index_);
    memory_ = memory_of(index_);
    plan_forecast();
    guidance_ = guidance_of(step_);
    if (!forecast_.anew) differences_ = trajectory.differences;
    if (forecast_.network || forecast_.guidance || forecast_.keep > 0 || forecast_.keep_difference > 0) {
      guidance_.differences = &differences_;
      guidance_.forecast = &forecast_;
      if (networks[index_].forecasts()) guidance_.told.forecast = &forecast_;
    }
    require_suits(networks[index_], index_, trajectory, guidance_);
    thresholding_ = parts.options.thresholding.resolve(networks[index_].info());
  }

  TakenStep(TakenStep const&) = delete;  // what is asked looks into it
  TakenStep& operator=(TakenStep const&) = delete;

  void take() {
    bring_history();
    const auto denoise_at = [this](at::Tensor const& x, auto const& where) { return denoise(x, where); };
    const auto draw_noise = [this](int draw) { return noise(draw); };
    const std::uint64_t changes = changes_in_place(trajectory_.x);
    Memory state = rule_.keeps_state ? trajectory_.rule_state : Memory();  // of rules before this one nothing is left
    at::Tensor output = rule_.step(rule_.rule,
                                   StepInput{step_, trajectory_.x, history_, parts_.noise_schedule,
                                             std::cref(denoise_at), std::cref(denoise_at), std::cref(draw_noise)},
                                   state);
    if (changes_in_place(trajectory_.x) != changes) {
      throw std::runtime_error("tstitch::Sampler: the update rule must leave x as it is, got a change in place");
    }
    require_like("the update rule", output, trajectory_.x);
    if (!x_0_.defined()) x_0_ = output;  // of a rule that asks no network
    commit(std::move(output), std::move(state));
  }

 private:
  Memory memory_of(std::size_t network) const {
    return network < trajectory_.memories.size() ? trajectory_.memories[network] : Memory();
  }

  /// What of the step is forecast, which is what the plan says.
  void plan_forecast() {
    Forecast const &forecast = parts_.options.forecast, &of_guidance = trajectory_.guidance.forecast;
    if (!forecast && !of_guidance) {
      forecast_.anew = true;  // as what comes after it is, for it leaves an empty history
      return;
    }
    require_forecastable(rule_, trajectory_.gradient);
    const std::uint64_t rule = Fingerprint().add(parts_.plan.sampler).value();
    const bool last = std::size_t(trajectory_.next) + 1 == parts_.plan.steps.size();
    forecasts_ = trajectory_.forecasts;
    forecast_ = forecasts_.next(
        {step_, index_, rule_.evaluations(rule_.rule, step_), trajectory_.guidance.by(step_, index_), last, rule},
        forecast, of_guidance);
    if (forecast_.network) require_forecasts(networks_[index_], index_);
  }

  /// How the network is guided in a step of the run.
  EvaluationGuidance guidance_of(Step const& step) {
    Guidance const& all = trajectory_.guidance;
    EvaluationGuidance here{all.at(step, index_), all.channels, all.rescale, all.projected, trajectory_.momentum};
    if (all.uses_guide(step, index_)) {
      if (*all.guide_network >= networks_.size()) all.validate(networks_.size());  // which refuses it
      here.guide = &networks_[*all.guide_network];
      if (guide_memory_.empty()) guide_memory_ = memory_of(*all.guide_network);
      here.guide_memory = &guide_memory_;
    }
    if (trajectory_.gradient) here.gradient = &trajectory_.gradient;
    here.told = {.step = &step, .memory = &memory_};
    return here;
  }

  template <class Where>
  Prediction denoise(at::Tensor const& x, Where const& where) {
    guidance_.told.number = evaluations_++;
    Prediction prediction =
        tstitch::denoise(networks_[index_], x, where, trajectory_.condition, guidance_, thresholding_);
    if (!x_0_.defined()) {
      x_0_ = prediction.x_0;
      momentum_ = prediction.momentum;
    }
    if (rule_.long_steps && evaluated_) evaluated_(x, prediction.x_0);
    return prediction;
  }

  at::Tensor noise(int draw) {
    if (std::find(drawn_.begin(), drawn_.end(), draw) != drawn_.end()) {
      refuse("StepInput::noise", "each draw of noise in a step must have a number of its own",
             std::to_string(draw) + " twice in step " + std::to_string(step_.index));
    }
    drawn_.push_back(draw);
    const at::Tensor noise = trajectory_.noise_source(trajectory_.seeds, NoiseAddress::of_step(step_.index, draw),
                                                      trajectory_.x.sizes().slice(1), trajectory_.x.options());
    require_like("noise_source", noise, trajectory_.x);
    return noise;
  }

  /// Finds what of the history this step may see. A sampler that another one took over from may have left steps of long
  /// ago, or more of them.
  void bring_history() {
    const std::span<const Past> all(trajectory_.history);
    const std::size_t next = std::size_t(trajectory_.next);
    const bool follows = next > 0 && !all.empty() && all.back().step.index == parts_.plan.steps[next - 1].step.index;
    if (follows) history_ = all.last(std::min(all.size(), rule_.history));
    if (history_.empty() || history_.back().network == index_) return;
    if (parts_.options.at_switch == SwitchPolicy::reset) history_ = {};
    if (parts_.options.at_switch != SwitchPolicy::re_evaluate) return;
    renewed_.assign(history_.begin(), history_.end());
    for (Past& past : renewed_) {
      EvaluationGuidance then = guidance_of(past.step);
      then.momentum.reset();
      past.x_0 = tstitch::denoise(networks_[index_], past.x, Timestep{past.step.t, past.step.from},
                                  trajectory_.condition, then, thresholding_)
                     .x_0;
      past.network = index_;
    }
    history_ = renewed_;
  }

  /// What may throw comes first, and then what cannot.
  void commit(at::Tensor output, Memory state) {
    const std::size_t next = std::size_t(trajectory_.next) + 1;
    const bool finished = next == parts_.plan.steps.size(), inverts = rule_.direction == Direction::to_noise;
    const NoiseLevel level = !finished ? begin_of(parts_.plan.steps[next].step, rule_.direction)
                             : inverts ? step_.from
                                       : step_.to;
    if (trajectory_.inpainting.mask.defined()) {
      output = trajectory_.inpainting(output, finished ? NoiseLevel::clean() : level);
    }
    std::vector<Past>& history = trajectory_.history;
    const std::size_t wanted = rule_.history, kept = wanted == 0 ? 0 : std::min(history_.size(), wanted - 1);
    if (wanted > 0) (renewed_.empty() ? history : renewed_).reserve(std::max(history.size(), wanted) + 1);
    if (trajectory_.memories.size() < networks_.size()) trajectory_.memories.resize(networks_.size());

    if (!renewed_.empty()) history.swap(renewed_);
    history.erase(history.begin(), history.end() - std::ptrdiff_t(kept));
    if (wanted > 0) history.push_back({step_, index_, trajectory_.x, x_0_});
    trajectory_.x = std::move(output);
    trajectory_.x_0 = std::move(x_0_);
    trajectory_.level = level;
    if (momentum_.defined()) trajectory_.momentum = std::move(momentum_);
    trajectory_.rule_state = std::move(state);
    trajectory_.forecasts = std::move(forecasts_);
    trajectory_.differences = std::move(differences_);
    if (!memory_.empty()) trajectory_.memories[index_] = std::move(memory_);
    if (!guide_memory_.empty()) trajectory_.memories[*trajectory_.guidance.guide_network] = std::move(guide_memory_);
    if (forecast_.anew) forget_features();
    ++trajectory_.next;
  }

  /// What other networks kept for forecasts is of no use when this one has taken over, and may be large.
  void forget_features() {
    for (std::size_t k = 0; k < trajectory_.memories.size(); ++k) {
      if (k != index_ && trajectory_.memories[k].find<FeatureMemory>()) trajectory_.memories[k] = {};
    }
  }

  SamplerParts const& parts_;
  std::vector<Network> const& networks_;
  Trajectory& trajectory_;
  RuleView const& rule_;
  Evaluated const& evaluated_;
  Step const& step_;
  std::size_t index_;
  EvaluationGuidance guidance_;
  Thresholding thresholding_ = Thresholding::none();
  Memory memory_, guide_memory_;
  ForecastHistory forecasts_ = {};
  StepForecast forecast_ = {};
  KeptSteps differences_ = {};
  int evaluations_ = 0;                 // so far
  std::span<const Past> history_ = {};  // what the rule may see
  std::vector<Past> renewed_ = {};      // where that differs from the trajectory's
  std::vector<int> drawn_;
  at::Tensor x_0_, momentum_;
};

}  // namespace tstitch::detail
