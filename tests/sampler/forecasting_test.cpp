// Forecast steps and forecast guidance, for every sampler and guidance: what a polynomial foretells is exact, and the
// run does what its plan says.

#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>
#include <tstitch/method/by_name.hpp>
#include <tstitch/tstitch.hpp>

#include <atomic>
#include <cmath>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "../catch.hpp"

using namespace tstitch;

namespace {

const NoiseSchedule schedule = NoiseSchedule::linear();

/// What a network of parts was asked.
struct Counts {
  std::atomic<int> blocks{0}, heads{0}, rows{0};
};

/// A network whose blocks add a polynomial in t, another one for rows of another class; 5 is "no class". It predicts
/// x_0, so that what guidance adds is a polynomial too.
Network network(int degree, double gain, Counts* counts = nullptr) {
  SplitNetwork parts;
  parts.embed = [](at::Tensor const& x, at::Tensor const& t, Condition const& condition) {
    return std::vector{x.mul(0.25), t, condition.labels};
  };
  parts.blocks = [=](std::vector<at::Tensor> const& embedded) {
    if (counts) {
      ++counts->blocks;
      counts->rows += int(embedded[0].size(0));
    }
    at::Tensor value = embedded[1].new_zeros(embedded[1].sizes());
    const at::Tensor u = embedded[1].to(at::kDouble).div(500).sub(1);
    for (int d = 0; d <= degree; ++d) value = value.mul(u).add(embedded[2].to(at::kDouble).mul(gain).add(d).cos());
    return embedded[0].add_(value.view({-1, 1, 1, 1}));  // in place, as blocks may
  };
  parts.head = [=](std::vector<at::Tensor> const&, at::Tensor const& feature) {
    if (counts) ++counts->heads;
    return feature.mul(0.7);
  };
  return Network(parts, {.name = "polynomial",
                         .prediction_type = PredictionType::sample,
                         .num_classes = 5,
                         .null_class = 5,
                         .timestep_type = TimestepType::float32,
                         .noise_schedule = schedule});
}

Request request_of(Guidance const& guidance, std::int64_t count = 2) {
  const at::Tensor noise = tstitch::noise({1, 2, 3, 4, 5, 6, 7}, NoiseAddress::initial(), {2, 2, 3}, at::kFloat);
  return {
      .labels = {1}, .count = count, .guidance = guidance, .initial_noise = noise.narrow(0, 0, count).to(at::kDouble)};
}

/// 28 timesteps at equal distances, so that a polynomial in t is one in the step.
SamplingOptions options(Forecast const& forecast) {
  return {.steps = 28, .thresholding = Thresholding::none(), .forecast = forecast};
}

struct NamedGuidance {
  std::string name;
  Guidance guidance;
};

const std::vector<NamedGuidance> guidances{
    {"none", {}},
    {"plain", {.scale = 2.5}},
    {"below one", {.scale = 0.25}},
    {"each its own", {.scale = {1, 3}}},
    {"an interval", {.scale = 2, .begin = 0.2, .end = 0.8}},
    {"one channel", {.scale = 2, .channels = 1}},
    {"rescaled", {.scale = 2, .rescale = 0.7}},
    {"projected", {.scale = 3, .projected = ProjectedGuidance{.eta = 0.3, .norm_threshold = 2, .momentum = -0.5}}},
    {"by a guide", {.scale = {1, 2}, .guide_network = 0}},
    {"projected, by a guide", {.scale = {1, 2}, .projected = ProjectedGuidance{.momentum = -0.3}, .guide_network = 0}},
};

bool near(at::Tensor const& a, at::Tensor const& b) {
  return a.sub(b).abs().max().item<double>() < 1e-11 * std::max(1.0, b.abs().max().item<double>());
}

/// Which call says what is no number, and what it was.
struct Culprit {
  bool in_blocks;  ///< counts computed evaluations, and breaks what is kept of one; else all of them, after forecasts
  int call = -1;   ///< of all networks in a batch; -1: none
  double value = NAN;
  bool unconditional = false;  ///< in the rows without the condition, where there are any

  int calls = 0;
  std::string broken = {};  ///< the network that broke
};

/// What its blocks make is the same in every step, so that forecasts of it are right, and small enough to stay so.
struct Breakable {
  static constexpr bool forecasts = true;
  std::shared_ptr<Culprit> culprit;
  std::string name;
  double level;

