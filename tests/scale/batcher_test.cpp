#include <tstitch/file/dit.hpp>
#include <tstitch/file/torchscript.hpp>
#include <tstitch/scale/batcher.hpp>
#include <tstitch/tstitch.hpp>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <future>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "../catch.hpp"

using namespace tstitch;
using namespace std::chrono_literals;

namespace {

/// What calls a network had.
struct Calls {
  std::mutex mutex = {};
  std::vector<std::int64_t> rows = {};
  std::set<std::int64_t> labels = {};  ///< that came together, in the newest call

  void add(std::int64_t count) {
    const std::lock_guard lock(mutex);
    rows.push_back(count);
  }
  std::int64_t total() {
    const std::lock_guard lock(mutex);
    return std::int64_t(rows.size());
  }
};

constexpr int classes = 5;

/// A network whose answer depends on everything: x, t, label, a text; a row on its own alone.
Network network(double strength, std::shared_ptr<Calls> const& calls, std::int64_t wait_ms = 0) {
  NetworkInfo info;
  info.name = "made up";
  info.channels = 2;
  info.height = 3;
  info.width = 4;
  info.num_classes = classes;
  info.null_class = classes;
  info.conditions = {{.name = "text", .shape = {6}}};
  info.noise_schedule = NoiseSchedule::linear();
  return Network(
      [=](at::Tensor const& x, at::Tensor const& t, Condition const& condition) {
        calls->add(x.size(0));
        if (wait_ms) std::this_thread::sleep_for(std::chrono::milliseconds(wait_ms));
        const auto column = [&](at::Tensor const& of) { return of.to(x.scalar_type()).view({-1, 1, 1, 1}); };
        const at::Tensor text = condition.at("text").mul(0.1).sum(1);
        return x.mul(0.3)
            .add(column(t).mul(0.001).sin())
            .add(column(condition.labels).mul(0.1).cos())
            .add(column(text))
            .mul(strength);
      },
      info);
}

at::Tensor text_of(std::int64_t rows, int number) {
  const at::Tensor text = detail::host_tensor({rows, 6}, at::kFloat);
  for (std::int64_t i = 0; i < rows * 6; ++i) text.mutable_data_ptr<float>()[i] = float((i * 7 + number * 3) % 11) - 5;
  return text;
}

/// One of many samplers.
AnySampler sampler_of(std::mt19937& random) {
  const auto below = [&](unsigned end) { return int(random() % end); };
  const NoiseSchedule noise = NoiseSchedule::linear();
  const Stitch routing{below(5) / 4.0};
  SamplingOptions options{.steps = 2 + below(6)};
  options.at_switch = below(3) ? SwitchPolicy::keep : SwitchPolicy::re_evaluate;
  switch (below(8)) {
    case 0: return DDPM{noise, routing, options};
    case 1: return DPMSolver{noise, routing, options};
    case 2: return UniPC{noise, routing, options};
    case 3: return Heun{noise, routing, options};
    case 4: return PNDM{noise, routing, options};
    case 5: return EulerAncestral{noise, routing, options};
    default: return DDIM{noise, routing, options, {.eta = below(2) / 2.0}};
  }
}

Request request_of(std::mt19937& random) {
  const auto below = [&](unsigned end) { return int(random() % end); };
  Request request;
  const int images = 1 + (below(4) == 0 ? below(3) : 0);
  for (int i = 0; i < images; ++i) request.labels.push_back(below(classes));
  request.seed = std::uint64_t(below(1000));
  request.conditions.push_back({"text", text_of(images, below(9)), text_of(1, 7)});
  request.guidance.scale = below(3) ? 1.5 + below(3) : 1;
  if (below(4) == 0) {
    request.guidance.begin = 0.2;
    request.guidance.end = 0.8;
  }
  if (below(5) == 0) {
    request.initial_image = text_of(images, 3).repeat({1, 4}).view({images, 2, 3, 4});
    request.strength = 0.6;
  }
  return request;
}

at::Tensor alone(AnySampler const& sampler, std::vector<Network> const& networks, Request request) {
  request.batch_size = 16;
  request.pad_batches = true;
  return sampler.sample(networks, request).images;
}

}  // namespace

