#include <c10/core/InferenceMode.h>
#include <tstitch/tstitch.hpp>

#include <limits>
#include <thread>

#include "../catch.hpp"
#include "../oracle.hpp"

using namespace tstitch;

namespace {

const NoiseSchedule noise_schedule = NoiseSchedule::linear();

NetworkInfo small_picture() {
  return {.channels = 3, .height = 8, .width = 8};
}

/// A network whose output depends on everything that it gets: x, t and the labels.
Network labelled(double strength,
                 NetworkInfo info = {.channels = 3, .height = 8, .width = 8, .num_classes = 4, .null_class = 4}) {
  return Network(
      [strength, classes = info.num_classes](at::Tensor const& x, at::Tensor const& t, Condition const& condition) {
        const at::Tensor wave =
            condition.labels.to(x.scalar_type()).add(1).div(double(classes)).add(t.to(x.scalar_type()).div(1000));
        return x.mul(0.9).add(wave.view({-1, 1, 1, 1}).mul(strength));
      },
      std::move(info));
}

/// Counts its calls and the rows that it was given.
struct Counter {
  std::shared_ptr<std::vector<std::int64_t>> rows = std::make_shared<std::vector<std::int64_t>>();
  Network network(NetworkInfo info) const {
    return Network(
        [rows = rows](at::Tensor const& x, at::Tensor const&, Condition const&) {
          rows->push_back(x.size(0));
          return x.mul(0.5);
        },
        std::move(info));
  }
};

at::Tensor normal(std::vector<std::uint64_t> const& seeds) {
  return noise(seeds, NoiseAddress::initial(), {3, 8, 8}, at::kFloat);
}

}  // namespace

TEST_CASE("each network is called as often as the plan says") {
  const Counter small, large;
  const DDIM sampler{noise_schedule, Stitch{0.4}, {.steps = 25}};
  sampler.sample({small.network(small_picture()), large.network(small_picture())}, {.count = 3});
  CHECK(sampler.plan().calls() == std::vector<int>{10, 15});
  CHECK(*small.rows == std::vector<std::int64_t>(10, 3));
  CHECK(*large.rows == std::vector<std::int64_t>(15, 3));
}

TEST_CASE("guidance doubles the rows, but only where it is on and not 1") {
  NetworkInfo info = small_picture();
  info.num_classes = 4;
  info.null_class = 4;
  const Counter counter;
  const DDIM sampler{noise_schedule, SingleNetwork{}, {.steps = 10}};
  const Request request{.labels = {1, 2}, .guidance = {.scale = 2, .begin = 0.2, .end = 0.5}};
  sampler.sample({counter.network(info)}, request);
  CHECK(*counter.rows == std::vector<std::int64_t>{2, 2, 4, 4, 4, 2, 2, 2, 2, 2});
}

TEST_CASE("guidance needs a null class only where it is on") {
  NetworkInfo info = small_picture();
  info.num_classes = 4;
  const Counter without;
  const Network first = without.network(info);
  info.null_class = 4;
  const Counter with;
  const DDIM sampler{noise_schedule, Stitch{0.5}, {.steps = 4}};
  sampler.sample({first, with.network(info)}, {.labels = {1}, .guidance = {.scale = {1, 2}}});
  CHECK(*without.rows == std::vector<std::int64_t>{1, 1});
  CHECK(*with.rows == std::vector<std::int64_t>{2, 2});
}

TEST_CASE("one network in both places is that network alone, to the last bit") {
  const Network network = labelled(0.2);
  for (double ratio : {0.0, 0.3, 0.5, 1.0}) {
    const Request request{.labels = {0, 1, 2}, .seed = 5, .guidance = {.scale = 1.5}};
    const auto same = [&](auto stitched, auto alone) {
      CHECK(stitched.sample({network, network}, request).images.equal(alone.sample({network}, request).images));
    };
    const SamplingOptions options{.steps = 13};
    same(DDIM{noise_schedule, Stitch{ratio}, options}, DDIM{noise_schedule, SingleNetwork{}, options});
    same(DDPM{noise_schedule, Stitch{ratio}, options}, DDPM{noise_schedule, SingleNetwork{}, options});
    same(DPMSolver{noise_schedule, Stitch{ratio}, options, {.order = 3}},
         DPMSolver{noise_schedule, SingleNetwork{}, options, {.order = 3}});
  }
}

