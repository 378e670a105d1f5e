// What lives from step to step of a run is in the run: a rule's State and a network's Memory follow forks, threads and
// retries.

#include <tstitch/tstitch.hpp>

#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "../catch.hpp"

using namespace tstitch;

namespace {

const NoiseSchedule schedule = NoiseSchedule::linear();

/// Heavy-ball descent: the state is the last update.
struct Momentum {
  struct State {
    at::Tensor update = {};
    int steps = 0;
  };

  int* fail_at = nullptr;  ///< throws once at this step

  at::Tensor operator()(StepInput const& in, State& state) const {
    const at::Tensor now = DDIMUpdate{}(in).sub(in.x);
    state.update = state.update.defined() ? state.update.mul(0.25).add(now, 0.75) : now;
    ++state.steps;
    if (fail_at && *fail_at == in.step.index) {
      *fail_at = -1;
      throw std::runtime_error("once");
    }
    return in.x.add(state.update);
  }
};

/// Answers with the mean of all that it has seen in this run.
struct Remembers {
  struct Seen {
    at::Tensor sum = {};
    int calls = 0;
  };

  at::Tensor operator()(at::Tensor const& x, at::Tensor const&, Condition const&, Evaluation const& evaluation) const {
    if (!evaluation.memory) return x;
    Seen& seen = evaluation.memory->as<Seen>();
    seen.sum = seen.sum.defined() ? seen.sum.add(x) : x;
    return seen.sum.div(++seen.calls);
  }
};

const std::vector<Network> networks{Network(Remembers{}), Network(Remembers{})};
const Request request{.count = 2, .seed = 3, .shape = {1, 2, 2}};

at::Tensor finish(auto const& sampler, Trajectory run) {
  while (!run.finished()) sampler.advance(networks, run);
  return run.x;
}

}  // namespace

TEST_CASE("a rule and a network with state: what they keep is in the trajectory") {
  const Sampler sampler{schedule, Stitch{.ratio = 0.5}, {.steps = 6}, Momentum{}};
  Trajectory run = sampler.begin(networks, request);
  CHECK(run.rule_state.empty());
  for (int i = 0; i < 4; ++i) sampler.advance(networks, run);
  CHECK(run.rule_state.find<Momentum::State>()->steps == 4);
  REQUIRE(run.memories.size() == 2);
  CHECK(run.memories[0].find<Remembers::Seen>()->calls == 3);  // each network has its own
  CHECK(run.memories[1].find<Remembers::Seen>()->calls == 1);
  CHECK(run.memories[1].find<int>() == nullptr);
}

TEST_CASE("a fork has a state of its own") {
  const Sampler sampler{schedule, Stitch{.ratio = 0.5}, {.steps = 6}, Momentum{}};
  const at::Tensor alone = finish(sampler, sampler.begin(networks, request));
  Trajectory run = sampler.begin(networks, request);
  sampler.advance(networks, run);
  sampler.advance(networks, run);
  Trajectory fork = run;
  fork.x = fork.x.add(1);
  CHECK_FALSE(finish(sampler, fork).equal(alone));
  CHECK(finish(sampler, run).equal(alone));
  CHECK(finish(sampler, run).equal(alone));  // twice from one point
}

TEST_CASE("a step that throws leaves the state as it was") {
  const Sampler plain{schedule, Stitch{.ratio = 0.5}, {.steps = 6}, Momentum{}};
  const at::Tensor alone = finish(plain, plain.begin(networks, request));
  for (int step = 0; step < 6; ++step) {
    int fail_at = step;
    const Sampler sampler{schedule, Stitch{.ratio = 0.5}, {.steps = 6}, Momentum{&fail_at}};
    Trajectory run = sampler.begin(networks, request);
    int failures = 0;
    while (!run.finished()) {
      try {
        sampler.advance(networks, run);
      } catch (std::runtime_error const&) {
        ++failures;
      }
    }
    CHECK(failures == 1);
    CHECK(run.x.equal(alone));
    CHECK(run.rule_state.find<Momentum::State>()->steps == 6);
  }
}