  void prepare(std::span<const double>, Condition const&) const { culprit->calls = 0; }

  at::Tensor operator()(at::Tensor const& x, at::Tensor const&, Condition const& condition,
                        Evaluation const& evaluation) const {
    const at::Tensor weights = condition.labels.mul(0.25).add(1).to(x.scalar_type());
    at::Tensor value;
    if (FeatureMemory::forecasts(evaluation)) {
      value = evaluation.memory->as<FeatureMemory>().forecast(evaluation);
    } else {
      value = x.new_zeros(x.sizes()).add(weights.view({-1, 1, 1, 1}), level);
      if (culprit->in_blocks) value = broken(value, evaluation.both_halves);
      if (FeatureMemory::keeps(evaluation)) evaluation.memory->as<FeatureMemory>().keep(evaluation, value);
    }
    return culprit->in_blocks ? value : broken(value, evaluation.both_halves);
  }

  at::Tensor broken(at::Tensor const& value, bool both_halves) const {
    if (culprit->calls++ != culprit->call) return value;
    culprit->broken = name;
    at::Tensor fault = value.new_zeros(value.sizes());
    fault.select(0, both_halves && culprit->unconditional ? value.size(0) / 2 : 0)
        .select(0, 1)
        .narrow(0, 1, 1)
        .fill_(culprit->value);
    return value.add(fault);
  }
};

/// Asks somewhere else than at the timesteps of the plan.
bool asks_between(std::string const& name) {
  return name.find("singlestep") != std::string::npos || name == "dpm-solver++-2s-ancestral" ||
         name == "dpm-solver++-sde" || name == "dpm2";
}

}  // namespace

TEST_CASE("every sampler and guidance with forecasts: as without, where a polynomial foretells all") {
  for (NamedRule const& named : update_rules()) {
    if (named.name.find("adaptive") != std::string::npos) continue;
    for (auto const& [name, guidance] : guidances) {
      for (const int order : {0, 1, 2}) {
        const int degree = asks_between(named.name) ? 0 : order;
        const AnySampler plain{schedule, Stitch{.ratio = 0.3}, options({}), named.make({})};
        const std::vector<Network> networks{network(degree, 1), network(degree, 1.3)};
        const at::Tensor expected = plain.sample(networks, request_of(guidance)).images;
        for (const int kind : {1, 2, 3, 7}) {  // steps, guidance, both, both with another order
          INFO(named.name << ", guidance " << name << ", order " << order << ", kind " << kind);
          const Forecast every = ForecastEvery{.every = 3, .order = order, .warm_up = 1};
          Guidance forecast = guidance;
          const int of_guidance = kind & 4 ? degree + 1 + (order + 1) % 2 : order;
          if (kind & 2) forecast.forecast = ForecastEvery{.every = 2, .order = of_guidance, .warm_up = 0};
          const AnySampler sampler{schedule, Stitch{.ratio = 0.3}, options(kind & 1 ? every : Forecast()),
                                   named.make({})};
          Counts counts[2];
          const std::vector<Network> counted{network(degree, 1, &counts[0]), network(degree, 1.3, &counts[1])};
          const Samples samples = sampler.sample(counted, request_of(forecast));
          CHECK(near(samples.images, expected));
          const Plan plan = sampler.plan(forecast);
          const std::vector<NetworkWork> work = plan.work(2);
          for (const std::size_t k : {0, 1}) {
            CHECK(counts[k].blocks == work[k].computed);
            CHECK(counts[k].heads == work[k].computed + work[k].forecast);
            CHECK(counts[k].rows == 2 * work[k].rows);
          }
          CHECK((work[1].forecast > 0) == bool(kind & 1));
          CHECK((plan.has_forecasts() || (kind == 2 && guidance.scale.values() == std::vector{1.0})));
        }
      }
    }
  }
}

