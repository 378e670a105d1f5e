#include <tstitch/engine/dit.hpp>
#include <tstitch/file/dit.hpp>
#include <tstitch/method/ddim.hpp>

#include <algorithm>
#include <vector>

#include "../catch.hpp"

using namespace tstitch;

namespace {

const std::string small_file = TSTITCH_MODELS "/cifar10_dit_small.pt";
const std::string large_file = TSTITCH_MODELS "/cifar10_dit_large.pt";

/// Levels of 8 bits between two sets of pictures in [-1, 1], root of the mean square.
double levels(at::Tensor const& a, at::Tensor const& b) {
  return 127.5 * a.sub(b).square().mean().sqrt().item<double>();
}

/// Tells its function from others by counting what it is given.
Capture counting(int& two, int& three) {
  return [&](TensorFunction function) -> TensorFunction {
    return [&, function](std::vector<at::Tensor> const& given) {
      ++(given.size() == 3 ? three : two);
      return function(given);
    };
  };
}

}  // namespace

TEST_CASE("a forecast of a network by itself is what it computes") {
  const c10::AutoGradMode no_gradients(false);
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const Network network = load_dit(large_file, {.dtype = type});
    const at::Tensor x = noise({1, 2, 3, 4}, NoiseAddress::initial(), {3, 32, 32}, at::kFloat);
    const std::vector<std::int64_t> labels{3, 5, 10, 10};
    const Condition condition{.labels = detail::to_device(labels, at::kCPU), .host_labels = labels};
    const Step step{7, 20, 500, network.noise_schedule().at(500), network.noise_schedule().at(450)};
    for (const bool both_halves : {false, true}) {
      Memory memory;
      StepForecast keep{.keep = 1};
      Evaluation evaluation{
          .timestep = 500, .step = &step, .memory = &memory, .forecast = &keep, .both_halves = both_halves};
      const at::Tensor plain = network(x, {}, condition, 500.0);
      CHECK(network(x, {}, condition, evaluation).equal(plain));
      StepForecast forecast{.network = true, .conditional = {{7, 1}}};
      if (both_halves) forecast.unconditional = forecast.conditional;
      evaluation.forecast = &forecast;
      const at::Tensor again = network(x, {}, condition, evaluation);
      // What the blocks add is rounded once more.
      const double tolerance = type == at::kFloat ? 2e-6 : 2e-2;
      CHECK(again.sizes() == plain.sizes());
      CHECK(again.sub(plain).abs().max().item<double>() <= tolerance * plain.abs().max().item<double>());
      // Half of the rows come twice, and each half by itself.
      if (!both_halves) continue;
      const at::Tensor once = x.narrow(0, 0, 2), twice = once.repeat({2, 1, 1, 1});
      CHECK(network(once, {}, condition, evaluation).equal(network(twice, {}, condition, evaluation)));
      forecast.unconditional = {{7, 0.5}};
      const at::Tensor apart = network(x, {}, condition, evaluation);
      CHECK(apart.narrow(0, 0, 2).sub(again.narrow(0, 0, 2)).abs().max().item<double>() <=
            tolerance * plain.abs().max().item<double>());
      CHECK_FALSE(apart.narrow(0, 2, 2).equal(again.narrow(0, 2, 2)));
    }
  }
}

TEST_CASE("pictures of the bundled pair with forecasts are those without, to a level") {
  const std::vector<Network> networks{load_dit(small_file), load_dit(large_file)};
  const auto draw = [&](Forecast const& forecast, Forecast const& of_guidance, std::vector<Network> const& by) {
    const DDIM sampler{networks[1].noise_schedule(), Stitch{.ratio = 0.4}, {.steps = 30, .forecast = forecast}};
    return sampler.sample(by, {.labels = {3}, .seed = 11, .guidance = {.scale = 1.5, .forecast = of_guidance}}).images;
  };
  const Forecast every = ForecastEvery{.first_network = 1}, half = ForecastEvery{.warm_up = 2};
  const at::Tensor plain = draw({}, {}, networks);
  CHECK(draw(ForecastEvery{.every = 1}, ForecastEvery{.every = 1}, networks).equal(plain));
  const at::Tensor forecast = draw(every, half, networks);
  // Half a level in the trial that chose the rule; this is one picture of fewer steps.
  CHECK(levels(forecast, plain) > 0.05);
  CHECK(levels(forecast, plain) < 2);
  CHECK(levels(draw({}, half, networks), plain) < 2);
  CHECK(levels(draw(ForecastEvery{.order = 0, .first_network = 1}, {}, networks), plain) > levels(forecast, plain));

  {
    const c10::InferenceMode inference;
    CHECK(draw(every, half, networks).equal(forecast));
  }

  // What is captured is asked as often as the plan says, and answers the same.
  int two = 0, three = 0;
  const std::vector<Network> captured{networks[0], networks[1].captured(counting(two, three))};
  CHECK(draw(every, half, captured).equal(forecast));
  CHECK(two == 11);
  CHECK(three == 7);
}
