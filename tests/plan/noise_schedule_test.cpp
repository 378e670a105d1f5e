#include <tstitch/plan/noise_schedule.hpp>

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

TEST_CASE("a level knows itself by its lambda") {
  for (double lambda = -12; lambda < 12; lambda += 0.3) {
    REQUIRE(NoiseLevel::from_lambda(lambda).lambda() == Approx(lambda).margin(1e-12));
  }
  CHECK(std::isinf(NoiseLevel::clean().lambda()));
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
        "tstitch::NoiseSchedule::from_alphas_cumprod: values must be inside (0, 1) and strictly decreasing, got 0.6 "
        "after 0.5");
  CHECK(message([] { NoiseSchedule::from_alphas_cumprod({}); }) ==
        "tstitch::NoiseSchedule::from_alphas_cumprod: at least one timestep is needed, got 0");
  CHECK(message([] { (void)NoiseSchedule::linear().at(1000); }) ==
        "tstitch::NoiseSchedule::at: t must be in [0, 999], got 1000");
  CHECK(message([] { (void)NoiseSchedule::linear().at(NAN); }) ==
        "tstitch::NoiseSchedule::at: t must be in [0, 999], got nan");
  CHECK_THAT(message([] { (void)NoiseSchedule::linear().timestep(6); }), ContainsSubstring("lambda must be in [-5.05"));
}
