// Requests of several threads, drawn together, each with a sampler of its own.
#include <tstitch/load.hpp>
#include <tstitch/scale/batcher.hpp>
#include <tstitch/tstitch.hpp>

#include <cstddef>
#include <cstdio>
#include <functional>
#include <thread>
#include <vector>

// As a thread of a server would: submits what its client asks for, and waits for it.
void serve(tstitch::Batcher& batcher, int client) {
  const tstitch::DPMSolver sampler{
      batcher.networks()[0].noise_schedule(), tstitch::Stitch{.ratio = 0.3 * client}, {.steps = 3 + client}};
  tstitch::Request request{.labels = {3 + client}, .seed = 7};
  request.guidance.scale = 1.5;
  const tstitch::BatcherTicket ticket = batcher.submit(sampler, request, {.priority = client});
  const tstitch::Samples samples = ticket.wait();
  std::printf("client %d has a picture of %d steps\n", client, ticket.progress().done);
}

// Calls of all networks so far.
std::size_t calls_of(tstitch::Batcher const& batcher) {
  std::size_t calls = 0;
  for (tstitch::BatcherCounters const& counters : batcher.counters()) calls += counters.calls;
  return calls;
}

int main() {
  tstitch::Batcher batcher(
      tstitch::load_networks({TSTITCH_MODELS "/cifar10_dit_small.pt", TSTITCH_MODELS "/cifar10_dit_large.pt"}),
      {.batch_size = 8});
  std::vector<std::thread> clients;
  for (int client = 0; client < 3; ++client) clients.emplace_back(serve, std::ref(batcher), client);
  for (std::thread& client : clients) client.join();
  std::printf("12 evaluations in %s calls\n", calls_of(batcher) < 12 ? "fewer" : "12");
}
