#include <tstitch/plan/noise_schedule.hpp>

#include <limits>

#include "../catch.hpp"

using namespace tstitch;

TEST_CASE("linear is DDPM's and DiT's schedule") {
  // peers: DiT's own tables for T = 1000, float64
  const NoiseSchedule noise = NoiseSchedule::linear();
  CHECK(noise.num_train_timesteps() == 1000);
  CHECK(noise.alphas_cumprod().front() == Approx(0.9999).epsilon(1e-15));
  CHECK(noise.alphas_cumprod().back() == Approx(4.035829765e-5).epsilon(1e-9));
  CHECK(noise.sigma(0) / noise.alpha(0) == Approx(0.0100005).epsilon(1e-6));
  CHECK(noise.sigma(999) / noise.alpha(999) == Approx(157.40728).epsilon(1e-8));
  CHECK(noise.lambda(0) == Approx(4.60512).epsilon(1e-6));
  CHECK(noise.lambda(999) == Approx(-5.05884).epsilon(1e-6));
}

TEST_CASE("scaled linear is Stable Diffusion's schedule") {
  const NoiseSchedule noise = NoiseSchedule::scaled_linear();
  CHECK(noise.sigma(0) / noise.alpha(0) == Approx(0.029167).epsilon(1e-4));
  CHECK(noise.sigma(999) / noise.alpha(999) == Approx(14.61464).epsilon(1e-6));
  CHECK(noise.lambda(0) == Approx(3.5347).epsilon(1e-5));
  CHECK(noise.lambda(999) == Approx(-2.6820).epsilon(1e-4));
  CHECK(NoiseSchedule::scaled_linear(1000, 0.0015, 0.0195).lambda(999) == Approx(-4.4287).epsilon(1e-5));
}

TEST_CASE("cosine is improved DDPM's schedule") {
  const NoiseSchedule noise = NoiseSchedule::cosine();
  CHECK(noise.sigma(999) / noise.alpha(999) == Approx(20291).epsilon(1e-4));
  CHECK(noise.lambda(999) == Approx(-9.918).epsilon(1e-4));
}

TEST_CASE("from_betas and from_alphas_cumprod say the same") {
  const NoiseSchedule betas = NoiseSchedule::from_betas({0.1, 0.2, 0.3});
  CHECK(betas.distance(NoiseSchedule::from_alphas_cumprod({0.9, 0.72, 0.504})) < 1e-15);
  CHECK(std::isinf(betas.distance(NoiseSchedule::from_betas({0.1, 0.2}))));
}

TEST_CASE("levels are variance preserving and lambda falls with t, also between timesteps") {
  for (NoiseSchedule const& noise : {NoiseSchedule::linear(), NoiseSchedule::scaled_linear(), NoiseSchedule::cosine(),
                                     NoiseSchedule::linear(10, 0.01, 0.5)}) {
    INFO(noise.name());
    double before = noise.lambda(0) + 1;
    for (double t = 0; t <= noise.num_train_timesteps() - 1; t += 0.25) {
      const auto [alpha, sigma] = noise.at(t);
      REQUIRE(alpha * alpha + sigma * sigma == Approx(1).epsilon(1e-14));
      REQUIRE(noise.lambda(t) < before);
      before = noise.lambda(t);
    }
  }
}

TEST_CASE("timestep is the inverse of lambda") {
  for (NoiseSchedule const& noise :
       {NoiseSchedule::linear(), NoiseSchedule::scaled_linear(), NoiseSchedule::cosine()}) {
    INFO(noise.name());
    for (double t = 0; t <= 999; t += 0.37) REQUIRE(std::abs(noise.timestep(noise.lambda(t)) - t) < 1e-7);
    CHECK(noise.timestep(noise.lambda(999)) == 999);
    CHECK(noise.timestep(noise.lambda(0)) == 0);
  }
}

TEST_CASE("the ends of lambda are reached also where rounding puts them a little beyond") {
  const NoiseSchedule noise = NoiseSchedule::linear();
  CHECK(noise.timestep(noise.lambda(0) + 1e-12) == 0);
  CHECK(noise.timestep(noise.lambda(999) - 1e-12) == 999);
  CHECK_THROWS_AS(noise.timestep(noise.lambda(0) + 1e-6), std::invalid_argument);
  CHECK_THROWS_AS(noise.timestep(noise.lambda(999) - 1e-6), std::invalid_argument);
}

