/// @file
/// What the sampler itself costs: microseconds a step around networks that cost nothing, on one thread.
///
/// Prints "name value" lines for host_cost.py, which runs diffusers beside it. Their loops do the same: [4, 3, 32, 32]
/// float32, 50 deterministic DDIM steps, everything that a run needs, from the timesteps to the last x.

#include <ATen/Parallel.h>
#include <ATen/ops/arange.h>
#include <tstitch/sampler/ddim.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

int main() {
  at::set_num_threads(1);
  const at::Tensor index = at::arange(4 * 3 * 32 * 32, at::kDouble).view({4, 3, 32, 32});
  const at::Tensor x = index.sin().to(at::kFloat), output = index.cos().to(at::kFloat);
  const auto network = [output](at::Tensor const&, at::Tensor const&) { return output; };
  const std::vector<tstitch::Network> networks{network, network};

  const auto measure = [&](char const* name, tstitch::Thresholding thresholding) {
    constexpr int steps = 50, runs = 400, warm_up = 50;
    const tstitch::DDIM sampler{tstitch::NoiseSchedule::linear(),
                                tstitch::Stitch{.ratio = 0.4},
                                {.steps = steps, .spacing = tstitch::Spacing::leading(), .thresholding = thresholding}};
    std::vector<double> microseconds;
    at::Tensor last;
    for (int run = 0; run < warm_up + runs; ++run) {
      const auto start = std::chrono::steady_clock::now();
      tstitch::Trajectory trajectory = sampler.begin(networks, {.initial_noise = x});
      while (!trajectory.finished()) sampler.advance(networks, trajectory);
      const std::chrono::duration<double, std::micro> spent = std::chrono::steady_clock::now() - start;
      if (run >= warm_up) microseconds.push_back(spent.count() / steps);
      last = trajectory.x;
    }
    std::nth_element(microseconds.begin(), microseconds.begin() + runs / 2, microseconds.end());
    std::printf("%s %.3f\n", name, microseconds[runs / 2]);
    std::printf("%s_result %.9g\n", name, last.square().sum(at::kDouble).item<double>());
  };
  measure("plain", tstitch::Thresholding::none());
  measure("clipped", tstitch::Thresholding::clip(1));
}
