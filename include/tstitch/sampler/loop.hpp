/// @file
/// The only loop of the library, without template parameters: what a sampler does whichever its rule and its schedule.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../model/denoiser.hpp"
#include "../plan/plan.hpp"
#include "batch.hpp"
#include "checks.hpp"
#include "observer.hpp"
#include "options.hpp"
#include "request.hpp"
#include "trajectory.hpp"
#include "update_rule.hpp"

namespace tstitch::detail {

/// Sees the x and the x_0 of an evaluation inside of a long step.
using Evaluated = std::function<void(at::Tensor const& x, at::Tensor const& x_0)>;

/// Any model schedule, as long as it lives.
using ScheduleView = std::function<std::size_t(Step const&)>;

/// A request with every default filled in, and the fingerprint of the plan that it leads to.
struct Checked {
  Request request;
  std::uint64_t plan;
};

/// What a sampler is but for its rule and its schedule, which are handed to what needs them.
class Loop {
 public:
  Loop(NoiseSchedule noise_schedule, SamplingOptions options, ScheduleView const& schedule, RuleView const& rule)
      : noise_schedule_(std::move(noise_schedule)),
        options_(std::move(options)),
        plan_(plan(schedule, rule, {}, 1)),
        timesteps_(timesteps_fingerprint(plan_)),
        fingerprint_(fingerprint(plan_)) {}

  NoiseSchedule const& noise_schedule() const { return noise_schedule_; }
  SamplingOptions const& options() const { return options_; }
  Plan const& plan() const { return plan_; }

  Plan plan(ScheduleView const& schedule, RuleView const& rule, Guidance const& guidance, double strength) const {
    const bool inverts = rule.direction == Direction::to_noise;
    Plan plan = detail::make_plan(noise_schedule_, options_.steps, options_.spacing, options_.final_sigma, schedule,
                                  guidance, options_.previous_timestep);
    plan.sampler = rule.name(rule.rule);
    plan.steps.erase(plan.steps.begin(), plan.steps.begin() + first_step(strength, inverts));
    if (inverts) std::reverse(plan.steps.begin(), plan.steps.end());
    for (std::size_t i = 0; i < plan.steps.size(); ++i) {
      PlannedStep& planned = plan.steps[i];
      planned.evaluations = rule.evaluations(rule.rule, planned.step);
      if (planned.evaluations < 0) refuse("UpdateRule", "evaluations must not be negative", planned.evaluations);
      planned.guide_evaluations *= planned.evaluations;
      const bool switches = i > 0 && planned.network != plan.steps[i - 1].network;
      if (!switches || options_.at_switch != SwitchPolicy::re_evaluate) continue;
      for (std::size_t back = 1; back <= std::min(i, rule.history); ++back) {
        ++planned.evaluations;
        planned.guide_evaluations += guidance.uses_guide(plan.steps[i - back].step, planned.network);
      }
    }
    return plan;
  }

  /// The request with every default filled in: one label and one seed an image, a batch size, a count, a shape.
  Checked checked(std::vector<Network> const& networks, Request request, ScheduleView const& schedule,
                  RuleView const& rule) const {
    if (networks.empty()) refuse("Sampler", "at least one network is needed", 0);
    const Guidance none;
    // Most often the plan is there already.
    const bool is_plain = request.strength == 1 && request.guidance.scale.values() == none.scale.values() &&
                          !request.guidance.guide_network;
    std::optional<Plan> own;
    if (!is_plain) own = this->plan(schedule, rule, request.guidance, request.strength);
    Plan const& plan = own ? *own : plan_;
    require_compatible(networks);
    request.guidance.validate(networks.size());
    request.gradient.validate();
    const auto validate = [&](NetworkInfo const& info) { rule.validate(rule.rule, info); };
    const bool guided = require_plan(networks, plan, noise_schedule_, request, validate);
    fill_in_counts(request);
    check_conditions(networks, plan, request);
    // Networks that know classes know the same.
    const auto knows_classes = [](Network const& network) { return network.info().num_classes > 0; };
    const auto with_classes = std::find_if(networks.begin(), networks.end(), knows_classes);
    NetworkInfo const& info = (with_classes == networks.end() ? networks.front() : *with_classes).info();
    fill_in_labels(info, request);
    fill_in_images(info, request, rule.direction == Direction::to_noise);
    if (guided && request.guidance.channels > request.shape[0]) {
      refuse("Guidance", "channels must be at most " + std::to_string(request.shape[0]),
             double(request.guidance.channels));
    }
    return {std::move(request), own ? fingerprint(plan) : fingerprint_};
  }

