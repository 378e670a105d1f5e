/// @file
/// Two update rules that are to be the same: plans, samples, forks and steps that are tried again, to the bit.
#pragma once

#include <tstitch/sampler/any_sampler.hpp>

#include <stdexcept>
#include <string>
#include <vector>

#include "catch.hpp"

namespace same_samples {

using namespace tstitch;

/// Heavy-ball descent on what the step predicts, a rule with a state.
struct Momentum {
  struct State {
    at::Tensor update = {};
  };

  at::Tensor operator()(StepInput const& in, State& state) const {
    const at::Tensor now = in.predict().x_0.sub(in.x).mul(0.3);
    state.update = state.update.defined() ? state.update.mul(0.25).add(now, 0.75) : now;
    return in.x.add(state.update);
  }
};

/// Answers with eps of a Gaussian, times a gain; the call of number `fails_at` throws.
inline Network network(double gain, int* calls = nullptr, int fails_at = -1) {
  const NoiseSchedule noise = NoiseSchedule::linear();
  return Network(
      [=](at::Tensor const& x, at::Tensor const& t) {
        if (calls && (*calls)++ == fails_at) throw std::runtime_error("no such luck");
        const auto [alpha, sigma] = noise.at(t.select(0, 0).item<double>());
        return x.sub(0.3 * alpha).mul(gain * sigma / (alpha * alpha * 0.25 + sigma * sigma));
      },
      {.name = "gaussian", .timestep_type = TimestepType::float32, .noise_schedule = noise});
}

inline const std::vector<Network> networks{network(1), network(0.9)};

inline at::Tensor finish(auto const& sampler, Trajectory run) {
  while (!run.finished()) sampler.advance(networks, run);
  return run.x;
}

/// The run with a step in it that throws, at each call of a network in turn, and is taken again.
inline void check_retries(auto const& sampler, Request const& request, at::Tensor const& alone) {
  for (int fails_at = 0; fails_at < 12; fails_at += 3) {
    int calls = 0;
    const std::vector<Network> failing{network(1, &calls, fails_at), network(0.9, &calls, fails_at)};
    Trajectory run = sampler.begin(failing, request);
    int failures = 0;
    while (!run.finished()) {
      try {
        sampler.advance(failing, run);
      } catch (std::runtime_error const&) {
        ++failures;
      }
    }
    CHECK(failures == (calls > fails_at));
    CHECK(run.x.equal(alone));
  }
}

inline void check(auto const& one, auto const& other) {
  const NoiseSchedule noise = NoiseSchedule::linear();
  const SamplingOptions options{.steps = 5, .spacing = Spacing::trailing()};
  const Sampler sampler{noise, Stitch{.ratio = 0.4}, options, one};
  const AnySampler any{noise, Stitch{.ratio = 0.4}, options, other};
  INFO(sampler.plan().sampler);
  CHECK(to_string(sampler.plan()) == to_string(any.plan()));
  CHECK(fingerprint(sampler.plan()) == fingerprint(any.plan()));
  const Request request{.count = 3, .seed = 4, .shape = {1, 2, 2}};
  int reports = 0, reports_of_any = 0;
  const at::Tensor alone = sampler.sample(networks, request, [&](StepReport const&) { ++reports; }).images;
  CHECK(any.sample(networks, request, [&](StepReport const&) { ++reports_of_any; }).images.equal(alone));
  CHECK(reports == reports_of_any);

  // Forks, where one sampler takes over from the other.
  Trajectory run = sampler.begin(networks, request), run_of_any = any.begin(networks, request);
  for (int i = 0; i < 3; ++i) {
    sampler.advance(networks, run);
    any.advance(networks, run_of_any);
  }
  CHECK(run.x.equal(run_of_any.x));
  CHECK(run.history.size() == run_of_any.history.size());
  CHECK(run.rule_state.empty() == run_of_any.rule_state.empty());
  Trajectory fork = run_of_any;
  fork.x = fork.x.add(1);
  CHECK_FALSE(finish(any, fork).equal(alone));
  CHECK(finish(any, run_of_any).equal(alone));
  CHECK(finish(any, run).equal(alone));
  CHECK(finish(sampler, run_of_any).equal(alone));
  check_retries(any, request, alone);
}

inline void check_inversion(auto const& one, auto const& other) {
  const NoiseSchedule noise = NoiseSchedule::linear();
  const Sampler sampler{noise, Stitch{.ratio = 0.4}, {.steps = 5}, one};
  const AnySampler any{noise, Stitch{.ratio = 0.4}, {.steps = 5}, other};
  CHECK(to_string(sampler.plan()) == to_string(any.plan()));
  const Request request{
      .count = 2, .initial_image = tstitch::noise({1, 2}, NoiseAddress::initial(), {1, 2, 2}, at::kFloat).mul(0.1)};
  CHECK(any.sample(networks, request).images.equal(sampler.sample(networks, request).images));
}

}  // namespace same_samples
