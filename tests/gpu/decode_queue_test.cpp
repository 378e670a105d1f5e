// What only two GPUs can show. Without them this prints why it is skipped and ends.
#include <tstitch/output/decode_queue.hpp>
#include <tstitch/tensor/cuda/kernels.hpp>
#include <tstitch/tensor/noise.hpp>

#include "gpu.hpp"

using namespace tstitch;

namespace {

const bool gpus = require_gpus(2);

/// It takes a while, on whichever device its latents are.
const Decoder slow({[](at::Tensor const& z) {
                      at::Tensor x = z.clone();
                      for (int i = 0; i < 200; ++i) x.add_(1.0f).sub_(1.0f);
                      return x.mul_(0).add_(z);
                    },
                    {.latent_channels = 3, .upsampling = 1}});

}  // namespace

TEST_CASE("one queue decodes latents of several GPUs, each on a stream of its own device") {
  DecodeQueue queue(slow);
  const std::vector<std::uint64_t> seeds{1, 2, 3, 4};
  const auto latents = [&](at::Device device) {
    return noise(seeds, NoiseAddress::initial(), {3, 512, 512}, at::TensorOptions().dtype(at::kFloat).device(device));
  };
  const std::vector<Picture> expected = to_pictures(latents(at::kCPU));
  for (int i = 0; i < 6; ++i) queue.push(latents({at::kCUDA, at::DeviceIndex(i % 2)}));
  for (int i = 0; i < 6; ++i) {
    const std::vector<Picture> got = queue.pop();
    REQUIRE(got.size() == expected.size());
    for (std::size_t k = 0; k < got.size(); ++k) CHECK(got[k].pixels == expected[k].pixels);
  }
}
