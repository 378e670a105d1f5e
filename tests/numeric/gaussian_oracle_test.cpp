// The closed-form problem on which the peers' own code was run: data N(0, 0.5^2), x = 1 at t = 999, linear betas.

#include <tstitch/tstitch.hpp>

#include "../catch.hpp"
#include "../oracle.hpp"

using namespace tstitch;

namespace {

Request one_pixel() {
  return {.initial_noise = tstitch::detail::host_tensor({1, 1, 1, 1}, at::kDouble).fill_(1.0)};
}

double end_of(auto const& sampler, Network const& network) {
  return sampler.sample({network}, one_pixel()).images.template item<double>();
}

const Grid without_last{.include_last = false};
const Grid continuous{.include_last = false, .round = false};

}  // namespace

TEST_CASE("samplers give the values of the peers on the closed-form oracle") {
  // A row: the values that the peer's own code printed, to their last digit.
  const bool float32_peer = GENERATE(false, true);
  const NoiseSchedule noise = float32_peer ? NoiseSchedule::linear().in_float32() : NoiseSchedule::linear();
  const Network network = oracle::gaussian(noise, 0, 0.5, {.timestep_type = TimestepType::float32});
  const auto agrees = [&](auto const& sampler, double expected) {
    CHECK(std::abs(end_of(sampler, network) - expected) < 0.5e-6);
  };
  const auto ddim = [&](Spacing const& spacing, double at_10, double at_50) {
    INFO("DDIM " << spacing.name());
    agrees(DDIM{noise, SingleNetwork{}, {.steps = 10, .spacing = spacing}}, at_10);
    agrees(DDIM{noise, SingleNetwork{}, {.steps = 50, .spacing = spacing}}, at_50);
  };
  const auto dpm = [&](char const* name, Spacing const& spacing, FinalSigma end, DPMSolverUpdate const& rule,
                       double at_10, double at_50) {
    INFO(name);
    SamplingOptions options{.steps = 10, .spacing = spacing, .final_sigma = end};
    agrees(DPMSolver{noise, SingleNetwork{}, options, rule}, at_10);
    options.steps = 50;
    agrees(DPMSolver{noise, SingleNetwork{}, options, rule}, at_50);
  };
  const FinalSigma zero = FinalSigma::zero, sigma_min = FinalSigma::sigma_min;
  if (float32_peer) {  // diffusers
    ddim(Spacing::leading(), 0.374129, 0.472439);
    ddim(Spacing::trailing(), 0.369955, 0.471403);
    const Spacing linspace = Spacing::linspace(without_last), trailing = Spacing::trailing();
    const Spacing leading = Spacing::leading(0, without_last);
    const DPMSolverUpdate published{.order = 3, .published_third_order = true};
    dpm("DPM++ 1", linspace, zero, {.order = 1}, 0.369194, 0.471131);
    dpm("DPM++ 2M", linspace, zero, {.order = 2}, 0.403465, 0.499777);
    dpm("DPM++ 2M, Euler at final", linspace, sigma_min, {.order = 2, .euler_at_final = true}, 0.408969, 0.501339);
    dpm("DPM++ 2M leading", leading, zero, {.order = 2}, 0.418941, 0.499986);
    dpm("DPM++ 2M uniform log-SNR", Spacing::uniform_logsnr(), zero, {.order = 2}, 0.516246, 0.501104);
    // Two more digits where the sixth hangs on the peer's float32 arithmetic.
    dpm("DPM++ 3M", linspace, zero, published, 0.40782985, 0.49389648);
    dpm("DPM++ 2M to sigma_min", linspace, sigma_min, {.order = 2}, 0.40896916, 0.52693498);
    dpm("DPM++ 2M Karras", Spacing::karras(), zero, {.order = 2}, 0.55244750, 0.50348926);
    dpm("DPM++ 2M trailing", trailing, zero, {.order = 2}, 0.40476421, 0.50055063);
  } else {
    ddim(Spacing::sections(), 0.361612, 0.471915);  // DiT
    // dpm_solver_pytorch, time_uniform; it ends at t = 0 of our count.
    const Spacing uniform = Spacing::linspace(continuous);
    const AlgorithmType noise_form = AlgorithmType::dpmsolver;
    dpm("multistep 2", uniform, sigma_min, {.order = 2, .lower_order_final_below = 10}, 0.691127, 0.526886);
    dpm("multistep 3", uniform, sigma_min, {.order = 3, .lower_order_final_below = 10, .published_third_order = true},
        0.866537, 0.469043);
    dpm("noise form 2", uniform, sigma_min, {.order = 2, .algorithm_type = noise_form, .lower_order_final_below = 10},
        0.610016, 0.511908);
    dpm("noise form 3", uniform, sigma_min,
        {.order = 3, .algorithm_type = noise_form, .lower_order_final_below = 10, .published_third_order = true},
        0.564195, 0.500541);
  }
}

