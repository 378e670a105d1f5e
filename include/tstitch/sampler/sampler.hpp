/// @file
/// The only loop of the library, and the contract of the update rules that plug into it.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <chrono>
#include <concepts>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "../model/denoiser.hpp"
#include "../plan/plan.hpp"
#include "noise.hpp"
#include "trajectory.hpp"

namespace tstitch {

/// What becomes of a multistep rule's history when another network takes over.
enum class SwitchPolicy {
  keep,         ///< the new network goes on with the predictions of the old one
  reset,        ///< it begins without history, and so with a lower order
  re_evaluate,  ///< it predicts again at the points of the history: as many evaluations more, once a switch
};

/// What a run looks like, whichever update rule carries it out.
struct SamplingOptions {
  int steps = 50;  ///< in [1, T]
  Spacing spacing = Spacing::linspace();
  FinalSigma final_sigma = FinalSigma::zero;
  Thresholding thresholding = Thresholding::automatic();
  PreviousTimestep previous_timestep = PreviousTimestep::in_plan;
  SwitchPolicy at_switch = SwitchPolicy::keep;
};

/// All that an update rule gets. Everything is a value or a callable, so that a rule can be tried without a sampler.
struct StepInput {
  Step const& step;
  at::Tensor const& x;            ///< [n, C, H, W] at step.from; not to be changed in place
  std::span<const Past> history;  ///< oldest first; at most history() entries, fewer in the first steps
  NoiseSchedule const& noise_schedule;
  /// Asks the step's network at any x and point of the trajectory; a network evaluation each time.
  std::function<Prediction(at::Tensor const& x, Timestep const& point)> denoise;
  /// The same with each image at a point of its own; as many points as images.
  std::function<Prediction(at::Tensor const& x, std::span<const Timestep> points)> denoise_each;
  /// Standard normal noise like x; another `draw` gives independent noise.
  std::function<at::Tensor(int draw)> noise;

  /// What the network predicts from x, where most rules begin.
  Prediction predict() const { return denoise(x, {step.t, step.from}); }
};

/// What an update rule returns: x at step.to. A tensor converts to it.
struct StepOutput {
  StepOutput(at::Tensor at_to, at::Tensor at_from = {})  // NOLINT: conversion is the purpose
      : x(std::move(at_to)), x_from(std::move(at_from)) {}

  at::Tensor x;       ///< [n, C, H, W] at step.to
  at::Tensor x_from;  ///< what the history is to remember as x at step.from; undefined: x as it was
};

/// An update rule is any callable `at::Tensor (StepInput const&) const` that takes x from step.from to step.to.
///
/// Besides it may have:
///   int history() const                      how many earlier steps it wants to see; 0 if absent
///   int evaluations(Step const&) const       network evaluations that it makes in a step, for the plan; 1 if absent
///   void validate() const                    throws std::invalid_argument for options that make no sense
///   void validate(NetworkInfo const&) const  throws std::invalid_argument for networks that it cannot use
template <class Rule>
concept UpdateRule = std::is_invocable_r_v<StepOutput, Rule const&, StepInput const&>;

/// Sees each step; made from any callable on a StepReport that returns nothing, or a Control to cancel the run.
class Observer {
 public:
  Observer() = default;

  template <class Callable>
  requires(!std::is_same_v<std::remove_cvref_t<Callable>, Observer>)
      Observer(Callable callable) {  // NOLINT: conversion is the purpose
    constexpr bool controls = std::is_invocable_r_v<Control, Callable&, StepReport const&>;
    constexpr bool watches = requires(StepReport const& report) {
      { callable(report) } -> std::same_as<void>;
    };
    static_assert(controls || watches,
                  "tstitch::Observer: must be callable as 'void (tstitch::StepReport const&)' or "
                  "'tstitch::Control (tstitch::StepReport const&)'");
    if constexpr (controls) {
      see_ = std::move(callable);
    } else if constexpr (watches) {
      see_ = [callable = std::move(callable)](StepReport const& report) mutable {
        callable(report);
        return Control::proceed;
      };
    }
  }

  explicit operator bool() const { return bool(see_); }
  Control operator()(StepReport const& report) const { return see_(report); }

 private:
  std::function<Control(StepReport const&)> see_;
};

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
  static_assert(UpdateRule<Rule>,
                "tstitch::Sampler: the update rule must be callable as 'at::Tensor (tstitch::StepInput const&) const'");

 public:
  /// @throws std::invalid_argument when any part refuses; nothing is loaded or computed for it
  Sampler(NoiseSchedule noise_schedule, Schedule model_schedule, SamplingOptions options = {}, Rule rule = {})
      : noise_schedule_(std::move(noise_schedule)),
        model_schedule_(std::move(model_schedule)),
        options_(std::move(options)),
        rule_(std::move(rule)) {
    if constexpr (requires { rule_.validate(); }) rule_.validate();
    plan_ = plan({});
  }

