// Requests drawn together on a GPU. Without one this prints why it is skipped and ends.
#include <tstitch/load.hpp>
#include <tstitch/scale/batcher.hpp>
#include <tstitch/tstitch.hpp>

#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "../catch.hpp"
#include "gpu.hpp"

using namespace tstitch;

namespace {

const bool gpu = require_gpus(1);
const at::Device cuda{at::kCUDA, 0};

std::vector<Network> pair(Graphs graphs) {
  LoadOptions options{.device = cuda, .graphs = graphs};
  return load_networks({TSTITCH_MODELS "/cifar10_dit_small.pt", TSTITCH_MODELS "/cifar10_dit_large.pt"}, options);
}

}  // namespace

TEST_CASE("requests of several threads, each with a stream of its own, have the bits that they have alone") {
  const std::vector<Network> networks = pair(GENERATE(Graphs::never, Graphs::always));
  Batcher batcher(networks, {.batch_size = 8, .pad_batches = true});
  std::atomic<int> different = 0, done = 0;
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      const c10::StreamGuard own(c10::impl::VirtualGuardImpl(at::kCUDA).getStreamFromGlobalPool(cuda));
      std::vector<std::pair<BatcherTicket, at::Tensor>> tickets;
      for (int k = 0; k < 6; ++k) {
        const DDIM sampler{
            networks[0].noise_schedule(), Stitch{k / 5.0}, {.steps = 3 + (thread + k) % 4}, {.eta = k % 2 * 0.5}};
        Request request{.labels = {(thread + k) % 10}, .seed = std::uint64_t(10 * thread + k)};
        request.guidance.scale = k % 3 ? 1.5 : 1;
        request.batch_size = 8;
        request.pad_batches = true;
        const at::Tensor expected = sampler.sample(networks, request).images.cpu();
        tickets.emplace_back(batcher.submit(sampler, request), expected);
      }
      for (auto const& [ticket, expected] : tickets) {
        different += !ticket.wait().images.cpu().equal(expected);
        ++done;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(done == 24);
  CHECK(different == 0);
}

TEST_CASE("a request on a GPU can be looked at, cancelled, and be no number") {
  const std::vector<Network> networks = pair(Graphs::never);
  Batcher batcher(networks, {.batch_size = 4});
  const DDIM sampler{networks[0].noise_schedule(), Stitch{0.5}, {.steps = 400}};
  const BatcherTicket ticket = batcher.submit(sampler, {.labels = {3}});
  while (ticket.progress().done < 3) std::this_thread::yield();
  const at::Tensor preview = ticket.preview();
  CHECK(preview.sizes() == at::IntArrayRef({1, 3, 32, 32}));
  CHECK(preview.isfinite().all().item<bool>());
  ticket.cancel();
  CHECK_FALSE(ticket.wait().finished);
  Request broken{.labels = {3}};
  broken.initial_noise = detail::host_tensor({1, 3, 32, 32}, at::kFloat).fill_(std::numeric_limits<float>::infinity());
  const DDIM short_sampler{networks[0].noise_schedule(), Stitch{0.5}, {.steps = 3}};
  const BatcherTicket bad = batcher.submit(short_sampler, broken),
                      good = batcher.submit(short_sampler, {.labels = {3}});
  CHECK_THAT(message_of<std::runtime_error>([&] { bad.wait(); }), ContainsSubstring("values must be finite numbers"));
  CHECK(good.wait().finished);
}
