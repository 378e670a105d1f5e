#include <tstitch/method/dpm_solver.hpp>
#include <tstitch/method/heun.hpp>
#include <tstitch/method/inversion.hpp>

#include <memory>

#include "../golden.hpp"
#include "../oracle.hpp"

using namespace tstitch;

namespace {

const NoiseSchedule linear = NoiseSchedule::linear();

double largest(at::Tensor const& x) {
  return x.abs().max().item<double>();
}

/// How far the picture comes back from the noise that was found for it, on the mixture's channel, relative to it.
double reconstruction(auto const& rule, SamplingOptions const& options = {}, NoiseSchedule const& noise = linear,
                      PredictionType type = PredictionType::epsilon) {
  const Network network = golden::network(noise, {.prediction_type = type, .timestep_type = TimestepType::float32});
  const Sampler sampler{noise, SingleNetwork{}, options, rule};
  const Inversion inversion{noise, SingleNetwork{}, options, rule};
  double worst = 0;
  for (double scale : {1.0, -1.0, 0.3, 2.0}) {
    const at::Tensor start = golden::start().mul(scale);
    const at::Tensor picture = sampler.sample({network}, {.initial_noise = start}).images;
    const at::Tensor found = inversion.sample({network}, {.initial_image = picture}).images;
    const at::Tensor again = sampler.sample({network}, {.initial_noise = found}).images;
    worst = std::max(worst, largest(again.sub(picture).div(picture).select(1, 1)));
  }
  return worst;
}

/// Outputs depend on x, t and the label; counts its calls.
Network counted(double strength, std::shared_ptr<int> calls) {
  return Network(
      [=](at::Tensor const& x, at::Tensor const& t, Condition const& condition) {
        ++*calls;
        const at::Tensor wave = condition.labels.to(at::kDouble).add(1).div(4).add(t.to(at::kDouble).div(1000));
        return x.mul(0.9).add(x.mul(wave.view({-1, 1, 1, 1})).sin().mul(strength));
      },
      {.channels = 3, .height = 4, .width = 4, .num_classes = 4, .null_class = 4});
}

at::Tensor normal(std::vector<std::uint64_t> const& seeds) {
  return noise(seeds, NoiseAddress::initial(), {3, 4, 4}, at::kDouble);
}

}  // namespace

TEST_CASE("a picture comes back from the noise that inversion finds") {
  CHECK(reconstruction(DDIMUpdate{}) < 1e-3);
  CHECK(reconstruction(HeunUpdate{}) < 1e-5);
  CHECK(reconstruction(DPM2Update{}) < 1e-5);
  CHECK(reconstruction(DPMSolverUpdate{.order = 1}) < 1e-3);
  // Another end, other spacings, zero terminal SNR and flow matching, which begin at pure noise.
  const SamplingOptions to_sigma_min{.spacing = Spacing::trailing(), .final_sigma = FinalSigma::sigma_min};
  CHECK(reconstruction(DDIMUpdate{}, to_sigma_min) < 1e-3);
  CHECK(reconstruction(HeunUpdate{}, to_sigma_min) < 1e-5);
  CHECK(reconstruction(HeunUpdate{}, {.spacing = Spacing::karras()}) < 1e-5);
  const SamplingOptions by_stride{.previous_timestep = PreviousTimestep::by_stride};
  CHECK(reconstruction(DDIMUpdate{}, by_stride) < 1e-3);
  const NoiseSchedule zero_snr = linear.with_zero_terminal_snr(), flow = NoiseSchedule::flow();
  CHECK(reconstruction(DDIMUpdate{}, {}, zero_snr, PredictionType::v_prediction) < 1e-3);
  CHECK(reconstruction(HeunUpdate{}, {}, zero_snr, PredictionType::v_prediction) < 1e-5);
  const SamplingOptions shifted{.spacing = Spacing::shifted(3)};
  CHECK(reconstruction(DDIMUpdate{}, shifted, flow, PredictionType::flow) < 1e-3);
  CHECK(reconstruction(HeunUpdate{}, shifted, flow, PredictionType::flow) < 1e-5);
}

TEST_CASE("where steps are linear inversion finds the noise itself") {
  const Network network = oracle::gaussian(linear, 0.3, 0.5, {.timestep_type = TimestepType::float32});
  const at::Tensor start = normal({1, 2, 3});
  const auto check = [&](auto const& rule) {
    const SamplingOptions options{.steps = 20};
    const Sampler sampler{linear, SingleNetwork{}, options, rule};
    const at::Tensor picture = sampler.sample({network}, {.initial_noise = start}).images;
    const Inversion inversion{linear, SingleNetwork{}, options, rule};
    const at::Tensor found = inversion.sample({network}, {.initial_image = picture}).images;
    CHECK(largest(found.sub(start)) < 1e-10);
  };
  check(DDIMUpdate{});
  check(HeunUpdate{});
}

