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
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "../model/denoiser.hpp"
#include "../plan/plan.hpp"
#include "../tensor/noise.hpp"
#include "trajectory.hpp"

namespace tstitch {

/// What becomes of a multistep rule's history when another network takes over.
enum class SwitchPolicy {
  keep,         ///< the new network goes on with the predictions of the old one; the README has what each costs
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

/// Which way an update rule goes through the steps.
enum class Direction {
  to_picture,  ///< from step.from to step.to, noisiest step first
  to_noise,    ///< from step.to to step.from, noisiest step last: inversion
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
  /// Standard normal noise like x; another `draw` gives independent noise, and the same one again is refused.
  std::function<at::Tensor(int draw)> noise;

  /// What the network predicts from x, where most rules begin.
  Prediction predict() const { return denoise(x, {step.t, step.from}); }
};

/// An update rule is any callable `at::Tensor (StepInput const&) const` that takes x from step.from to step.to.
///
/// Besides it may have:
///   int history() const                      how many earlier steps it wants to see; 0 if absent
///   int evaluations(Step const&) const       network evaluations that it makes in a step, for the plan; 1 if absent
///   void validate() const                    throws std::invalid_argument for options that make no sense
///   void validate(NetworkInfo const&) const  throws std::invalid_argument for networks that it cannot use
///   static constexpr Direction direction     to_picture if absent; to_noise takes x from step.to to step.from
///   static constexpr bool long_steps         true: observers see each evaluation of a step, and may cancel there
///
/// It must leave x as it is.
template <class Rule>
concept UpdateRule = std::is_invocable_r_v<at::Tensor, Rule const&, StepInput const&>;

namespace detail {

/// What a rule throws that looks at values and finds what is no number; `sample` adds whose it is.
class NotFinite : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <class Rule>
constexpr bool goes_to_noise() {
  if constexpr (requires { Rule::direction; }) return Rule::direction == Direction::to_noise;
  return false;
}

template <class Rule>
constexpr bool takes_long_steps() {
  if constexpr (requires { Rule::long_steps; }) return Rule::long_steps;
  return false;
}

template <class Rule>
int evaluations_of(Rule const& rule, Step const& step) {
  if constexpr (requires { rule.evaluations(step); }) return rule.evaluations(step);
  return 1;
}

}  // namespace detail

/// Sees each step; made from any callable on a StepReport that returns nothing, or a Control to cancel the run.
class Observer {
 public:
  Observer() = default;

  template <class Callable>
  requires(!std::is_same_v<std::remove_cvref_t<Callable>, Observer>)
      Observer(Callable callable) {  // NOLINT: conversion is the purpose
    detail::require_callable("Observer", callable);
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

namespace detail {

/// Whether a sampler can be made of these, behind the noise schedule and the model schedule.
template <class Rule, class... Given>
inline constexpr bool are_options = sizeof...(Given) == 0;
template <class Rule, class Options>
inline constexpr bool are_options<Rule, Options> = std::is_convertible_v<Options, SamplingOptions>;
template <class Rule, class Options, class Own>
inline constexpr bool are_options<Rule, Options, Own> =
    std::is_convertible_v<Options, SamplingOptions>&& std::is_convertible_v<Own, Rule>;

}  // namespace detail

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
    if constexpr (requires { rule_.history(); }) {
      if (rule_.history() < 0) detail::refuse("UpdateRule", "history must not be negative", rule_.history());
    }
    detail::require_callable("Sampler", model_schedule_);
    plan_ = plan({});
    timesteps_ = timesteps_fingerprint(plan_);
  }

  /// Says what the arguments are, where the compiler would list all that does not fit.
  template <class... Wrong>
  requires(!detail::are_options<Rule, Wrong...>)
      Sampler(NoiseSchedule noise_schedule, Schedule model_schedule, Wrong const&...)
      : Sampler(std::move(noise_schedule), std::move(model_schedule)) {
    static_assert(sizeof...(Wrong) == 0,
                  "tstitch::Sampler: after the noise schedule and the model schedule come the options, as in "
                  "{.steps = 20}, and the rule's own, as in {.order = 2}");
  }

  /// The whole run before it happens.
  Plan const& plan() const { return plan_; }

  /// The plan with the guidance of a request, in the order of the steps.
  /// @param strength of the request: below 1 the plan holds the steps that are left, as they are in the whole plan
  Plan plan(Guidance const& guidance, double strength = 1) const {
    Plan plan = make_plan(noise_schedule_, options_.steps, options_.spacing, options_.final_sigma, model_schedule_,
                          guidance, options_.previous_timestep);
    plan.steps.erase(plan.steps.begin(), plan.steps.begin() + first_step(strength));
    if constexpr (inverts) std::reverse(plan.steps.begin(), plan.steps.end());
    for (std::size_t i = 0; i < plan.steps.size(); ++i) {
      PlannedStep& planned = plan.steps[i];
      planned.evaluations = detail::evaluations_of(rule_, planned.step);
      if (planned.evaluations < 0) {
        detail::refuse("UpdateRule", "evaluations must not be negative", planned.evaluations);
      }
      planned.guide_evaluations *= planned.evaluations;
      const bool switches = i > 0 && planned.network != plan.steps[i - 1].network;
      if (!switches || options_.at_switch != SwitchPolicy::re_evaluate) continue;
      for (std::size_t back = 1; back <= std::min(i, history()); ++back) {
        ++planned.evaluations;
        planned.guide_evaluations += guidance.uses_guide(plan.steps[i - back].step, planned.network);
      }
    }
    return plan;
  }