  Trajectory begin(std::vector<Network> const& networks, Checked const& checked, RuleView const& rule) const {
    Request const& request = checked.request;
    const at::Device device = networks[0].device();
    const bool inverts = rule.direction == Direction::to_noise;
    const int first = first_step(request.strength, inverts);
    Trajectory trajectory{.next = first,
                          .count = int(plan_.steps.size()),
                          .timesteps = timesteps_,
                          .plan = checked.plan,
                          .level = begin_of(plan_.steps[std::size_t(first)].step, inverts),
                          .x = {},
                          .seeds = request.seeds,
                          .condition = {},
                          .guidance = request.guidance,
                          .noise_source = request.noise_source,
                          .gradient = request.gradient};
    begin_x(trajectory, request, device, inverts);
    trajectory.condition = condition_of(networks, request, trajectory.x.options());
    for (std::size_t k = 0; k < networks.size(); ++k) {
      if (networks[k].prepares()) prepare(networks[k], k, plan_, trajectory);
    }
    return trajectory;
  }

  void advance(std::vector<Network> const& networks, Trajectory& trajectory, RuleView const& rule,
               Evaluated const& evaluated) const;

  Samples sample(std::vector<Network> const& networks, Checked const& checked, Observer const& observer,
                 RuleView const& rule) const;

 private:
  class TakenStep;

  /// Ends a step from inside of a rule.
  struct Cancelled {};

  /// The level of x before a step.
  static NoiseLevel begin_of(Step const& step, bool inverts) { return inverts ? step.to : step.from; }

  /// How many steps of the plan a request skips.
  int first_step(double strength, bool inverts) const {
    if (!(strength > 0 && strength <= 1)) refuse("Request", "strength must be in (0, 1]", strength);
    if (inverts && strength != 1) refuse("Request", "strength must be 1 for inversion", strength);
    const int left = share_of_steps("Request", "strength", strength, options_.steps);
    if (left == 0) {
      refuse("Request", "strength must leave at least 1 of " + std::to_string(options_.steps) + " steps", strength);
    }
    return options_.steps - left;
  }

  /// The steps of a batch, one after another, with an observer.
  /// @returns x before the last one
  at::Tensor run(std::vector<Network> const& networks, Trajectory& trajectory, Observer const& observer,
                 RuleView const& rule, std::int64_t first, std::int64_t images, Control& control) const;

  [[noreturn]] void refuse_values(std::vector<Network> const& networks, Checked const& part, std::int64_t first,
                                  RuleView const& rule) const;

  NoiseSchedule noise_schedule_;
  SamplingOptions options_;
  Plan plan_;
  std::uint64_t timesteps_ = 0;    // fingerprint of the plan's
  std::uint64_t fingerprint_ = 0;  // of the plan
};

/// One step of a run, while it is taken: the trajectory itself is changed when all has gone well.
class Loop::TakenStep {
 public:
  TakenStep(Loop const& loop, std::vector<Network> const& networks, Trajectory& trajectory, RuleView const& rule,
            Evaluated const& evaluated)
      : loop_(loop),
        networks_(networks),
        trajectory_(trajectory),
        rule_(rule),
        evaluated_(evaluated),
        step_(loop.plan_.steps[std::size_t(trajectory.next)].step),
        index_(loop.plan_.steps[std::size_t(trajectory.next)].network) {
    require_network(networks, step_.index, index_);
    if (trajectory.memories.size() < networks.size()) trajectory.memories.resize(networks.size());
    memory_ = trajectory.memories[index_];
    guidance_ = guidance_of(step_);
    require_suits(networks[index_], index_, trajectory, guidance_);
    thresholding_ = loop.options_.thresholding.resolve(networks[index_].info());
  }

