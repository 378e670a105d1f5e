// Heun's method and DPM-Solver-2: beside the peers' own code, in their order, and where they are Euler's.

#include <tstitch/method/heun.hpp>

#include "euler_family.hpp"

using namespace tstitch;

using euler_family::exact, euler_family::f32, euler_family::eps;

TEST_CASE("Heun of diffusers and k-diffusion") {
  const euler_family::Reading reading{.tolerance = 1e-5, .two_a_step = true, .begins_at_sigma = true};
  const auto heun = [](Spacing const& spacing) {
    return [spacing](int n) { return Heun{f32, SingleNetwork{}, {.steps = n, .spacing = spacing}}; };
  };
  euler_family::check("diffusers_heun", eps, heun(euler_family::linspace()), reading);
  euler_family::check("diffusers_heun_karras", eps, heun(euler_family::karras()), reading);
  euler_family::check("k_diffusion_heun", eps,
                      [&](int n) {
                        return Heun{exact, SingleNetwork{}, {.steps = n, .spacing = Spacing::karras()}};
                      },
                      {.tolerance = 1e-12});
}

TEST_CASE("Heun of diffusers on flow matching") {
  const auto make = [](NoiseSchedule const& noise, SamplingOptions const& options) {
    return Heun{noise, SingleNetwork{}, options};
  };
  euler_family::check_flow("diffusers_flow_heun", make, {.tolerance = 1e-5, .two_a_step = true});
}

TEST_CASE("DPM-Solver-2 of k-diffusion and diffusers' KDPM2, deterministic and ancestral") {
  const euler_family::Reading reading{.tolerance = 1e-5, .two_a_step = true, .begins_at_sigma = true};
  for (double eta : {0., 1.}) {
    const std::string ancestral = eta > 0 ? "_ancestral" : "";
    euler_family::check("k_diffusion_dpm_2" + ancestral, eps,
                        [&](int n) {
                          return DPM2{exact, SingleNetwork{}, {.steps = n, .spacing = Spacing::karras()}, {.eta = eta}};
                        },
                        {.tolerance = 1e-12});
    euler_family::check(
        "diffusers_kdpm2" + ancestral, eps,
        [&](int n) {
          return DPM2{f32,
                      SingleNetwork{},
                      {.steps = n, .spacing = euler_family::linspace()},
                      {.eta = eta, .time_of_middle = TimeOfSigma::interpolated}};
        },
        reading);
  }
}

TEST_CASE("Heun and DPM-Solver-2 are of order 2") {
  const auto heun = [](NoiseSchedule const& noise, SamplingOptions const& options) {
    return Heun{noise, SingleNetwork{}, options};
  };
  const auto dpm2 = [](NoiseSchedule const& noise, SamplingOptions const& options) {
    return DPM2{noise, SingleNetwork{}, options};
  };
  CHECK(euler_family::order_of(exact, heun) > 1.85);
  CHECK(euler_family::order_of(exact, dpm2) > 1.85);
  CHECK(euler_family::order_of(NoiseSchedule::flow(), heun) > 1.85);
  CHECK(euler_family::order_of(NoiseSchedule::flow(), dpm2) > 1.85);
}

TEST_CASE("churned Heun and DPM-Solver-2 are k-diffusion's") {
  // sample_heun and sample_dpm_2(..., s_churn=3.0, s_tmin=0.05, s_tmax=60.0, s_noise=1.003), 7 steps, otherwise as
  // k_diffusion_heun and k_diffusion_dpm_2.
  const Churn churn{.s_churn = 3, .s_tmin = 0.05, .s_tmax = 60, .s_noise = 1.003};
  const SamplingOptions options{.steps = 7, .spacing = Spacing::karras()};
  const Request request{.initial_noise = golden::start(),
                        .noise_source = golden::noise_of({.draws = std::vector<int>(7, 1)})};
  const double heun[] = {0.90693614661166155, 0.45940738780764895, -1.3825866460737752, -0.31119775648165066,
                         -1.9532240301293275};
  const double dpm2[] = {0.79272368415827232, 0.68475349244720018, -0.29454690062912042, -0.853131307618333,
                         -0.91150063797505432};
  const at::Tensor x = Heun{exact, SingleNetwork{}, options, {churn}}.sample({eps}, request).images;
  const at::Tensor y = DPM2{exact, SingleNetwork{}, options, {.churn = churn}}.sample({eps}, request).images;
  for (int c = 0; c < 5; ++c) {
    CHECK(std::abs(x.const_data_ptr<double>()[c] - heun[c]) < 1e-12);
    CHECK(std::abs(y.const_data_ptr<double>()[c] - dpm2[c]) < 1e-12);
  }
}

TEST_CASE("the plan counts two evaluations where there are two") {
  int calls = 0;
  const auto counting = [&](Network const& network, NetworkInfo const& info) {
    return Network(
        [&calls, network](at::Tensor const& x, at::Tensor const& t) {
          ++calls;
          return network(x.to(at::kDouble), t.to(at::kDouble), {});
        },
        info);
  };
  const NoiseSchedule zero_snr = exact.with_zero_terminal_snr(), flow = NoiseSchedule::flow();
  const auto check = [&](NoiseSchedule const& noise, PredictionType type, FinalSigma end, int heun, int ancestral) {
    const NetworkInfo info{.prediction_type = type, .timestep_type = TimestepType::float32};
    const Network network = counting(golden::network(noise, info), info);
    const SamplingOptions options{
        .steps = 5, .spacing = noise.is_flow() ? Spacing::shifted() : Spacing::trailing(), .final_sigma = end};
    const auto run = [&](auto const& sampler, int expected) {
      calls = 0;
      const at::Tensor x = sampler.sample({network}, {.initial_noise = golden::start().to(at::kFloat)}).images;
      CHECK(x.scalar_type() == at::kFloat);
      CHECK(x.isfinite().all().template item<bool>());
      CHECK(calls == expected);
      CHECK(sampler.plan().calls() == std::vector<int>{expected});
    };
    INFO(noise.name());
    run(Heun{noise, SingleNetwork{}, options}, heun);
    run(DPM2{noise, SingleNetwork{}, options}, heun);
    run(DPM2{noise, SingleNetwork{}, options, {.eta = 1}}, ancestral);
  };
  check(exact, PredictionType::epsilon, FinalSigma::zero, 9, 9);
  check(exact, PredictionType::epsilon, FinalSigma::sigma_min, 10, 10);
  check(zero_snr, PredictionType::v_prediction, FinalSigma::zero, 8, 8);  // and the first step
  check(flow, PredictionType::flow, FinalSigma::zero, 9, 8);              // ancestral from pure noise goes down to x_0
}

TEST_CASE("Heun's last step leaves x_0 as it was thresholded") {
  const SamplingOptions options{.steps = 6, .thresholding = Thresholding::clip(0.3)};
  CHECK(Heun{exact, SingleNetwork{}, options}
            .sample({eps}, {.initial_noise = golden::start()})
            .images.abs()
            .max()
            .item<double>() <= 0.3);
}

TEST_CASE("what Heun and DPM-Solver-2 refuse") {
  CHECK_THROWS_WITH((Heun{exact, SingleNetwork{}, {}, {{.s_churn = -1}}}),
                    ContainsSubstring("Churn: s_churn must be at least 0, got -1"));
  CHECK_THROWS_WITH((DPM2{exact, SingleNetwork{}, {}, {.eta = -0.1}}),
                    ContainsSubstring("DPM2: eta must be in [0, 1], got -0.1"));
}