TEST_CASE("a picture depends on its seed and label only, not on its batch") {
  // Elementwise networks round alike in every batch shape; see file/torchscript_test.cpp for real ones.
  const std::vector<Network> networks{labelled(0.1), labelled(0.3)};
  const auto check = [&](auto const& sampler) {
    const at::Tensor alone = sampler.sample(networks, {.labels = {2}, .seed = 7}).images;
    for (std::int64_t batch : {3, 64}) {
      for (std::int64_t position = 0; position < batch; position += batch == 3 ? 1 : 21) {
        Request request{.labels = std::vector<std::int64_t>(std::size_t(batch), 0), .seed = 0};
        for (std::int64_t i = 0; i < batch; ++i) request.seeds.push_back(std::uint64_t(100 + i));
        request.seeds[std::size_t(position)] = 7;
        request.labels[std::size_t(position)] = 2;
        REQUIRE(sampler.sample(networks, request).images.narrow(0, position, 1).equal(alone));
      }
    }
  };
  check(DDIM{noise_schedule, Stitch{}, {.steps = 6}});
  check(DDPM{noise_schedule, Stitch{}, {.steps = 6}});
}

TEST_CASE("requests are cut into batches and padded to one shape when asked") {
  const Counter counter;
  const DDIM sampler{noise_schedule, SingleNetwork{}, {.steps = 2}};
  const Samples whole = sampler.sample({counter.network(small_picture())}, {.count = 7, .seed = 3});
  const Samples cut = sampler.sample({counter.network(small_picture())}, {.count = 7, .seed = 3, .batch_size = 3});
  const Samples padded =
      sampler.sample({counter.network(small_picture())}, {.count = 7, .seed = 3, .batch_size = 3, .pad_batches = true});
  CHECK(*counter.rows == std::vector<std::int64_t>{7, 7, 3, 3, 3, 3, 1, 1, 8, 8, 8, 8, 8, 8});
  CHECK(cut.images.equal(whole.images));
  CHECK(padded.images.equal(whole.images));
  CHECK(whole.seeds == std::vector<std::uint64_t>{3, 4, 5, 6, 7, 8, 9});
  CHECK(cut.finished);
  CHECK(cut.finished_images == 7);
  const Samples given =
      sampler.sample({counter.network(small_picture())},
                     {.batch_size = 2, .pad_batches = true, .initial_noise = normal({3, 4, 5, 6, 7, 8, 9})});
  CHECK(given.images.equal(whole.images));
}

TEST_CASE("sample is begin and a loop over advance") {
  const std::vector<Network> networks{labelled(0.1), labelled(0.3)};
  const DPMSolver sampler{noise_schedule, Stitch{0.5}, {.steps = 9}, {.order = 3}};
  const Request request{.labels = {0, 3}, .guidance = {.scale = 3}};
  Trajectory trajectory = sampler.begin(networks, request);
  CHECK(trajectory.count == 9);
  while (!trajectory.finished()) sampler.advance(networks, trajectory);
  CHECK(trajectory.history.size() == 2);
  CHECK(trajectory.level == NoiseLevel::clean());
  CHECK(trajectory.x.equal(sampler.sample(networks, request).images));
  CHECK_THAT(message_of<std::invalid_argument>([&] { sampler.advance(networks, trajectory); }),
             ContainsSubstring("must have steps left"));
}

TEST_CASE("a copied trajectory forks the run, and another ratio may finish it") {
  const std::vector<Network> networks{labelled(0.1), labelled(0.3)};
  const Request request{.labels = {1}, .guidance = {.scale = 2}};
  const auto check = [&](auto make) {
    const auto small_only = make(1.0);
    Trajectory prefix = small_only.begin(networks, request);
    for (int shared = 0; shared <= 10; ++shared) {
      const auto stitched = make(shared / 10.0);
      Trajectory fork = prefix;
      while (!fork.finished()) stitched.advance(networks, fork);
      CHECK(fork.x.equal(stitched.sample(networks, request).images));
      if (!prefix.finished()) small_only.advance(networks, prefix);
    }
  };
  const SamplingOptions options{.steps = 10};
  check([&](double ratio) { return DDIM{noise_schedule, Stitch{ratio}, options}; });
  check([&](double ratio) { return DDPM{noise_schedule, Stitch{ratio}, options}; });
  check([&](double ratio) { return DPMSolver{noise_schedule, Stitch{ratio}, options, {.order = 3}}; });

  Trajectory begun = DDIM{noise_schedule, Stitch{}, options}.begin(networks, request);
  CHECK_THAT(message_of<std::invalid_argument>([&] {
               DDIM{noise_schedule, Stitch{}, {.steps = 11}}.advance(networks, begun);
             }),
             ContainsSubstring("must have been begun with the same timesteps, got step 0 of 10"));
}

