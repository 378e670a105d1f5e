/// @file
/// Compatibility profiles: what other programs mean by a sampler's name, as values to use, read and edit.
///
/// "DPM-Solver++(2M), 10 steps" is another trajectory in diffusers, in the authors' dpm_solver and in k-diffusion. A
/// profile names one of them and gives its numbers:
///
///     const auto profile = tstitch::profile::diffusers_dpmpp(network.noise_schedule(), 20);
///     const auto sampler = tstitch::make_sampler(profile, tstitch::Stitch{.ratio = 0.4});
///     const auto samples = sampler.sample(networks, tstitch::apply(profile, request));
///
/// `make_sampler(profile, 0.4)` routes as T-Stitch's code does under that program, or as Stitch where it has no rule,
/// and `apply(profile, request, seed)` draws the random numbers that the program draws.
///
/// Profiles are for reproducing. Where a program has a fault (diffusers' DDIM steps to a timestep that the list does
/// not have), its profile has it too, and says so.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>

#include "../method/ddim.hpp"
#include "../method/ddpm.hpp"
#include "../method/dpm_solver.hpp"
#include "../method/euler.hpp"
#include "../method/lcm.hpp"
#include "../method/pndm.hpp"
#include "../method/unipc.hpp"
#include "reference_routing.hpp"
#include "torch_noise.hpp"