  Schedule const& model_schedule() const { return model_schedule_; }
  SamplingOptions const& options() const { return options_; }
  Rule const& rule() const { return rule_; }

  /// Checks everything that can be checked and draws the initial noise. The whole request is one batch.
  /// Waits for the device where tensors of the request are to be sent there, and to see the values of a mask.
  /// @throws std::invalid_argument for a request that does not suit the networks
  /// @throws std::runtime_error for networks that do not fit together
  Trajectory begin(std::vector<Network> const& networks, Request const& request) const {
    return begin_batch(networks, checked(networks, request));
  }

  /// Takes one step. Never waits for a GPU, unless the rule must (AdaptiveDPMSolver).
  /// @throws std::invalid_argument when the trajectory is finished, was begun with other timesteps, or for other
  /// networks
  /// @throws std::runtime_error when a network or the update rule returns what it must not
  void advance(std::vector<Network> const& networks, Trajectory& trajectory) const {
    take_step(networks, trajectory, {});
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
      const int begun = trajectory.next;
      Control control = Control::proceed;
      at::Tensor before;  // x, as the last step took it
      while (!trajectory.finished() && control == Control::proceed) {
        const auto start = std::chrono::steady_clock::now();
        const PlannedStep& planned = plan_.steps[std::size_t(trajectory.next)];
        before = trajectory.x;
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
        if (detail::takes_long_steps<Rule>() && observer) {
          evaluated = [&](at::Tensor const& x, at::Tensor const& x_0) {
            report(x, x_0);
            if (control == Control::proceed) return;
            trajectory.x_0 = x_0;
            throw Cancelled();
          };
        }
        try {
          take_step(networks, trajectory, evaluated);
        } catch (Cancelled const&) {
          break;
        } catch (detail::NotFinite const& error) {
          refuse_values(networks, part, first, error.what());
        }
        if (observer) report(trajectory.x, trajectory.x_0);
      }
      const bool whole_batch = trajectory.finished();
      const at::Tensor rows = (whole_batch ? trajectory.x : trajectory.x_0).narrow(0, 0, images);
      // Also before the last step, which may depend on x through a network alone.
      if (whole_batch && !rows.isfinite().all().logical_and(before.isfinite().all()).template item<bool>()) {
        refuse_values(networks, part, first,
                      "tstitch::Sampler::sample: values must be finite numbers, got nan or infinity");
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

 private:
  static constexpr bool inverts = detail::goes_to_noise<Rule>();

  /// Ends a step from inside of a rule.
  struct Cancelled {};

  /// Sees the x and the x_0 of an evaluation inside of a long step.
  using Evaluated = std::function<void(at::Tensor const& x, at::Tensor const& x_0)>;

  void take_step(std::vector<Network> const& networks, Trajectory& trajectory, Evaluated const& evaluated) const {
    const c10::AutoGradMode no_gradients(false);
    if (trajectory.finished()) detail::refuse("Sampler::advance", "the trajectory must have steps left", 0);
    if (trajectory.count != int(plan_.steps.size()) || trajectory.timesteps != timesteps_ ||
        trajectory.level != begin_of(plan_.steps[std::size_t(trajectory.next)].step)) {
      detail::refuse("Sampler::advance", "the trajectory must have been begun with the same timesteps",
                     "step " + std::to_string(trajectory.next) + " of " + std::to_string(trajectory.count));
    }
    const Step& step = plan_.steps[std::size_t(trajectory.next)].step;
    const std::size_t index = plan_.steps[std::size_t(trajectory.next)].network;
    require_network(networks, step.index, index);
    const Network& network = networks[index];
    const EvaluationGuidance guidance = evaluation_guidance(networks, trajectory, step, index);
    require_suits(network, index, trajectory, guidance);
    const Thresholding thresholding = options_.thresholding.resolve(network.info());

    at::Tensor x_0, momentum;
    const auto denoise_at = [&](at::Tensor const& x, auto const& where) {
      Prediction prediction = denoise(network, x, where, trajectory.condition, guidance, thresholding);
      if (!x_0.defined()) {
        x_0 = prediction.x_0;
        momentum = prediction.momentum;
      }
      if constexpr (detail::takes_long_steps<Rule>()) {
        if (evaluated) evaluated(x, prediction.x_0);
      }
      return prediction;
    };
    std::vector<int> drawn;
    const auto draw_noise = [&](int draw) {
      if (std::find(drawn.begin(), drawn.end(), draw) != drawn.end()) {
        detail::refuse("StepInput::noise", "each draw of noise in a step must have a number of its own",
                       std::to_string(draw) + " twice in step " + std::to_string(step.index));
      }
      drawn.push_back(draw);
      const at::Tensor noise = trajectory.noise_source(trajectory.seeds, NoiseAddress::of_step(step.index, draw),
                                                       trajectory.x.sizes().slice(1), trajectory.x.options());
      require_like("noise_source", noise, trajectory.x);
      return noise;
    };
    std::vector<Past>& history = trajectory.history;
    const std::size_t wanted = this->history();
    // A sampler that another one took over from may have left steps of long ago, or more of them.
    const std::size_t next = std::size_t(trajectory.next);
    const bool follows = next > 0 && !history.empty() && history.back().step.index == plan_.steps[next - 1].step.index;
    if (!follows) history.clear();
    if (history.size() > wanted) history.erase(history.begin(), history.end() - std::ptrdiff_t(wanted));
    if (!history.empty() && history.back().network != index) {
      if (options_.at_switch == SwitchPolicy::reset) history.clear();
      if (options_.at_switch == SwitchPolicy::re_evaluate) {
        for (Past& past : history) {
          EvaluationGuidance then = evaluation_guidance(networks, trajectory, past.step, index);
          then.momentum.reset();
          past.x_0 =
              denoise(network, past.x, {past.step.t, past.step.from}, trajectory.condition, then, thresholding).x_0;
          past.network = index;  // only now: what throws is asked again by the next call
        }
      }
    }
    const std::uint64_t changes = detail::changes_in_place(trajectory.x);
    at::Tensor output = rule_(StepInput{step, trajectory.x, history, noise_schedule_, std::cref(denoise_at),
                                        std::cref(denoise_at), std::cref(draw_noise)});
    if (detail::changes_in_place(trajectory.x) != changes) {
      throw std::runtime_error("tstitch::Sampler: the update rule must leave x as it is, got a change in place");
    }
    require_like("the update rule", output, trajectory.x);
    if (!x_0.defined()) x_0 = output;  // of a rule that asks no network

    if (wanted) {
      if (history.size() == wanted) history.erase(history.begin());
      history.push_back({step, index, trajectory.x, x_0});
    }
    trajectory.x = std::move(output);
    trajectory.x_0 = std::move(x_0);
    if (momentum.defined()) trajectory.momentum = std::move(momentum);
    ++trajectory.next;
    const bool finished = trajectory.finished();
    trajectory.level = !finished ? begin_of(plan_.steps[std::size_t(trajectory.next)].step)
                       : inverts ? step.from
                                 : step.to;
    if (trajectory.inpainting.mask.defined()) {
      trajectory.x = trajectory.inpainting(trajectory.x, finished ? NoiseLevel::clean() : trajectory.level);
    }
  }

  /// The level of x before a step.
  static NoiseLevel begin_of(Step const& step) { return inverts ? step.to : step.from; }

  /// How many steps of the plan a request skips.
  int first_step(double strength) const {
    if (!(strength > 0 && strength <= 1)) detail::refuse("Request", "strength must be in (0, 1]", strength);
    if (inverts && strength != 1) detail::refuse("Request", "strength must be 1 for inversion", strength);
    const int left = share_of_steps("Request", "strength", strength, options_.steps);
    if (left == 0) {
      detail::refuse("Request", "strength must leave at least 1 of " + std::to_string(options_.steps) + " steps",
                     strength);
    }
    return options_.steps - left;
  }

  /// How this network is guided in a step of the run.
  static EvaluationGuidance evaluation_guidance(std::vector<Network> const& networks, Trajectory const& trajectory,
                                                Step const& step, std::size_t index) {
    Guidance const& all = trajectory.guidance;
    EvaluationGuidance here{all.at(step, index), all.channels, all.rescale, all.projected, trajectory.momentum};
    if (all.uses_guide(step, index)) {
      require_guide(networks, all);
      here.guide = &networks[*all.guide_network];
    }
    if (trajectory.gradient) here.gradient = &trajectory.gradient;
    return here;
  }

  /// Whether x is [n, C, H, W] of what the network states.
  static bool has_shape_of(NetworkInfo const& info, at::Tensor const& x) {
    const auto fits = [](std::int64_t stated, std::int64_t size) { return stated == 0 || stated == size; };
    return x.dim() == 4 && fits(info.channels, x.size(1)) && fits(info.height, x.size(2)) &&
           fits(info.width, x.size(3));
  }

  static bool knows_label(NetworkInfo const& info, std::int64_t label) {
    return (label >= 0 && label < info.num_classes) || label == info.null_class;
  }

  /// What a callable of others returned must be like x.
  static void require_like(char const* what, at::Tensor const& returned, at::Tensor const& x) {
    if (returned.defined() && returned.sizes() == x.sizes() && returned.scalar_type() == x.scalar_type() &&
        returned.device() == x.device()) {
      return;
    }
    const auto text = [&](at::Tensor const& tensor) {
      if (!tensor.defined()) return std::string("an undefined tensor");
      const bool elsewhere = returned.defined() && returned.device() != x.device();
      return std::string(at::toString(tensor.scalar_type())) + " " + detail::shape_text(tensor.sizes()) +
             (elsewhere ? " on " + tensor.device().str() : "");
    };
    throw std::runtime_error(std::string("tstitch::Sampler: ") + what + " must return " + text(x) + ", got " +
                             text(returned));
  }

  /// A trajectory may have been begun for other networks, by a sampler that did not ask this one, or changed since.
  static void require_suits(Network const& network, std::size_t index, Trajectory const& trajectory,
                            EvaluationGuidance const& guidance) {
    NetworkInfo const& info = network.info();
    const auto fail = [&](std::string const& rule, std::string const& got) {
      detail::refuse("Sampler::advance", rule + " for " + detail::name_of(network, index), got);
    };
    at::Tensor const& x = trajectory.x;
    if (!has_shape_of(info, x)) {
      fail("x must be [n, C, H, W] of the right shape", detail::shape_text(x.sizes()));
    }
    const bool guided = guidance.scale != 1 && !guidance.guide;
    if (!std::isfinite(guidance.scale)) fail("the guidance scale must be a number", detail::text(guidance.scale));
    if (guided && guidance.channels > x.size(1)) {
      fail("Guidance::channels must be at most " + std::to_string(x.size(1)), std::to_string(guidance.channels));
    }
    Condition const& condition = guided ? trajectory.condition.guided : trajectory.condition.conditional;
    if (guided && info.conditions.empty() && !info.null_class) {
      fail("guidance needs a null class", "guidance scale " + detail::text(guidance.scale));
    }
    if (info.num_classes > 0 && !condition.labels.defined()) {
      fail(guided ? "the trajectory must have been begun with labels and a null class"
                  : "the trajectory must have been begun with labels",
           "none");
    }
    for (const std::int64_t label : condition.host_labels) {
      if (info.num_classes == 0 || knows_label(info, label)) continue;
      fail("labels must be in [0, " + std::to_string(info.num_classes - 1) + "]", std::to_string(label));
    }
    for (ConditionInfo const& asked : info.conditions) {
      const auto is_it = [&](auto const& each) { return each.first == asked.name; };
      if (std::any_of(condition.tensors.begin(), condition.tensors.end(), is_it)) continue;
      fail("the trajectory must have been begun with '" + asked.name + "'", "none");
    }
  }

  static void require_guide(std::vector<Network> const& networks, Guidance const& guidance) {
    if (guidance.guide_network.value_or(0) >= networks.size()) {
      detail::refuse("Guidance",
                     "guide_network must be the index of one of the " + std::to_string(networks.size()) + " networks",
                     std::to_string(*guidance.guide_network));
    }
  }

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

  /// Images of a request, and of a batch.
  static constexpr std::int64_t most_images = 1 << 24;

  /// Below it x / alpha does not fit into float32.
  static constexpr double least_alpha = 1e-36;

  static std::int64_t rows_in(at::Tensor const& tensor) {
    return tensor.defined() && tensor.dim() > 0 ? tensor.size(0) : 0;
  }

  /// The request with every default filled in: one label and one seed an image, a batch size, a count.
  Request checked(std::vector<Network> const& networks, Request request) const {
    if (networks.empty()) detail::refuse("Sampler", "at least one network is needed", 0);
    const Plan plan = this->plan(request.guidance, request.strength);
    require_compatible(networks);
    request.guidance.validate(networks.size());
    request.gradient.validate();
    bool guided = false;
    for (PlannedStep const& planned : plan.steps) {
      require_network(networks, planned.step.index, planned.network);
      NetworkInfo const& info = networks[planned.network].info();
      if constexpr (requires { rule_.validate(info); }) rule_.validate(info);
      for (const std::size_t k :
           {planned.network, planned.guide_evaluations ? planned.guide_network : planned.network}) {
        const double alpha = planned.step.from.alpha;
        if (alpha > least_alpha || networks[k].info().prediction_type != PredictionType::epsilon) continue;
        detail::refuse("Sampler",
                       "a step that begins at pure noise (alpha = 0) needs a network that predicts x_0 or a velocity, "
                       "because there the noise says nothing of x_0",
                       "step " + std::to_string(planned.step.index) + " to " + detail::name_of(networks[k], k) +
                           ", which predicts epsilon" +
                           (alpha > 0 ? ", at alpha = " + detail::text(alpha) : std::string()));
      }
      if (request.gradient && planned.step.from.alpha <= least_alpha) {
        detail::refuse("GradientGuidance", "no step may begin at pure noise (alpha = 0), where x says nothing of x_0",
                       "step " + std::to_string(planned.step.index));
      }
      if (planned.guidance_scale == 1) continue;
      guided = true;
      if (planned.guide_evaluations == 0) require_null(networks[planned.network], planned.network, request);
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
      for (NamedCondition const& each : request.conditions) {
        request.count = std::max({request.count, rows_in(each.value), rows_in(each.null)});
      }
      request.count = std::max<std::int64_t>({1, request.count, std::int64_t(request.seeds.size()),
                                              std::int64_t(request.labels.size()), rows_in(request.initial_noise),
                                              rows_in(request.initial_image)});
    }
    for (auto const& [name, value] : {std::pair{"count", request.count}, {"batch_size", request.batch_size}}) {
      if (value > most_images) {
        detail::refuse("Request", std::string(name) + " must be at most " + std::to_string(most_images),
                       std::to_string(value));
      }
    }
    const std::size_t count = std::size_t(request.count);
    const std::string one_each = "one for each of the " + std::to_string(count) + " images is needed";
    if (request.seeds.empty()) {
      if (request.seed > ~std::uint64_t(0) - (count - 1)) {
        detail::refuse("Request",
                       "seed + i must be at most 2^64 - 1 for each of the " + std::to_string(count) + " images",
                       std::to_string(request.seed));
      }
      for (std::size_t i = 0; i < count; ++i) request.seeds.push_back(request.seed + i);
    }
    if (request.seeds.size() != count) detail::refuse("Request", "seeds: " + one_each, double(request.seeds.size()));
    if (request.batch_size == 0) request.batch_size = request.count;

    check_conditions(networks, plan, request);
    // Networks that know classes know the same.
    const auto knows_classes = [](Network const& network) { return network.info().num_classes > 0; };
    const auto with_classes = std::find_if(networks.begin(), networks.end(), knows_classes);
    NetworkInfo const& info = (with_classes == networks.end() ? networks.front() : *with_classes).info();
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
      if (!knows_label(info, label)) {
        detail::refuse("Request", "labels must be in [0, " + std::to_string(info.num_classes - 1) + "]", double(label));
      }
    }

    const at::Tensor &noise = request.initial_noise, &image = request.initial_image;
    const auto require_images = [&](std::string const& name, at::Tensor const& x, bool one_for_all) {
      if (!has_shape_of(info, x) || !(x.size(0) == request.count || (one_for_all && x.size(0) == 1))) {
        detail::refuse("Request",
                       name + " must be [n, C, H, W] with the shape of the networks and one row an image" +
                           (one_for_all ? " or one for all" : ""),
                       detail::shape_text(x.sizes()));
      }
      if (x.scalar_type() != at::kFloat && x.scalar_type() != at::kDouble) {
        detail::refuse("Request", name + " must be float32 or float64", at::toString(x.scalar_type()));
      }
    };
    if (noise.defined()) require_images("initial_noise", noise, false);
    if (image.defined()) {
      require_images("initial_image", image, true);
      request.initial_image = image.expand({request.count, -1, -1, -1});
    }
    require_editing(request);
    if (!noise.defined() && !image.defined() && (!info.channels || !info.height || !info.width)) {
      detail::refuse("Request",
                     "initial_noise is needed where the networks do not state their channels, height and width",
                     "none");
    }
    const std::int64_t channels = noise.defined() ? noise.size(1) : image.defined() ? image.size(1) : info.channels;
    if (guided && request.guidance.channels > channels) {
      detail::refuse("Guidance", "channels must be at most " + std::to_string(channels),
                     double(request.guidance.channels));
    }
    return request;
  }

  /// Classifier-free guidance needs a half without the condition.
  static void require_null(Network const& network, std::size_t index, Request const& request) {
    if (network.info().null_class) return;
    for (ConditionInfo const& wanted : network.info().conditions) {
      for (NamedCondition const& given : request.conditions) {
        if (given.name == wanted.name && given.null.defined()) return;
      }
    }
    detail::refuse("Guidance",
                   network.info().conditions.empty()
                       ? "needs networks that were trained with a null class"
                       : "needs a null class or the null counterpart of a condition that the network takes",
                   detail::name_of(network, index));
  }

  /// Every network that is asked gets what it needs, and nothing is given in vain.
  static void check_conditions(std::vector<Network> const& networks, Plan const& plan, Request const& request) {
    for (auto each = request.conditions.begin(); each != request.conditions.end(); ++each) {
      const auto is_it = [&](NamedCondition const& other) { return other.name == each->name; };
      if (std::any_of(request.conditions.begin(), each, is_it)) {
        detail::refuse("Request", "conditions: their names must differ", "'" + each->name + "' twice");
      }
    }
    std::vector<bool> wanted(request.conditions.size());
    const auto check = [&](std::size_t k, bool is_asked) {
      for (ConditionInfo const& asked : networks[k].info().conditions) {
        const auto is_it = [&](NamedCondition const& each) { return each.name == asked.name; };
        const auto given = std::find_if(request.conditions.begin(), request.conditions.end(), is_it);
        const std::string place = "conditions: '" + asked.name + "'";
        if (given == request.conditions.end()) {
          if (!is_asked) continue;
          detail::refuse("Request", place + " is needed by " + detail::name_of(networks[k], k), "none");
        }
        wanted[std::size_t(given - request.conditions.begin())] = true;
        for (at::Tensor const* tensor : {&given->value, &given->null}) {
          if (tensor == &given->null && !tensor->defined()) continue;
          const std::string part = place + (tensor == &given->null ? ".null" : "");
          if (!tensor->defined() || !detail::fits(asked, tensor->sizes())) {
            detail::refuse("Request",
                           part + " must be [n or 1, ...] of " + detail::text_of(asked) + " for " +
                               detail::name_of(networks[k], k),
                           tensor->defined() ? detail::shape_text(tensor->sizes()) : "an undefined tensor");
          }
          if (tensor->size(0) != 1 && tensor->size(0) != request.count) {
            detail::refuse("Request",
                           part + " must have 1 row or one for each of " + std::to_string(request.count) + " images",
                           double(tensor->size(0)));
          }
          if (asked.floating != tensor->is_floating_point()) {
            detail::refuse("Request", part + " must be " + (asked.floating ? "of a floating type" : "int64"),
                           at::toString(tensor->scalar_type()));
          }
        }
        if (given->null.defined() && given->null.sizes().slice(1) != given->value.sizes().slice(1)) {
          detail::refuse("Request",
                         place + ".null must have the shape of its value, " +
                             detail::shape_text(given->value.sizes().slice(1)) + " an image",
                         detail::shape_text(given->null.sizes().slice(1)));
        }
      }
    };
    std::vector<bool> is_asked(networks.size());
    for (PlannedStep const& planned : plan.steps) {
      is_asked[planned.network] = true;
      if (planned.guide_evaluations) is_asked[planned.guide_network] = true;
    }
    // Another sampler may take over and ask those that this plan does not.
    for (std::size_t k = 0; k < networks.size(); ++k) check(k, is_asked[k]);
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      if (!wanted[i]) {
        detail::refuse("Request", "conditions: each must be one that a network asks for",
                       "'" + request.conditions[i].name + "'");
      }
    }
  }