TEST_CASE("DPM-Solver of order 1 is DDIM in both forms") {
  const NoiseSchedule noise = NoiseSchedule::linear();
  const Network network = oracle::gaussian(noise, 0.3, 0.5);
  for (int steps : {1, 2, 5, 20, 50}) {
    const SamplingOptions options{.steps = steps, .spacing = Spacing::trailing()};
    const double ddim = end_of(DDIM{noise, SingleNetwork{}, options}, network);
    CHECK(std::abs(end_of(DPMSolver{noise, SingleNetwork{}, options, {.order = 1}}, network) - ddim) < 1e-12);
    CHECK(
        std::abs(
            end_of(DPMSolver{noise, SingleNetwork{}, options, {.order = 1, .algorithm_type = AlgorithmType::dpmsolver}},
                   network) -
            ddim) < 1e-12);
  }
}

TEST_CASE("DDIM with eta = 1 is DDPM with the fixed small variance") {
  const NoiseSchedule noise = NoiseSchedule::linear();
  const Network network = oracle::gaussian(noise, 0.3, 0.5);
  const Request request{.count = 3,
                        .seed = 11,
                        .initial_noise = tstitch::noise({1, 2, 3}, NoiseAddress::initial(), {2, 4, 4}, at::kDouble)};
  for (int steps : {2, 10, 50}) {
    const SamplingOptions options{.steps = steps};
    const at::Tensor ddim = DDIM{noise, SingleNetwork{}, options, {.eta = 1}}.sample({network}, request).images;
    const at::Tensor ddpm =
        DDPM{noise, SingleNetwork{}, options, {Variance::fixed_small}}.sample({network}, request).images;
    CHECK(ddim.sub(ddpm).abs().max().item<double>() < 1e-12);
  }
}

TEST_CASE("what a network predicts does not matter, and networks that differ in it may be mixed") {
  const NoiseSchedule noise = NoiseSchedule::linear();
  std::vector<Network> networks;
  for (PredictionType type : {PredictionType::epsilon, PredictionType::sample, PredictionType::v_prediction}) {
    networks.push_back(oracle::gaussian(noise, 0.3, 0.5,
                                        {.prediction_type = type, .learned_variance = type == PredictionType::sample}));
  }
  const Request request{.initial_noise = tstitch::noise({1}, NoiseAddress::initial(), {2, 4, 4}, at::kDouble)};
  const SamplingOptions options{.steps = 12, .spacing = Spacing::trailing()};
  const at::Tensor expected =
      DPMSolver{noise, SingleNetwork{0}, options, {.order = 3}}.sample(networks, request).images;
  for (auto const& schedule : {AnyModelSchedule{SingleNetwork{1}}, AnyModelSchedule{SingleNetwork{2}},
                               AnyModelSchedule{Fractions{{0.3, 0.3, 0.4}}}}) {
    CHECK(DPMSolver{noise, schedule, options, {.order = 3}}
              .sample(networks, request)
              .images.sub(expected)
              .abs()
              .max()
              .item<double>() < 1e-10);
  }
}

