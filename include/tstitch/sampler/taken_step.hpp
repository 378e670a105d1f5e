/// @file
/// One step of a run, whichever rule takes it.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
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
    if (trajectory.memories.size() < networks.size()) trajectory.memories.resize(networks.size());
    memory_ = trajectory.memories[index_];
    guidance_ = guidance_of(step_);
    require_suits(networks[index_], index_, trajectory, guidance_);
    thresholding_ = parts.options.thresholding.resolve(networks[index_].info());
  }

  void take() {
    bring_history();
    const auto denoise_at = [this](at::Tensor const& x, auto const& where) { return denoise(x, where); };
    const auto draw_noise = [this](int draw) { return noise(draw); };
    const std::uint64_t changes = changes_in_place(trajectory_.x);
    Memory state = rule_.keeps_state ? trajectory_.rule_state : Memory();
    at::Tensor output = rule_.step(rule_.rule,
                                   StepInput{step_, trajectory_.x, trajectory_.history, parts_.noise_schedule,
                                             std::cref(denoise_at), std::cref(denoise_at), std::cref(draw_noise)},
                                   state);
    if (changes_in_place(trajectory_.x) != changes) {
      throw std::runtime_error("tstitch::Sampler: the update rule must leave x as it is, got a change in place");
    }
    require_like("the update rule", output, trajectory_.x);
    if (!x_0_.defined()) x_0_ = output;  // of a rule that asks no network
    if (rule_.keeps_state) trajectory_.rule_state = std::move(state);
    commit(std::move(output));
  }

 private:
  /// How the network is guided in a step of the run.
  EvaluationGuidance guidance_of(Step const& step) {
    Guidance const& all = trajectory_.guidance;
    EvaluationGuidance here{all.at(step, index_), all.channels, all.rescale, all.projected, trajectory_.momentum};
    if (all.uses_guide(step, index_)) {
      all.validate(networks_.size());
      here.guide = &networks_[*all.guide_network];
      if (guide_memory_.empty()) guide_memory_ = trajectory_.memories[*all.guide_network];
      here.guide_memory = &guide_memory_;
    }
    if (trajectory_.gradient) here.gradient = &trajectory_.gradient;
    here.told = {.step = &step, .memory = &memory_};
    return here;
  }

  template <class Where>
  Prediction denoise(at::Tensor const& x, Where const& where) {
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

  /// Makes the history what this step may see. A sampler that another one took over from may have left steps of long
  /// ago, or more of them.
  void bring_history() {
    std::vector<Past>& history = trajectory_.history;
    const std::size_t next = std::size_t(trajectory_.next), wanted = rule_.history;
    const bool follows =
        next > 0 && !history.empty() && history.back().step.index == parts_.plan.steps[next - 1].step.index;
    if (!follows) history.clear();
    if (history.size() > wanted) history.erase(history.begin(), history.end() - std::ptrdiff_t(wanted));
    if (history.empty() || history.back().network == index_) return;
    if (parts_.options.at_switch == SwitchPolicy::reset) history.clear();
    if (parts_.options.at_switch != SwitchPolicy::re_evaluate) return;
    for (Past& past : history) {
      EvaluationGuidance then = guidance_of(past.step);
      then.momentum.reset();
      past.x_0 = tstitch::denoise(networks_[index_], past.x, Timestep{past.step.t, past.step.from},
                                  trajectory_.condition, then, thresholding_)
                     .x_0;
      past.network = index_;  // only now: what throws is asked again by the next call
    }
  }

  void commit(at::Tensor output) {
    if (rule_.history) {
      if (trajectory_.history.size() == rule_.history) trajectory_.history.erase(trajectory_.history.begin());
      trajectory_.history.push_back({step_, index_, trajectory_.x, x_0_});
    }
    trajectory_.x = std::move(output);
    trajectory_.x_0 = std::move(x_0_);
    if (momentum_.defined()) trajectory_.momentum = std::move(momentum_);
    if (!memory_.empty()) trajectory_.memories[index_] = std::move(memory_);
    if (!guide_memory_.empty()) trajectory_.memories[*trajectory_.guidance.guide_network] = std::move(guide_memory_);
    ++trajectory_.next;
    const bool finished = trajectory_.finished(), inverts = rule_.direction == Direction::to_noise;
    trajectory_.level = !finished ? begin_of(parts_.plan.steps[std::size_t(trajectory_.next)].step, rule_.direction)
                        : inverts ? step_.from
                                  : step_.to;
    if (trajectory_.inpainting.mask.defined()) {
      trajectory_.x = trajectory_.inpainting(trajectory_.x, finished ? NoiseLevel::clean() : trajectory_.level);
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
  std::vector<int> drawn_;
  at::Tensor x_0_, momentum_;
};

}  // namespace tstitch::detail