TEST_CASE("what is no polynomial is forecast with an error that its order makes smaller") {
  const auto waves = [](bool parts) -> Network {
    const auto value = [](at::Tensor const& t) { return t.to(at::kDouble).div(150).sin().view({-1, 1, 1, 1}); };
    SplitNetwork split;
    split.embed = [](at::Tensor const& x, at::Tensor const& t, Condition const&) { return std::vector{x, t}; };
    split.blocks = [=](std::vector<at::Tensor> const& embedded) { return embedded[0].add(value(embedded[1])); };
    split.head = [](std::vector<at::Tensor> const&, at::Tensor const& feature) { return feature.mul(0.5); };
    const NetworkInfo info{.prediction_type = PredictionType::sample, .noise_schedule = schedule};
    if (parts) return Network(split, info);
    return Network([=](at::Tensor const& x, at::Tensor const& t) { return x.add(value(t)).mul(0.5); }, info);
  };
  Request request = request_of({});
  request.labels.clear();
  const auto draw = [&](Network const& by, int steps, Forecast const& forecast) {
    const DDIM sampler{schedule, SingleNetwork{}, {.steps = steps, .forecast = forecast}};
    return sampler.sample({by}, request).images;
  };
  const at::Tensor exact = draw(waves(false), 200, {});
  CHECK(draw(waves(true), 200, ForecastEvery{.every = 1}).equal(exact));
  CHECK(draw(waves(true), 200, {}).equal(exact));
  double before = 1;
  for (const int order : {0, 1, 2, 3}) {
    const at::Tensor forecast = draw(waves(true), 200, ForecastEvery{.order = order});
    const double error = forecast.sub(exact).abs().max().item<double>();
    CHECK(error > 0);
    CHECK(error < 0.5 * before);
    before = error;
  }
}

namespace {

KeptSteps rebuilt(KeptSteps const& steps) {
  std::vector<KeptSteps::Kept> kept;
  for (KeptSteps::Kept const& each : steps.kept()) kept.push_back({each.step, each.number, each.tensor.clone()});
  return KeptSteps(std::move(kept));
}

/// What a program reads back that wrote the run's forecasts into a file: nothing is shared with the run.
Trajectory rebuilt(Trajectory const& run) {
  Trajectory made = run;
  for (Memory& memory : made.memories) {
    if (memory.empty()) continue;
    FeatureMemory::State const state = memory.as<FeatureMemory>().state();
    memory = {};
    memory.as<FeatureMemory>() =
        FeatureMemory({rebuilt(state.conditional), rebuilt(state.unconditional), rebuilt(state.both)});
  }
  ForecastHistory::State state = run.forecasts.state();
  made.forecasts = ForecastHistory(std::move(state));
  made.differences = rebuilt(run.differences);
  if (auto const* every = run.guidance.forecast.find<ForecastEvery>()) {
    made.guidance.forecast = ForecastEvery(*every);
  } else if (auto const* table = run.guidance.forecast.find<ForecastTable>()) {
    made.guidance.forecast = ForecastTable(*table);
  }
  return made;
}

}  // namespace

TEST_CASE("a run with forecasts that is taken apart and put together in any step has the same bits") {
  for (NamedRule const& named : update_rules()) {
    if (named.name.find("adaptive") != std::string::npos) continue;
    for (auto const& [name, guidance] : guidances) {
      for (const int order : {0, 1, 2}) {
        const int kind = 1 + order;  // steps, guidance, both
        INFO(named.name << ", guidance " << name << ", order " << order);
        const Forecast every = ForecastEvery{.every = 3, .order = order, .warm_up = 1};
        Guidance forecast = guidance;
        std::vector<bool> table(11, false);
        for (const std::size_t i : {3, 5, 7, 8}) table[i] = true;
        if (kind & 2) forecast.forecast = ForecastTable{.forecast = table, .order = (order + 1) % 2};
        if (kind == 3) forecast.forecast = ForecastEvery{.every = 2, .order = 1, .warm_up = 0};
        SamplingOptions of_run = options(kind & 1 ? every : Forecast());
        of_run.steps = 11;
        const AnySampler sampler{schedule, Stitch{.ratio = 0.3}, of_run, named.make({})};
        const std::vector<Network> networks{network(2, 1), network(3, 1.3)};
        const at::Tensor expected = sampler.sample(networks, request_of(forecast)).images;
        Trajectory run = sampler.begin(networks, request_of(forecast));
        bool kept = false;
        while (!run.finished()) {
          sampler.advance(networks, run);
          run = rebuilt(run);
          kept = kept || !run.differences.kept().empty() || !run.memories[1].empty();
        }
        CHECK(run.x.equal(expected));
        CHECK(kept == (bool(kind & 1) || guidance.scale.values() != std::vector{1.0}));
      }
    }
  }
}

