/// @file
/// What the tests of Euler, Heun, DPM-Solver-2, LMS, PNDM and DEIS share: how their peers lay timesteps, and their
/// order.
#pragma once

#include <tstitch/tstitch.hpp>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "../golden.hpp"

namespace euler_family {

using namespace tstitch;

inline const NoiseSchedule exact = NoiseSchedule::linear();
inline const NoiseSchedule f32 = golden::float32_linear();  ///< as diffusers computes it
inline const Network eps = golden::network(exact, {.timestep_type = TimestepType::float32});

/// diffusers' linspace for these rules: t is not rounded, and between timesteps sigma / alpha is linear in t.
inline Spacing linspace() {
  return {"linspace of diffusers", [](NoiseSchedule const& noise, int steps) {
            const auto s = [&](int t) { return noise.sigma(t) / noise.alpha(t); };
            std::vector<Timestep> list;
            for (int i = steps - 1; i >= 0; --i) {
              const double t = i * (double(noise.noisiest()) / (steps - 1));
              const int below = std::min(int(t), noise.noisiest() - 1);
              list.push_back({t, noise.level(-std::log(std::lerp(s(below), s(below + 1), t - below)))});
            }
            return list;
          }};
}

inline Spacing karras() {
  return Spacing::karras(7, {.time = TimeOfSigma::interpolated});
}

/// FlowMatchEuler and FlowMatchHeun: the shift is applied to 1 and 1/1000, and again to what is evenly spaced between.
inline Spacing flow(double shift) {
  return {"flow of diffusers", [shift](NoiseSchedule const& noise, int steps) {
            const auto shifted = [shift](double sigma) { return shift * sigma / (1 + (shift - 1) * sigma); };
            std::vector<Timestep> list;
            for (int i = 0; i < steps; ++i) {
              const double t = 1000 * shifted(std::lerp(1.0, shifted(0.001), double(i) / (steps - 1)));
              list.push_back({t, noise.at(t)});
            }
            return list;
          }};
}

/// A run of a peer that counts each network evaluation as a step: the states after full steps.
inline golden::Run full_steps(golden::Run const& run) {
  golden::Run full{.steps = run.steps};
  for (std::size_t i = 0; i < run.states.size(); ++i) {
    const bool first_half = i % 2 == 0 && i + 1 < run.states.size();
    if (!first_half) full.states.push_back(run.states[i]);
    if (run.draws.empty()) continue;
    if (i % 2 == 0) full.draws.push_back(0);
    full.draws.back() += run.draws[i];
  }
  return full;
}

struct Reading {
  double tolerance;
  bool two_a_step = false;       ///< see full_steps
  bool begins_at_sigma = false;  ///< the peer's y is sigma / alpha times the start, not sqrt(1 + (sigma / alpha)^2)
};

/// golden::check for peers that begin otherwise or record otherwise.
void check(std::string const& name, Network const& network, auto const& make, Reading const& reading) {
  const golden::Case peer = golden::read(name);
  for (golden::Run const& run : peer.runs) {
    REQUIRE(run.error.empty());
    const auto sampler = make(run.steps);
    const double begin = reading.begins_at_sigma ? sampler.plan().steps[0].step.from.sigma : 1;
    const double worst = golden::difference(peer, reading.two_a_step ? full_steps(run) : run, sampler, network,
                                            golden::start().mul(begin));
    INFO(name << ", " << run.steps << " steps: differs by " << worst);
    CHECK(worst <= reading.tolerance);
  }
}

/// Of flow matching, which diffusers has with two shifts.
/// @param make (noise schedule, options) -> sampler
void check_flow(std::string const& name, auto const& make, Reading const& reading) {
  const NoiseSchedule noise = NoiseSchedule::flow();
  const Network velocity =
      golden::network(noise, {.prediction_type = PredictionType::flow, .timestep_type = TimestepType::float32});
  for (int shift : {1, 3}) {
    const auto of_steps = [&](int n) { return make(noise, SamplingOptions{.steps = n, .spacing = flow(shift)}); };
    check(name + "_shift" + std::to_string(shift), velocity, of_steps, reading);
  }
}

/// The Gaussian mixture (channel 1) at the end of the exact probability-flow ODE, by the classical Runge-Kutta method
/// in lambda on y = x / alpha: dy/ds = eps, s = exp(-lambda).
inline double exact_end(NoiseSchedule const& noise, NoiseLevel from, NoiseLevel to, double x) {
  const int steps = 20000;
  const double start = from.lambda(), end = std::min(to.lambda(), 16.0), h = (end - start) / steps;
  const auto epsilon = [&](double y, double lambda) {
    const NoiseLevel level = noise.level(lambda);
    double values[5] = {0, level.alpha * y, 0, 0, 0}, predicted[5];
    golden::predict_epsilon(values, level, predicted);
    return predicted[1];
  };
  const auto slope = [&](double y, double lambda) { return -std::exp(-lambda) * epsilon(y, lambda); };
  double y = x / from.alpha;
  for (int i = 0; i < steps; ++i) {
    const double lambda = start + i * h;
    const double a = slope(y, lambda), b = slope(y + h / 2 * a, lambda + h / 2);
    const double c = slope(y + h / 2 * b, lambda + h / 2), d = slope(y + h * c, lambda + h);
    y += h / 6 * (a + 2 * b + 2 * c + d);
  }
  // From s = 1e-7 to 0 in one step.
  return to.sigma > 0 ? to.alpha * y : y - std::exp(-end) * epsilon(y, end);
}

/// From t = 600 to t = 0, even in lambda (flow matching: to x_0, even in t), but for the first steps, where multistep
/// rules have no history and so a lower order: they are as short as order 4 needs for their error not to be seen.
inline Spacing short_start() {
  return {"even after a short start", [](NoiseSchedule const& noise, int steps) {
            const double h = 1.0 / steps;
            double u = 0;
            std::vector<Timestep> list;
            for (int i = 0; i < steps; ++i) {
              if (noise.is_flow()) {
                list.push_back({600 * (1 - u), noise.at(600 * (1 - u))});
              } else {
                const double lambda = std::lerp(noise.lambda(600), noise.lambda(0), u);
                list.push_back({noise.timestep(lambda), noise.level(lambda)});
              }
              u += i == 0 ? h * h : i == 1 ? std::pow(h, 4. / 3) : (1 - u) / (steps - i);
            }
            return list;
          }};
}

/// The order with which a sampler converges to the exact solution, measured between 2 step counts.
/// @param make (noise schedule, options) -> sampler
double order_of(NoiseSchedule const& noise, auto const& make, int steps = 200) {
  NetworkInfo info{.timestep_type = TimestepType::float32};
  if (noise.is_flow()) info.prediction_type = PredictionType::flow;
  const Network network = golden::network(noise, info);
  const NoiseLevel from = noise.at(600), to = noise.is_flow() ? NoiseLevel::clean() : noise.at(0);
  const FinalSigma end = noise.is_flow() ? FinalSigma::zero : FinalSigma::sigma_min;
  const double solution = exact_end(noise, from, to, -0.5);
  const auto error = [&](int count) {
    const auto sampler = make(noise, SamplingOptions{.steps = count, .spacing = short_start(), .final_sigma = end});
    const at::Tensor x = sampler.sample({network}, {.initial_noise = golden::start()}).images;
    return std::abs(x.template const_data_ptr<double>()[1] - solution);
  };
  const double coarse = error(steps), fine = error(2 * steps);
  return std::log2(coarse / fine);
}

}  // namespace euler_family