TEST_CASE("a forked run is checked for the networks that finish it") {
  NetworkInfo info = small_picture();
  info.num_classes = 4;
  const Counter counter;
  const Network without = counter.network(info);
  info.null_class = 4;
  const Network with = counter.network(info);
  const DDIM small{noise_schedule, SingleNetwork{0}, {.steps = 4}};
  const DDIM both{noise_schedule, Stitch{0.25}, {.steps = 4}};
  Trajectory begun = small.begin({with, without}, {.labels = {2}, .guidance = {.scale = 3}});
  small.advance({with, without}, begun);
  const auto refused = [&](std::vector<Network> const& networks, auto change) {
    Trajectory changed = begun;
    change(changed);
    return message_of<std::invalid_argument>([&] { both.advance(networks, changed); });
  };
  const auto nothing = [](Trajectory&) {};
  CHECK(refused({with, without}, nothing) ==
        "tstitch::Sampler::advance: guidance needs a null class for network 1, got guidance scale 3");
  NetworkInfo larger = info;
  larger.width = 16;
  CHECK(refused({with, counter.network(larger)}, nothing) ==
        "tstitch::Sampler::advance: x must be [n, C, ...] of the right shape for network 1, got [1, 3, 8, 8]");
  NetworkInfo fewer = info;
  fewer.num_classes = 2;
  CHECK(refused({with, counter.network(fewer)}, nothing) ==
        "tstitch::Sampler::advance: labels must be in [0, 1] for network 1, got 2");
  NetworkInfo prompted = info;
  prompted.conditions = {{"text", {3}}};
  CHECK(refused({with, counter.network(prompted)}, nothing) ==
        "tstitch::Sampler::advance: the trajectory must have been begun with 'text' for network 1, got none");
  CHECK(refused({with, with}, [](Trajectory& changed) { changed.guidance.scale = NAN; }) ==
        "tstitch::Sampler::advance: the guidance scale must be a number for network 1, got nan");
  CHECK(refused({with, with}, [](Trajectory& changed) { changed.guidance.channels = 9; }) ==
        "tstitch::Sampler::advance: Guidance::channels must be at most 3 for network 1, got 9");
  CHECK(refused({with, with}, [](Trajectory& changed) { changed.next = 5; }) ==
        "tstitch::Sampler::advance: the trajectory must have steps left, got 0");
  CHECK(refused({with, with}, nothing) == "nothing was thrown");
}

TEST_CASE("a rule sees as much history as it asks for, and only of the steps just before") {
  struct Watching {
    int wanted;
    std::shared_ptr<std::vector<std::vector<int>>> seen;
    int history() const { return wanted; }
    at::Tensor operator()(StepInput const& in) const {
      seen->emplace_back();
      for (Past const& past : in.history) seen->back().push_back(past.step.index);
      return in.x.sub(in.predict().x_0, 0.1);
    }
  };
  const auto sampler = [](int wanted) {
    return Sampler{noise_schedule,
                   SingleNetwork{},
                   {.steps = 8},
                   Watching{wanted, std::make_shared<std::vector<std::vector<int>>>()}};
  };
  const auto three = sampler(3), one = sampler(1);
  const DDIM none{noise_schedule, SingleNetwork{}, {.steps = 8}};
  const std::vector<Network> networks{Counter().network(small_picture())};
  Trajectory run = none.begin(networks, {});
  for (int i = 0; i < 3; ++i) three.advance(networks, run);
  one.advance(networks, run);
  none.advance(networks, run);
  for (int i = 0; i < 3; ++i) three.advance(networks, run);
  CHECK(*three.rule().seen == std::vector<std::vector<int>>{{}, {0}, {0, 1}, {}, {5}, {5, 6}});
  CHECK(*one.rule().seen == std::vector<std::vector<int>>{{2}});
}