TEST_CASE("what is no memory of forecasts is refused") {
  const at::Tensor x = at::zeros({1});
  const auto refused = [](auto make) { return message_of<std::invalid_argument>(make); };
  CHECK(refused([&] {
          KeptSteps({{1, 0, x}, {2, 0, x}, {1, 0, x}});
        }) == "tstitch::KeptSteps: evaluations must differ, got evaluation 0 of step 1 twice");
  CHECK(refused([&] {
          KeptSteps({{1, 0, x}, {2, 1, {}}});
        }) == "tstitch::KeptSteps: each evaluation must have a tensor, got evaluation 1 of step 2");
  CHECK(KeptSteps({{1, 0, x}, {1, 1, x}, {2, 0, x}}).kept().size() == 3);
  using State = ForecastHistory::State;
  for (std::vector<int> State::*const steps : {&State::conditional, &State::unconditional, &State::differences}) {
    State state;
    state.*steps = {4, 7, 4};
    CHECK(refused([&] { ForecastHistory{state}; }) == "tstitch::ForecastHistory: steps must differ, got step 4 twice");
    state.*steps = {7, 4};  // as inversion has them
    CHECK((ForecastHistory{state}.state().*steps) == std::vector{7, 4});
  }
  CHECK(Forecast(ForecastEvery{.every = 5}).find<ForecastEvery>()->every == 5);
  CHECK(Forecast(ForecastTable{.forecast = {true}}).find<ForecastTable>()->forecast.size() == 1);
  CHECK(!Forecast(ForecastEvery{}).find<ForecastTable>());
  CHECK(!Forecast().find<ForecastEvery>());
}

TEST_CASE("forks, threads, padded batches, single images and steps that throw: the same bits with forecasts") {
  const Forecast every = ForecastEvery{.every = 3};
  Guidance guidance{.scale = 2, .forecast = ForecastEvery{.every = 2, .warm_up = 2}};
  const std::vector<Network> networks{network(3, 1), network(4, 1.3)};
  const AnySampler sampler{schedule, Stitch{.ratio = 0.3}, options(every), DPMSolverUpdate{}};
  const Request request = request_of(guidance, 7);
  const at::Tensor alone = sampler.sample(networks, request).images;

  // A fork at each step, which goes on after the original has ended.
  Trajectory run = sampler.begin(networks, request);
  std::vector<Trajectory> forks;
  while (!run.finished()) {
    forks.push_back(run);
    sampler.advance(networks, run);
  }
  CHECK(run.x.equal(alone));
  for (Trajectory& fork : forks) {
    while (!fork.finished()) sampler.advance(networks, fork);
    CHECK(fork.x.equal(alone));
  }

  std::vector<at::Tensor> together(8);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] { together[i] = sampler.sample(networks, request).images; });
  }
  for (std::thread& thread : threads) thread.join();
  for (at::Tensor const& images : together) CHECK(images.equal(alone));

  Request padded = request;
  padded.pad_batches = true;
  for (const std::int64_t size : {1, 3, 8}) {
    padded.batch_size = size;
    CHECK(sampler.sample(networks, padded).images.equal(alone));
  }

  // Each step throws once, after its network has kept what it made.
  bool throws = true;
  const AnySampler failing{schedule, Stitch{.ratio = 0.3}, options(every),
                           [&throws](StepInput const& in) -> at::Tensor {
                             const at::Tensor x_0 = in.predict().x_0;
                             throws = !throws;
                             if (!throws) throw std::runtime_error("once");
                             return in.x.lerp(x_0, 0.2);
                           }};
  Trajectory retried = failing.begin(networks, request);
  int failures = 0;
  while (!retried.finished()) {
    try {
      failing.advance(networks, retried);
    } catch (std::runtime_error const&) {
      ++failures;
    }
  }
  CHECK(failures == 28);
  const AnySampler sound{schedule, Stitch{.ratio = 0.3}, options(every),
                         [](StepInput const& in) { return in.x.lerp(in.predict().x_0, 0.2); }};
  CHECK(retried.x.equal(sound.sample(networks, request).images));
}

