// Euler's method: beside the peers' own code, beside DDIM, and in its order.

#include <tstitch/method/euler.hpp>

#include "../oracle.hpp"
#include "euler_family.hpp"

using namespace tstitch;

using euler_family::exact, euler_family::f32, euler_family::eps;

TEST_CASE("Euler of diffusers and k-diffusion") {
  const auto euler = [](Spacing const& spacing) {
    return [spacing](int n) { return Euler{f32, SingleNetwork{}, {.steps = n, .spacing = spacing}}; };
  };
  using euler_family::check;
  check("diffusers_euler", eps, euler(euler_family::linspace()), {.tolerance = 1e-5, .begins_at_sigma = true});
  check("diffusers_euler_karras", eps, euler(euler_family::karras()), {.tolerance = 1e-5, .begins_at_sigma = true});
  check("diffusers_euler_leading", eps, euler(Spacing::leading()), {.tolerance = 1e-5});
  check("diffusers_euler_trailing", eps, euler(Spacing::trailing()), {.tolerance = 1e-5, .begins_at_sigma = true});
  golden::check("k_diffusion_euler", eps, [&](int n) {
    return Euler{exact, SingleNetwork{}, {.steps = n, .spacing = Spacing::karras()}};
  });
}

TEST_CASE("Euler of diffusers on flow matching") {
  const auto make = [](NoiseSchedule const& noise, SamplingOptions const& options) {
    return Euler{noise, SingleNetwork{}, options};
  };
  euler_family::check_flow("diffusers_flow_euler", make, {.tolerance = 1e-5});
}

TEST_CASE("ancestral Euler of diffusers and k-diffusion") {
  euler_family::check("diffusers_euler_ancestral", eps,
                      [&](int n) {
                        return EulerAncestral{f32, SingleNetwork{}, {.steps = n, .spacing = euler_family::linspace()}};
                      },
                      {.tolerance = 1e-5, .begins_at_sigma = true});
  euler_family::check("k_diffusion_euler_ancestral", eps,
                      [&](int n) {
                        return EulerAncestral{exact, SingleNetwork{}, {.steps = n, .spacing = Spacing::karras()}};
                      },
                      {.tolerance = 1e-12});
}

TEST_CASE("Euler is of order 1") {
  const auto make = [](NoiseSchedule const& noise, SamplingOptions const& options) {
    return Euler{noise, SingleNetwork{}, options};
  };
  CHECK(euler_family::order_of(exact, make) > 0.85);
  CHECK(euler_family::order_of(NoiseSchedule::flow(), make) > 0.85);
}

TEST_CASE("Euler is DDIM, and ancestral Euler is DDIM with eta") {
  const SamplingOptions options{.steps = 9, .spacing = Spacing::trailing(), .thresholding = Thresholding::clip(0.8)};
  const Request request{.initial_noise = golden::start(),
                        .noise_source = golden::noise_of({.draws = std::vector<int>(9, 1)})};
  const at::Tensor euler = Euler{exact, SingleNetwork{}, options}.sample({eps}, request).images;
  CHECK(euler.equal(DDIM{exact, SingleNetwork{}, options}.sample({eps}, request).images));
  CHECK(euler.abs().max().item<double>() <= 0.8);
  for (double eta : {0., 0.4, 1.}) {
    const at::Tensor ancestral =
        EulerAncestral{exact, SingleNetwork{}, options, {.eta = eta}}.sample({eps}, request).images;
    const at::Tensor ddim = DDIM{exact, SingleNetwork{}, options, {.eta = eta}}.sample({eps}, request).images;
    CHECK(ancestral.sub(ddim).abs().max().item<double>() < 1e-12);
  }
}

TEST_CASE("churned and ancestral Euler end in the data's distribution, on diffusion and on flow matching") {
  std::vector<std::uint64_t> seeds(16);
  for (std::size_t i = 0; i < seeds.size(); ++i) seeds[i] = i;
  const Request request{.seeds = seeds,
                        .initial_noise = tstitch::noise(seeds, NoiseAddress::initial(), {1, 64, 64}, at::kDouble)};
  const double n = 16 * 64 * 64;
  const NoiseSchedule flow = NoiseSchedule::flow();
  for (NoiseSchedule const& noise : {exact, flow}) {
    const Network network = oracle::gaussian(
        noise, 0.3, 0.5, {.prediction_type = PredictionType::sample, .timestep_type = TimestepType::float32});
    const SamplingOptions options{.steps = 500, .spacing = noise.is_flow() ? Spacing::shifted() : Spacing::trailing()};
    const auto check = [&](at::Tensor const& x) {
      // Four standard errors, and what 500 steps of order 1 are away from infinitely many.
      CHECK(std::abs(x.mean().item<double>() - 0.3) < 4 * 0.5 / std::sqrt(n) + 0.012);
      CHECK(std::abs(x.std().item<double>() - 0.5) < 4 * 0.5 / std::sqrt(2 * n) + 0.012);
    };
    check(Euler{noise, SingleNetwork{}, options, {{.s_churn = 40}}}.sample({network}, request).images);
    check(EulerAncestral{noise, SingleNetwork{}, options, {.eta = 0.6}}.sample({network}, request).images);
    check(EulerAncestral{noise, SingleNetwork{}, options}.sample({network}, request).images);
  }
}

TEST_CASE("churned Euler is k-diffusion's") {
  // sample_euler(..., s_churn=3.0, s_tmin=0.05, s_tmax=60.0, s_noise=1.003), 7 steps, otherwise as k_diffusion_euler.
  const double peer[] = {0.33811532157529722, 0.26039485209999363, 0.20424105922868144, 0.099605361761605934,
                         0.036802389249370827};
  const Churn churn{.s_churn = 3, .s_tmin = 0.05, .s_tmax = 60, .s_noise = 1.003};
  const at::Tensor x = Euler{exact, SingleNetwork{}, {.steps = 7, .spacing = Spacing::karras()}, {churn}}
                           .sample({eps}, {.initial_noise = golden::start(),
                                           .noise_source = golden::noise_of({.draws = std::vector<int>(7, 1)})})
                           .images;
  for (int c = 0; c < 5; ++c) CHECK(std::abs(x.const_data_ptr<double>()[c] - peer[c]) < 1e-12);
}

TEST_CASE("a step that churn would take out of the noise schedule is left as it is") {
  const SamplingOptions options{.steps = 1, .spacing = Spacing::trailing(), .final_sigma = FinalSigma::sigma_min};
  const Request request{.initial_noise = golden::start()};
  CHECK(Euler{exact, SingleNetwork{}, options, {{.s_churn = 1}}}
            .sample({eps}, request)
            .images.equal(Euler{exact, SingleNetwork{}, options}.sample({eps}, request).images));
}

TEST_CASE("what Euler refuses") {
  const auto churned = [](Churn churn) { return Euler{exact, SingleNetwork{}, {}, {churn}}; };
  CHECK_THROWS_WITH(churned({.s_churn = -1}), ContainsSubstring("Churn: s_churn must be at least 0, got -1"));
  CHECK_THROWS_WITH(churned({.s_tmin = 2, .s_tmax = 1}),
                    ContainsSubstring("Churn: s_tmin must be in [0, s_tmax], got 2"));
  CHECK_THROWS_WITH(churned({.s_noise = 0}), ContainsSubstring("Churn: s_noise must be above 0, got 0"));
  CHECK_THROWS_WITH((EulerAncestral{exact, SingleNetwork{}, {}, {.eta = 1.5}}),
                    ContainsSubstring("EulerAncestral: eta must be in [0, 1], got 1.5"));
}
