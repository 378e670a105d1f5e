// Samplers that add noise, on Gaussian data, where every step is affine: x at the end is a constant plus a factor times
// x at the start plus a factor times the noise of each step, so that its mean and variance have a closed form for any
// number of steps.

#include <tstitch/method/ddim.hpp>
#include <tstitch/method/ddpm.hpp>
#include <tstitch/method/dpm_solver.hpp>
#include <tstitch/method/dpm_solver_singlestep.hpp>
#include <tstitch/method/euler.hpp>
#include <tstitch/method/heun.hpp>

#include "../catch.hpp"
#include "../oracle.hpp"

using namespace tstitch;

namespace {

constexpr double mean = 0.3, deviation = 0.5;

struct Moments {
  double mean;
  double variance;
};

/// Of x at the end when x begins standard normal, from runs with one of start and noises at 1 and the others at 0.
/// @param draws of noise in a step, at most
Moments closed_form(auto const& sampler, Network const& network, int draws) {
  const auto end = [&](double start, int step, int draw) {
    Request request{.initial_noise = tstitch::detail::host_tensor({1, 1, 1, 1}, at::kDouble).fill_(start)};
    request.noise_source = [step, draw](auto const&, NoiseAddress address, auto, auto) {
      const bool one = step >= 0 && address.step == NoiseAddress::of_step(step).step && int(address.draw) == draw;
      return tstitch::detail::host_tensor({1, 1, 1, 1}, at::kDouble).fill_(one ? 1.0 : 0.0);
    };
    return sampler.sample({network}, request).images.template item<double>();
  };
  const double constant = end(0, -1, 0), of_start = end(1, -1, 0) - constant;
  Moments moments{constant, of_start * of_start};
  for (int step = 0; step < int(sampler.plan().steps.size()); ++step) {
    for (int draw = 0; draw < draws; ++draw) {
      const double of_noise = end(0, step, draw) - constant;
      moments.variance += of_noise * of_noise;
    }
  }
  return moments;
}

/// A million samples are within four standard errors of the closed form; with many steps that is the data's mean and
/// variance.
void check(char const* name, auto make, int draws = 1) {
  INFO(name);
  const Network network = oracle::gaussian(NoiseSchedule::linear(), mean, deviation);
  std::vector<std::uint64_t> seeds;
  for (std::uint64_t i = 0; i < 16; ++i) seeds.push_back(1000 + i);
  const at::Tensor start = noise(seeds, NoiseAddress::initial(), {1, 250, 250}, at::kDouble);
  const double n = double(start.numel());
  const auto sampler = make(10);
  const Moments expected = closed_form(sampler, network, draws);
  const at::Tensor x = sampler.sample({network}, {.seeds = seeds, .initial_noise = start}).images;
  CHECK(std::abs(x.mean().template item<double>() - expected.mean) < 4 * std::sqrt(expected.variance / n));
  CHECK(std::abs(x.var().template item<double>() - expected.variance) < 4 * expected.variance * std::sqrt(2 / n));

  const Moments many = closed_form(make(400), network, draws);
  CHECK(std::abs(many.mean - mean) < 0.01);
  CHECK(std::abs(std::sqrt(many.variance) - deviation) < 0.01);
}

SamplingOptions options(int steps, Spacing spacing = Spacing::linspace()) {
  return {.steps = steps, .spacing = std::move(spacing)};
}

const NoiseSchedule linear = NoiseSchedule::linear();
const Spacing shifted = Spacing::leading(0, {.include_last = false});

}  // namespace

TEST_CASE("a million samples have the mean and the variance of the closed form") {
  const SingleNetwork one;
  check("DDPM, fixed small", [&](int n) { return DDPM{linear, one, options(n), {Variance::fixed_small}}; });
  check("DDPM, fixed large", [&](int n) { return DDPM{linear, one, options(n), {Variance::fixed_large}}; });
  check("DDIM, eta 0.5", [&](int n) { return DDIM{linear, one, options(n), {.eta = 0.5}}; });
  check("DDIM, eta 1", [&](int n) { return DDIM{linear, one, options(n), {.eta = 1}}; });
  check("Euler ancestral", [&](int n) { return EulerAncestral{linear, one, options(n)}; });
  check("DPM-Solver-2 ancestral", [&](int n) { return DPM2{linear, one, options(n, shifted), {.eta = 0.5}}; });
  check("DPM-Solver++(2S) ancestral", [&](int n) { return DPMSolver2SAncestral{linear, one, options(n, shifted)}; });
  check(
      "stochastic DPM-Solver++",
      [&](int n) {
        return DPMSolverSDE{linear, one, options(n, shifted)};
      },
      2);
  for (int order : {1, 2, 3}) {
    for (SolverType type : {SolverType::midpoint, SolverType::heun}) {
      if (order != 2 && type == SolverType::heun) continue;
      INFO("order " << order << ", type " << int(type));
      check("SDE-DPM-Solver++", [&](int n) {
        return DPMSolver{linear, one, options(n, shifted), {.order = order, .solver_type = type, .eta = 1}};
      });
    }
  }
  check("SDE-DPM-Solver++ with half the noise", [&](int n) {
    return DPMSolver{linear, one, options(n, shifted), {.eta = 0.5}};
  });
}

TEST_CASE("noise of churn and noise of ancestral steps are independent") {
  // Addresses play no part in what is right: the n-th draw of a run is 1 and the others are 0.
  const Network network = oracle::gaussian(linear, mean, deviation, {.timestep_type = TimestepType::float32});
  const auto make = [](int steps) {
    return DPM2{linear, SingleNetwork{}, options(steps, Spacing::karras()), {.eta = 1, .churn = {.s_churn = 20}}};
  };
  const auto variance_of = [&](auto const& sampler) {
    int draws = 0;
    const auto end = [&](double start, int which) {
      draws = 0;
      Request request{.initial_noise = tstitch::detail::host_tensor({1, 1, 1, 1}, at::kDouble).fill_(start)};
      request.noise_source = [&](auto&&...) {
        return tstitch::detail::host_tensor({1, 1, 1, 1}, at::kDouble).fill_(draws++ == which ? 1.0 : 0.0);
      };
      return sampler.sample({network}, request).images.template item<double>();
    };
    const double constant = end(0, -1), of_start = end(1, -1) - constant;
    double variance = of_start * of_start;
    for (int i = 0, all = draws; i < all; ++i) variance += std::pow(end(0, i) - constant, 2);
    return variance;
  };
  CHECK(std::abs(std::sqrt(variance_of(make(400))) - deviation) < 0.005);

  const double expected = variance_of(make(60));
  const std::vector<std::uint64_t> seeds{1, 2, 3, 4};
  const at::Tensor start = noise(seeds, NoiseAddress::initial(), {1, 250, 250}, at::kDouble);
  const at::Tensor x = make(60).sample({network}, {.seeds = seeds, .initial_noise = start}).images;
  CHECK(std::abs(x.var().item<double>() - expected) < 4 * expected * std::sqrt(2.0 / double(x.numel())));
}