  /// The whole run before it happens.
  Plan const& plan() const { return plan_; }

  /// The plan with the guidance of a request.
  Plan plan(Guidance const& guidance) const {
    Plan plan = make_plan(noise_schedule_, options_.steps, options_.spacing, options_.final_sigma, model_schedule_,
                          guidance, options_.previous_timestep);
    for (std::size_t i = 0; i < plan.steps.size(); ++i) {
      PlannedStep& planned = plan.steps[i];
      if constexpr (requires { rule_.evaluations(planned.step); })
        planned.evaluations = rule_.evaluations(planned.step);
      const bool switches = i > 0 && planned.network != plan.steps[i - 1].network;
      if (switches && options_.at_switch == SwitchPolicy::re_evaluate)
        planned.evaluations += int(std::min(i, history()));
    }
    return plan;
  }

  Schedule const& model_schedule() const { return model_schedule_; }
  SamplingOptions const& options() const { return options_; }
  Rule const& rule() const { return rule_; }

  /// Checks everything that can be checked and draws the initial noise. The whole request is one batch.
  /// @throws std::invalid_argument for a request that does not suit the networks
  /// @throws std::runtime_error for networks that do not fit together
  Trajectory begin(std::vector<Network> const& networks, Request const& request) const {
    return begin_batch(networks, checked(networks, request));
  }

  /// Takes one step. Never waits for a GPU.
  /// @throws std::invalid_argument when the trajectory is finished or was begun with other timesteps
  void advance(std::vector<Network> const& networks, Trajectory& trajectory) const {
    const c10::AutoGradMode no_gradients(false);
    if (trajectory.finished()) detail::refuse("Sampler::advance", "the trajectory must have steps left", 0);
    if (trajectory.count != int(plan_.steps.size()) || trajectory.level != plan_.steps[trajectory.next].step.from) {
      detail::refuse("Sampler::advance", "the trajectory must have been begun with the same timesteps",
                     "step " + std::to_string(trajectory.next) + " of " + std::to_string(trajectory.count));
    }
    const Step& step = plan_.steps[trajectory.next].step;
    const std::size_t index = plan_.steps[trajectory.next].network;
    require_network(networks, step.index, index);
    const Network& network = networks[index];
    const double guidance_scale = trajectory.guidance.at(step, index);
    const Thresholding thresholding = options_.thresholding.resolve(network.info());

    at::Tensor x_0;
    const auto denoise_at = [&](at::Tensor const& x, auto const& where) {
      Prediction prediction =
          denoise(network, x, where, trajectory.labels, guidance_scale, trajectory.guidance.channels, thresholding);
      if (!x_0.defined()) x_0 = prediction.x_0;
      return prediction;
    };
    const auto draw_noise = [&](int draw) {
      return trajectory.noise_source(trajectory.seeds, NoiseAddress::of_step(step.index, draw),
                                     trajectory.x.sizes().slice(1), trajectory.x.options());
    };
    std::vector<Past>& history = trajectory.history;
    if (!history.empty() && history.back().network != index) {
      if (options_.at_switch == SwitchPolicy::reset) history.clear();
      if (options_.at_switch == SwitchPolicy::re_evaluate) {
        for (Past& past : history) {
          past.network = index;
          past.x_0 = denoise(network, past.x, {past.step.t, past.step.from}, trajectory.labels,
                             trajectory.guidance.at(past.step, index), trajectory.guidance.channels, thresholding)
                         .x_0;
        }
      }
    }
    StepOutput output = rule_(StepInput{step, trajectory.x, history, noise_schedule_, std::cref(denoise_at),
                                        std::cref(denoise_at), std::cref(draw_noise)});

    if (const std::size_t wanted = this->history()) {
      if (history.size() == wanted) history.erase(history.begin());
      history.push_back({step, index, output.x_from.defined() ? output.x_from : trajectory.x, x_0});
    }
    trajectory.x = std::move(output.x);
    trajectory.x_0 = std::move(x_0);
    ++trajectory.next;
    trajectory.level = trajectory.finished() ? step.to : plan_.steps[trajectory.next].step.from;
  }

