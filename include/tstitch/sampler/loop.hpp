/// @file
/// The only loop of the library, without template parameters: what a sampler does whichever its rule and its schedule.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../base/diagnostics.hpp"
#include "../model/denoiser.hpp"
#include "../plan/plan.hpp"
#include "../tensor/torch_error.hpp"
#include "batch.hpp"
#include "checks.hpp"
#include "culprit.hpp"
#include "observer.hpp"
#include "options.hpp"
#include "request.hpp"
#include "taken_step.hpp"
#include "trajectory.hpp"
#include "update_rule.hpp"

namespace tstitch::detail {

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
      : parts_{std::move(noise_schedule), std::move(options)} {
    parts_.plan = plan(schedule, rule, {}, 1);
    timesteps_ = timesteps_fingerprint(parts_.plan);
    fingerprint_ = fingerprint(parts_.plan);
  }

  NoiseSchedule const& noise_schedule() const { return parts_.noise_schedule; }
  SamplingOptions const& options() const { return parts_.options; }
  Plan const& plan() const { return parts_.plan; }

  Plan plan(ScheduleView const& schedule, RuleView const& rule, Guidance const& guidance, double strength) const {
    const bool inverts = rule.direction == Direction::to_noise;
    Plan plan = detail::make_plan(parts_.noise_schedule, parts_.options.steps, parts_.options.spacing,
                                  parts_.options.final_sigma, schedule, guidance, parts_.options.previous_timestep);
    plan.sampler = rule.name(rule.rule);
    plan.steps.erase(plan.steps.begin(), plan.steps.begin() + first_step(strength, inverts));
    if (inverts) std::reverse(plan.steps.begin(), plan.steps.end());
    for (PlannedStep& planned : plan.steps) {
      planned.evaluations = rule.evaluations(rule.rule, planned.step);
      if (planned.evaluations < 0) refuse("UpdateRule", "evaluations must not be negative", planned.evaluations);
      planned.guide_evaluations *= planned.evaluations;
    }
    if (parts_.options.forecast || guidance.forecast) require_forecastable(rule, {});
    add_forecasts(plan, parts_.options.forecast, guidance.forecast);
    for (std::size_t i = 0; i < plan.steps.size(); ++i) {
      PlannedStep& planned = plan.steps[i];
      const bool switches = i > 0 && planned.network != plan.steps[i - 1].network;
      if (!switches || parts_.options.at_switch != SwitchPolicy::re_evaluate) continue;
      for (std::size_t back = 1; back <= std::min(i, rule.history); ++back) {
        const GuidedBy guided = guidance.by(plan.steps[i - back].step, planned.network);
        ++planned.evaluations;
        planned.guide_evaluations += guided == GuidedBy::guide;
        planned.rows += guided == GuidedBy::null_half ? 2 : 1;
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
                          !request.guidance.guide_network && !request.guidance.forecast;
    std::optional<Plan> own;
    if (!is_plain) own = this->plan(schedule, rule, request.guidance, request.strength);
    Plan const& plan = own ? *own : parts_.plan;
    require_compatible(networks);
    request.guidance.validate(networks.size());
    request.gradient.validate();
    if (parts_.options.forecast || request.guidance.forecast) require_forecastable(rule, request.gradient);
    const auto validate = [&](NetworkInfo const& info) { rule.validate(rule.rule, info); };
    const bool guided = require_plan(networks, plan, parts_.noise_schedule, request, validate);
    fill_in_counts(request);
    check_conditions(networks, plan, request);
    // Networks that know classes know the same.
    const auto knows_classes = [](Network const& network) { return network.info().num_classes > 0; };
    const auto with_classes = std::find_if(networks.begin(), networks.end(), knows_classes);
    NetworkInfo const& info = (with_classes == networks.end() ? networks.front() : *with_classes).info();
    fill_in_labels(info, request);
    fill_in_images(networks, request, rule.direction == Direction::to_noise);
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
                          .count = int(parts_.plan.steps.size()),
                          .timesteps = timesteps_,
                          .plan = checked.plan,
                          .level = begin_of(parts_.plan.steps[std::size_t(first)].step, rule.direction),
                          .x = {},
                          .seeds = request.seeds,
                          .condition = {},
                          .guidance = request.guidance,
                          .noise_source = request.noise_source,
                          .gradient = request.gradient,
                          .first = first};
    begin_x(trajectory, request, device, inverts);
    trajectory.condition = condition_of(networks, request, trajectory.x.options());
    for (std::size_t k = 0; k < networks.size(); ++k) {
      if (networks[k].prepares()) prepare(networks[k], k, parts_.plan, trajectory);
    }
    return trajectory;
  }

  void advance(std::vector<Network> const& networks, Trajectory& trajectory, RuleView const& rule,
               Evaluated const& evaluated) const;

  Samples sample(std::vector<Network> const& networks, Checked const& checked, Observer const& observer,
                 RuleView const& rule) const;

  /// Draws images [first, first + images) of a request into `samples`.
  void sample_batch(std::vector<Network> const& networks, Checked const& checked, Observer const& observer,
                    RuleView const& rule, std::int64_t first, std::int64_t images, Samples& samples) const;

  Samples finish(std::vector<Network> const& networks, Trajectory trajectory, Observer const& observer,
                 RuleView const& rule) const;

 private:
  /// Ends a step from inside of a rule.
  struct Cancelled {};

  /// How many steps of the plan a request skips.
  int first_step(double strength, bool inverts) const {
    if (!(strength > 0 && strength <= 1)) refuse("Request", "strength must be in (0, 1]", strength);
    if (inverts && strength != 1) refuse("Request", "strength must be 1 for inversion", strength);
    const int left = share_of_steps("Request", "strength", strength, parts_.options.steps);
    if (left == 0) {
      refuse("Request", "strength must leave at least 1 of " + std::to_string(parts_.options.steps) + " steps",
             strength);
    }
    return parts_.options.steps - left;
  }

  /// The steps of a batch, one after another, with an observer.
  /// @returns x before the last one
  at::Tensor run(std::vector<Network> const& networks, Trajectory& trajectory, Observer const& observer,
                 RuleView const& rule, std::int64_t first, std::int64_t images, Control& control) const;

  /// Runs a batch to its end, or until it is cancelled.
  /// @param refuse throws, when values are not finite numbers
  /// @returns x of a whole batch, else what was predicted last, or no rows
  at::Tensor run_batch(std::vector<Network> const& networks, Trajectory& trajectory, Observer const& observer,
                       RuleView const& rule, std::int64_t first, std::int64_t images, Control& control,
                       std::function<void(std::string const& said)> const& refuse) const;

  /// Runs a batch again to say what broke it.
  /// @param begin makes it
  /// @param said all but the place
  [[noreturn]] void refuse_values(std::vector<Network> const& networks,
                                  std::function<Trajectory(std::vector<Network> const&)> const& begin,
                                  std::int64_t first, RuleView const& rule, std::string const& said) const;

  SamplerParts parts_;
  std::uint64_t timesteps_ = 0;    // fingerprint of the plan's
  std::uint64_t fingerprint_ = 0;  // of the plan
};

inline void Loop::advance(std::vector<Network> const& networks, Trajectory& trajectory, RuleView const& rule,
                          Evaluated const& evaluated) const {
  const c10::AutoGradMode no_gradients(false);
  if (trajectory.finished()) refuse("Sampler::advance", "the trajectory must have steps left", 0);
  if (trajectory.count != int(parts_.plan.steps.size()) || trajectory.timesteps != timesteps_ ||
      trajectory.level != begin_of(parts_.plan.steps[std::size_t(trajectory.next)].step, rule.direction)) {
    refuse("Sampler::advance", "the trajectory must have been begun with the same timesteps",
           "step " + std::to_string(trajectory.next) + " of " + std::to_string(trajectory.count));
  }
  TakenStep(parts_, networks, trajectory, rule, evaluated).take();
}

inline at::Tensor Loop::run(std::vector<Network> const& networks, Trajectory& trajectory, Observer const& observer,
                            RuleView const& rule, std::int64_t first, std::int64_t images, Control& control) const {
  at::Tensor before;
  while (!trajectory.finished() && control == Control::proceed) {
    const PlannedStep& planned = parts_.plan.steps[std::size_t(trajectory.next)];
    before = trajectory.x;
    control = observer.before({planned.step, planned.network, trajectory.x, first, images, &trajectory});
    if (control == Control::cancel) break;
    const auto start = std::chrono::steady_clock::now();
    const auto report = [&](at::Tensor const& x, at::Tensor const& x_0) {
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      control = observer(StepReport{.step = planned.step,
                                    .network = planned.network,
                                    .seconds = seconds.count(),
                                    .x = x,
                                    .x_0 = x_0,
                                    .first = first,
                                    .images = images,
                                    .done = trajectory.next - trajectory.first,
                                    .steps = trajectory.count - trajectory.first,
                                    .trajectory = &trajectory});
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

inline at::Tensor Loop::run_batch(std::vector<Network> const& networks, Trajectory& trajectory,
                                  Observer const& observer, RuleView const& rule, std::int64_t first,
                                  std::int64_t images, Control& control,
                                  std::function<void(std::string const& said)> const& refuse) const {
  at::Tensor before;
  try {
    before = run(networks, trajectory, observer, rule, first, images, control);
  } catch (NotFinite const& error) {
    refuse(error.what());
  }
  const bool whole = trajectory.finished();
  // A batch that was cancelled before its first step has predicted nothing.
  const std::int64_t exist = whole || trajectory.x_0.defined() ? images : 0;
  at::Tensor rows = (exist && !whole ? trajectory.x_0 : trajectory.x).narrow(0, 0, exist);
  // Also before the last step, which may depend on x through a network alone.
  at::Tensor sound = rows.isfinite().all();
  if (before.defined()) sound = sound.logical_and(before.isfinite().all());
  if (whole && !sound.item<bool>()) {
    refuse("tstitch::Sampler::sample: values must be finite numbers, got nan or infinity");
  }
  return rows;
}

inline Samples Loop::sample(std::vector<Network> const& networks, Checked const& checked, Observer const& observer,
                            RuleView const& rule) const {
  const c10::AutoGradMode no_gradients(false);
  Request const& whole = checked.request;
  Samples samples;
  samples.seeds = whole.seeds;
  samples.batch_size = whole.batch_size;
  for (std::int64_t first = 0; first < whole.count && samples.finished;) {
    const std::int64_t images = std::min(samples.batch_size, whole.count - first);
    try {
      sample_batch(networks, checked, observer, rule, first, images, samples);
      first += images;
      continue;
    } catch (std::exception const& error) {
      if (!whole.smaller_batches || images == 1 || !is_out_of_memory(error)) throw;
    }
    // Behind the handler, so that what the batch had is gone.
    samples.batch_size = images / 2;
    diagnose("Sampler::sample", "draws batches of " + std::to_string(samples.batch_size) +
                                    " because memory ran out in one of " + std::to_string(images));
  }
  return samples;
}

inline void Loop::sample_batch(std::vector<Network> const& networks, Checked const& checked, Observer const& observer,
                               RuleView const& rule, std::int64_t first, std::int64_t images, Samples& samples) const {
  Request const& whole = checked.request;
  const Checked part{batch_of(whole, first, images), checked.plan};
  Trajectory trajectory = begin(networks, part, rule);
  Control control = Control::proceed;
  const auto refuse = [&](std::string const& said) {
    const auto again = [&](std::vector<Network> const& watched) { return begin(watched, part, rule); };
    refuse_values(networks, again, first, rule, said);
  };
  const at::Tensor rows = run_batch(networks, trajectory, observer, rule, first, images, control, refuse);
  const std::int64_t exist = rows.size(0);
  // Made once and filled, so that no more than one batch exists twice.
  if (!samples.images.defined()) {
    std::vector<std::int64_t> shape = rows.sizes().vec();
    shape[0] = whole.count;
    samples.images = rows.new_empty(shape);
  }
  samples.images.narrow(0, first, exist).copy_(rows);
  if (trajectory.finished()) samples.finished_images = first + images;
  if (control != Control::cancel || samples.finished_images >= whole.count) return;
  samples.finished = false;
  samples.images = samples.images.narrow(0, 0, first + exist);
  samples.seeds.resize(std::size_t(first + exist));
}

inline Samples Loop::finish(std::vector<Network> const& networks, Trajectory trajectory, Observer const& observer,
                            RuleView const& rule) const {
  const c10::AutoGradMode no_gradients(false);
  const std::int64_t images = trajectory.x.size(0);
  Samples samples;
  samples.seeds = trajectory.seeds;
  Control control = Control::proceed;
  const auto refuse = [&, begun = trajectory](std::string const& said) {
    refuse_values(
        networks, [&](std::vector<Network> const&) { return begun; }, 0, rule, said);
  };
  samples.batch_size = images;
  samples.images = run_batch(networks, trajectory, observer, rule, 0, images, control, refuse);
  samples.finished = trajectory.finished();
  samples.finished_images = samples.finished ? images : 0;
  samples.seeds.resize(std::size_t(samples.images.size(0)));
  return samples;
}

/// The noise is addressed, so the batch breaks where it broke.
inline void Loop::refuse_values(std::vector<Network> const& networks,
                                std::function<Trajectory(std::vector<Network> const&)> const& begin, std::int64_t first,
                                RuleView const& rule, std::string const& said) const {
  Culprit culprit;
  const std::vector<Network> watched = culprit.watch(networks);
  Trajectory trajectory = begin(watched);
  culprit.watch(trajectory);
  std::string where = "in the batch of image " + std::to_string(first);
  const bool sound = is_finite(trajectory.x);
  if (!sound) where = "in what the run began with (initial_noise, initial_image or noise_source)";
  while (sound && !trajectory.finished()) {
    const PlannedStep& planned = parts_.plan.steps[std::size_t(trajectory.next)];
    culprit.forget();
    try {
      advance(watched, trajectory, rule, {});
      if (is_finite(trajectory.x)) continue;
    } catch (NotFinite const&) {}
    where = "at step " + std::to_string(planned.step.index) + " (t = " + text(planned.step.t) + ") by " +
            culprit.name(name_of(networks[planned.network], planned.network));
    break;
  }
  for (auto const& [name, value] : trajectory.condition.conditional.tensors) {
    const auto has_name = [&, &given = name](auto const& each) { return each.first == given; };
    auto const& guided = trajectory.condition.guided.tensors;
    const auto both = std::find_if(guided.begin(), guided.end(), has_name);
    if (is_finite(value) && (both == guided.end() || is_finite(both->second))) continue;
    where += "; condition '" + name + "' has such values too";
  }
  throw std::runtime_error(said + " " + where);
}

}  // namespace tstitch::detail