TEST_CASE("threads share a sampler and its networks, not their state") {
  const Sampler sampler{schedule, Stitch{.ratio = 0.5}, {.steps = 12}, Momentum{}};
  const auto draw = [&](std::uint64_t seed) {
    return sampler.sample(networks, {.count = 1, .seed = seed, .shape = {1, 2, 2}}).images;
  };
  std::vector<at::Tensor> alone(4), together(4);
  for (std::size_t i = 0; i < 4; ++i) alone[i] = draw(i);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      for (int k = 0; k < 5; ++k) together[i] = draw(i);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (std::size_t i = 0; i < 4; ++i) CHECK(together[i].equal(alone[i]));
}

TEST_CASE("a guide network has a memory of its own, and switches that re-evaluate tell the network") {
  const DPMSolver sampler{schedule, Stitch{.ratio = 0.5}, {.steps = 6, .at_switch = SwitchPolicy::re_evaluate}};
  Request guided = request;
  guided.guidance = {.scale = {1, 2}, .guide_network = 0};
  Trajectory run = sampler.begin(networks, guided);
  while (!run.finished()) sampler.advance(networks, run);
  const std::vector<int> calls = sampler.plan(guided.guidance).calls();
  CHECK(run.memories[0].find<Remembers::Seen>()->calls == calls[0]);
  CHECK(run.memories[1].find<Remembers::Seen>()->calls == calls[1]);
}

TEST_CASE("finish takes the steps that are left, as sample does") {
  const Sampler sampler{schedule, Stitch{.ratio = 0.5}, {.steps = 6}, Momentum{}};
  Trajectory run = sampler.begin(networks, request);
  sampler.advance(networks, run);
  sampler.advance(networks, run);
  int seen = 0;
  const auto watch = [&](StepReport const& report) {
    REQUIRE(report.trajectory);
    CHECK(report.trajectory->next == report.step.index + 1);
    CHECK(report.trajectory->x.equal(report.x));
    CHECK((report.done == 3 + seen && report.steps == 6 && report.images == 2));
    ++seen;
  };
  const Samples samples = sampler.finish(networks, run, watch);
  CHECK(seen == 4);
  CHECK(samples.images.equal(sampler.sample(networks, request).images));
  CHECK((samples.finished && samples.finished_images == 2 && samples.seeds == std::vector<std::uint64_t>{3, 4}));
  CHECK(run.next == 2);

  const Samples stopped = sampler.finish(networks, run, [](StepReport const&) { return Control::cancel; });
  CHECK((!stopped.finished && stopped.finished_images == 0 && stopped.images.size(0) == 2));
  while (!run.finished()) sampler.advance(networks, run);
  CHECK(sampler.finish(networks, run).images.equal(run.x));

  const auto breaks = [](at::Tensor const& x, at::Tensor const& t) {
    return t.select(0, 0).item<double>() < 500 ? x.div(x.sub(x)) : x;
  };
  const std::vector<Network> broken{Network(breaks), Network(breaks)};
  Trajectory other = sampler.begin(broken, request);
  sampler.advance(broken, other);
  CHECK_THAT(message_of<std::runtime_error>([&] { sampler.finish(broken, other); }),
             ContainsSubstring("values must be finite numbers") && ContainsSubstring("at step 3 "));
}