TEST_CASE("what rules, networks and noise sources return is looked at") {
  const Counter counter;
  const std::vector<Network> networks{counter.network(small_picture())};
  const auto message = [&](auto rule) {
    const Sampler sampler{noise_schedule, SingleNetwork{}, {.steps = 2}, rule};
    return message_of<std::runtime_error>([&] { sampler.sample(networks, {}); });
  };
  CHECK(message([](StepInput const& in) { return in.x.narrow(2, 0, 4); }) ==
        "tstitch::Sampler: the update rule must return Float [1, 3, 8, 8], got Float [1, 3, 4, 8]");
  CHECK(message([](StepInput const& in) { return in.x.to(at::kInt); }) ==
        "tstitch::Sampler: the update rule must return Float [1, 3, 8, 8], got Int [1, 3, 8, 8]");
  CHECK(message([](StepInput const&) { return at::Tensor(); }) ==
        "tstitch::Sampler: the update rule must return Float [1, 3, 8, 8], got an undefined tensor");
  CHECK(message_of<std::invalid_argument>([&] {
          const Sampler sampler{noise_schedule, SingleNetwork{}, {.steps = 2}, [](StepInput const& in) {
                                  return in.denoise_each(in.x, std::vector<Timestep>(3, {in.step.t, in.step.from})).x_0;
                                }};
          sampler.sample(networks, {});
        }) == "tstitch::denoise: points: one for each of the 1 images is needed, got 3");
  // A rule that asks no network still has something to show when it is cancelled.
  const Sampler idle{noise_schedule, SingleNetwork{}, {.steps = 2}, [](StepInput const& in) { return in.x.mul(0.5); }};
  CHECK(idle.sample(networks, {}, [](StepReport const&) { return Control::cancel; }).images.size(0) == 1);

  const DDIM sampler{noise_schedule, SingleNetwork{}, {.steps = 2}};
  const Network whole([](at::Tensor const& x, at::Tensor const&) { return x.to(at::kInt); }, small_picture());
  CHECK(message_of<std::runtime_error>([&] { sampler.sample({whole}, {}); }) ==
        "tstitch::Network '': the output must be of a floating type, got Int");
  const auto with_source = [&](NoiseSource source) {
    return message_of<std::runtime_error>([&] { sampler.sample(networks, {.noise_source = source}); });
  };
  CHECK(with_source([](auto&&...) { return at::Tensor(); }) ==
        "tstitch::Sampler: noise_source must return float32 or float64 [1, 3, 8, 8] on cpu, got an undefined tensor");
  CHECK(with_source([](auto&&...) { return tstitch::detail::host_tensor({7}, at::kFloat); }) ==
        "tstitch::Sampler: noise_source must return float32 or float64 [1, 3, 8, 8] on cpu, got Float [7] on cpu");
  CHECK(with_source([](auto&&...) {
          return tstitch::detail::host_tensor({1, 3, 8, 8}, at::kHalf).zero_();
        }) ==
        "tstitch::Sampler: noise_source must return float32 or float64 [1, 3, 8, 8] on cpu, got Half [1, 3, 8, 8] on "
        "cpu");
  CHECK(message_of<std::runtime_error>([&] {
          const DDPM noisy{noise_schedule, SingleNetwork{}, {.steps = 3}};
          noisy.sample(networks,
                       {.noise_source = [](auto const& seeds, NoiseAddress address, auto shape, auto options) {
                         return noise(seeds, address, shape, options).mul(address.step == 2 ? NAN : 1);
                       }});
        }) ==
        "tstitch::Sampler::sample: values must be finite numbers, got nan or infinity at step 1 (t = 500) by "
        "noise_source");
  // A source that fills the same memory again changes nothing that it gave before.
  const at::Tensor memory = tstitch::detail::host_tensor({1, 3, 8, 8}, at::kFloat);
  const DDPM stochastic{noise_schedule, SingleNetwork{}, {.steps = 4}};
  const Samples reused = stochastic.sample(
      networks, {.noise_source = [&](auto const& seeds, NoiseAddress address, auto shape, auto options) {
        at::Tensor given = memory;
        return given.copy_(noise(seeds, address, shape, options));
      }});
  CHECK(reused.images.equal(stochastic.sample(networks, {}).images));
  struct Negative {
    int history() const { return -1; }
    at::Tensor operator()(StepInput const& in) const { return in.predict().x_0; }
  };
  CHECK(message_of<std::invalid_argument>([] {
          Sampler{noise_schedule, SingleNetwork{}, {.steps = 2}, Negative{}};
        }) == "tstitch::UpdateRule: history must not be negative, got -1");
  CHECK(with_source([](auto&&...) {
          return tstitch::detail::host_tensor({1, 3, 8, 8}, at::kFloat).fill_(NAN);
        }) ==
        "tstitch::Sampler::sample: values must be finite numbers, got nan or infinity in what the run began with "
        "(initial_noise, initial_image or noise_source)");
}

