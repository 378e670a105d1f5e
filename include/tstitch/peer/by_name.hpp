/// @file
/// Profiles by name, for programs, configuration files and help texts. Opt-in.
///
///     const AnyProfile profile = profile_by_name("diffusers-ddim", noise_schedule, 50);
///     const AnySampler sampler = make_sampler(profile, 0.4);
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "../base/text.hpp"
#include "../sampler/any_sampler.hpp"
#include "profile.hpp"

namespace tstitch {

/// A profile whose rule is chosen at run time.
using AnyProfile = Profile<AnyUpdateRule>;

/// The same profile with its rule as any rule.
template <class Rule>
AnyProfile any_profile(Profile<Rule> profile) {
  return {std::move(profile.noise_schedule), std::move(profile.options), std::move(profile.rule),
          profile.guidance_channels,         profile.noise_order,        profile.grid,
          std::move(profile.routing)};
}

/// A profile as programs list it.
struct NamedProfile {
  std::string name;
  std::string help;  ///< whose it is, in a line
  AnyProfile (*make)(NoiseSchedule const& trained, int steps);
};

/// All profiles.
inline std::vector<NamedProfile> const& profiles() {
  using Noise = NoiseSchedule;
  static const std::vector<NamedProfile> list{
      {"recommended", "what this library recommends for 5 to 30 steps",
       [](Noise const& trained, int steps) { return any_profile(profile::recommended(trained, steps)); }},
      {"dit", "DiT's DDPM", [](Noise const& trained, int steps) { return any_profile(profile::dit(trained, steps)); }},
      {"dit-ddim", "DiT's DDIM",
       [](Noise const& trained, int steps) { return any_profile(profile::dit_ddim(trained, steps)); }},
      {"diffusers-ddpm", "diffusers' DDPMScheduler",
       [](Noise const& trained, int steps) { return any_profile(profile::diffusers_ddpm(trained, steps)); }},
      {"diffusers-ddim", "diffusers' DDIMScheduler",
       [](Noise const& trained, int steps) { return any_profile(profile::diffusers_ddim(trained, steps)); }},
      {"diffusers-dpmpp", "diffusers' DPMSolverMultistepScheduler",
       [](Noise const& trained, int steps) { return any_profile(profile::diffusers_dpmpp(trained, steps)); }},
      {"diffusers-pndm", "diffusers' PNDMScheduler as Stable Diffusion has it",
       [](Noise const& trained, int steps) { return any_profile(profile::diffusers_pndm(trained, steps)); }},
      {"diffusers-euler", "diffusers' EulerDiscreteScheduler as SDXL has it",
       [](Noise const& trained, int steps) { return any_profile(profile::diffusers_euler(trained, steps)); }},
      {"diffusers-flow-euler", "diffusers' FlowMatchEulerDiscreteScheduler",
       [](Noise const& trained, int steps) { return any_profile(profile::diffusers_flow_euler(trained, steps)); }},
      {"diffusers-flow-unipc", "diffusers' UniPCMultistepScheduler as Wan has it",
       [](Noise const& trained, int steps) { return any_profile(profile::diffusers_flow_unipc(trained, steps)); }},
      {"diffusers-flow-dpmpp", "diffusers' DPMSolverMultistepScheduler as Sana has it",
       [](Noise const& trained, int steps) { return any_profile(profile::diffusers_flow_dpmpp(trained, steps)); }},
      {"diffusers-lcm", "diffusers' LCMScheduler",
       [](Noise const& trained, int steps) { return any_profile(profile::diffusers_lcm(trained, steps)); }},
      {"dpm-solver", "the authors' dpm_solver_pytorch",
       [](Noise const& trained, int steps) { return any_profile(profile::dpm_solver(trained, steps)); }},
      {"k-diffusion", "k-diffusion's sample_dpmpp_2m",
       [](Noise const& trained, int steps) { return any_profile(profile::k_diffusion(trained, steps)); }},
      {"latent-diffusion", "CompVis' DDIMSampler",
       [](Noise const& trained, int steps) { return any_profile(profile::latent_diffusion(trained, steps)); }},
  };
  return list;
}

/// The profile of this name.
/// @param trained the schedule that the network was trained with
/// @param steps what the program would be asked for
/// @throws std::invalid_argument for a name that there is not, with those that there are, and for steps that the
/// profile refuses
inline AnyProfile profile_by_name(std::string const& name, NoiseSchedule const& trained, int steps) {
  return detail::find_named("profile_by_name", profiles(), name).make(trained, steps);
}

}  // namespace tstitch
