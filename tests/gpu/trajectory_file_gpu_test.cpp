// A run that was saved on a GPU goes on there to its own bits, and on the CPU to the same picture up to rounding.
// Without a GPU this prints why it is skipped and ends.
#include <tstitch/file/torchscript.hpp>
#include <tstitch/file/trajectory_file.hpp>
#include <tstitch/load.hpp>
#include <tstitch/tstitch.hpp>

#include <filesystem>
#include <string>
#include <vector>

#include "gpu.hpp"

using namespace tstitch;

namespace {

const bool gpu = require_gpus(1);

std::vector<Network> pair_on(at::Device device) {
  return load_networks({TSTITCH_MODELS "/cifar10_dit_small.pt", TSTITCH_MODELS "/cifar10_dit_large.pt"},
                       {.device = device, .dtype = at::kFloat});
}

}  // namespace

TEST_CASE("a run that was saved on a GPU goes on there and on the CPU") {
  const std::vector<std::string> fingerprints{"small", "large"};
  const std::vector<Network> networks = pair_on({at::kCUDA, 0}), others = pair_on({at::kCUDA, 0}),
                             on_host = pair_on(at::kCPU);
  std::filesystem::create_directories(TSTITCH_TEST_DATA);
  const std::string path = TSTITCH_TEST_DATA "/gpu.run";
  Request request{.labels = {1, 3}, .seed = 7};
  request.guidance = {.scale = 2, .projected = ProjectedGuidance{.eta = 0.5, .momentum = -0.5}};
  request.guidance.forecast = ForecastEvery{.every = 2, .order = 0, .warm_up = 1};
  request.initial_image = noise({1}, NoiseAddress::initial(), {3, 32, 32}, at::kFloat).clamp(-1, 1);
  request.mask = noise({2}, NoiseAddress::initial(), {1, 32, 32}, at::kFloat).sigmoid();
  const AnySampler samplers[] = {DPMSolver{networks[0].noise_schedule(),
                                           Stitch{.ratio = 0.3},
                                           {.steps = 12, .forecast = ForecastEvery{.every = 2, .warm_up = 1}},
                                           {.order = 3}},
                                 UniPC{networks[0].noise_schedule(), Stitch{.ratio = 0.3}, {.steps = 12}},
                                 DDPM{networks[0].noise_schedule(), Stitch{.ratio = 0.3}, {.steps = 12}}};
  for (AnySampler const& sampler : samplers) {
    Trajectory run = sampler.begin(networks, request);
    const at::Tensor alone = sampler.finish(networks, run).images;
    for (int step = 0; step < 12; step += 3) {
      INFO(sampler.plan().sampler << " after " << step);
      save_trajectory(path, sampler, run, fingerprints);
      const Trajectory again = load_trajectory(path, sampler, others, {.fingerprints = fingerprints});
      CHECK(again.x.is_cuda());
      CHECK(again.x.equal(run.x));
      CHECK(sampler.finish(others, again).images.equal(alone));
      const Trajectory there = load_trajectory(path, sampler, on_host, {.fingerprints = fingerprints});
      CHECK(there.x.is_cpu());
      CHECK(there.x.equal(run.x.cpu()));
      CHECK(there.history.size() == run.history.size());
      CHECK(sampler.finish(on_host, there).images.sub(alone.cpu()).abs().max().item<double>() < 0.05);
      for (int k = 0; k < 3; ++k) sampler.advance(networks, run);
    }
  }
}