TEST_CASE("x is left as it is by networks and rules") {
  const NetworkInfo info{.name = "careless", .channels = 3, .height = 8, .width = 8};
  const Network in_place([](at::Tensor x, at::Tensor const&) { return x.mul_(0.5); }, info);
  const Network returned([](at::Tensor const& x, at::Tensor const&) { return x; }, info);
  const DDIM sampler{noise_schedule, SingleNetwork{}, {.steps = 3}};
  CHECK(message_of<std::runtime_error>([&] { sampler.sample({in_place}, {}); }) ==
        "tstitch::Network 'careless': must leave x and the condition as they are, got a change in place");
  CHECK(sampler.sample({returned}, {}).finished);
  NetworkInfo text = info;
  text.conditions = {{"text", {2}}};
  const Network changes_text(
      [](at::Tensor const& x, at::Tensor const&, Condition const& condition) {
        at::Tensor given = condition.at("text");
        given.zero_();
        return x;
      },
      text);
  CHECK(message_of<std::runtime_error>([&] {
          sampler.sample({changes_text},
                         {.conditions = {{"text", tstitch::detail::host_tensor({1, 2}, at::kFloat).fill_(1)}}});
        }) == "tstitch::Network 'careless': must leave x and the condition as they are, got a change in place");
  const Sampler rule{noise_schedule, SingleNetwork{}, {.steps = 3}, [](StepInput const& in) {
                       at::Tensor x = in.x;
                       return x.mul_(0.5);
                     }};
  CHECK(message_of<std::runtime_error>([&] { rule.sample({returned}, {}); }) ==
        "tstitch::Sampler: the update rule must leave x as it is, got a change in place");
  // Tensors of InferenceMode do not count their changes, so that networks are given copies.
  const Network own([](at::Tensor const& x, at::Tensor const&) { return x.mul(0.5); }, info);
  const at::Tensor expected = sampler.sample({own}, {}).images;
  const c10::InferenceMode inference;
  CHECK(sampler.sample({in_place}, {}).images.equal(expected));
}

TEST_CASE("a run is taken over by samplers of the same timesteps alone") {
  const std::vector<Network> networks{labelled(0.1), labelled(0.3)};
  const auto sampler = [](std::vector<double> timesteps, double ratio, FinalSigma end = FinalSigma::zero) {
    return DDIM{noise_schedule, Stitch{ratio}, {.steps = 3, .spacing = Spacing::list(timesteps), .final_sigma = end}};
  };
  const Trajectory begun = sampler({999, 500, 100}, 1).begin(networks, {.labels = {0}});
  const auto refused = [&](auto const& other) {
    Trajectory fork = begun;
    return message_of<std::invalid_argument>([&] { other.advance(networks, fork); });
  };
  const std::string message =
      "tstitch::Sampler::advance: the trajectory must have been begun with the same timesteps, got step 0 of 3";
  CHECK(refused(sampler({999, 300, 10}, 1)) == message);
  CHECK(refused(sampler({999, 500, 99}, 1)) == message);
  CHECK(refused(sampler({999, 500, 100}, 1, FinalSigma::sigma_min)) == message);
  CHECK(refused(sampler({999, 500, 100}, 0.3)) == "nothing was thrown");
  CHECK(refused(DPMSolver{noise_schedule, Stitch{0}, {.steps = 3, .spacing = Spacing::list({999, 500, 100})}}) ==
        "nothing was thrown");
}

TEST_CASE("a rule may draw each noise of a step once") {
  const auto drawing = [](std::vector<int> draws) {
    return [draws](StepInput const& in) {
      at::Tensor x = in.x;
      for (const int draw : draws) x = x.add(in.noise(draw));
      return x;
    };
  };
  const std::vector<Network> networks{Counter().network(small_picture())};
  const auto message = [&](std::vector<int> draws) {
    const Sampler sampler{noise_schedule, SingleNetwork{}, {.steps = 2}, drawing(std::move(draws))};
    return message_of<std::invalid_argument>([&] { sampler.sample(networks, {}); });
  };
  CHECK(message({0, 1, 2}) == "nothing was thrown");
  CHECK(message({3, 1, 3}) ==
        "tstitch::StepInput::noise: each draw of noise in a step must have a number of its own, got 3 twice in step 0");
}