TEST_CASE("fingerprints tell plans apart, and the trajectory bears that of its own") {
  const auto of = [](auto const& sampler, Guidance const& guidance = {}) {
    return fingerprint(sampler.plan(guidance));
  };
  const DDIM one{schedule, Stitch{.ratio = 0.5}, {.steps = 6}};
  CHECK(of(one) == of(DDIM{schedule, Stitch{.ratio = 0.5}, {.steps = 6}}));
  CHECK(of(one) == of(DDIM{schedule, Fractions{{0.5, 0.5}}, {.steps = 6}}));  // the same plan
  CHECK(of(one) != of(DDIM{schedule, Stitch{.ratio = 0.4}, {.steps = 6}}));
  CHECK(of(one) != of(DDIM{schedule, Stitch{.ratio = 0.5}, {.steps = 7}}));
  CHECK(of(one) != of(DDIM{NoiseSchedule::cosine(), Stitch{.ratio = 0.5}, {.steps = 6}}));
  CHECK(of(one) != of(one, {.scale = 2}));
  CHECK(of(one) != of(Heun{schedule, Stitch{.ratio = 0.5}, {.steps = 6}}));
  CHECK(one.begin(networks, request).plan == of(one));
  Request guided = request;
  guided.guidance = {.scale = {1, 2}, .guide_network = 0};
  CHECK(one.begin(networks, guided).plan == of(one, guided.guidance));
}

TEST_CASE("an observer may see a step before it is taken, and cancel there") {
  struct Both {
    std::vector<std::string>* seen;
    Control before(StepBegin const& begin) {
      seen->push_back("before " + std::to_string(begin.step.index));
      return begin.step.index == 2 ? Control::cancel : Control::proceed;
    }
    void operator()(StepReport const& report) { seen->push_back("after " + std::to_string(report.step.index)); }
  };
  std::vector<std::string> seen;
  const DDIM sampler{schedule, Stitch{.ratio = 0.5}, {.steps = 6}};
  const Samples samples = sampler.sample(networks, request, Both{&seen});
  CHECK(seen == std::vector<std::string>{"before 0", "after 0", "before 1", "after 1", "before 2"});
  CHECK_FALSE(samples.finished);
  CHECK(samples.finished_images == 0);
  CHECK(samples.images.size(0) == 2);  // the newest predictions
  struct Never {
    Control before(StepBegin const& begin) { return begin.first == first ? Control::cancel : Control::proceed; }
    void operator()(StepReport const&) {}
    std::int64_t first;
  };
  Request batches = request;
  batches.batch_size = 1;
  CHECK(sampler.sample(networks, batches, Never{0}).images.sizes() == at::IntArrayRef{0, 1, 2, 2});
  const Samples one = sampler.sample(networks, batches, Never{1});
  CHECK(one.images.sizes() == at::IntArrayRef{1, 1, 2, 2});
  CHECK((one.seeds.size() == 1 && one.finished_images == 1 && !one.finished));
}

TEST_CASE("a step that throws after a switch leaves history and memories as they were") {
  // Fails once, behind the evaluations that renew the history.
  struct Flaky {
    int* calls;
    int fail_at;
    at::Tensor operator()(at::Tensor const& x, at::Tensor const& t, Condition const& condition,
                          Evaluation const& evaluation) const {
      if (++*calls == fail_at) throw std::runtime_error("once");
      return Remembers{}(x, t, condition, evaluation);
    }
  };
  for (const SwitchPolicy policy : {SwitchPolicy::re_evaluate, SwitchPolicy::reset, SwitchPolicy::keep}) {
    const DPMSolver sampler{schedule, Stitch{.ratio = 0.5}, {.steps = 6, .at_switch = policy}, {.order = 3}};
    const auto draw = [&](int fail_at) {
      int calls = 0;
      const std::vector<Network> flaky{networks[0], Network(Flaky{&calls, fail_at})};
      Trajectory run = sampler.begin(flaky, request);
      while (!run.finished()) {
        const Trajectory before = run;
        try {
          sampler.advance(flaky, run);
        } catch (std::runtime_error const&) {
          CHECK((run.next == before.next && run.x.is_same(before.x) && run.history.size() == before.history.size()));
          for (std::size_t i = 0; i < run.history.size(); ++i) {
            CHECK(run.history[i].x_0.is_same(before.history[i].x_0));
            CHECK(run.history[i].network == before.history[i].network);
          }
        }
      }
      return run.x;
    };
    const at::Tensor alone = draw(0);
    for (int fail_at = 1; fail_at <= 6; ++fail_at) CHECK(draw(fail_at).equal(alone));
  }
}