TEST_CASE("requests of many threads have the bits that they have alone") {
  const auto calls = std::make_shared<Calls>();
  const std::vector<Network> networks{network(0.5, calls), network(0.7, calls)};
  const bool padded = GENERATE(true, false);
  Batcher batcher(networks, {.batch_size = 16, .pad_batches = padded});
  std::atomic<int> different = 0, done = 0;
  std::vector<std::thread> threads;
  for (unsigned thread = 0; thread < 8; ++thread) {
    threads.emplace_back([&, thread] {
      std::mt19937 random(thread + 1);
      std::vector<std::pair<BatcherTicket, at::Tensor>> tickets;
      for (int k = 0; k < 25; ++k) {
        const AnySampler sampler = sampler_of(random);
        const Request request = request_of(random);
        const at::Tensor expected = alone(sampler, networks, request);
        tickets.emplace_back(batcher.submit(sampler, request, {.priority = int(random() % 3)}), expected);
        if (random() % 4 == 0) std::this_thread::sleep_for(1ms);
      }
      for (auto const& [ticket, expected] : tickets) {
        const Samples samples = ticket.wait();
        // A network of elementwise operations rounds alike for every number of rows.
        different += !samples.finished || !samples.images.equal(expected);
        ++done;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(done == 200);
  CHECK(different == 0);
  CHECK(batcher.waiting() == 0);
  CHECK(batcher.call_sizes() ==
        (padded ? std::vector<std::int64_t>{16} : std::vector<std::int64_t>{1, 2, 3, 4, 6, 8, 12, 16}));
}

TEST_CASE("requests meet in one call, whatever their steps, and calls have few sizes") {
  const auto calls = std::make_shared<Calls>();
  const std::vector<Network> networks{network(0.5, calls)};
  const bool padded = GENERATE(true, false);
  const bool guided = GENERATE(true, false);
  std::vector<std::int64_t> rows;
  {
    Batcher batcher(networks, {.batch_size = 8, .pad_batches = padded});
    std::promise<void> all_there;
    std::shared_future<void> there = all_there.get_future().share();
    std::vector<BatcherTicket> tickets;
    const auto submit = [&](int steps, std::function<void(BatcherProgress const&)> on_step = {}) {
      const DDIM sampler{NoiseSchedule::linear(), SingleNetwork{}, {.steps = steps}};
      Request request{.labels = {1}, .conditions = {{"text", text_of(1, 2), text_of(1, 1)}}};
      request.guidance.scale = guided ? 2 : 1;
      tickets.push_back(batcher.submit(sampler, request, {.on_step = std::move(on_step)}));
    };
    // The first holds the batcher until the others are there.
    submit(7, [&](BatcherProgress const& progress) {
      if (progress.done == 1) there.wait();
    });
    while (tickets[0].progress().done == 0) std::this_thread::sleep_for(1ms);
    for (int k = 0; k < 4; ++k) submit(6);
    all_there.set_value();
    for (BatcherTicket const& ticket : tickets) CHECK(ticket.wait().finished);
    CHECK(tickets[0].progress().steps == 7);
    CHECK(tickets[0].progress().done == 7);
    rows = calls->rows;
    const BatcherCounters counters = batcher.counters()[0];
    CHECK(counters.calls == 7);
    CHECK(counters.images == 31);
    CHECK(counters.filled_up == (padded ? 7 * 8 : 1 + 6 * 6));
  }
  const std::int64_t halves = guided ? 2 : 1;
  REQUIRE(rows.size() == 7);  // 31 evaluations
  CHECK(rows[0] == halves * (padded ? 8 : 1));
  for (std::size_t k = 1; k < rows.size(); ++k) CHECK(rows[k] == halves * (padded ? 8 : 6));  // five, filled up
}

TEST_CASE("a DiT gives requests the bits that it gives them alone") {
  const std::string small = TSTITCH_MODELS "/cifar10_dit_small.pt";
  const Network scripted = load_torchscript(small, {.warm_up_rows = {8, 16}}), native = load_dit(small);
  const int which = GENERATE(0, 1, 2);
  const std::vector<Network> networks{which == 0 ? scripted : native, which == 1 ? native : scripted};
  CAPTURE(which);
  Batcher batcher(networks, {.batch_size = 8, .pad_batches = true});
  std::mt19937 random(3);
  std::vector<std::pair<BatcherTicket, at::Tensor>> tickets;
  for (int k = 0; k < 4; ++k) {
    const DDIM sampler{networks[0].noise_schedule(), Stitch{0.5}, {.steps = 1 + k}, {.eta = k % 2 * 0.5}};
    Request request{.labels = {k}, .seed = std::uint64_t(k), .batch_size = 8, .pad_batches = true};
    request.guidance.scale = k == 2 ? 1 : 1.5 + k;
    request.guidance.end = k == 3 ? 0.7 : 1;
    tickets.emplace_back(batcher.submit(sampler, request), sampler.sample(networks, request).images);
  }
  for (auto const& [ticket, expected] : tickets) {
    const at::Tensor images = ticket.wait().images;
    UNSCOPED_INFO(images.sub(expected).abs().max().item<float>());
    CHECK(images.equal(expected));
  }
}

TEST_CASE("what waits for long goes first, whatever comes after it") {
  const auto calls = std::make_shared<Calls>();
  const std::vector<Network> networks{network(0.5, calls), network(0.7, calls)};
  Batcher batcher(networks, {.batch_size = 4, .most_images = 8, .most_passed_over = 5});
  const auto sampler = [](double ratio, int steps) {
    return AnySampler(DDIM{NoiseSchedule::linear(), Stitch{ratio}, {.steps = steps}});
  };
  const Request request{.labels = {1}, .conditions = {{"text", text_of(1, 2)}}};
  // A flood of requests of higher priority for the other network.
  std::atomic<bool> stop = false;
  std::thread flood([&] {
    std::deque<BatcherTicket> tickets;
    while (!stop) {
      tickets.push_back(batcher.submit(sampler(1, 3), request, {.priority = 9}));
      if (tickets.size() < 16) continue;
      tickets.front().wait();
      tickets.pop_front();
    }
  });
  for (int k = 0; k < 5; ++k) {
    const BatcherTicket ticket = batcher.submit(sampler(0, 4), request, {.priority = -9});
    CHECK(ticket.wait_for(60s));
    CHECK(ticket.wait().finished);
  }
  stop = true;
  flood.join();
}

TEST_CASE("of those who wait for long the one who has waited longest goes first") {
  const auto calls = std::make_shared<Calls>();
  // Texts of other sizes cannot be in one call. The last has one image, the others more.
  NetworkInfo info = network(0.5, calls).info();
  info.conditions = {{.name = "text", .shape = {0}}};
  const Network open(
      [](at::Tensor const& x, at::Tensor const&, Condition const& condition) {
        return x.mul(0.3).add(condition.at("text").sum(1).mul(0.01).view({-1, 1, 1, 1}));
      },
      info);
  Batcher batcher({open}, {.batch_size = 4, .most_images = 64, .most_passed_over = 2});
  const AnySampler sampler = DDIM{NoiseSchedule::linear(), SingleNetwork{}, {.steps = 60}};
  const AnySampler short_sampler = DDIM{NoiseSchedule::linear(), SingleNetwork{}, {.steps = 2}};
  const auto request = [](std::int64_t images, std::int64_t size) {
    Request wanted;
    wanted.labels.assign(std::size_t(images), 1);
    wanted.conditions.push_back({"text", detail::host_tensor({1, size}, at::kFloat).fill_(1)});
    return wanted;
  };
  std::vector<BatcherTicket> many;
  for (int round = 0; round < 2; ++round) {
    for (std::int64_t size = 2; size < 9; ++size) many.push_back(batcher.submit(sampler, request(4, size)));
  }
  const BatcherTicket one = batcher.submit(short_sampler, request(1, 1));
  CHECK(one.wait().finished);
  int ended = 0;
  for (BatcherTicket const& ticket : many) ended += ticket.progress().state == BatcherProgress::State::finished;
  CHECK(ended == 0);
  for (BatcherTicket const& ticket : many) CHECK(ticket.wait().finished);
}

TEST_CASE("a cancelled request makes room before the next step, and others go on") {
  const auto calls = std::make_shared<Calls>();
  const std::vector<Network> networks{network(0.5, calls, 2)};
  Batcher batcher(networks, {.batch_size = 2, .most_images = 2});
  const AnySampler sampler = DDIM{NoiseSchedule::linear(), SingleNetwork{}, {.steps = 400}};
  Request request{.labels = {1, 2}, .conditions = {{"text", text_of(1, 2)}}};
  const BatcherTicket endless = batcher.submit(sampler, request);
  const BatcherTicket never = batcher.submit(sampler, request);
  const AnySampler short_sampler = DDIM{NoiseSchedule::linear(), SingleNetwork{}, {.steps = 2}};
  const BatcherTicket last = batcher.submit(short_sampler, request);
  while (endless.progress().done < 3) std::this_thread::sleep_for(1ms);
  CHECK(endless.preview().sizes() == at::IntArrayRef({2, 2, 3, 4}));
  CHECK(never.progress().state == BatcherProgress::State::waiting);
  CHECK_FALSE(never.preview().defined());
  never.cancel();
  endless.cancel();
  const Samples samples = endless.wait();
  CHECK_FALSE(samples.finished);
  CHECK(samples.images.size(0) == 2);
  CHECK(endless.progress().state == BatcherProgress::State::cancelled);
  CHECK(endless.progress().done < 399);
  CHECK(never.wait().images.size(0) == 0);
  CHECK(last.wait().finished);
  last.cancel();  // says nothing now
  CHECK(last.wait().images.equal(short_sampler.sample(networks, request).images));
}

TEST_CASE("what breaks one request breaks no other") {
  const auto calls = std::make_shared<Calls>();
  Network const plain = network(0.5, calls);
  const Network throwing(
      [plain](at::Tensor const& x, at::Tensor const& t, Condition const& condition) {
        if (condition.labels.eq(4).any().item<bool>()) throw std::runtime_error("no such picture");
        return plain(x, t, condition);
      },
      plain.info());
  Batcher batcher({throwing}, {.batch_size = 8});
  const AnySampler sampler = DDIM{NoiseSchedule::linear(), SingleNetwork{}, {.steps = 5}};
  const auto request = [](std::int64_t label) {
    return Request{.labels = {label}, .conditions = {{"text", text_of(1, 2)}}};
  };
  std::vector<BatcherTicket> tickets;
  for (const std::int64_t label : {1, 4, 2, 3}) tickets.push_back(batcher.submit(sampler, request(label)));
  CHECK(message_of<std::runtime_error>([&] { tickets[1].wait(); }) == "no such picture");
  CHECK(tickets[1].progress().state == BatcherProgress::State::failed);
  for (const std::size_t k : {0, 2, 3}) CHECK(tickets[k].wait().finished);
  SECTION("a callback") {
    const BatcherTicket ticket = batcher.submit(
        sampler, request(1), {.on_step = [](BatcherProgress const&) { throw std::runtime_error("enough"); }});
    CHECK(message_of<std::runtime_error>([&] { ticket.wait(); }) == "enough");
  }
  SECTION("values that are none") {
    Request broken = request(1);
    broken.conditions[0].value.fill_(std::numeric_limits<float>::quiet_NaN());
    const BatcherTicket bad = batcher.submit(sampler, broken), good = batcher.submit(sampler, request(2));
    CHECK_THAT(message_of<std::runtime_error>([&] { bad.wait(); }),
               ContainsSubstring("tstitch::Batcher: values must be finite numbers, got nan or infinity in request 4"));
    CHECK(good.wait().finished);
  }
  CHECK(batcher.submit(sampler, request(1)).wait().finished);
}

TEST_CASE("a batcher refuses what it cannot do, at once") {
  const auto calls = std::make_shared<Calls>();
  const std::vector<Network> networks{network(0.5, calls, 5)};
  const AnySampler sampler = DDIM{NoiseSchedule::linear(), SingleNetwork{}, {.steps = 50}};
  const Request request{.labels = {1}, .conditions = {{"text", text_of(1, 2)}}};
  const auto refusal = [](auto const& action) { return message_of<std::invalid_argument>(action); };
  CHECK(refusal([] { Batcher batcher({}); }) == "tstitch::Batcher: networks must be at least one, got 0");
  CHECK(refusal([&] { Batcher batcher(networks, {.batch_size = 0}); }) ==
        "tstitch::Batcher: batch_size must be in [1, 4096], got 0");
  CHECK_THAT(refusal([&] { Batcher batcher(networks, {.most_waiting = 0}); }), ContainsSubstring("most_waiting must"));
  CHECK_THAT(refusal([&] { Batcher batcher(networks, {.most_images = -1}); }), ContainsSubstring("most_images must"));
  CHECK_THAT(refusal([&] { Batcher batcher(networks, {.most_passed_over = 0}); }),
             ContainsSubstring("most_passed_over must"));
  Batcher batcher(networks, {.batch_size = 2, .most_waiting = 3, .most_images = 2});
  const AnySampler forecasting =
      DDIM{NoiseSchedule::linear(), SingleNetwork{}, {.steps = 5, .forecast = ForecastEvery{}}};
  CHECK_THAT(refusal([&] { batcher.submit(forecasting, request); }),
             ContainsSubstring("tstitch::Batcher: samplers must forecast no steps, got '"));
  const AnySampler adaptive = AdaptiveDPMSolver{NoiseSchedule::linear(), SingleNetwork{}, {.steps = 1}};
  CHECK_THAT(refusal([&] { batcher.submit(adaptive, request); }),
             ContainsSubstring("tstitch::Batcher: update rules must say how often they evaluate in a step, got '"));
  Request other = request;
  other.gradient.log_density = [](at::Tensor const& x, at::Tensor const&, Condition const&) {
    return x.flatten(1).sum(1);
  };
  CHECK(refusal([&] { batcher.submit(sampler, other); }) ==
        "tstitch::Batcher: requests must have no gradient guidance, got one with");
  other = request;
  other.count = 3;
  CHECK(refusal([&] { batcher.submit(sampler, other); }) ==
        "tstitch::Batcher: requests must be of at most 2 images, got 3");
  other = request;
  other.labels = {9};
  CHECK_THAT(refusal([&] { batcher.submit(sampler, other); }), ContainsSubstring("labels must"));
  std::vector<BatcherTicket> tickets;
  std::string said;
  try {
    for (int k = 0; k < 7; ++k) tickets.push_back(batcher.submit(sampler, request));
  } catch (BatcherFull const& error) {
    said = error.what();
  }
  CHECK(said == "tstitch::Batcher: at most 3 requests may wait, got another one");
  CHECK(tickets.size() >= 3);
}

TEST_CASE("a batcher that ends cancels what is left, and its tickets live on") {
  const auto calls = std::make_shared<Calls>();
  std::optional<Batcher> batcher;
  batcher.emplace(std::vector<Network>{network(0.5, calls, 2)}, BatcherOptions{.batch_size = 1, .most_images = 1});
  const AnySampler sampler = DDIM{NoiseSchedule::linear(), SingleNetwork{}, {.steps = 300}};
  const Request request{.labels = {1}, .conditions = {{"text", text_of(1, 2)}}};
  const BatcherTicket first = batcher->submit(sampler, request), second = batcher->submit(sampler, request);
  while (first.progress().done < 2) std::this_thread::sleep_for(1ms);
  batcher.reset();
  CHECK_FALSE(first.wait().finished);
  CHECK(second.wait().images.size(0) == 0);
  CHECK(second.progress().state == BatcherProgress::State::cancelled);
}