  /// Checks what belongs to an initial image; that and the noise have their shapes.
  static void require_editing(Request const& request) {
    const at::Tensor &noise = request.initial_noise, &image = request.initial_image, &mask = request.mask;
    if (!image.defined()) {
      if (inverts) detail::refuse("Request", "initial_image is needed for inversion", "none");
      if (request.strength != 1) detail::refuse("Request", "strength needs an initial_image", request.strength);
      if (mask.defined()) detail::refuse("Request", "mask needs an initial_image", "none");
      return;
    }
    if (inverts && noise.defined()) {
      detail::refuse("Request", "initial_noise is what inversion finds, and must not be given",
                     detail::shape_text(noise.sizes()));
    }
    if (noise.defined() && noise.sizes() != image.sizes()) {
      detail::refuse("Request", "initial_noise must have the shape of initial_image",
                     detail::shape_text(noise.sizes()));
    }
    if (!mask.defined()) return;
    if (inverts) detail::refuse("Request", "mask is not for inversion", detail::shape_text(mask.sizes()));
    const auto one_or = [&](std::int64_t d) { return mask.size(d) == 1 || mask.size(d) == image.size(d); };
    if (mask.dim() != 4 || !one_or(0) || !one_or(1) || mask.size(2) != image.size(2) || mask.size(3) != image.size(3)) {
      detail::refuse("Request", "mask must be [1 or n, 1 or C, H, W] with the size of initial_image",
                     detail::shape_text(mask.sizes()));
    }
    if (mask.is_complex()) {
      detail::refuse("Request", "mask must be bool or in [0, 1]", at::toString(mask.scalar_type()));
    }
    if (!mask.ge(0).logical_and(mask.le(1)).all().template item<bool>()) {
      detail::refuse("Request", "mask must be in [0, 1]", "values outside");
    }
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
    const auto cut_rows = [&](at::Tensor& tensor) {
      if (!tensor.defined()) return;
      const at::Tensor rows = tensor.narrow(0, first, images);
      std::vector<std::int64_t> sizes = rows.sizes().vec();
      sizes[0] = part.count;
      tensor = rows.new_empty(sizes);
      tensor.copy_(rows.narrow(0, images - 1, 1).expand_as(tensor));
      tensor.narrow(0, 0, images).copy_(rows);
    };
    cut_rows(part.initial_noise);
    cut_rows(part.initial_image);
    if (whole.mask.defined() && whole.mask.size(0) > 1) cut_rows(part.mask);
    for (NamedCondition& each : part.conditions) {
      if (each.value.size(0) > 1) cut_rows(each.value);
      if (each.null.defined() && each.null.size(0) > 1) cut_rows(each.null);
    }
    return part;
  }

