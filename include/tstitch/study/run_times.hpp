/// @file
/// What a run takes, predicted from its plan: each network is timed once for each kind of evaluation. Opt-in.
///
///     tstitch::RunTimes times(networks, request);
///     const double seconds = times.predict(sampler);
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "../file/times_file.hpp"
#include "../method/ddim.hpp"
#include "../model/denoiser.hpp"
#include "../sampler/any_sampler.hpp"

namespace tstitch {

/// Where the times of networks are kept from one program to the next.
struct KeptTimes {
  std::string file = {};  ///< empty: nowhere
  /// One a network: what tells it from others, and what it runs on: weights, backend, number format, device.
  std::vector<std::string> names = {};
};

/// Predicts what runs take that differ in sampler, ratio, steps, forecasts and guidance. What it needs to know of a
/// network it measures when it is first asked, and knows from then on: what an evaluation takes of so many rows,
/// computed, computed and kept for forecasts, and forecast; what preparing timesteps takes; and of each update rule
/// what a step takes beside the network. Waits for the GPU.
///
/// @tparam Clock of the standard's kind
template <class Clock = std::chrono::steady_clock>
class RunTimes {
 public:
  /// @param request one batch, as it will be drawn: its size, shape, conditions and whether it is guided
  /// @throws std::invalid_argument where names are given but not one a network; std::runtime_error for a file of times
  /// that is damaged
  RunTimes(std::vector<Network> networks, Request request, KeptTimes kept = {})
      : networks_(std::move(networks)), request_(std::move(request)), names_(std::move(kept.names)) {
    if (networks_.empty()) detail::refuse("RunTimes", "networks must be at least one", "none");
    if (!kept.file.empty()) file_.emplace(kept.file);
    if (file_ && names_.size() != networks_.size()) {
      detail::refuse("RunTimes", "names must be one for each of the " + std::to_string(networks_.size()) + " networks",
                     std::to_string(names_.size()));
    }
    request_.guidance.forecast = {};
  }

  /// What sampler.sample(networks, request) takes once nothing is done for the first time, in seconds: as `measure`
  /// found it where it was asked for this plan, else the sum of what its parts take, in the proportion by which the
  /// last measured run differed from its sum.
  /// @param guidance of the request, where it is another one than the constructor's; without a guide
  /// @throws std::invalid_argument as the sampler's plan and the networks do
  template <class Rule, class Schedule>
  double predict(Sampler<Rule, Schedule> const& sampler, std::optional<Guidance> const& guidance = {}) {
    const Plan plan = sampler.plan(guidance.value_or(request_.guidance));
    if (const std::optional<double> seconds = find(name_of(plan))) return *seconds;
    return correction_ * sum_of_parts(plan, AnyUpdateRule(sampler.rule()));
  }

  /// Whether a run of this plan has been measured, by this program or by one that kept it.
  template <class Rule, class Schedule>
  bool is_measured(Sampler<Rule, Schedule> const& sampler, std::optional<Guidance> const& guidance = {}) const {
    return find(name_of(sampler.plan(guidance.value_or(request_.guidance)))).has_value();
  }

  /// The same, measured by drawing, which also does what is done once, such as capturing graphs.
  template <class Rule, class Schedule>
  double measure(Sampler<Rule, Schedule> const& sampler, std::optional<Guidance> const& guidance = {}) {
    Request request = request_;
    request.guidance = guidance.value_or(request_.guidance);
    const Plan plan = sampler.plan(request.guidance);
    const double sum = sum_of_parts(plan, AnyUpdateRule(sampler.rule()));
    const double seconds = known(name_of(plan), [&] { return median_of([&] { sampler.sample(networks_, request); }); });
    if (sum > 0) correction_ = seconds / sum;
    return seconds;
  }

 private:
  enum class Kind { computed, kept, forecast };
  static constexpr int few_steps = 4, many_steps = 12;
  static constexpr double slow = 0.25, very_slow = 1;  // seconds, of which fewer rounds are enough