  void take() {
    bring_history();
    const auto denoise_at = [this](at::Tensor const& x, auto const& where) { return denoise(x, where); };
    const auto draw_noise = [this](int draw) { return noise(draw); };
    const std::uint64_t changes = changes_in_place(trajectory_.x);
    Memory state = rule_.keeps_state ? trajectory_.rule_state : Memory();
    at::Tensor output = rule_.step(rule_.rule,
                                   StepInput{step_, trajectory_.x, trajectory_.history, loop_.noise_schedule_,
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
        next > 0 && !history.empty() && history.back().step.index == loop_.plan_.steps[next - 1].step.index;
    if (!follows) history.clear();
    if (history.size() > wanted) history.erase(history.begin(), history.end() - std::ptrdiff_t(wanted));
    if (history.empty() || history.back().network == index_) return;
    if (loop_.options_.at_switch == SwitchPolicy::reset) history.clear();
    if (loop_.options_.at_switch != SwitchPolicy::re_evaluate) return;
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
    const bool inverts = rule_.direction == Direction::to_noise, finished = trajectory_.finished();
    trajectory_.level = !finished ? begin_of(loop_.plan_.steps[std::size_t(trajectory_.next)].step, inverts)
                        : inverts ? step_.from
                                  : step_.to;
    if (trajectory_.inpainting.mask.defined()) {
      trajectory_.x = trajectory_.inpainting(trajectory_.x, finished ? NoiseLevel::clean() : trajectory_.level);
    }
  }

  Loop const& loop_;
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

inline void Loop::advance(std::vector<Network> const& networks, Trajectory& trajectory, RuleView const& rule,
                          Evaluated const& evaluated) const {
  const c10::AutoGradMode no_gradients(false);
  if (trajectory.finished()) refuse("Sampler::advance", "the trajectory must have steps left", 0);
  const bool inverts = rule.direction == Direction::to_noise;
  if (trajectory.count != int(plan_.steps.size()) || trajectory.timesteps != timesteps_ ||
      trajectory.level != begin_of(plan_.steps[std::size_t(trajectory.next)].step, inverts)) {
    refuse("Sampler::advance", "the trajectory must have been begun with the same timesteps",
           "step " + std::to_string(trajectory.next) + " of " + std::to_string(trajectory.count));
  }
  TakenStep(*this, networks, trajectory, rule, evaluated).take();
}

inline at::Tensor Loop::run(std::vector<Network> const& networks, Trajectory& trajectory, Observer const& observer,
                            RuleView const& rule, std::int64_t first, std::int64_t images, Control& control) const {
  const int begun = trajectory.next;
  at::Tensor before;
  while (!trajectory.finished() && control == Control::proceed) {
    const auto start = std::chrono::steady_clock::now();
    const PlannedStep& planned = plan_.steps[std::size_t(trajectory.next)];
    before = trajectory.x;
    control = observer.before({planned.step, planned.network, trajectory.x, first, images});
    if (control == Control::cancel) break;
    const auto report = [&](at::Tensor const& x, at::Tensor const& x_0) {
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      control = observer(StepReport{.step = planned.step,
                                    .network = planned.network,
                                    .seconds = seconds.count(),
                                    .x = x,
                                    .x_0 = x_0,
                                    .first = first,
                                    .images = images,
                                    .done = trajectory.next - begun,
                                    .steps = trajectory.count - begun});
    };
    Evaluated evaluated;
    if (rule.long_steps && observer) {
      evaluated = [&](at::Tensor const& x, at::Tensor const& x_0) {
        report(x, x_0);
        if (control == Control::proceed) return;
        trajectory.x_0 = x_0;
        throw Cancelled();
      };
    }
    try {
      advance(networks, trajectory, rule, evaluated);
    } catch (Cancelled const&) {
      break;
    }
    if (observer) report(trajectory.x, trajectory.x_0);
  }
  return before;
}

inline Samples Loop::sample(std::vector<Network> const& networks, Checked const& checked, Observer const& observer,
                            RuleView const& rule) const {
  const c10::AutoGradMode no_gradients(false);
  Request const& whole = checked.request;
  Samples samples;
  samples.seeds = whole.seeds;
  for (std::int64_t first = 0; first < whole.count; first += whole.batch_size) {
    const std::int64_t images = std::min(whole.batch_size, whole.count - first);
    const Checked part{batch_of(whole, first, images), checked.plan};
    Trajectory trajectory = begin(networks, part, rule);
    Control control = Control::proceed;
    const at::Tensor before = run(networks, trajectory, observer, rule, first, images, control);
    const bool whole_batch = trajectory.finished();
    // A run that was cancelled before its first step has predicted nothing.
    at::Tensor const& made = whole_batch || !trajectory.x_0.defined() ? trajectory.x : trajectory.x_0;
    const at::Tensor rows = made.narrow(0, 0, images);
    // Also before the last step, which may depend on x through a network alone.
    if (whole_batch && !rows.isfinite().all().logical_and(before.isfinite().all()).item<bool>()) {
      refuse_values(networks, part, first, rule);
    }
    // Made once and filled, so that no more than one batch exists twice.
    if (!samples.images.defined()) {
      std::vector<std::int64_t> shape = rows.sizes().vec();
      shape[0] = whole.count;
      samples.images = rows.new_empty(shape);
    }
    samples.images.narrow(0, first, images).copy_(rows);
    if (whole_batch) samples.finished_images = first + images;
    if (control == Control::cancel && samples.finished_images < whole.count) {
      samples.finished = false;
      samples.images = samples.images.narrow(0, 0, first + images);
      samples.seeds.resize(std::size_t(first + images));
      break;
    }
  }
  return samples;
}

/// Runs the batch again to say which step broke it; the noise is addressed, so it breaks there again.
inline void Loop::refuse_values(std::vector<Network> const& networks, Checked const& part, std::int64_t first,
                                RuleView const& rule) const {
  Trajectory trajectory = begin(networks, part, rule);
  bool noise_is_sound = true;
  trajectory.noise_source = [&](std::vector<std::uint64_t> const& seeds, NoiseAddress address, at::IntArrayRef shape,
                                at::TensorOptions options) {
    const at::Tensor noise = part.request.noise_source(seeds, address, shape, options);
    noise_is_sound = noise_is_sound && noise.defined() && noise.isfinite().all().item<bool>();
    return noise;
  };
  std::string where = "in the batch of image " + std::to_string(first);
  const bool sound = trajectory.x.isfinite().all().item<bool>();
  if (!sound) where = "in what the run began with (initial_noise, initial_image or noise_source)";
  while (sound && !trajectory.finished()) {
    const PlannedStep& planned = plan_.steps[std::size_t(trajectory.next)];
    advance(networks, trajectory, rule, {});
    if (trajectory.x.isfinite().all().item<bool>()) continue;
    where = "at step " + std::to_string(planned.step.index) + " (t = " + text(planned.step.t) + ") by " +
            (noise_is_sound ? name_of(networks[planned.network], planned.network) : "noise_source");
    break;
  }
  throw std::runtime_error("tstitch::Sampler::sample: values must be finite numbers, got nan or infinity " + where);
}

}  // namespace tstitch::detail