TEST_CASE("samplers converge to the exact solution with their order") {
  const NoiseSchedule noise = NoiseSchedule::linear();
  const Network network = oracle::gaussian(noise, 0.3, 0.5, {.timestep_type = TimestepType::float32});
  // To sigma_min, where the exact value is known too: a last step to zero is of order 1 for all.
  const NoiseLevel from = noise.at(999), to = noise.at(0);
  const auto deviation = [](NoiseLevel level) {
    return std::sqrt(level.alpha * level.alpha * 0.25 + level.sigma * level.sigma);
  };
  const double exact = to.alpha * 0.3 + deviation(to) / deviation(from) * (1 - from.alpha * 0.3);
  // Even in lambda, but for the first step: it has no history, so its order is 1, and it must be short for its error
  // not to be seen: h^2 of a step of h^1.5 is h^3.
  const Spacing spacing("even after a short first step", [](NoiseSchedule const& schedule, int steps) {
    const double start = schedule.lambda(999), h = (schedule.lambda(0) - start) / steps, first = std::pow(h, 1.5);
    std::vector<Timestep> list{{999, schedule.at(999)}};
    for (int i = 1; i < steps; ++i) {
      const double lambda = start + first + (schedule.lambda(0) - start - first) * (i - 1) / (steps - 1);
      list.push_back({schedule.timestep(lambda), NoiseLevel::from_lambda(lambda)});
    }
    return list;
  });
  const auto error = [&](int steps, DPMSolverUpdate rule) {
    rule.lower_order_final_below = 0;
    const SamplingOptions options{.steps = steps, .spacing = spacing, .final_sigma = FinalSigma::sigma_min};
    return std::abs(end_of(DPMSolver{noise, SingleNetwork{}, options, rule}, network) - exact);
  };
  for (AlgorithmType form : {AlgorithmType::dpmsolver, AlgorithmType::dpmsolver_plus_plus}) {
    for (int order : {1, 2, 3}) {
      const DPMSolverUpdate rule{.order = order, .algorithm_type = form};
      const double slope = std::log2(error(200, rule) / error(400, rule));
      INFO("order " << order << ", form " << int(form) << ", error at 400 steps " << error(400, rule));
      CHECK(slope > order - 0.15);
    }
    // What the published code computes under the name of order 3.
    const DPMSolverUpdate published{.order = 3, .algorithm_type = form, .published_third_order = true};
    CHECK(std::abs(std::log2(error(200, published) / error(400, published)) - 2) < 0.15);
  }
}

TEST_CASE("stochastic samplers end in the data's distribution") {
  const NoiseSchedule noise = NoiseSchedule::linear();
  const Network plain = oracle::gaussian(noise, 0.3, 0.5);
  const Network learned = oracle::gaussian(noise, 0.3, 0.5, {.learned_variance = true});
  std::vector<std::uint64_t> seeds(16);
  for (std::size_t i = 0; i < seeds.size(); ++i) seeds[i] = i;
  const Request request{.seeds = seeds,
                        .initial_noise = tstitch::noise(seeds, NoiseAddress::initial(), {1, 64, 64}, at::kDouble)};
  const double n = 16 * 64 * 64;
  const SamplingOptions options{.steps = 250};
  const auto check = [&](at::Tensor const& x, double discretisation) {
    // Four standard errors of mean and deviation, and what 250 steps are away from infinitely many.
    CHECK(std::abs(x.mean().item<double>() - 0.3) < 4 * 0.5 / std::sqrt(n) + discretisation);
    CHECK(std::abs(x.std().item<double>() - 0.5) < 4 * 0.5 / std::sqrt(2 * n) + discretisation);
  };
  check(DDPM{noise, SingleNetwork{}, options, {Variance::fixed_small}}.sample({plain}, request).images, 0.012);
  check(DDPM{noise, SingleNetwork{}, options, {Variance::fixed_large}}.sample({plain}, request).images, 0.012);
  check(DDPM{noise, SingleNetwork{}, options}.sample({learned}, request).images, 0.012);
  check(DDIM{noise, SingleNetwork{}, options, {.eta = 0.5}}.sample({plain}, request).images, 0.012);
}
