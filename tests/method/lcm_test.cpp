// LCM: beside diffusers' own code.

#include <tstitch/peer/profile.hpp>

#include <cmath>

#include "../golden.hpp"

using namespace tstitch;

namespace {

const NoiseSchedule exact = NoiseSchedule::linear();

}  // namespace

TEST_CASE("LCM of diffusers") {
  golden::check("diffusers_lcm", golden::network(exact),
                [&](int n) { return make_sampler(profile::diffusers_lcm(exact, n), SingleNetwork{}); });
}

TEST_CASE("LCM visits timesteps of the distillation") {
  const auto list = [](int steps, int original_steps) {
    std::vector<double> t;
    for (Timestep const& point : lcm_timesteps(original_steps)(exact, steps)) t.push_back(point.t);
    return t;
  };
  CHECK(list(1, 50) == std::vector<double>{999});
  CHECK(list(4, 50) == std::vector<double>{999, 759, 499, 259});
  CHECK(list(3, 3) == std::vector<double>{998, 665, 332});
  CHECK(list(1000, 1000).back() == 0);
}

TEST_CASE("LCM leaves x at the level of the step's end") {
  // At t = 0 the consistency function is x itself; elsewhere c_skip and c_out are as the closed form says.
  const Network x_0([](at::Tensor const& x, at::Tensor const&) { return x.new_full(x.sizes(), 0.25); },
                    {.prediction_type = PredictionType::sample});
  const auto once = [&](double t, FinalSigma end, LCMUpdate rule) {
    const SamplingOptions options{.steps = 1, .spacing = Spacing::list({t}), .final_sigma = end};
    return LCM{exact, SingleNetwork{}, options, rule}
        .sample({x_0}, {.initial_noise = golden::start(), .noise_source = golden::noise_of({.draws = {1}})})
        .images;
  };
  CHECK(once(0, FinalSigma::zero, {}).equal(golden::start()));
  const double u = 2 * 3, d = 1.5, square = u * u + d * d;
  const at::Tensor f = golden::start().mul(d * d / square).add(0.25 * u / std::sqrt(square));
  const LCMUpdate rule{.timestep_scaling = 2, .sigma_data = d};
  CHECK(once(3, FinalSigma::zero, rule).sub(f).abs().max().item<double>() < 1e-15);
  const NoiseLevel least = exact.at(0);
  const at::Tensor noise = golden::noise_of({.draws = {1}})({0}, NoiseAddress::of_step(0), {5, 1, 1}, at::kDouble);
  CHECK(
      once(3, FinalSigma::sigma_min, rule).sub(f.mul(least.alpha).add(noise, least.sigma)).abs().max().item<double>() <
      1e-15);
}

TEST_CASE("what LCM refuses") {
  CHECK_THROWS_WITH((LCM{exact, SingleNetwork{}, {}, {.timestep_scaling = 0}}),
                    ContainsSubstring("LCM: timestep_scaling must be above 0, got 0"));
  CHECK_THROWS_WITH((LCM{exact, SingleNetwork{}, {}, {.sigma_data = -1}}),
                    ContainsSubstring("LCM: sigma_data must be above 0, got -1"));
  CHECK_THROWS_WITH(lcm_timesteps()(exact, 51),
                    ContainsSubstring("lcm_timesteps: steps must be at most original_steps (50), got 51"));
  CHECK_THROWS_WITH(lcm_timesteps(1001)(exact, 4), ContainsSubstring("original_steps must be in [1, 1000], got 1001"));
}