TEST_CASE("what is captured of a network in parts answers as the parts do") {
  int captures = 0, calls = 0;
  const Capture counting = [&](TensorFunction function) -> TensorFunction {
    ++captures;
    return [&, function](std::vector<at::Tensor> const& given) {
      ++calls;
      return function(given);
    };
  };
  const std::vector<Network> networks{network(2, 1), network(3, 1.3)};
  const std::vector<Network> captured{networks[0].captured(counting),
                                      networks[1].captured(counting).captured(counting)};
  for (const bool half : {false, true}) {
    const DPMSolver sampler{schedule, Stitch{.ratio = 0.3}, options(ForecastEvery{.first_network = 1})};
    Guidance guidance{.scale = 2};
    if (half) guidance.forecast = ForecastEvery{.warm_up = 2};
    const at::Tensor expected = sampler.sample(networks, request_of(guidance)).images;
    calls = 0;
    CHECK(sampler.sample(captured, request_of(guidance)).images.equal(expected));
    CHECK(calls == 28);  // each way through a network is one call
    const DPMSolver plain{schedule, Stitch{.ratio = 0.3}, options({})};
    CHECK(plain.sample(captured, request_of({.scale = 2}))
              .images.equal(plain.sample(networks, request_of({.scale = 2})).images));
  }
  CHECK(captures > 0);
}

TEST_CASE("runs that begin later, and other samplers that take over, forecast from what was computed") {
  Counts counts;
  const std::vector<Network> networks{network(1, 1), network(1, 1.3, &counts)};
  const DDIM sampler{schedule, Stitch{.ratio = 0.3}, options(ForecastEvery{.warm_up = 0})};
  const DDIM plain{schedule, Stitch{.ratio = 0.3}, options({})};
  Request request = request_of({.scale = 2});
  const at::Tensor expected = plain.sample(networks, request).images;
  request.initial_image = request.initial_noise.mul(0.2);
  for (const double strength : {0.1, 0.5, 0.9}) {
    request.strength = strength;
    const at::Tensor from_image = plain.sample(networks, request).images;
    counts.blocks = 0;
    CHECK(near(sampler.sample(networks, request).images, from_image));
    CHECK(counts.blocks == sampler.plan(request.guidance, strength).work(2)[1].computed);
  }
  request = request_of({.scale = 2});
  for (int at = 0; at <= 28; ++at) {
    Trajectory run = plain.begin(networks, request);
    for (int i = 0; i < at; ++i) plain.advance(networks, run);
    while (!run.finished()) sampler.advance(networks, run);
    CHECK(near(run.x, expected));
  }
}

TEST_CASE("steps without forecasts between: no forecast reaches back over them") {
  // What the blocks add is a wave, of which a line knows nothing after half of it.
  SplitNetwork parts;
  parts.embed = [](at::Tensor const& x, at::Tensor const& t, Condition const&) { return std::vector{x, t}; };
  parts.blocks = [](std::vector<at::Tensor> const& embedded) {
    return embedded[0].add(embedded[1].to(at::kDouble).div(90).sin().view({-1, 1, 1, 1}));
  };
  parts.head = [](std::vector<at::Tensor> const&, at::Tensor const& feature) { return feature.mul(0.5); };
  const std::vector<Network> networks{
      Network(parts, {.prediction_type = PredictionType::sample, .noise_schedule = schedule})};
  Request request = request_of({});
  request.labels.clear();
  const DDIM forecast{schedule, SingleNetwork{}, {.steps = 80, .forecast = ForecastEvery{.warm_up = 2}}};
  const DDIM plain{schedule, SingleNetwork{}, {.steps = 80}};
  const at::Tensor exact = plain.sample(networks, request).images;
  const auto error_of = [&](at::Tensor const& x) { return x.sub(exact).abs().max().item<double>(); };
  Trajectory run = plain.begin(networks, request);
  while (!run.finished()) (run.next >= 20 && run.next < 60 ? plain : forecast).advance(networks, run);
  CHECK(error_of(run.x) > 0);
  CHECK(error_of(run.x) < 2 * error_of(forecast.sample(networks, request).images));
}