TEST_CASE("one const sampler serves several threads") {
  const std::vector<Network> networks{labelled(0.1), labelled(0.3)};
  const DPMSolver sampler{noise_schedule, Stitch{}, {.steps = 20}, {.order = 3}};
  const auto draw = [&](std::uint64_t seed) {
    return sampler.sample(networks, {.labels = {0, 1, 2}, .seed = seed}).images;
  };
  std::vector<at::Tensor> expected, got(8);
  for (std::uint64_t i = 0; i < 8; ++i) expected.push_back(draw(10 * i));
  std::vector<std::thread> threads;
  for (std::uint64_t i = 0; i < 8; ++i) threads.emplace_back([&, i] { got[i] = draw(10 * i); });
  for (std::thread& thread : threads) thread.join();
  for (std::size_t i = 0; i < 8; ++i) CHECK(got[i].equal(expected[i]));
}

TEST_CASE("an observer sees every step") {
  const std::vector<Network> networks{labelled(0.1), labelled(0.3)};
  const DDIM sampler{noise_schedule, Stitch{0.5}, {.steps = 4}};
  std::vector<std::string> seen;
  const Samples samples =
      sampler.sample(networks, {.labels = {0}, .count = 3, .batch_size = 2}, [&](StepReport const& report) {
        CHECK(report.seconds >= 0);
        CHECK(report.x.sizes() == report.x_0.sizes());
        seen.push_back(std::to_string(report.first) + "+" + std::to_string(report.images) + " step " +
                       std::to_string(report.step.index) + " network " + std::to_string(report.network));
      });
  CHECK(seen == std::vector<std::string>{"0+2 step 0 network 0", "0+2 step 1 network 0", "0+2 step 2 network 1",
                                         "0+2 step 3 network 1", "2+1 step 0 network 0", "2+1 step 1 network 0",
                                         "2+1 step 2 network 1", "2+1 step 3 network 1"});
  CHECK(samples.finished);
}

TEST_CASE("an observer may cancel, and what exists is returned, marked unfinished") {
  const std::vector<Network> networks{labelled(0.1), labelled(0.3)};
  const DDIM sampler{noise_schedule, Stitch{0.5}, {.steps = 4}};
  const Request request{.labels = {0}, .count = 6, .batch_size = 2};
  const Samples whole = sampler.sample(networks, request);
  const auto cancel_at = [&](std::int64_t first, int index, at::Tensor* x_0 = nullptr) {
    return sampler.sample(networks, request, [=](StepReport const& report) {
      if (x_0) *x_0 = report.x_0;
      return report.first == first && report.step.index == index ? Control::cancel : Control::proceed;
    });
  };
  at::Tensor preview;
  const Samples middle = cancel_at(2, 1, &preview);
  CHECK_FALSE(middle.finished);
  CHECK(middle.finished_images == 2);
  CHECK(middle.seeds == std::vector<std::uint64_t>{0, 1, 2, 3});
  CHECK(middle.images.narrow(0, 0, 2).equal(whole.images.narrow(0, 0, 2)));
  CHECK(middle.images.narrow(0, 2, 2).equal(preview));
  const Samples between = cancel_at(2, 3);
  CHECK_FALSE(between.finished);
  CHECK(between.finished_images == 4);
  CHECK(between.images.equal(whole.images.narrow(0, 0, 4)));
  const Samples too_late = cancel_at(4, 3);
  CHECK(too_late.finished);
  CHECK(too_late.images.equal(whole.images));
}