TEST_CASE("linear in lambda, the middle between two timesteps is their mean") {
  const NoiseSchedule noise = NoiseSchedule::linear();
  for (const int t : {0, 10, 500, 998}) {
    const double middle = (noise.lambda(t) + noise.lambda(t + 1)) / 2;
    CHECK(noise.timestep_linear_in_lambda(middle) == Approx(t + 0.5).epsilon(0).margin(1e-9));
  }
  // Linear in log(alpha) it is elsewhere where lambda bends most.
  CHECK(std::abs(noise.timestep((noise.lambda(0) + noise.lambda(1)) / 2) - 0.5) > 0.05);
}

TEST_CASE("the last beta is the one that was asked for") {
  // numpy.linspace(0.001, 0.7, 6)[-1] is 0.7, where 5 steps from 0.001 lead to 0.6999999999999998.
  const std::vector<double> table = NoiseSchedule::linear(6, 0.001, 0.7).alphas_cumprod();
  CHECK(table[5] == table[4] * (1 - 0.7));
}

TEST_CASE("a level knows itself by its lambda") {
  for (double lambda = -12; lambda < 12; lambda += 0.3) {
    REQUIRE(NoiseLevel::from_lambda(lambda).lambda() == Approx(lambda).margin(1e-12));
  }
  CHECK(std::isinf(NoiseLevel::clean().lambda()));
}

TEST_CASE("flow matching is a straight line from picture to noise") {
  const NoiseSchedule flow = NoiseSchedule::flow(1000);
  CHECK(flow.noisiest() == 1000);
  CHECK(flow.at(1000) == NoiseLevel{0, 1});
  CHECK(flow.at(0) == NoiseLevel::clean());
  CHECK(flow.at(250) == NoiseLevel{0.75, 0.25});
  for (double t = 1; t < 1000; t += 7.3) {
    REQUIRE(std::abs(flow.timestep(flow.lambda(t)) - t) < 1e-9);
    const NoiseLevel level = flow.level(flow.lambda(t));
    REQUIRE(std::abs(level.alpha - flow.alpha(t)) + std::abs(level.sigma - flow.sigma(t)) < 1e-14);
  }
  CHECK(flow.timestep(flow.lambda(1000)) == 1000);
  CHECK(std::isinf(flow.distance(NoiseSchedule::linear())));
}

TEST_CASE("zero terminal SNR moves the last timestep to pure noise and keeps the first") {
  const NoiseSchedule before = NoiseSchedule::scaled_linear(), after = before.with_zero_terminal_snr();
  CHECK(after.at(999) == NoiseLevel{0, 1});
  CHECK(after.alpha(0) == Approx(before.alpha(0)).epsilon(1e-15));
  // Algorithm 1 of the paper, in the middle: (a - a_T) a_0 / (a_0 - a_T).
  const double a = before.alpha(500), a_0 = before.alpha(0), a_T = before.alpha(999);
  CHECK(after.alpha(500) == Approx((a - a_T) * a_0 / (a_0 - a_T)).epsilon(1e-14));
  CHECK(after.lambda(999) == -std::numeric_limits<double>::infinity());
  CHECK(after.timestep(after.lambda(999)) == 999);
  for (double t = 0; t <= 998; t += 0.7) REQUIRE(std::abs(after.timestep(after.lambda(t)) - t) < 1e-7);
}

TEST_CASE("float32 tables are those of programs that compute in it") {
  // torch 2.15: (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0) at 0, 500 and 999.
  const std::vector<double> table = NoiseSchedule::linear().in_float32().alphas_cumprod();
  CHECK(float(table[0]) == 0.999899983f);
  CHECK(float(table[500]) == 0.0777966529f);
  CHECK(float(table[999]) == 4.03583035e-05f);
  for (double value : table) REQUIRE(double(float(value)) == value);
  // torch 2.11: (1 - torch.linspace(0.01, 0.5, 10)).cumprod(0), whose sixth beta depends on the end it is counted from.
  const std::vector<float> expected{0.99000001f,  0.926200032f, 0.8160851f,   0.674630344f,  0.520964563f,
                                    0.373936772f, 0.248044744f, 0.151031673f, 0.0837386772f, 0.0418693386f};
  const std::vector<double> few = NoiseSchedule::linear(10, 0.01, 0.5).in_float32().alphas_cumprod();
  CHECK(std::vector<float>(few.begin(), few.end()) == expected);
  const NoiseSchedule rounded = NoiseSchedule::cosine().rounded_to_float32();
  for (double value : rounded.alphas_cumprod()) {
    REQUIRE(double(float(value)) == value);
  }
}