TEST_CASE("what is captured in parts is told apart by the condition's sizes, and deep features need not be residual") {
  // As where text is joined to the tokens: the feature's size is the text's.
  SplitNetwork parts;
  parts.residual = false;
  parts.embed = [](at::Tensor const& x, at::Tensor const&, Condition const& condition) {
    return std::vector{x, condition.at("text")};
  };
  parts.blocks = [](std::vector<at::Tensor> const& embedded) { return embedded[1].mul(2); };
  parts.head = [](std::vector<at::Tensor> const& embedded, at::Tensor const& feature) {
    return embedded[0].add(feature.mean(1).view({-1, 1, 1, 1})).mul(0.25);
  };
  const Network network(parts, {.prediction_type = PredictionType::sample,
                                .conditions = {{.name = "text", .shape = {0}}},
                                .noise_schedule = schedule});
  // A replay runs nothing on the host: here the output of a call with tensors of the same sizes, from the same x.
  const Capture replaying = [](TensorFunction function) -> TensorFunction {
    const auto known = std::make_shared<std::vector<std::pair<std::vector<at::Tensor>, at::Tensor>>>();
    return [=](std::vector<at::Tensor> const& given) {
      const auto same = [&](auto const& each) {
        return std::ranges::equal(each.first, given, [](auto const& a, auto const& b) { return a.equal(b); });
      };
      const auto found = std::ranges::find_if(*known, same);
      if (found != known->end()) return found->second;
      known->emplace_back(given, function(given));
      return known->back().second;
    };
  };
  const Network captured = network.captured(replaying);
  const DDIM sampler{schedule, SingleNetwork{}, {.steps = 12, .forecast = ForecastEvery{}}};
  for (const std::int64_t tokens : {7, 12, 7}) {
    Request request = request_of({});
    request.labels.clear();
    request.conditions = {{.name = "text", .value = request.initial_noise.new_ones({1, tokens})}};
    CHECK(sampler.sample({captured}, request).images.equal(sampler.sample({network}, request).images));
  }
}

TEST_CASE("what networks kept is let go when another takes over, and small ones keep nothing") {
  const std::vector<Network> networks{network(1, 1), network(1, 1.3)};
  const auto turns = [](Step const& step) { return std::size_t(step.index / 6 % 2); };
  const auto kept = [&](Forecast const& forecast, int steps) {
    const DDIM sampler{schedule, turns, options(forecast)};
    Trajectory run = sampler.begin(networks, request_of({.scale = 2}));
    for (int i = 0; i < steps; ++i) sampler.advance(networks, run);
    std::vector<bool> found;
    for (Memory const& memory : run.memories) found.push_back(memory.find<FeatureMemory>());
    return found;
  };
  CHECK(kept(ForecastEvery{}, 5) == std::vector<bool>{true, false});
  CHECK(kept(ForecastEvery{}, 8) == std::vector<bool>{false, true});
  CHECK(kept(ForecastEvery{}, 14) == std::vector<bool>{true, false});
  CHECK(kept(ForecastEvery{.first_network = 1}, 5) == std::vector<bool>{false, false});
  CHECK(kept(ForecastEvery{.first_network = 1}, 8) == std::vector<bool>{false, true});
  CHECK(kept({}, 8) == std::vector<bool>{false, false});
}

TEST_CASE("a switch that predicts the history again leaves forecasts as they are") {
  const std::vector<Network> networks{network(1, 1), network(1, 1.3)};
  for (const SwitchPolicy policy : {SwitchPolicy::keep, SwitchPolicy::reset, SwitchPolicy::re_evaluate}) {
    SamplingOptions with = options(ForecastEvery{.warm_up = 0}), without = options({});
    with.at_switch = without.at_switch = policy;
    const auto turns = [](Step const& step) { return std::size_t(step.index / 6 % 2); };
    const DPMSolver sampler{schedule, turns, with}, plain{schedule, turns, without};
    CHECK(near(sampler.sample(networks, request_of({.scale = 2})).images,
               plain.sample(networks, request_of({.scale = 2})).images));
  }
}

