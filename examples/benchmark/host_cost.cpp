/// @file
/// What the samplers themselves cost: microseconds a step around networks that cost nothing, on one thread.
///
/// Prints "name value" lines for host_cost.py, which runs diffusers' scheduler of the same name beside each. Their
/// loops do the same: [4, 3, 32, 32] float32, 50 steps, everything that a run needs, from the timesteps to the last x.

#include <ATen/Parallel.h>
#include <ATen/ops/arange.h>
#include <tstitch/tstitch.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

using namespace tstitch;

int main() {
  at::set_num_threads(1);
  const at::Tensor index = at::arange(4 * 3 * 32 * 32, at::kDouble).view({4, 3, 32, 32});
  const at::Tensor x = index.sin().to(at::kFloat), output = index.cos().to(at::kFloat);
  const auto network = [output](at::Tensor const&, at::Tensor const&) { return output; };
  const std::vector<Network> networks{network, network};

  const NoiseSchedule linear = NoiseSchedule::linear();
  const Stitch stitch{.ratio = 0.4};
  constexpr int steps = 50, runs = 300, warm_up = 50;
  const auto measure = [&](char const* name, auto const& sampler) {
    std::vector<double> microseconds;
    at::Tensor last;
    for (int run = 0; run < warm_up + runs; ++run) {
      const auto start = std::chrono::steady_clock::now();
      Trajectory trajectory = sampler.begin(networks, {.initial_noise = x});
      while (!trajectory.finished()) sampler.advance(networks, trajectory);
      const std::chrono::duration<double, std::micro> spent = std::chrono::steady_clock::now() - start;
      if (run >= warm_up) microseconds.push_back(spent.count() / steps);
      last = trajectory.x;
    }
    std::nth_element(microseconds.begin(), microseconds.begin() + runs / 2, microseconds.end());
    std::printf("%s %.3f\n", name, microseconds[runs / 2]);
    std::printf("%s_result %.9g\n", name, last.square().sum(at::kDouble).item<double>());
  };
  const SamplingOptions leading{.steps = steps, .spacing = Spacing::leading()};
  SamplingOptions clipped = leading;
  clipped.thresholding = Thresholding::clip();
  const SamplingOptions even{.steps = steps, .spacing = Spacing::linspace({.include_last = false})};
  SamplingOptions to_sigma_min = even;
  to_sigma_min.final_sigma = FinalSigma::sigma_min;
  measure("DDIM", DDIM{linear, stitch, leading});
  measure("DDIM_clipped", DDIM{linear, stitch, clipped});
  measure("DDPM", DDPM{linear, stitch, leading, {Variance::fixed_small}});
  measure("DPMSolverMultistep_2", DPMSolver{linear, stitch, even});
  measure("DPMSolverMultistep_3", DPMSolver{linear, stitch, even, {.order = 3}});
  measure("DPMSolverMultistep_SDE", DPMSolver{linear, stitch, even, {.eta = 1}});
  measure("DEIS_2", DEIS{linear, stitch, to_sigma_min});
  measure("Euler", Euler{linear, stitch, even});
  measure("EulerAncestral", EulerAncestral{linear, stitch, even});
  measure("Heun", Heun{linear, stitch, even});
  measure("KDPM2", DPM2{linear, stitch, even});
  measure("LMS", LMS{linear, stitch, even});
  measure("PNDM", PNDM{linear, stitch, leading});
  measure("UniPC", UniPC{linear, stitch, even});
}