  double sum_of_parts(Plan const& plan, AnyUpdateRule const& rule) {
    double seconds = once(rule) + double(plan.steps.size()) * beside(rule);
    std::map<std::size_t, int> timesteps;
    for (PlannedStep const& planned : plan.steps) {
      if (planned.guide_evaluations > 0) {
        detail::refuse("RunTimes::predict", "guidance must be without a guide", std::to_string(planned.guide_network));
      }
      const Kind kind = planned.forecast.network    ? Kind::forecast
                        : planned.forecast.keep > 0 ? Kind::kept
                                                    : Kind::computed;
      seconds += planned.evaluations * evaluation(planned.network, planned.both_halves(), kind);
      ++timesteps[planned.network];
    }
    for (auto const& [k, count] : timesteps) seconds += preparing(k, count);
    return seconds;
  }

  /// A number that is known by now.
  std::optional<double> find(std::string const& name) const {
    if (const auto found = known_.find(name); found != known_.end()) return found->second;
    return file_ ? file_->find(name) : std::nullopt;
  }

  /// The same, measured where it is not.
  template <class Measure>
  double known(std::string const& name, Measure measure) {
    if (const std::optional<double> found = find(name)) return *found;
    const double seconds = measure();
    if (file_) file_->add(name, seconds);
    known_.emplace(name, seconds);
    return seconds;
  }

  /// What a network is asked, by which that is known.
  std::string name_of(std::size_t k, std::string const& what) const {
    return (file_ ? names_[k] : std::to_string(k)) + " | " + shape() + " " + what;
  }

  /// The same of a whole run.
  std::string name_of(Plan const& plan) const {
    std::string name;
    for (std::size_t k = 0; k < networks_.size(); ++k) {
      name += (k ? " + " : "") + (file_ ? names_[k] : std::to_string(k));
    }
    return name + " | " + shape() + " plan " + std::to_string(fingerprint(plan));
  }

  /// "[32, 4, 32, 32] text_embedding [32, 77, 768]": of x and of conditions.
  std::string shape() const {
    std::string text = detail::shape_text(start().x.sizes());
    for (auto const& [name, tensor] : start().condition.conditional.tensors) {
      text += " " + detail::printable(name) + " " + detail::shape_text(tensor.sizes());
    }
    return text;
  }

  double evaluation(std::size_t k, bool both, Kind kind) {
    static constexpr char const* words[]{"computed", "kept", "forecast"};
    return known(name_of(k, (both ? "both halves " : "") + std::string(words[int(kind)])), [&] {
      Network const& network = networks_.at(k);
      Trajectory const& run = start();
      const double timestep = network_timestep(network, network.noise_schedule().noisiest() / 2);
      const at::Tensor x = both ? twice(run.x) : run.x;
      const at::Tensor t = timestep_rows(network, x, timestep, x.size(0));
      Condition const& condition = both ? run.condition.guided : run.condition.conditional;
      if (both && !condition.labels.defined() && condition.tensors.empty()) {
        detail::refuse("RunTimes::predict", "guidance must be on in the request that times are for", "scale 1");
      }
      if (network.prepares()) network.prepare({&timestep, 1}, condition);
      Memory memory;
      Step step{.index = 0, .count = 3, .t = 0, .from = {}, .to = {}};
      const auto ask = [&](StepForecast const& forecast) {
        network(x, t, condition,
                Evaluation{.timestep = timestep,
                           .step = &step,
                           .memory = &memory,
                           .forecast = kind == Kind::computed ? nullptr : &forecast,
                           .both_halves = both});
      };
      const StepForecast keeping{.keep = 2};
      if (kind != Kind::forecast) return median_of([&] { ask(keeping); });
      for (; step.index < 2; ++step.index) ask(keeping);
      StepForecast line{.network = true, .conditional = {{0, -1}, {1, 2}}};
      if (both) line.unconditional = line.conditional;
      return median_of([&] { ask(line); });
    });
  }

  /// What a network does for its timesteps before a run: measured for powers of two, with lines between.
  double preparing(std::size_t k, int count) {
    if (!networks_.at(k).prepares() || count == 0) return 0;
    const auto of = [&](unsigned timesteps) {
      return known(name_of(k, "preparing " + std::to_string(timesteps)), [&] {
        std::vector<double> times;
        for (unsigned i = 0; i < timesteps; ++i) {
          times.push_back(
              network_timestep(networks_[k], networks_[k].noise_schedule().noisiest() * (i + 1) / timesteps));
        }
        auto const& [conditional, guided] = start().condition;
        Condition const& asked = guided.labels.defined() ? guided : conditional;
        return median_of([&] { networks_[k].prepare(times, asked); });
      });
    };
    const unsigned below = std::bit_floor(unsigned(count)), above = std::bit_ceil(unsigned(count));
    const double few = of(below);
    return below == above ? few : few + (of(above) - few) * (count - int(below)) / double(above - below);
  }