TEST_CASE("what broke an image is named with its step, also where steps and guidance are forecast") {
  const Forecast every = ForecastEvery{.every = 2, .order = 1, .warm_up = 2, .last = false};
  const std::vector<NamedGuidance> kinds{
      {"none", {}},
      {"plain", {.scale = 2.5}},
      {"plain, forecast", {.scale = 2.5, .forecast = every}},
      {"projected, forecast",
       {.scale = 3, .projected = ProjectedGuidance{.norm_threshold = 2, .momentum = -0.5}, .forecast = every}},
      {"by a guide, forecast", {.scale = 2, .guide_network = 1, .forecast = every}}};
  const auto halves = [](Step const& step) { return std::size_t(step.index < step.count / 2 ? 0 : 2); };
  std::size_t turn = 0, forecast_steps = 0, of_the_guide = 0;
  for (NamedRule const& named : update_rules()) {
    if (named.name.find("adaptive") != std::string::npos) continue;
    for (auto const& [name, guidance] : kinds) {
      for (const Thresholding& thresholding : {Thresholding::none(), Thresholding::clip()}) {
        const bool in_blocks = ++turn % 2, unconditional = turn / 2 % 2;
        const auto culprit =
            std::make_shared<Culprit>(Culprit{in_blocks, -1, turn % 3 ? NAN : double(INFINITY), unconditional});
        const auto network = [&](std::string const& called, double level) {
          return Network(Breakable{culprit, called, level}, {.name = called,
                                                             .prediction_type = PredictionType::sample,
                                                             .num_classes = 5,
                                                             .null_class = 5,
                                                             .timestep_type = TimestepType::float32});
        };
        const std::vector<Network> networks{network("small", 0.1), network("guide", 0.15), network("large", 0.2)};
        // At t = 0 what LCM predicts is x itself.
        const AnySampler sampler{schedule,
                                 halves,
                                 {.steps = 10,
                                  .spacing = Spacing::leading(0, {.include_last = false}),
                                  .thresholding = thresholding,
                                  .forecast = every},
                                 named.make({})};
        const Plan plan = sampler.plan(guidance);
        const Request request = request_of(guidance);
        sampler.sample(networks, request);
        const int count = culprit->calls;
        for (int call = 0; call < count; ++call) {
          INFO(named.name << ", guidance " << name << ", call " << call << " of " << count
                          << (in_blocks ? ", in blocks" : "") << (unconditional ? ", unconditional" : ""));
          culprit->call = call;
          culprit->broken.clear();
          // Who breaks it, and in which step, by taking the steps one by one.
          int at = 0;
          Trajectory run = sampler.begin(networks, request);
          while (!run.finished() && culprit->broken.empty()) {
            at = run.next;
            try {
              sampler.advance(networks, run);
            } catch (std::runtime_error const&) {
              break;
            }
          }
          REQUIRE_FALSE(culprit->broken.empty());
          const std::string by = culprit->broken;
          PlannedStep const& planned = plan.steps[std::size_t(at)];
          forecast_steps += planned.forecast.network;
          of_the_guide += by == "guide";
          const std::string message = message_of<std::runtime_error>([&] { sampler.sample(networks, request); });
          CHECK_THAT(message, ContainsSubstring("at step " + std::to_string(planned.step.index) + " (t = "));
          CHECK_THAT(message, ContainsSubstring(" by network ") && ContainsSubstring("('" + by + "')"));
        }
        culprit->call = -1;
      }
    }
  }
  CHECK(forecast_steps > 100);
  CHECK(of_the_guide > 100);
}

TEST_CASE("forecasts are the same in inference mode, and runs go on with or without it") {
  const std::vector<Network> networks{network(1, 1), network(2, 1.3)};
  const Forecast every = ForecastEvery{.every = 3, .order = 1, .warm_up = 2};
  for (const std::string name : {"ddim", "dpm-solver++", "heun", "pndm"}) {
    for (NamedGuidance guided : guidances) {
      guided.guidance.forecast = every;
      INFO(name << ", guidance " << guided.name);
      const AnySampler sampler{schedule, Stitch{.ratio = 0.3}, options(every), update_rule_by_name(name)};
      const Request request = request_of(guided.guidance);
      const at::Tensor expected = sampler.sample(networks, request).images;
      // In turns of three steps, which do not begin where forecasts do.
      const auto in_turns = [&](bool inside) {
        Trajectory run = sampler.begin(networks, request);
        while (!run.finished()) {
          const c10::InferenceMode mode(inside);
          for (int k = 0; k < 3 && !run.finished(); ++k) sampler.advance(networks, run);
          inside = !inside;
        }
        return run.x;
      };
      CHECK(in_turns(true).equal(expected));
      CHECK(in_turns(false).equal(expected));
      const c10::InferenceMode inference;
      CHECK(sampler.sample(networks, request).images.equal(expected));
    }
  }
}