  Trajectory begin_batch(std::vector<Network> const& networks, Request const& request) const {
    const at::Device device = networks[0].device();
    NetworkInfo const& info = networks[0].info();
    const int first = first_step(request.strength);
    Trajectory trajectory{.next = first,
                          .count = int(plan_.steps.size()),
                          .timesteps = timesteps_,
                          .level = begin_of(plan_.steps[std::size_t(first)].step),
                          .x = request.initial_noise,
                          .seeds = request.seeds,
                          .condition = {},
                          .guidance = request.guidance,
                          .noise_source = request.noise_source,
                          .gradient = request.gradient};
    at::Tensor& x = trajectory.x;
    at::Tensor image = request.initial_image;
    if (inverts) {
      x = image.to(device).contiguous();
    } else {
      if (x.defined()) {
        x = x.to(device);
      } else if (image.defined()) {
        x = request.noise_source(request.seeds, NoiseAddress::initial(), image.sizes().slice(1),
                                 image.options().device(device));
      } else {
        x = request.noise_source(request.seeds, NoiseAddress::initial(), {info.channels, info.height, info.width},
                                 at::TensorOptions().dtype(at::kFloat).device(device));
      }
      if (!request.initial_noise.defined()) {
        const std::vector<std::int64_t> shape =
            image.defined() ? image.sizes().vec()
                            : std::vector<std::int64_t>{request.count, info.channels, info.height, info.width};
        if (!x.defined() || x.sizes() != at::IntArrayRef(shape) || x.device() != device ||
            (x.scalar_type() != at::kFloat && x.scalar_type() != at::kDouble)) {
          throw std::runtime_error("tstitch::Sampler: noise_source must return float32 or float64 " +
                                   detail::shape_text(shape) + " on " + device.str() + ", got " +
                                   (x.defined() ? std::string(at::toString(x.scalar_type())) + " " +
                                                      detail::shape_text(x.sizes()) + " on " + x.device().str()
                                                : "an undefined tensor"));
        }
        x = x.clone();  // a source may use its memory again
      }
      if (image.defined()) {
        image = image.to(x.options()).contiguous();
        const at::Tensor drawn = x;
        x = weighted_sum(trajectory.level.alpha, image, trajectory.level.sigma, drawn);
        if (request.mask.defined()) {
          trajectory.inpainting = {request.mask.to(x.options()), image, drawn};
          if (request.strength == 1) x = x.lerp(drawn, trajectory.inpainting.mask);
        }
      }
    }
    trajectory.condition = condition_of(networks, request, x.options());
    for (std::size_t k = 0; k < networks.size(); ++k) {
      if (networks[k].prepares()) prepare(networks[k], k, trajectory);
    }
    return trajectory;
  }