TEST_CASE("a user's own update rule needs no base class, and may ask the network more than once") {
  // Heun's method on the ODE in x / alpha over sigma / alpha (Karras et al. 2022, Algorithm 1).
  struct Heun {
    at::Tensor operator()(StepInput const& in) const {
      const auto [from, to] = std::pair{in.step.from, in.step.to};
      const double s = from.sigma / from.alpha, s_next = to.sigma / to.alpha;
      const auto slope = [](at::Tensor const& y, at::Tensor const& x_0, double at) { return y.sub(x_0).div(at); };
      const at::Tensor y = in.x.div(from.alpha);
      const at::Tensor first = slope(y, in.predict().x_0, s);
      const at::Tensor euler = y.add(first, s_next - s);
      if (to == NoiseLevel::clean()) return euler;
      const double t_next = NoiseSchedule::linear().timestep(to.lambda());
      const at::Tensor second = slope(euler, in.denoise(euler.mul(to.alpha), {t_next, to}).x_0, s_next);
      return y.add(first.add(second), (s_next - s) / 2).mul(to.alpha);
    }
  };
  const Network network = oracle::gaussian(noise_schedule, 0.3, 0.5, {.timestep_type = TimestepType::float32});
  const Request request{.initial_noise = tstitch::detail::host_tensor({1, 1, 1, 1}, at::kDouble).fill_(1.0)};
  const double exact = oracle::gaussian_ode_end(noise_schedule.at(999), 0.3, 0.5, 1);
  const auto error = [&](int steps) {
    const Sampler sampler{noise_schedule, SingleNetwork{}, {.steps = steps, .spacing = Spacing::karras()}, Heun{}};
    return std::abs(sampler.sample({network}, request).images.item<double>() - exact);
  };
  // What remains at many steps is the last one, of first order from sigma = 0.01 to zero.
  CHECK(error(20) < 0.03);
  CHECK(error(40) < 0.3 * error(20));
}

TEST_CASE("values that are not finite are refused with the step and the network that made them") {
  const Network good = labelled(0.1);
  const Network bad([](at::Tensor const& x, at::Tensor const& t,
                       Condition const&) { return t.select(0, 0).item<std::int64_t>() < 500 ? x.mul(NAN) : x; },
                    {.name = "bad", .channels = 3, .height = 8, .width = 8, .num_classes = 4, .null_class = 4});
  const DDIM sampler{noise_schedule, Stitch{0.4}, {.steps = 10}};
  CHECK(message_of<std::runtime_error>([&] {
          sampler.sample({good, bad}, {.labels = {0}});
        }) ==
        "tstitch::Sampler::sample: values must be finite numbers, got nan or infinity at step 5 (t = 444) by network 1 "
        "('bad')");
}

