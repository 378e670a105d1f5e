// LMS: beside the peers' own code, its weights, and its order.

#include <tstitch/method/lms.hpp>

#include "euler_family.hpp"

using namespace tstitch;

using euler_family::exact, euler_family::eps, euler_family::f32;

TEST_CASE("LMS of diffusers and k-diffusion") {
  const auto lms = [](Spacing const& spacing) {
    return [spacing](int n) { return LMS{f32, SingleNetwork{}, {.steps = n, .spacing = spacing}}; };
  };
  euler_family::check("diffusers_lms", eps, lms(euler_family::linspace()),
                      {.tolerance = 1e-5, .begins_at_sigma = true});
  euler_family::check("diffusers_lms_karras", eps, lms(euler_family::karras()),
                      {.tolerance = 1e-5, .begins_at_sigma = true});
  euler_family::check("k_diffusion_lms", eps,
                      [&](int n) {
                        return LMS{exact, SingleNetwork{}, {.steps = n, .spacing = Spacing::karras()}};
                      },
                      {.tolerance = 1e-12});
}

TEST_CASE("LMS converges with its order") {
  for (int order : {1, 2, 3, 4}) {
    const auto make = [&](NoiseSchedule const& noise, SamplingOptions const& options) {
      return LMS{noise, SingleNetwork{}, options, {.order = order}};
    };
    INFO("order " << order);
    CHECK(euler_family::order_of(exact, make) > order - 0.15);
    CHECK(euler_family::order_of(NoiseSchedule::flow(), make, 500) > order - 0.15);
  }
}

TEST_CASE("Adams-Bashforth weights integrate polynomials exactly") {
  // On even nodes they are the well-known ones.
  const std::vector<double> even{0, -1, -2, -3};
  const std::vector<double> weights = adams_bashforth_weights(even, 1);
  const double known[] = {55. / 24, -59. / 24, 37. / 24, -9. / 24};
  for (int k = 0; k < 4; ++k) CHECK(std::abs(weights[k] - known[k]) < 1e-14);
  // On uneven ones any cubic is enough.
  const std::vector<double> uneven{1.25, 3.5, 21, 157};
  const std::vector<double> w = adams_bashforth_weights(uneven, 0.35);
  for (int power = 0; power < 4; ++power) {
    double sum = 0;
    for (int k = 0; k < 4; ++k) sum += w[k] * std::pow(uneven[k], power);
    const double integral = (std::pow(0.35, power + 1) - std::pow(1.25, power + 1)) / (power + 1);
    CHECK(std::abs(sum - integral) < 1e-12 * std::abs(integral));
  }
}

TEST_CASE("LMS of order 1 is Euler, and it can begin at pure noise") {
  const SamplingOptions options{.steps = 12, .spacing = Spacing::trailing()};
  const at::Tensor lms =
      LMS{exact, SingleNetwork{}, options, {.order = 1}}.sample({eps}, {.initial_noise = golden::start()}).images;
  const at::Tensor ddim =
      DDIM{exact, SingleNetwork{}, options}.sample({eps}, {.initial_noise = golden::start()}).images;
  CHECK(lms.sub(ddim).abs().max().item<double>() < 1e-12);

  const NoiseSchedule zero_snr = exact.with_zero_terminal_snr();
  const Network v = golden::network(zero_snr, {.prediction_type = PredictionType::v_prediction});
  const LMS sampler{zero_snr, SingleNetwork{}, options};
  Trajectory trajectory = sampler.begin({v}, {.initial_noise = golden::start()});
  const DDIM euler{zero_snr, SingleNetwork{}, options};
  Trajectory euler_trajectory = euler.begin({v}, {.initial_noise = golden::start()});
  // The second step too: what is known at pure noise is no slope.
  for (int step = 0; step < 2; ++step) {
    sampler.advance({v}, trajectory);
    euler.advance({v}, euler_trajectory);
    CHECK(trajectory.x.sub(euler_trajectory.x).abs().max().item<double>() < 1e-12);
  }
  while (!trajectory.finished()) sampler.advance({v}, trajectory);
  CHECK(trajectory.x.isfinite().all().item<bool>());
}

TEST_CASE("what LMS refuses") {
  for (const int order : {0, 9}) {
    CHECK_THROWS_WITH((LMS{exact, SingleNetwork{}, {}, {.order = order}}),
                      ContainsSubstring("LMS: order must be in [1, 8], got " + std::to_string(order)));
  }
}
