// Our samplers beside the peers' own code, whole trajectories.

#include "../golden.hpp"

#include <tstitch/tstitch.hpp>

using namespace tstitch;

namespace {

/// diffusers keeps alphas_cumprod in float32: beta in float32, the product in double, rounded at every timestep.
NoiseSchedule float32_linear() {
  std::vector<double> alphas_cumprod;
  const float step = (0.02f - 1e-4f) / 999;
  double product = 1;
  for (int i = 0; i < 1000; ++i) {
    // torch.linspace counts from both ends.
    const float beta = i < 500 ? 1e-4f + step * float(i) : 0.02f - step * float(999 - i);
    product *= double(1.0f - beta);
    alphas_cumprod.push_back(double(float(product)));
  }
  return NoiseSchedule::from_alphas_cumprod(alphas_cumprod);
}

const NoiseSchedule exact = NoiseSchedule::linear();

/// The same table, rounded to float32.
NoiseSchedule rounded(NoiseSchedule const& noise) {
  std::vector<double> alphas_cumprod;
  for (double value : noise.alphas_cumprod()) alphas_cumprod.push_back(double(float(value)));
  return NoiseSchedule::from_alphas_cumprod(alphas_cumprod);
}
const Network eps = golden::network(exact);
const Network eps_any_t = golden::network(exact, {.timestep_type = TimestepType::float32});
const Network learned = golden::network(exact, {.learned_variance = true});

}  // namespace

TEST_CASE("DDPM and DDIM of guided-diffusion, which are DiT's") {
  const SamplingOptions options{.spacing = Spacing::sections()};
  const auto with = [&](int steps) {
    SamplingOptions o = options;
    o.steps = steps;
    return o;
  };
  golden::check("guided_diffusion_ddpm", learned, [&](int n) { return DDPM{exact, SingleNetwork{}, with(n)}; });
  golden::check("guided_diffusion_ddim", learned, [&](int n) { return DDIM{rounded(exact), SingleNetwork{}, with(n)}; });
  golden::check("guided_diffusion_ddim_eta1", learned, [&](int n) {
    return DDIM{exact, SingleNetwork{}, with(n), {.eta = 1}};
  });
}

TEST_CASE("DDIM of diffusers") {
  const auto f32 = float32_linear();
  golden::check("diffusers_ddim", eps, [&](int n) {
    return DDIM{f32,
                SingleNetwork{},
                {.steps = n,
                 .spacing = Spacing::leading(),
                 .thresholding = Thresholding::clip(),
                 .previous_timestep = PreviousTimestep::by_stride},
                {.eps_of_thresholded = false}};
  });
  golden::check("diffusers_ddim_linspace", eps, [&](int n) {
    return DDIM{f32,
                SingleNetwork{},
                {.steps = n,
                 .spacing = Spacing::linspace(),
                 .thresholding = Thresholding::clip(),
                 .previous_timestep = PreviousTimestep::by_stride},
                {.eps_of_thresholded = false}};
  });
}

TEST_CASE("multistep DPM-Solver++ of diffusers, dpm_solver and k-diffusion") {
  const auto f32 = float32_linear();
  golden::check("diffusers_dpmpp", eps, [&](int n) {
    return DPMSolver{f32, SingleNetwork{}, {.steps = n, .spacing = Spacing::linspace({.include_last = false})}};
  });
  golden::check("dpm_solver_multistep2", eps_any_t, [&](int n) {
    return DPMSolver{exact,
                     SingleNetwork{},
                     {.steps = n,
                      .spacing = Spacing::linspace({.include_last = false, .round = false}),
                      .final_sigma = FinalSigma::sigma_min},
                     {.lower_order_final_below = 10}};
  });
  golden::check("k_diffusion_dpmpp_2m", eps_any_t, [&](int n) {
    return DPMSolver{
        exact, SingleNetwork{}, {.steps = n, .spacing = Spacing::karras()}, {.lower_order_final_below = 0}};
  });
}