TEST_CASE("inversion goes through the plan backwards, each step by the network that takes it") {
  const auto small = std::make_shared<int>(), large = std::make_shared<int>();
  const std::vector<Network> networks{counted(0.1, small), counted(0.3, large)};
  const SamplingOptions options{.steps = 10};
  const Inversion inversion{linear, Stitch{0.4}, options, HeunUpdate{}, 40};
  Plan const& plan = inversion.plan();
  CHECK(plan.steps.front().step.to == NoiseLevel::clean());
  CHECK(plan.steps.front().step.index == 9);
  CHECK(plan.steps.back().step.from == linear.at(999));
  CHECK(plan.steps.front().network == 1);
  CHECK(plan.steps.back().network == 0);
  // Two evaluations for the guess and two for each iteration; to the picture itself one, and no guess.
  CHECK(plan.calls() == std::vector<int>{4 * 82, 5 * 82 + 40});

  // An interval of guidance must mean the same steps in both directions.
  const Guidance guidance{.scale = {1, 1.5}, .begin = 0.5, .end = 0.8};
  const at::Tensor start = normal({1, 2, 3, 4, 5});
  const Request forward{.labels = {0, 1, 2, 3, 0}, .guidance = guidance, .initial_noise = start};
  const Sampler sampler{linear, Stitch{0.4}, options, HeunUpdate{}};
  const at::Tensor picture = sampler.sample(networks, forward).images;
  *small = *large = 0;
  const Samples found = inversion.sample(networks, {.labels = {0, 1, 2, 3, 0},
                                                    .guidance = guidance,
                                                    .batch_size = 2,
                                                    .pad_batches = true,
                                                    .initial_image = picture});
  CHECK(*small == 3 * 4 * 82);
  CHECK(*large == 3 * (5 * 82 + 40));
  CHECK(largest(found.images.sub(start)) < 1e-9);
}

TEST_CASE("inversion in float32 is as good as float32 is") {
  const std::vector<Network> networks{Network([](at::Tensor const& x, at::Tensor const&) { return x.mul(0.9).sin(); })};
  const at::Tensor picture = normal({7}).mul(0.3).to(at::kFloat);
  const Inversion inversion{linear, SingleNetwork{}, {.steps = 50}, DDIMUpdate{}, 8};
  const at::Tensor found = inversion.sample(networks, {.initial_image = picture}).images;
  CHECK(found.scalar_type() == at::kFloat);
  const DDIM sampler{linear, SingleNetwork{}, {.steps = 50}};
  CHECK(largest(sampler.sample(networks, {.initial_noise = found}).images.sub(picture)) < 1e-4);
}

TEST_CASE("inversion refuses what it cannot do") {
  const Network network = oracle::gaussian(linear, 0.3, 0.5);
  const at::Tensor picture = normal({1});
  const auto message = [&](auto const& rule, Request const& request, int iterations = 3) {
    return message_of<std::invalid_argument>([&] {
      (void)Inversion{linear, SingleNetwork{}, {.steps = 4}, rule, iterations}.sample({network}, request);
    });
  };
  CHECK(message(DDIMUpdate{}, {.initial_image = picture}, 0) ==
        "tstitch::Inversion: iterations must be at least 1, got 0");
  CHECK(message(DPMSolverUpdate{.order = 2}, {.initial_image = picture}) ==
        "tstitch::Inversion: needs a rule without history, got 1");
  CHECK(message(DDIMUpdate{.eta = 1}, {.initial_image = picture}) ==
        "tstitch::Inversion: needs a rule without noise, got draw 0");
  CHECK(message(DDIMUpdate{.eta = 2}, {.initial_image = picture}) == "tstitch::DDIM: eta must be in [0, 1], got 2");
  CHECK(message(DDIMUpdate{}, {}) == "tstitch::Request: initial_image is needed for inversion, got none");
  CHECK(message(DDIMUpdate{}, {.initial_noise = picture, .initial_image = picture}) ==
        "tstitch::Request: initial_noise is what inversion finds, and must not be given, got [1, 3, 4, 4]");
  CHECK(message(DDIMUpdate{}, {.initial_image = picture, .strength = 0.5}) ==
        "tstitch::Request: strength must be 1 for inversion, got 0.5");
  CHECK(message(DDIMUpdate{}, {.initial_image = picture, .mask = picture}) ==
        "tstitch::Request: mask is not for inversion, got [1, 3, 4, 4]");
  const NoiseSchedule flow = NoiseSchedule::flow();
  const Network velocity = golden::network(flow, {.prediction_type = PredictionType::flow});
  CHECK(message_of<std::invalid_argument>([&] {
          const Inversion one_step{flow, SingleNetwork{}, {.steps = 1, .spacing = Spacing::shifted()}, DDIMUpdate{}};
          one_step.sample({velocity}, {.initial_image = golden::start()});
        }) == "tstitch::Inversion: a step must not lead from pure noise to the picture, got step 0");
}