  /// Tells a network of the steps that are planned for it, with guidance where there may be any.
  void prepare(Network const& network, std::size_t index, Trajectory const& trajectory) const {
    std::vector<double> timesteps;
    for (std::size_t i = std::size_t(trajectory.next); i < plan_.steps.size(); ++i) {
      const double t = detail::network_timestep(network, plan_.steps[i].step.t);
      const bool known = std::find(timesteps.begin(), timesteps.end(), t) != timesteps.end();
      if (plan_.steps[i].network == index && !known) timesteps.push_back(t);
    }
    if (timesteps.empty()) return;
    BatchCondition const& condition = trajectory.condition;
    network.prepare(timesteps, condition.guided.labels.defined() ? condition.guided : condition.conditional);
  }

  /// The condition of a checked batch on the networks' device.
  static BatchCondition condition_of(std::vector<Network> const& networks, Request const& request,
                                     at::TensorOptions const& options) {
    const at::Device device = options.device();
    BatchCondition batch;
    bool has_null = false;
    std::vector<std::int64_t> labels = request.labels;
    if (!labels.empty()) {
      batch.conditional.labels = detail::to_device(labels, device);
      batch.conditional.host_labels = labels;
      // Any network that states a null class states the same.
      for (Network const& network : networks) {
        if (!network.info().null_class || has_null) continue;
        labels.resize(2 * request.labels.size(), *network.info().null_class);
        has_null = true;
      }
    }
    for (NamedCondition const& each : request.conditions) has_null = has_null || each.null.defined();
    const auto rows_of = [&](at::Tensor const& tensor) {
      std::vector<std::int64_t> sizes = tensor.sizes().vec();
      sizes[0] = request.count;
      const at::ScalarType type = tensor.is_floating_point() ? at::typeMetaToScalarType(options.dtype()) : at::kLong;
      return tensor.to(device, type).expand(sizes);
    };
    for (NamedCondition const& each : request.conditions) {
      const at::Tensor value = rows_of(each.value);
      batch.conditional.tensors.emplace_back(each.name, value.contiguous());
      if (!has_null) continue;
      std::vector<std::int64_t> sizes = value.sizes().vec();
      sizes[0] *= 2;
      const at::Tensor both = value.new_empty(sizes);
      both.narrow(0, 0, request.count).copy_(value);
      both.narrow(0, request.count, request.count).copy_(each.null.defined() ? rows_of(each.null) : value);
      batch.guided.tensors.emplace_back(each.name, both);
    }
    if (has_null && !labels.empty()) {
      if (labels.size() == request.labels.size())
        labels.insert(labels.end(), request.labels.begin(), request.labels.end());
      batch.guided.labels = detail::to_device(labels, device);
      batch.guided.host_labels = std::move(labels);
    }
    return batch;
  }

