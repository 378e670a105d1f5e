// DEIS: beside diffusers' own code, and its order.

#include <tstitch/method/deis.hpp>

#include "euler_family.hpp"

using namespace tstitch;

namespace {

const NoiseSchedule exact = NoiseSchedule::linear(), f32 = golden::float32_linear();

auto like_diffusers(int steps, int order) {
  return DEIS{
      f32,
      SingleNetwork{},
      {.steps = steps, .spacing = Spacing::linspace({.include_last = false}), .final_sigma = FinalSigma::sigma_min},
      {.order = order}};
}

}  // namespace

TEST_CASE("DEIS of diffusers") {
  euler_family::check("diffusers_deis_order2", golden::network(exact), [](int n) { return like_diffusers(n, 2); },
                      {.tolerance = 1e-5});
  // Its closed forms subtract nearly equal numbers in float32: 9.9e-5 at 25 steps. The same code with its sigmas in
  // float64 ends where we do.
  euler_family::check("diffusers_deis_order3", golden::network(exact), [](int n) { return like_diffusers(n, 3); },
                      {.tolerance = 1.5e-4});
  const double in_float64[] = {0.805948211408, 0.113031252605, 0.99679090065, -0.752875673627, 0.684546631715};
  const at::Tensor x =
      like_diffusers(25, 3).sample({golden::network(exact)}, {.initial_noise = golden::start()}).images;
  for (int c = 0; c < 5; ++c) CHECK(std::abs(x.const_data_ptr<double>()[c] - in_float64[c]) < 1e-6);
}

TEST_CASE("DEIS converges with its order") {
  for (int order : {1, 2, 3}) {
    INFO("order " << order);
    const auto make = [&](NoiseSchedule const& noise, SamplingOptions const& options) {
      return DEIS{noise, SingleNetwork{}, options, {.order = order}};
    };
    CHECK(euler_family::order_of(NoiseSchedule::linear(), make) > order - 0.15);
  }
}

TEST_CASE("DEIS ends at x_0 too, on diffusion and on flow matching") {
  const NoiseSchedule flow = NoiseSchedule::flow();
  for (NoiseSchedule const& noise : {exact, flow}) {
    const bool is_flow = noise.is_flow();
    const Network network =
        golden::network(noise, {.prediction_type = is_flow ? PredictionType::flow : PredictionType::epsilon,
                                .timestep_type = TimestepType::float32});
    const Spacing spacing = is_flow ? Spacing::shifted(3) : Spacing::trailing();
    const at::Tensor x = DEIS{noise, SingleNetwork{}, {.steps = 60, .spacing = spacing}}
                             .sample({network}, {.initial_noise = golden::start()})
                             .images;
    const at::Tensor fine = DEIS{noise, SingleNetwork{}, {.steps = 500, .spacing = spacing}}
                                .sample({network}, {.initial_noise = golden::start()})
                                .images;
    CHECK(x.sub(fine).abs().max().item<double>() < 0.05);
  }
}

TEST_CASE("what DEIS refuses") {
  CHECK_THROWS_WITH((DEIS{exact, SingleNetwork{}, {}, {.order = 4}}),
                    ContainsSubstring("DEIS: order must be 1, 2 or 3, got 4"));
  CHECK_THROWS_WITH((DEIS{exact, SingleNetwork{}, {}, {.lower_order_final_below = -1}}),
                    ContainsSubstring("DEIS: lower_order_final_below must not be negative, got -1"));
}
