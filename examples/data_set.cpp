// Many workers on one set of pictures: data_set NETWORK. Alone its threads share the work; started by torchrun
// --no-python, mpirun or srun the processes do.
#include <tstitch/file/torchscript.hpp>
#include <tstitch/method/ddim.hpp>
#include <tstitch/output/image.hpp>
#include <tstitch/output/npz.hpp>
#include <tstitch/output/tar.hpp>
#include <tstitch/scale/generate.hpp>
#include <tstitch/scale/heartbeat.hpp>
#include <tstitch/scale/tcp_store.hpp>

#include <chrono>
#include <cstdio>
#include <fstream>
#include <mutex>
#include <thread>

namespace {

using Networks = std::vector<tstitch::Network>;

constexpr std::int64_t pictures = 20, at_once = 8;

/// What a metric adds up; here how bright pictures are. Nothing is written.
struct Statistics {
  std::mutex mutex = {};
  double sum = 0;
  std::int64_t pictures = 0;
};

template <class Store>
void work(Store& store, tstitch::World const& world, Networks const& networks, Statistics& statistics) {
  tstitch::Worker worker(store, tstitch::LeaseOptions{.seconds = 30});
  const tstitch::Heartbeat heartbeat([&] { worker.beat(); }, 5, 60);  // a store answers, or throws, before that
  tstitch::Ranges ranges(worker, "pictures", pictures, at_once);
  const tstitch::DDIM sampler{networks[0].noise_schedule(), tstitch::SingleNetwork{0}, {.steps = 1}};
  const auto draw = [&](tstitch::IndexRange const& range) -> std::optional<at::Tensor> {
    heartbeat.check();
    std::vector<std::int64_t> labels;
    for (std::int64_t i = 0; i < range.count; ++i) labels.push_back((range.first + i) % 10);
    return sampler
        .sample(networks,
                {.labels = labels, .seed = std::uint64_t(range.first), .batch_size = at_once, .pad_batches = true})
        .images;
  };
  // Once for each range, by one of all workers.
  const auto add = [&](tstitch::IndexRange const& range, at::Tensor const& images) {
    const std::lock_guard<std::mutex> lock(statistics.mutex);
    statistics.sum += images.mean().item<double>() * double(range.count);
    statistics.pictures += range.count;
  };
  const auto wait = [] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    return true;
  };
  tstitch::generate(ranges, draw, add, wait);
  if (world.hosts()) {
    worker.leave_last(world.size, 30);
  } else {
    worker.leave();
  }
}

void share(Networks const& networks) {
  const tstitch::World world = tstitch::read_world();
  Statistics statistics;
  if (world.size > 1) {
    tstitch::TCPStore store(world);
    work(store, world, networks, statistics);
  } else {
    tstitch::MemoryStore store;
    std::thread other([&] { work(store, world, networks, statistics); });
    work(store, world, networks, statistics);
    other.join();
  }
  std::printf("rank %lld of %lld: %lld pictures, mean %.3f\n", static_cast<long long>(world.rank),
              static_cast<long long>(world.size), static_cast<long long>(statistics.pictures),
              statistics.sum / double(statistics.pictures));
}

/// Array after array, each piece by piece; then files that WebDataset groups by their names.
void archives() {
  tstitch::NpzWriter npz("pictures.npz");
  npz.begin("arr_0", "|u1", {2, 4, 4, 3});
  for (int i = 0; i < 2; ++i) npz.write(std::string(4 * 4 * 3, char(i)));
  npz.finish();
  tstitch::TarWriter tar("000000.tar");
  tar.add("000000.png", tstitch::encode_png({.width = 1, .height = 1, .channels = 1, .pixels = {255}}));
  tar.add("000000.cls", "3");
  tar.finish();
}

/// A text that grows line by line, and has its name once it is whole.
void lines() {
  tstitch::FileWriter file("manifest.jsonl");
  for (int i = 0; i < 3; ++i) file.write("{\"index\": " + std::to_string(i) + "}\n");
  std::printf("there before: %d\n", std::ifstream("manifest.jsonl").good());
  file.finish();
}

}  // namespace

int main(int count, char** values) {
  if (count != 2) return 2;
  share(tstitch::load_torchscript_networks({values[1]}));
  std::remove("manifest.jsonl");
  archives();
  lines();
}