  /// A whole run of the first network.
  double whole(AnyUpdateRule const& rule, int steps) {
    const AnySampler sampler{networks_[0].noise_schedule(), SingleNetwork{}, {.steps = steps, .spacing = even()}, rule};
    const Plan plan = sampler.plan(request_.guidance);
    const std::string what =
        plan.sampler + " of " + std::to_string(steps) + ", " + std::to_string(plan.work(1)[0].rows) + " rows";
    return known(name_of(0, what), [&] { return median_of([&] { sampler.sample(networks_, request_); }); });
  }

  /// What a step of the rule takes beside the network.
  double beside(AnyUpdateRule const& rule) {
    const double few = whole(rule, few_steps) - of_first(rule, few_steps);
    const double many = whole(rule, many_steps) - of_first(rule, many_steps);
    return std::max(0.0, (many - few) / (many_steps - few_steps));
  }

  /// What the first network takes in such a run.
  double of_first(AnyUpdateRule const& rule, int steps) {
    const AnySampler sampler{networks_[0].noise_schedule(), SingleNetwork{}, {.steps = steps, .spacing = even()}, rule};
    double seconds = preparing(0, steps);
    for (PlannedStep const& planned : sampler.plan(request_.guidance).steps) {
      seconds += planned.evaluations * evaluation(0, planned.both_halves(), Kind::computed);
    }
    return seconds;
  }

  /// What is done once a run, whatever its steps: noise and conditions.
  double once(AnyUpdateRule const& rule) {
    return std::max(0.0, whole(rule, few_steps) - of_first(rule, few_steps) - few_steps * beside(rule));
  }

  Spacing even() const { return networks_[0].noise_schedule().is_flow() ? Spacing::shifted() : Spacing::linspace(); }

  /// As guidance asks for it.
  static at::Tensor twice(at::Tensor const& x) {
    std::vector<std::int64_t> sizes = x.sizes().vec();
    sizes[0] *= 2;
    const at::Tensor both = x.new_empty(sizes);
    for (const std::int64_t half : {0, 1}) both.narrow(0, half * x.size(0), x.size(0)).copy_(x);
    return both;
  }

  /// A run that has begun, for what networks are asked.
  Trajectory const& start() const {
    if (!start_) {
      const AnySampler sampler{
          networks_[0].noise_schedule(), SingleNetwork{}, {.steps = 2, .spacing = even()}, DDIMUpdate{}};
      start_ = sampler.begin(networks_, request_);
    }
    return *start_;
  }

  /// Seconds of an action among others like it, the median of some rounds.
  template <class Action>
  double median_of(Action action) const {
    const c10::AutoGradMode no_gradients(false);
    const auto wait = [&] {
      for (Network const& network : networks_) {
        if (!network.device().is_cuda()) continue;
        at::detail::getCUDAHooks().deviceSynchronize(network.device().index());
      }
    };
    const auto seconds_of = [&](int times) {
      wait();
      const typename Clock::time_point begin = Clock::now();
      for (int i = 0; i < times; ++i) action();
      wait();
      return std::chrono::duration<double>(Clock::now() - begin).count();
    };
    action();  // what is done once for a shape
    double first = seconds_of(1);
    if (first < slow) action(), first = seconds_of(1);  // a graph is captured in the second run
    // So many that giving out the work and waiting for it weigh little.
    const int times = int(std::clamp(0.04 / std::max(first, 1e-6), 1.0, 64.0));
    std::vector<double> rounds;
    if (first >= slow) rounds.push_back(first);
    while (rounds.size() < (first < slow ? 5U : first < very_slow ? 3U : 1U)) rounds.push_back(seconds_of(times));
    std::nth_element(rounds.begin(), rounds.begin() + std::ptrdiff_t(rounds.size() / 2), rounds.end());
    return rounds[rounds.size() / 2] / times;
  }

  std::vector<Network> networks_;
  Request request_;
  std::vector<std::string> names_;
  std::optional<TimesFile> file_;
  std::map<std::string, double> known_;
  double correction_ = 1;
  mutable std::optional<Trajectory> start_;
};

}  // namespace tstitch