TEST_CASE("noise schedules refuse what makes no sense, with place, rule and value") {
  const auto message = [](auto action) { return message_of<std::invalid_argument>(action); };
  CHECK(message([] { NoiseSchedule::linear(0); }) ==
        "tstitch::NoiseSchedule::linear: num_train_timesteps must be at least 1, got 0");
  CHECK(message([] {
          NoiseSchedule::from_betas({0.1, 1.5});
        }) == "tstitch::NoiseSchedule::from_betas: each beta must be inside (0, 1), got 1.5");
  CHECK(message([] {
          NoiseSchedule::from_betas({0.1, NAN});
        }) == "tstitch::NoiseSchedule::from_betas: each beta must be inside (0, 1), got nan");
  CHECK(message([] {
          NoiseSchedule::from_alphas_cumprod({0.5, 0.6});
        }) ==
        "tstitch::NoiseSchedule::from_alphas_cumprod: values must be inside (0, 1) and strictly decreasing; only "
        "the last may be 0, got 0.6 after 0.5");
  CHECK_THAT(message([] {
               NoiseSchedule::from_alphas_cumprod({0.5, 0.5});
             }),
             ContainsSubstring("strictly decreasing; only the last may be 0, got 0.5 after 0.5"));
  CHECK(message([] { NoiseSchedule::scaled_linear(1000, 0.01, 0); }) ==
        "tstitch::NoiseSchedule::scaled_linear: beta_start and beta_end must be above 0, got 0.01 and 0");
  CHECK_THAT(message([] { NoiseSchedule::from_alphas_cumprod({0.0}); }), ContainsSubstring("got 0 after 1"));
  CHECK(message([] { (void)NoiseSchedule::flow().with_zero_terminal_snr(); }) ==
        "tstitch::NoiseSchedule::with_zero_terminal_snr: needs a table of at least 2 timesteps, got flow(1000)");
  CHECK(message([] { (void)NoiseSchedule::linear().with_zero_terminal_snr().at(998.5); }) ==
        "tstitch::NoiseSchedule::at: with zero terminal SNR t must not be between the last two timesteps, got 998.5");
  CHECK(message([] { (void)NoiseSchedule::flow().timestep(NAN); }) ==
        "tstitch::NoiseSchedule::timestep: lambda must be a number, got nan");
  CHECK(message([] { NoiseSchedule::from_alphas_cumprod({}); }) ==
        "tstitch::NoiseSchedule::from_alphas_cumprod: at least one timestep is needed, got 0");
  CHECK(message([] { (void)NoiseSchedule::linear().at(1000); }) ==
        "tstitch::NoiseSchedule::at: t must be in [0, 999], got 1000");
  CHECK(message([] { (void)NoiseSchedule::linear().at(NAN); }) ==
        "tstitch::NoiseSchedule::at: t must be in [0, 999], got nan");
  CHECK_THAT(message([] { (void)NoiseSchedule::linear().timestep(6); }), ContainsSubstring("lambda must be in [-5.05"));
}

TEST_CASE("noise schedules refuse numbers that are none, and what leaves no picture") {
  const auto refused = [](auto make) { return message_of<std::invalid_argument>([&] { (void)make(); }); };
  const NoiseSchedule linear = NoiseSchedule::linear();
  for (const double value : {double(NAN), double(INFINITY), -double(INFINITY)}) {
    CHECK_THAT(refused([&] { return NoiseSchedule::linear(10, value, 0.1); }), ContainsSubstring("inside (0, 1)"));
    CHECK_THAT(refused([&] { return NoiseSchedule::linear(10, 0.1, value); }), ContainsSubstring("inside (0, 1)"));
    CHECK_THAT(refused([&] {
                 return NoiseSchedule::from_alphas_cumprod({0.9, value});
               }),
               ContainsSubstring("strictly decreasing"));
    CHECK_THAT(refused([&] { return linear.at(value); }), ContainsSubstring("t must be in [0, 999]"));
    CHECK_THAT(refused([&] { return linear.timestep(value); }), ContainsSubstring("lambda must be in"));
    CHECK_THAT(refused([&] { return linear.timestep_linear_in_lambda(value); }),
               ContainsSubstring("lambda must be in"));
  }
  CHECK(refused([] { return NoiseSchedule::flow(2147483647); }) ==
        "tstitch::NoiseSchedule::flow: num_train_timesteps must be at most 1000000, got 2147483647");
  CHECK_THAT(refused([] { return NoiseSchedule::linear(1000, 1e-4, 0.9999); }),
             ContainsSubstring("NoiseSchedule::from_betas: betas must leave the product of 1 - beta above 0, got 0"));
  CHECK_THAT(refused([] { return NoiseSchedule::linear(1000, 1e-4, 0.5).in_float32(); }),
             ContainsSubstring("tstitch::NoiseSchedule::in_float32: alphas_cumprod must be above 0 in float32, got "));
  CHECK_THAT(refused([] { return NoiseSchedule::linear(1000, 1e-4, 0.5).rounded_to_float32(); }),
             ContainsSubstring("must be above 0 in float32"));
}