TEST_CASE("what cannot be forecast is refused") {
  const auto message = [](auto const& sampler, Network const& by, Request const& request) {
    return message_of<std::invalid_argument>([&] { sampler.sample({by, by}, request); });
  };
  const Network whole([](at::Tensor const& x, at::Tensor const&) { return x; }, {.name = "whole"});
  Request request = request_of({});
  request.labels.clear();
  const DDIM sampler{schedule, SingleNetwork{}, options(ForecastEvery{})};
  CHECK(message(sampler, whole, request) ==
        "tstitch::Forecast: is for networks whose parts can be asked one by one (of load_dit, SplitNetwork, files "
        "exported with parts: of U-Nets by --deep-feature, packages by --forecast-parts); ForecastEvery::first_network "
        "leaves out those before it, got network 0 ('whole')");
  // A network that is left out may be whole.
  const DDIM stitched{schedule, Stitch{.ratio = 0.5}, options(ForecastEvery{.first_network = 1})};
  CHECK(stitched.sample({whole, network(1, 1)}, request_of({})).images.defined());
  CHECK(message_of<std::invalid_argument>([] {
          AdaptiveDPMSolver{schedule, SingleNetwork{}, options(ForecastEvery{})};
        }).starts_with("tstitch::Sampler: forecasts are for update rules whose evaluations are known before the run"));
  const AdaptiveDPMSolver adaptive{schedule, SingleNetwork{}, options({})};
  CHECK(message(adaptive, network(1, 1), request_of({.scale = 2, .forecast = ForecastEvery{}}))
            .starts_with("tstitch::Sampler: forecasts are for update rules"));
  Request gradient = request_of({});
  gradient.gradient = {.log_density = [](at::Tensor const& x, at::Tensor const&, Condition const&) {
    return x.square().sum({1, 2, 3}).neg();
  }};
  const std::string of_gradient =
      "tstitch::GradientGuidance: of x_0 must go through every step's network, and so have no forecasts, got a "
      "schedule "
      "of them";
  CHECK(message(sampler, network(1, 1), gradient) == of_gradient);
  const DDIM without{schedule, SingleNetwork{}, options({})};
  const auto taken_over = [&](auto const& by, Request const& begun) {
    return message_of<std::invalid_argument>([&] {
      Trajectory run = without.begin({network(1, 1)}, begun);
      by.advance({network(1, 1)}, run);
    });
  };
  CHECK(taken_over(sampler, gradient) == of_gradient);
  CHECK(
      taken_over(adaptive, request_of({.scale = 2, .forecast = ForecastEvery{}}))
          .starts_with("tstitch::Sampler: forecasts are for update rules whose evaluations are known before the run"));
  CHECK(message_of<std::invalid_argument>([] {
          Inversion{schedule, SingleNetwork{}, options(ForecastEvery{}), DDIMUpdate{}};
        }).starts_with("tstitch::Sampler: forecasts are for update rules that go to the picture"));
  gradient.gradient.of = DensityOf::x;
  CHECK(sampler.sample({network(1, 1)}, gradient).images.defined());

  SplitNetwork parts;
  const auto of_parts = [&] {
    return message_of<std::exception>([&] { DDIM{schedule, SingleNetwork{}}.sample({Network(parts)}, request); });
  };
  CHECK(of_parts() == "tstitch::SplitNetwork: embed, blocks and head must be callable, got an empty function");
  parts.embed = [](at::Tensor const& x, at::Tensor const&, Condition const&) { return std::vector{x}; };
  parts.blocks = [](std::vector<at::Tensor> const& embedded) { return embedded[0].narrow(1, 0, 1); };
  parts.head = [](std::vector<at::Tensor> const&, at::Tensor const& feature) { return feature; };
  CHECK(of_parts() == "tstitch::SplitNetwork: blocks must return [2, 2, 2, 3], got [2, 1, 2, 3]");
}
