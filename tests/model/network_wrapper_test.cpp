// A wrapper loses nothing of the network inside.

#include <tstitch/model/network_wrapper.hpp>
#include <tstitch/tstitch.hpp>

#include <memory>
#include <string>
#include <vector>

#include "../catch.hpp"

using namespace tstitch;

namespace {

/// Has every optional member, and tells which was used.
struct Inner {
  static constexpr bool knows_timestep = true, repeats_x = true, settles_at_once = true;
  std::shared_ptr<std::vector<std::string>> seen;
  std::string name = "plain";

  at::Tensor operator()(at::Tensor const& x, at::Tensor const& t, Condition const&,
                        Evaluation const& evaluation) const {
    seen->push_back(name + (t.defined() ? " with t" : "") + (evaluation.memory ? " with memory" : "") +
                    (evaluation.step ? " in step " + std::to_string(evaluation.step->index) : "") + " of " +
                    std::to_string(x.size(0)) + " rows");
    if (evaluation.memory) ++evaluation.memory->as<int>();
    return x.size(0) == 1 ? x.repeat({2, 1, 1, 1}) : x;
  }
  void prepare(std::span<const double> timesteps, Condition const&) const {
    seen->push_back("prepared for " + std::to_string(timesteps.size()));
  }
  Inner captured(Capture const&) const { return {seen, "captured"}; }
};

struct Wrapper : NetworkWrapper<Wrapper> {
  Wrapper(Network network, int& counter) : NetworkWrapper(std::move(network)), calls(&counter) {}
  at::Tensor operator()(at::Tensor const& x, at::Tensor const& t, Condition const& condition,
                        Evaluation const& evaluation) const {
    ++*calls;
    return inner()(x, t, condition, evaluation);
  }
  int* calls;
};

}  // namespace

TEST_CASE("what a callable keeps by value is one, asked and prepared") {
  struct Counts {
    mutable int prepared = 0;
    at::Tensor operator()(at::Tensor const& x, at::Tensor const&) const { return x.add(prepared); }
    void prepare(std::span<const double>, Condition const&) const { ++prepared; }
    Counts captured(Capture const&) const { return {100 * prepared}; }
  };
  const Network network{Counts{}};
  const at::Tensor x = noise({1}, NoiseAddress::initial(), {1, 2, 2}, at::kFloat), t = x.select(1, 0);
  network.prepare(std::vector<double>{1}, {});
  network.prepare(std::vector<double>{1}, {});
  CHECK(network(x, t, {}).equal(x.add(2)));
  CHECK(network.captured([](TensorFunction function) { return function; })(x, t, {}).equal(x.add(200)));
}

TEST_CASE("a wrapped network is asked, prepared and captured as the one inside, twice wrapped too") {
  const auto run = [](Network const& network) {
    const DDIM sampler{NoiseSchedule::linear(), SingleNetwork{}, {.steps = 3}};
    Trajectory trajectory = sampler.begin({network}, {.labels = {1}, .guidance = {.scale = 2}, .shape = {1, 2, 2}});
    while (!trajectory.finished()) sampler.advance({network}, trajectory);
    return *trajectory.memories[0].find<int>();
  };
  const NetworkInfo info{.name = "inner", .num_classes = 3, .null_class = 3};
  const auto lines = std::make_shared<std::vector<std::string>>();
  const Network inner(Inner{lines}, info);
  const auto unmoved = [](TensorFunction function) { return function; };
  for (bool graphs : {false, true}) {
    lines->clear();
    CHECK(run(graphs ? inner.captured(unmoved) : inner) == 3);
    const std::vector<std::string> expected = *lines;
    REQUIRE(expected.size() == 4);
    CHECK(expected[0] == "prepared for 3");
    CHECK(expected[1] == std::string(graphs ? "captured" : "plain") + " with memory in step 0 of 1 rows");
    int calls = 0, more_calls = 0;
    const Network twice = Wrapper(Wrapper(inner, calls).network(), more_calls).network();
    lines->clear();
    CHECK(run(graphs ? twice.captured(unmoved) : twice) == 3);
    CHECK(*lines == expected);
    CHECK(calls == 3);
    CHECK(more_calls == 3);
    CHECK((twice.knows_timestep() && twice.repeats_x() && twice.settles_at_once() && twice.prepares()));
    CHECK(twice.info().name == "inner");
  }
}