TEST_CASE("samplers refuse what does not fit, with place, rule and value") {
  const Network network = labelled(0.1);
  const DDIM sampler{noise_schedule, Stitch{}, {.steps = 4}};
  const auto message = [&](std::vector<Network> const& networks, Request const& request) {
    return message_of<std::invalid_argument>([&] { (void)sampler.sample(networks, request); });
  };
  CHECK(message({network}, {.labels = {0}}) ==
        "tstitch::Sampler: the model schedule gives step 2 to network 1, so at least 2 networks are needed, got 1");
  CHECK(message({}, {}) == "tstitch::Sampler: at least one network is needed, got 0");
  CHECK(message({network, network}, {}) ==
        "tstitch::Request: labels: these networks need them, one for each of the 1 images is needed, got 0");
  CHECK(message({network, network}, {.labels = {10}}) == "tstitch::Request: labels must be in [0, 3], got 10");
  CHECK(message({network, network}, {.labels = {-1}}) == "tstitch::Request: labels must be in [0, 3], got -1");
  CHECK(message({network, network}, {.labels = {0, 1}, .count = 3}) ==
        "tstitch::Request: labels: one for each of the 3 images is needed, got 2");
  CHECK(message({network, network}, {.labels = {0}, .count = 2, .seeds = {1}}) ==
        "tstitch::Request: seeds: one for each of the 2 images is needed, got 1");
  CHECK(message({network, network}, {.labels = {0}, .guidance = {.scale = {1, 2, 3}}}) ==
        "tstitch::Guidance: scale must be one value, or one for each of the 2 networks, got 3 values");
  CHECK(message_of<std::invalid_argument>([&] {
          DDIM{noise_schedule, AnyModelSchedule{}};
        }) == "tstitch::Sampler: must be given something to call, got an empty function");
  CHECK(message_of<std::invalid_argument>([] { Spacing("mine", nullptr); }) ==
        "tstitch::Spacing: must be given something to call, got an empty function");
  CHECK(message_of<std::invalid_argument>([] { Observer(std::function<void(StepReport const&)>()); }) ==
        "tstitch::Observer: must be given something to call, got an empty function");
  CHECK(message_of<std::invalid_argument>([&] {
          DDIM{NoiseSchedule::flow(), Stitch{}, {.steps = 10}};
        }) ==
        "tstitch::Plan: no step may begin at the clean picture (Spacing::shifted is for flow matching), got t = 0 "
        "by spacing linspace");
  CHECK(message({network, network}, {.labels = {0}, .count = -1}) ==
        "tstitch::Request: count must not be negative, got -1");
  CHECK(message({network, network},
                {.labels = {0}, .initial_noise = noise({1}, NoiseAddress::initial(), {4, 8, 8}, at::kFloat)}) ==
        "tstitch::Request: initial_noise must be [n, C, ...] with the shape of the networks and one row an image, got "
        "[1, 4, 8, 8]");
  const Network without_null = labelled(0.1, {.channels = 3, .height = 8, .width = 8, .num_classes = 4});
  CHECK(message({without_null, without_null}, {.labels = {0}, .guidance = {.scale = 2}}) ==
        "tstitch::Guidance: needs networks that were trained with a null class, got network 0");
  CHECK(message({oracle::gaussian(noise_schedule, 0, 1), oracle::gaussian(noise_schedule, 0, 1)}, {}) ==
        "tstitch::Request: shape or initial_noise must say the sizes that the networks leave open, got none");
  const Network other_schedule = oracle::gaussian(NoiseSchedule::cosine(), 0, 1);
  CHECK(message({other_schedule, other_schedule}, {.initial_noise = normal({1})}) ==
        "tstitch::Sampler: the sampler's noise schedule must be the one that the networks were trained with "
        "(cosine(1000) for network 0 "
        "('gaussian')), got linear(1000, 0.0001, 0.02)");
  CHECK(message_of<std::runtime_error>([&] {
          const Network wrong([](at::Tensor const& x, at::Tensor const&) { return x.narrow(1, 0, 2); },
                              {.name = "wrong", .channels = 3, .height = 8, .width = 8});
          sampler.sample({wrong, wrong}, {});
        }) == "tstitch::Network 'wrong': the output must be [1, 3, 8, 8], got [1, 2, 8, 8]");
  CHECK(message_of<std::invalid_argument>([] {
          DDIM{noise_schedule, Stitch{}, {}, {.eta = 1.5}};
        }) == "tstitch::DDIM: eta must be in [0, 1], got 1.5");
  CHECK(message_of<std::invalid_argument>([] {
          DPMSolver{noise_schedule, Stitch{}, {}, {.order = 4}};
        }) == "tstitch::DPMSolver: order must be 1, 2 or 3, got 4");
  CHECK(message_of<std::invalid_argument>([] {
          DDIM{noise_schedule, Stitch{}, {.steps = 0}};
        }) == "tstitch::Spacing::linspace: steps must be at least 1, got 0");
  CHECK(message_of<std::invalid_argument>([&] {
          DDPM{noise_schedule, Stitch{}, {}, {Variance::learned_range}}.sample({network, network}, {.labels = {0}});
        }) == "tstitch::DDPM: variance: learned_range needs networks that have learned it, got '', which has not");
  CHECK(message({network, network}, {.labels = {0}, .count = std::int64_t(1) << 62}) ==
        "tstitch::Request: count must be at most 16777216, got 4611686018427387904");
  CHECK(message({network, network},
                {.labels = {0}, .batch_size = std::numeric_limits<std::int64_t>::max(), .pad_batches = true}) ==
        "tstitch::Request: batch_size must be at most 16777216, got 9223372036854775807");
  CHECK(message({network, network}, {.labels = {0}, .count = 3, .seed = ~std::uint64_t(1)}) ==
        "tstitch::Request: seed + i must be at most 2^64 - 1 for each of the 3 images, got 18446744073709551614");
  CHECK(message({network, network}, {.labels = {0}, .count = 2, .seed = ~std::uint64_t(1)}) == "nothing was thrown");
  CHECK(message({network, network}, {.labels = {0}, .guidance = {.guide_network = 2}}) ==
        "tstitch::Guidance: guide_network must be the index of one of the 2 networks, got 2");
  const NoiseSchedule steep = NoiseSchedule::linear(1000, 1e-4, 0.5);
  CHECK_THAT(message_of<std::invalid_argument>([&] {
               DDIM{steep, Stitch{}, {.steps = 4}}.sample({network, network}, {.labels = {0}});
             }),
             ContainsSubstring("needs a network that predicts x_0 or a velocity") &&
                 ContainsSubstring("which predicts epsilon, at alpha = "));
}