namespace tstitch {

/// What a program does, apart from the network.
template <class Rule>
struct Profile {
  NoiseSchedule noise_schedule;  ///< with the program's table precision
  SamplingOptions options;
  Rule rule = {};
  int guidance_channels = 0;    ///< see Guidance::channels
  NoiseOrder noise_order = {};  ///< for TorchNoise
  /// How the program lays even timesteps: its "leading" is Spacing::leading(offset, grid), its "linspace" that of it.
  Grid grid = {};
  std::string routing = {};  ///< how T-Stitch's code routes under it, a name of routing::named(); empty: not at all
};

/// A sampler that does what the profile says under any model schedule.
template <class Rule, class Schedule>
requires(!std::is_arithmetic_v<Schedule>) Sampler<Rule, Schedule> make_sampler(Profile<Rule> const& profile,
                                                                               Schedule model_schedule) {
  return Sampler<Rule, Schedule>(profile.noise_schedule, std::move(model_schedule), profile.options, profile.rule);
}

/// How the profile routes: as T-Stitch's code does under the program, or as Stitch where it has none for it.
/// @param ratio in [0, 1], share of the steps for the first of two networks
template <class Rule>
AnyModelSchedule routing_of(Profile<Rule> const& profile, double ratio) {
  return model_schedule_by_name(profile.routing.empty() ? "stitch" : profile.routing,
                                {.ratio = ratio, .num_train_timesteps = profile.noise_schedule.num_train_timesteps()},
                                routing::named());
}

/// A sampler that does what the profile says, and routes as it does.
/// @param ratio in [0, 1], share of the steps for the first of two networks
template <class Rule>
Sampler<Rule, AnyModelSchedule> make_sampler(Profile<Rule> const& profile, double ratio) {
  return make_sampler(profile, routing_of(profile, ratio));
}

/// The request with the profile's part of it: the channels that the program guides.
template <class Rule>
Request apply(Profile<Rule> const& profile, Request request) {
  request.guidance.channels = profile.guidance_channels;
  return request;
}

/// The same with the random numbers that the program draws after `torch.manual_seed(torch_seed)` on the CPU. They are
/// for one batch, see TorchNoise; the seeds of images make no difference.
template <class Rule>
Request apply(Profile<Rule> const& profile, Request request, std::uint64_t torch_seed) {
  request = apply(profile, std::move(request));
  request.noise_source = TorchNoise(torch_seed, profile.noise_order);
  return request;
}

/// @param trained the schedule that the network was trained with
/// @param steps what the program would be asked for
namespace profile {

/// What this library recommends for 5 to 30 steps: UniPC of order 2 on the predicted x_0, to x_0, on whole timesteps
/// that are denser at both ends, most where there is little noise. Its error is the smallest of all profiles here on a
/// closed form and on the bundled pair under guidance, on which sampler, a and b were chosen; docs/figures.md has the
/// table, and examples/benchmark/accuracy.cpp makes it. On the closed form, which knows no guidance, predict_x_0 =
/// false is better by two times and more; on the pair, with guidance 2 and few steps, it is unstable.
inline Profile<UniPCUpdate> recommended(NoiseSchedule const& trained, int steps) {
  return {.noise_schedule = trained,
          .options = {.steps = steps, .spacing = Spacing::beta(0.7, 0.8, {.include_last = false, .round = true})},
          .rule = {.order = 2}};
}

/// DiT's sampler, which is guided-diffusion's on respaced timesteps: DDPM with the learned range, nothing clipped
/// (latents), guidance on 3 of 4 channels.
inline Profile<DDPMUpdate> dit(NoiseSchedule const& trained, int steps) {
  return {.noise_schedule = trained,
          .options = {.steps = steps, .spacing = Spacing::sections(), .thresholding = Thresholding::none()},
          .guidance_channels = 3,
          .noise_order = {.rows_per_image = 2},
          .routing = "dit"};
}

/// The same code's DDIM.
inline Profile<DDIMUpdate> dit_ddim(NoiseSchedule const& trained, int steps, double eta = 0) {
  const Profile<DDPMUpdate> ddpm = dit(trained, steps);
  return {ddpm.noise_schedule, ddpm.options, {.eta = eta}, ddpm.guidance_channels,
          ddpm.noise_order,    ddpm.grid,    ddpm.routing};
}

/// diffusers' DDPMScheduler as it comes: x_0 clipped, fixed small variance.
inline Profile<DDPMUpdate> diffusers_ddpm(NoiseSchedule const& trained, int steps) {
  return {.noise_schedule = trained.in_float32(),
          .options = {.steps = steps, .spacing = Spacing::leading(), .thresholding = Thresholding::clip()},
          .rule = {.variance = Variance::fixed_small, .noise_in_last_step = true, .float32_beta = true},
          .routing = "stable-diffusion"};
}

/// diffusers' DDIMScheduler as it comes: x_0 clipped, eps the network's own. Steps lead to t - floor(T / N), which
/// under spacings other than leading is not where the next one begins.
inline Profile<DDIMUpdate> diffusers_ddim(NoiseSchedule const& trained, int steps) {
  return {.noise_schedule = trained.in_float32(),
          .options = {.steps = steps,
                      .spacing = Spacing::leading(),
                      .thresholding = Thresholding::clip(),
                      .previous_timestep = PreviousTimestep::by_stride},
          .rule = {.eps_of_thresholded = false},
          .routing = "stable-diffusion"};
}

/// diffusers' DPMSolverMultistepScheduler as it comes: DPM-Solver++(2M), to x_0.
inline Profile<DPMSolverUpdate> diffusers_dpmpp(NoiseSchedule const& trained, int steps) {
  return {.noise_schedule = trained.in_float32(),
          .options = {.steps = steps,
                      .spacing = Spacing::linspace({.include_last = false}),
                      .thresholding = Thresholding::none()},
          .rule = {.published_third_order = true},
          .grid = {.include_last = false},
          .routing = "stable-diffusion"};
}

/// diffusers' PNDMScheduler as Stable Diffusion's folders configure it: PLMS, timesteps that end at 1, to the noise
/// level of t = 0. diffusers counts one step more, because its first one evaluates twice.
inline Profile<PNDMUpdate> diffusers_pndm(NoiseSchedule const& trained, int steps) {
  return {.noise_schedule = trained.in_float32(),
          .options = {.steps = steps,
                      .spacing = Spacing::leading(1),
                      .final_sigma = FinalSigma::sigma_min,
                      .thresholding = Thresholding::none()},
          .routing = "stable-diffusion"};
}

/// diffusers' EulerDiscreteScheduler as the folders of SDXL configure it: Euler's method on timesteps that end at 1, to
/// x_0.
inline Profile<EulerUpdate> diffusers_euler(NoiseSchedule const& trained, int steps) {
  return {.noise_schedule = trained.in_float32(),
          .options = {.steps = steps, .spacing = Spacing::leading(1), .thresholding = Thresholding::none()},
          .routing = "stable-diffusion"};
}

/// diffusers' FlowMatchEulerDiscreteScheduler with the shift of the noise schedule: Euler's method, to x_0.
inline Profile<EulerUpdate> diffusers_flow_euler(NoiseSchedule const& trained, int steps) {
  return {.noise_schedule = trained,
          .options = {.steps = steps, .spacing = Spacing::flow_match_euler(), .thresholding = Thresholding::none()}};
}

/// diffusers' UniPCMultistepScheduler as Wan's folders configure it: flow sigmas with the shift of the noise schedule,
/// order 2, bh2, on the predicted x_0, to x_0. The network is told whole timesteps. Where so many steps are asked for
/// that the first two have one timestep, diffusers leaves out the first; this does not.
inline Profile<UniPCUpdate> diffusers_flow_unipc(NoiseSchedule const& trained, int steps) {
  return {.noise_schedule = trained,
          .options = {.steps = steps, .spacing = Spacing::flow_unipc(), .thresholding = Thresholding::none()}};
}

/// diffusers' DPMSolverMultistepScheduler as Sana's folders configure it: flow sigmas with the shift of the noise
/// schedule, DPM-Solver++(2M), to x_0. Whole timesteps and first steps are as above.
inline Profile<DPMSolverUpdate> diffusers_flow_dpmpp(NoiseSchedule const& trained, int steps) {
  return {.noise_schedule = trained,
          .options = {.steps = steps, .spacing = Spacing::flow_dpm_solver(), .thresholding = Thresholding::none()},
          .rule = {.published_third_order = true}};
}

/// diffusers' LCMScheduler as it comes, for latent consistency models.
inline Profile<LCMUpdate> diffusers_lcm(NoiseSchedule const& trained, int steps) {
  return {.noise_schedule = trained.in_float32(),
          .options = {.steps = steps, .spacing = lcm_timesteps(), .thresholding = Thresholding::none()},
          .routing = "latent-consistency"};
}

/// The authors' dpm_solver_pytorch, method="multistep", order 2, skip_type="time_uniform". It ends at the noise level
/// of t = 0, not at x_0, and hands fractional timesteps to the network: state TimestepType::float32 to follow it there.
inline Profile<DPMSolverUpdate> dpm_solver(NoiseSchedule const& trained, int steps) {
  return {.noise_schedule = trained,
          .options = {.steps = steps,
                      .spacing = Spacing::linspace({.include_last = false, .round = false}),
                      .final_sigma = FinalSigma::sigma_min,
                      .thresholding = Thresholding::none()},
          .rule = {.lower_order_final_below = 10, .published_third_order = true},
          .grid = {.include_last = false, .round = false}};
}

/// k-diffusion's sample_dpmpp_2m on get_sigmas_karras with rho 7. It hands fractional timesteps to the network.
inline Profile<DPMSolverUpdate> k_diffusion(NoiseSchedule const& trained, int steps) {
  return {.noise_schedule = trained,
          .options = {.steps = steps,
                      .spacing = Spacing::karras(7, {.time = TimeOfSigma::interpolated}),
                      .thresholding = Thresholding::none()},
          .rule = {.lower_order_final_below = 0, .published_third_order = true}};
}

/// CompVis' latent-diffusion DDIMSampler, "uniform": every floor(T / N)-th timestep plus 1, which are more than N where
/// N does not divide T; `options.steps` says how many. It ends at the noise level of t = 0.
inline Profile<DDIMUpdate> latent_diffusion(NoiseSchedule const& trained, int steps, double eta = 0) {
  const int count = trained.num_train_timesteps();
  if (steps < 1 || steps > count) {
    tstitch::detail::refuse("profile::latent_diffusion", "steps must be in [1, " + std::to_string(count) + "]", steps);
  }
  const int stride = count / steps;
  std::vector<double> timesteps;
  for (int t = (count - 1) / stride * stride; t >= 0; t -= stride) timesteps.push_back(t + 1);
  return {.noise_schedule = trained.rounded_to_float32(),
          .options = {.steps = int(timesteps.size()),
                      .spacing = Spacing::list(std::move(timesteps)),
                      .final_sigma = FinalSigma::sigma_min,
                      .thresholding = Thresholding::none()},
          .rule = {.eta = eta},
          .routing = "latent-diffusion"};
}

}  // namespace profile
}  // namespace tstitch