  /// Draws the whole request, batch after batch. When a batch fails, those before it are gone with the exception; a
  /// program that wants to keep them asks for a batch at a time, as tstitch_sample does.
  /// @param observer sees every step and may cancel; what exists then is returned, marked unfinished
  /// @throws as begin and advance do; std::runtime_error when a network made values that are not finite numbers
  Samples sample(std::vector<Network> const& networks, Request const& request, Observer const& observer = {}) const {
    const c10::AutoGradMode no_gradients(false);
    const Request whole = checked(networks, request);
    Samples samples;
    samples.seeds = whole.seeds;
    for (std::int64_t first = 0; first < whole.count; first += whole.batch_size) {
      const std::int64_t images = std::min(whole.batch_size, whole.count - first);
      const Request part = batch_of(whole, first, images);
      Trajectory trajectory = begin_batch(networks, part);
      Control control = Control::proceed;
      while (!trajectory.finished() && control == Control::proceed) {
        const auto start = std::chrono::steady_clock::now();
        advance(networks, trajectory);
        if (observer) {
          const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
          const PlannedStep& done = plan_.steps[trajectory.next - 1];
          control = observer(
              StepReport{done.step, done.network, seconds.count(), trajectory.x, trajectory.x_0, first, images});
        }
      }
      const bool whole_batch = trajectory.finished();
      const at::Tensor rows = (whole_batch ? trajectory.x : trajectory.x_0).narrow(0, 0, images);
      if (whole_batch && !rows.isfinite().all().template item<bool>()) refuse_values(networks, part, first);
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

 private:
  std::size_t history() const {
    if constexpr (requires { rule_.history(); }) return std::size_t(rule_.history());
    return 0;
  }

  static void require_network(std::vector<Network> const& networks, int step, std::size_t index) {
    if (index >= networks.size()) {
      detail::refuse("Sampler",
                     "the model schedule gives step " + std::to_string(step) + " to network " + std::to_string(index) +
                         ", so at least " + std::to_string(index + 1) + " networks are needed",
                     std::to_string(networks.size()));
    }
  }

  /// The request with every default filled in: one label and one seed an image, a batch size, a count.
  Request checked(std::vector<Network> const& networks, Request request) const {
    if (networks.empty()) detail::refuse("Sampler", "at least one network is needed", 0);
    const Plan plan = this->plan(request.guidance);
    require_compatible(networks);
    bool guided = false;
    for (PlannedStep const& planned : plan.steps) {
      require_network(networks, planned.step.index, planned.network);
      NetworkInfo const& info = networks[planned.network].info();
      if constexpr (requires { rule_.validate(info); }) rule_.validate(info);
      if (planned.step.from.alpha == 0 && info.prediction_type == PredictionType::epsilon) {
        detail::refuse("Sampler",
                       "a step that begins at pure noise (alpha = 0) needs a network that predicts x_0 or a velocity, "
                       "because there the noise says nothing of x_0",
                       "step " + std::to_string(planned.step.index) + " to " +
                           detail::name_of(networks[planned.network], planned.network) + ", which predicts epsilon");
      }
      if (planned.guidance_scale == 1) continue;
      guided = true;
      if (!info.null_class) {
        detail::refuse("Guidance", "needs networks that were trained with a null class",
                       detail::name_of(networks[planned.network], planned.network));
      }
    }
    for (std::size_t k = 0; k < networks.size(); ++k) {
      const auto& stated = networks[k].info().noise_schedule;
      if (stated && stated->distance(noise_schedule_) > 1e-6) {
        detail::refuse("Sampler",
                       "the sampler's noise schedule must be the one that the networks were trained with (" +
                           stated->name() + " for " + detail::name_of(networks[k], k) + ")",
                       noise_schedule_.name());
      }
    }

    if (!request.noise_source) detail::refuse("Request", "noise_source must be callable", "none");
    if (request.count < 0) detail::refuse("Request", "count must not be negative", double(request.count));
    if (request.batch_size < 0)
      detail::refuse("Request", "batch_size must not be negative", double(request.batch_size));
    if (request.count == 0) {
      request.count =
          std::max<std::int64_t>({1, std::int64_t(request.seeds.size()), std::int64_t(request.labels.size()),
                                  request.initial_noise.defined() ? request.initial_noise.size(0) : 0});
    }
    const std::size_t count = std::size_t(request.count);
    const std::string one_each = "one for each of the " + std::to_string(count) + " images is needed";
    if (request.seeds.empty()) {
      for (std::size_t i = 0; i < count; ++i) request.seeds.push_back(request.seed + i);
    }
    if (request.seeds.size() != count) detail::refuse("Request", "seeds: " + one_each, double(request.seeds.size()));
    if (request.batch_size == 0) request.batch_size = request.count;

    NetworkInfo const& info = networks[0].info();
    if (request.labels.size() == 1) request.labels.assign(count, request.labels[0]);
    if (request.labels.empty() && info.num_classes > 0) {
      detail::refuse("Request", "labels: these networks need them, " + one_each, 0);
    }
    if (!request.labels.empty() && info.num_classes == 0) {
      detail::refuse("Request", "labels: these networks take none", double(request.labels.size()));
    }
    if (!request.labels.empty() && request.labels.size() != count) {
      detail::refuse("Request", "labels: " + one_each, double(request.labels.size()));
    }
    for (std::int64_t label : request.labels) {
      if ((label < 0 || label >= info.num_classes) && label != info.null_class) {
        detail::refuse("Request", "labels must be in [0, " + std::to_string(info.num_classes - 1) + "]", double(label));
      }
    }

    const at::Tensor& x = request.initial_noise;
    if (x.defined()) {
      const auto fits = [](std::int64_t stated, std::int64_t size) { return stated == 0 || stated == size; };
      if (x.dim() != 4 || x.size(0) != request.count || !fits(info.channels, x.size(1)) ||
          !fits(info.height, x.size(2)) || !fits(info.width, x.size(3))) {
        detail::refuse("Request",
                       "initial_noise must be [n, C, H, W] with the shape of the networks and one row an image",
                       detail::shape_text(x.sizes()));
      }
      if (x.scalar_type() != at::kFloat && x.scalar_type() != at::kDouble) {
        detail::refuse("Request", "initial_noise must be float32 or float64", at::toString(x.scalar_type()));
      }
    } else if (!info.channels || !info.height || !info.width) {
      detail::refuse("Request",
                     "initial_noise is needed where the networks do not state their channels, height and width",
                     "none");
    }
    const std::int64_t channels = x.defined() ? x.size(1) : info.channels;
    if (guided && request.guidance.channels > channels) {
      detail::refuse("Guidance", "channels must be at most " + std::to_string(channels),
                     double(request.guidance.channels));
    }
    return request;
  }

  /// Images [first, first + images) of a checked request, filled up to the batch size if that is asked for.
  static Request batch_of(Request const& whole, std::int64_t first, std::int64_t images) {
    Request part = whole;
    const auto cut = [&](auto& list) {
      if (list.empty()) return;
      list.assign(list.begin() + first, list.begin() + first + images);
      if (whole.pad_batches) list.resize(std::size_t((whole.batch_size + 7) / 8 * 8), list.back());
    };
    cut(part.labels);
    cut(part.seeds);
    part.count = std::int64_t(part.seeds.size());
    if (whole.initial_noise.defined()) {
      const at::Tensor rows = whole.initial_noise.narrow(0, first, images);
      part.initial_noise = rows.new_empty({part.count, rows.size(1), rows.size(2), rows.size(3)});
      part.initial_noise.copy_(rows.narrow(0, images - 1, 1).expand_as(part.initial_noise));
      part.initial_noise.narrow(0, 0, images).copy_(rows);
    }
    return part;
  }

  Trajectory begin_batch(std::vector<Network> const& networks, Request const& request) const {
    const at::Device device = networks[0].device();
    NetworkInfo const& info = networks[0].info();
    Trajectory trajectory{.count = int(plan_.steps.size()),
                          .level = plan_.steps[0].step.from,
                          .x = request.initial_noise,
                          .seeds = request.seeds,
                          .labels = {},
                          .guidance = request.guidance,
                          .noise_source = request.noise_source};
    if (trajectory.x.defined()) {
      trajectory.x = trajectory.x.to(device);
    } else {
      trajectory.x =
          request.noise_source(request.seeds, NoiseAddress::initial(), {info.channels, info.height, info.width},
                               at::TensorOptions().dtype(at::kFloat).device(device));
    }
    if (!request.labels.empty()) {
      std::vector<std::int64_t> labels = request.labels;
      trajectory.labels.conditional = detail::to_device(labels, device);
      // Any network that states a null class states the same.
      for (Network const& network : networks) {
        if (!network.info().null_class) continue;
        labels.resize(2 * request.labels.size(), *network.info().null_class);
        trajectory.labels.guided = detail::to_device(labels, device);
        break;
      }
    }
    return trajectory;
  }

  /// Runs the batch again to say which step broke it; the noise is addressed, so it breaks there again.
  [[noreturn]] void refuse_values(std::vector<Network> const& networks, Request const& part, std::int64_t first) const {
    Trajectory trajectory = begin_batch(networks, part);
    std::string where = "in the batch of image " + std::to_string(first);
    while (!trajectory.finished()) {
      const PlannedStep& planned = plan_.steps[trajectory.next];
      advance(networks, trajectory);
      if (trajectory.x.isfinite().all().template item<bool>()) continue;
      where = "at step " + std::to_string(planned.step.index) + " (t = " + detail::text(planned.step.t) + ") by " +
              detail::name_of(networks[planned.network], planned.network);
      break;
    }
    throw std::runtime_error("tstitch::Sampler::sample: values must be finite numbers, got nan or infinity " + where);
  }

  NoiseSchedule noise_schedule_;
  Schedule model_schedule_;
  SamplingOptions options_;
  Rule rule_;
  Plan plan_;
};

}  // namespace tstitch
