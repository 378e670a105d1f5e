/// @file
/// How far from the exact end of the trajectory each profile stops after few steps, as a table.
///
///     accuracy                                 a Gaussian mixture, whose network has a closed form; exact by very many
///                                              steps
///     accuracy SMALL.pt LARGE.pt [N [DEVICE]]  a stitched pair too (N pictures, 8 unless given; cpu or cuda), against
///                                              its own 1000 steps; the small network takes t >= 600 under every
///                                              profile. Takes minutes on a CPU.

#include <tstitch/file/torchscript.hpp>
#include <tstitch/peer/profile.hpp>

#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <iostream>

using namespace tstitch;

namespace {

constexpr int step_counts[] = {5, 8, 10, 15, 20};

/// The exact network for data 0.3 N(-0.9, 0.2^2) + 0.7 N(0.6, 0.3^2), each element by itself; predicts x_0.
Network mixture(NoiseSchedule const& noise) {
  return Network(
      [noise](at::Tensor const& x, at::Tensor const& t) {
        const auto [alpha, sigma] = noise.at(t.select(0, 0).item<double>());
        // Each component's posterior mean, weighted with its posterior probability.
        at::Tensor sum = x.new_zeros(x.sizes()), total = sum.clone();
        for (auto const& [weight, mean, deviation] : {std::array{0.3, -0.9, 0.2}, std::array{0.7, 0.6, 0.3}}) {
          const double spread = deviation * deviation, variance = alpha * alpha * spread + sigma * sigma;
          const at::Tensor density =
              x.sub(alpha * mean).square_().mul_(-0.5 / variance).exp_().mul_(weight / std::sqrt(variance));
          sum.addcmul_(density, x.mul(alpha * spread / variance).add_(sigma * sigma * mean / variance));
          total.add_(density);
        }
        return sum.div_(total);
      },
      {.prediction_type = PredictionType::sample, .timestep_type = TimestepType::float32, .noise_schedule = noise});
}

/// Even in lambda: where steps are many, all spacings lead to the same end.
Spacing fine() {
  return {"fine", [](NoiseSchedule const& noise, int steps) {
            const double first = noise.lambda(noise.noisiest()), last = noise.lambda(0);
            std::vector<Timestep> list;
            for (int i = 0; i < steps; ++i) list.push_back(noise.point(first + (last - first) * i / (steps - 1)));
            return list;
          }};
}

/// One line a profile, one column a number of steps: the root of the mean square of what x is off.
void table(std::vector<Network> const& networks, AnyModelSchedule const& schedule, Request const& request,
           at::Tensor const& exact) {
  const NoiseSchedule& trained = networks[0].noise_schedule();
  std::printf("%-18s", "steps");
  for (int steps : step_counts) std::printf("%9d", steps);
  std::printf("\n");
  const auto row = [&](char const* name, auto make_profile) {
    std::printf("%-18s", name);
    for (int steps : step_counts) {
      auto profile = make_profile(trained, steps);
      profile.options.thresholding = Thresholding::automatic();  // every profile solves the same equation
      const at::Tensor x = make_sampler(profile, schedule).sample(networks, request).images;
      std::printf("%9.4f", std::sqrt(x.sub(exact).square().mean().template item<double>()));
      std::fflush(stdout);
    }
    std::printf("\n");
  };
  const auto with_eta_0 = [](auto make_profile) {
    return [make_profile](NoiseSchedule const& noise, int steps) { return make_profile(noise, steps, 0.0); };
  };
  row("recommended", profile::recommended);
  row("dit_ddim", with_eta_0(profile::dit_ddim));
  row("diffusers_ddim", profile::diffusers_ddim);
  row("diffusers_dpmpp", profile::diffusers_dpmpp);
  row("dpm_solver", profile::dpm_solver);
  row("k_diffusion", profile::k_diffusion);
  row("latent_diffusion", with_eta_0(profile::latent_diffusion));
}

}  // namespace

int main(int argc, char** argv) try {
  std::int64_t pictures = 8;
  const bool number = argc < 4 || std::from_chars(argv[3], argv[3] + std::strlen(argv[3]), pictures).ec == std::errc{};
  if (argc == 2 || argc > 5 || !number || pictures < 1) {
    std::cerr << "usage: accuracy [SMALL.pt LARGE.pt [PICTURES [DEVICE]]]\n";
    return 2;
  }
  {
    const std::vector<Network> networks{mixture(NoiseSchedule::linear())};
    const Request request{.initial_noise = noise({1, 2, 3, 4}, NoiseAddress::initial(), {1, 16, 16}, at::kDouble)};
    const DPMSolver solver{
        networks[0].noise_schedule(), SingleNetwork{}, {.steps = 4000, .spacing = fine()}, {.order = 3}};
    std::printf("Gaussian mixture, deviation 0.75\n");
    table(networks, SingleNetwork{}, request, solver.sample(networks, request).images);
  }
  if (argc > 2) {
    const auto networks = load_torchscript_networks(
        {argv[1], argv[2]}, {.device = at::Device(argc > 4 ? argv[4] : "cpu"), .dtype = at::kFloat});
    NetworkInfo const& info = networks[1].info();
    Request request{.count = pictures, .seed = 11, .guidance = {.scale = info.guidance_scale}};
    for (std::int64_t i = 0; i < pictures && info.num_classes; ++i) request.labels.push_back(i % info.num_classes);
    const ByTimestep schedule{{600}};
    const DPMSolver solver{networks[0].noise_schedule(), schedule, {.steps = 1000}};
    std::printf("%s and %s, %lld pictures, guidance %g, pixels in [-1, 1]\n", networks[0].info().name.c_str(),
                info.name.c_str(), static_cast<long long>(pictures), info.guidance_scale);
    std::fflush(stdout);
    table(networks, schedule, request, solver.sample(networks, request).images);
  }
} catch (std::exception const& error) {
  std::cerr << "accuracy: " << error.what() << "\n";
  return 1;
}