  /// A network of the batch that is run again, which tells of what is no number in its answers.
  struct WatchedNetwork {
    Network network;
    std::function<void(at::Tensor const& output)> see;
    bool knows_timestep, repeats_x;

    at::Tensor operator()(at::Tensor const& x, at::Tensor const& t, Condition const& condition,
                          std::optional<double> timestep) const {
      at::Tensor output = network(x, t, condition, timestep);
      if (output.defined() && output.dim() == 4 && output.is_floating_point()) see(output);
      return output;
    }
    void prepare(std::span<const double> timesteps, Condition const& condition) const {
      network.prepare(timesteps, condition);
    }
  };

  static bool is_finite(at::Tensor const& values) { return values.isfinite().all().template item<bool>(); }

  /// Runs the batch again to say what broke it: the noise is addressed, so it breaks there again.
  /// @param said all but the place
  [[noreturn]] void refuse_values(std::vector<Network> const& networks, Request const& part, std::int64_t first,
                                  std::string const& said) const {
    // Of a step: who said first what is no number; and whose variance was none, which not every rule uses.
    std::string culprit, of_variance;
    const auto note = [&culprit](at::Tensor const& values, std::string const& who) {
      if (culprit.empty() && values.defined() && !is_finite(values)) culprit = who;
    };
    std::vector<Network> watched;
    for (std::size_t k = 0; k < networks.size(); ++k) {
      const std::string name = detail::name_of(networks[k], k);
      const bool learned = networks[k].info().learned_variance;
      const auto see = [&, name, learned](at::Tensor const& output) {
        note(learned ? output.narrow(1, 0, output.size(1) / 2) : output, name);
        if (learned && of_variance.empty() && !is_finite(output)) of_variance = name;
      };
      watched.emplace_back(WatchedNetwork{networks[k], see, networks[k].knows_timestep(), networks[k].repeats_x()},
                           networks[k].info(), networks[k].device());
    }
    Trajectory trajectory = begin_batch(watched, part);
    trajectory.noise_source = [&](std::vector<std::uint64_t> const& seeds, NoiseAddress address, at::IntArrayRef shape,
                                  at::TensorOptions options) {
      const at::Tensor noise = part.noise_source(seeds, address, shape, options);
      note(noise, "noise_source");
      return noise;
    };
    if (part.gradient) {
      trajectory.gradient.log_density = [&](at::Tensor const& picture, at::Tensor const& t,
                                            Condition const& condition) {
        if (picture.requires_grad()) {
          picture.register_hook([&](at::Tensor const& slope) { note(slope, "the gradient of log_density"); });
        }
        return part.gradient.log_density(picture, t, condition);
      };
    }
    std::string where = "in the batch of image " + std::to_string(first);
    const bool sound = is_finite(trajectory.x);
    if (!sound) where = "in what the run began with (initial_noise, initial_image or noise_source)";
    while (sound && !trajectory.finished()) {
      const PlannedStep& planned = plan_.steps[std::size_t(trajectory.next)];
      culprit.clear();
      of_variance.clear();
      try {
        advance(watched, trajectory);
        if (is_finite(trajectory.x)) continue;
      } catch (detail::NotFinite const&) {}
      if (culprit.empty()) culprit = of_variance;
      if (culprit.empty()) culprit = detail::name_of(networks[planned.network], planned.network);
      where =
          "at step " + std::to_string(planned.step.index) + " (t = " + detail::text(planned.step.t) + ") by " + culprit;
      break;
    }
    for (NamedCondition const& each : part.conditions) {
      if (is_finite(each.value) && (!each.null.defined() || is_finite(each.null))) continue;
      where += "; condition '" + each.name + "' has such values too";
    }
    throw std::runtime_error(said + " " + where);
  }

  NoiseSchedule noise_schedule_;
  Schedule model_schedule_;
  SamplingOptions options_;
  Rule rule_;
  Plan plan_;
  std::uint64_t timesteps_ = 0;  // fingerprint of the plan's
};

}  // namespace tstitch
