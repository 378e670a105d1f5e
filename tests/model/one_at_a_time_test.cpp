#include <tstitch/method/ddim.hpp>
#include <tstitch/method/dpm_solver.hpp>
#include <tstitch/model/one_at_a_time.hpp>

#include <algorithm>
#include <atomic>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "../catch.hpp"

using namespace tstitch;

namespace {

const NoiseSchedule schedule = NoiseSchedule::linear();

/// What is seen of networks that come and go.
struct Seen {
  std::atomic<int> there = 0, most = 0, prepared = 0;
  std::vector<int> loads = {};  // which network, in their order
};

/// Weights, which are there as long as this is.
struct Weights {
  explicit Weights(Seen& of) : seen(of) {
    const int now = ++seen.there;
    if (now > seen.most) seen.most = now;
  }
  Weights(Weights const&) = delete;
  Weights& operator=(Weights const&) = delete;
  ~Weights() { --seen.there; }

  Seen& seen;
};

/// Answers with what it is told, and asks to be told beforehand.
struct Body {
  double gain;
  std::shared_ptr<Weights> weights;
  bool knows_timestep = true;

  at::Tensor operator()(at::Tensor const& x, at::Tensor const&, Condition const& condition,
                        Evaluation const& evaluation) const {
    if (evaluation.timestep && *evaluation.timestep < 0) throw std::runtime_error("no such time");
    const at::Tensor label = condition.labels.to(x.scalar_type()).view({-1, 1, 1, 1});
    return x.mul(gain).add(label, 0.1).add(*evaluation.timestep / 1000);
  }

  void prepare(std::span<const double> timesteps, Condition const&) const {
    weights->seen.prepared += int(timesteps.size());
  }
};

Network network(double gain, Seen& seen, std::string const& name = "") {
  NetworkInfo info{.name = name, .channels = 2, .height = 4, .width = 4, .num_classes = 4, .null_class = 3};
  info.noise_schedule = schedule;
  return Network(Body{gain, std::make_shared<Weights>(seen)}, std::move(info));
}

NetworkLoader loader(int k, double gain, Seen& seen) {
  return [=, &seen] {
    seen.loads.push_back(k);
    return network(gain, seen, "of " + std::to_string(k));
  };
}

}  // namespace

TEST_CASE("a run has the same bits with one network in memory at a time") {
  Seen seen, resident;
  const std::vector<Network> networks = one_at_a_time({loader(0, 0.9, seen), loader(1, 0.7, seen)});
  const std::vector<Network> both{network(0.9, resident), network(0.7, resident)};
  CHECK(seen.there == 1);
  CHECK(seen.loads == std::vector<int>{1, 0});  // each is known, and the first one is there
  CHECK(networks[0].knows_timestep());
  CHECK(networks[1].info().name == "of 1");
  const SamplingOptions options{.steps = 6, .thresholding = Thresholding::none()};
  const DPMSolver sampler{schedule, Stitch{0.5}, options, {.order = 3}};
  const Request request{.labels = {0, 1, 2}, .seed = 3, .guidance = {.scale = 2}};
  seen.loads.clear();
  CHECK(sampler.sample(networks, request).images.equal(sampler.sample(both, request).images));
  CHECK(seen.loads == std::vector<int>{1});
  CHECK(seen.prepared == 6);  // the second one as soon as it is there
  CHECK(resident.prepared == 6);
  // The next run begins with the first one again, and so does each batch.
  seen.loads.clear();
  Request batches = request;
  batches.batch_size = 2;
  CHECK(sampler.sample(networks, batches).images.equal(sampler.sample(both, batches).images));
  CHECK(seen.loads == std::vector<int>{0, 1, 0, 1});
  // One that is not asked is not loaded; one that guides is, step by step.
  const DDIM alone{schedule, SingleNetwork{1}, options};
  seen.loads.clear();
  alone.sample(networks, request);
  CHECK(seen.loads.empty());
  Request guided = request;
  guided.guidance.guide_network = 0;
  CHECK(alone.sample(networks, guided).images.equal(alone.sample(both, guided).images));
  CHECK(seen.loads.size() == 2 * 6 - 1);  // the large one was there
  CHECK(seen.most == 1);
  CHECK(resident.most == 2);
}

TEST_CASE("several threads draw with one network in memory at a time") {
  Seen seen, resident;
  const std::vector<Network> networks = one_at_a_time({loader(0, 0.9, seen), loader(1, 0.7, seen)});
  const std::vector<Network> both{network(0.9, resident), network(0.7, resident)};
  const SamplingOptions options{.steps = 5, .thresholding = Thresholding::none()};
  std::atomic<int> others = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      const DDIM sampler{schedule, Stitch{0.2 * i}, options};
      for (std::uint64_t seed = 0; seed < 5; ++seed) {
        const Request request{.labels = {i % 3}, .seed = seed};
        others += !sampler.sample(networks, request).images.equal(sampler.sample(both, request).images);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(others == 0);
  CHECK(seen.most == 1);
}

TEST_CASE("a network that cannot be loaded again, or is another one, is named") {
  Seen seen;
  bool there = true;
  double gain = 0.7;
  std::string name = "large";
  const std::vector<Network> networks = one_at_a_time({loader(0, 0.9, seen), [&] {
                                                         if (!there) throw std::runtime_error("the file has gone");
                                                         return network(gain, seen, name);
                                                       }});
  const DDIM sampler{schedule, Stitch{0.5}, {.steps = 4}};
  const auto said = [&] { return message_of<std::runtime_error>([&] { sampler.sample(networks, {.labels = {1}}); }); };
  there = false;
  CHECK(said() ==
        "tstitch::one_at_a_time: network 1 ('large') must be there to be loaded again, got: the file has gone");
  CHECK(seen.there == 0);
  CHECK_THAT(said(), ContainsSubstring("the file has gone"));  // and once more
  there = true;
  name = "other";
  CHECK(said() ==
        "tstitch::one_at_a_time: network 1 ('large') must be the network that it was, got another one ('other')");
  name = "large";
  const Samples samples = sampler.sample(networks, {.labels = {1}});  // which is as good as new
  Seen resident;
  CHECK(samples.images.equal(sampler.sample({network(0.9, resident), network(0.7, resident)}, {.labels = {1}}).images));
  // A call that throws leaves it usable.
  const at::Tensor x = noise({1}, NoiseAddress::initial(), {2, 4, 4}, at::kFloat);
  Condition condition{.labels = x.new_zeros({1}, at::kLong)};
  CHECK_THROWS_AS(networks[1](x, {}, condition, -1.0), std::runtime_error);
  CHECK(networks[0](x, {}, condition, 5.0).defined());
  CHECK(seen.most == 1);
}

TEST_CASE("loaders must load") {
  CHECK(one_at_a_time({}).empty());
  CHECK(message_of<std::invalid_argument>([] { one_at_a_time({NetworkLoader()}); }) ==
        "tstitch::one_at_a_time: must be given something to call, got an empty function");
  CHECK(message_of<std::runtime_error>(
            [] { one_at_a_time({[]() -> Network { throw std::runtime_error("no file"); }}); }) == "no file");
}
