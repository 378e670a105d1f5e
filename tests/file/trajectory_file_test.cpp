// A run that is saved at any step, loaded and taken on has the bits of one that was never stopped, for every sampler,
// guidance, mask and forecast. Files that are damaged, and samplers and networks that are others, are refused by name.

#include <tstitch/file/trajectory_file.hpp>
#include <tstitch/method/by_name.hpp>
#include <tstitch/tstitch.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../catch.hpp"
#include "../records.hpp"

using namespace tstitch;

namespace {

const NoiseSchedule schedule = NoiseSchedule::linear();
const std::vector<std::string> fingerprints{"small", "large"};

std::string path_of(std::string const& name) {
  std::filesystem::create_directories(TSTITCH_TEST_DATA "/trajectories");
  return TSTITCH_TEST_DATA "/trajectories/" + name;
}

/// What depends on x, t, the label and a condition, and can be forecast. Predicts noise.
Network network(double gain) {
  SplitNetwork parts;
  parts.embed = [](at::Tensor const& x, at::Tensor const& t, Condition const& condition) {
    return std::vector{x.mul(0.5), t.to(x.scalar_type()), condition.labels.to(x.scalar_type()),
                       condition.at("text").mean(1)};
  };
  parts.blocks = [=](std::vector<at::Tensor> const& in) {
    const at::Tensor weight = in[2].mul(0.3).add(in[3]).add(in[1].div(700)).cos().mul(gain).view({-1, 1, 1, 1});
    return in[0].add(weight).sin();
  };
  parts.head = [](std::vector<at::Tensor> const& in, at::Tensor const& feature) { return feature.add(in[0], 0.4); };
  return Network(parts, {.name = "waves",
                         .num_classes = 5,
                         .null_class = 5,
                         .conditions = {{.name = "text", .shape = {0}}},
                         .timestep_type = TimestepType::float32,
                         .noise_schedule = schedule});
}

/// New ones each time, as another process has them.
std::vector<Network> pair() {
  return {network(0.7), network(1.1)};
}

const std::vector<std::pair<std::string, Guidance>> guidances{
    {"none", {}},
    {"plain", {.scale = 2.5, .begin = 0.2}},
    {"momentum", {.scale = 3, .projected = ProjectedGuidance{.eta = 0.3, .norm_threshold = 2, .momentum = -0.5}}},
    {"a guide", {.scale = {1, 2}, .projected = ProjectedGuidance{.momentum = -0.3}, .guide_network = 0}},
};

at::Tensor drawn(std::uint64_t seed, std::vector<std::int64_t> const& shape) {
  return tstitch::noise({seed}, NoiseAddress::initial(), shape, at::kFloat);
}

Request request_of(Guidance const& guidance, bool masked) {
  Request request{.labels = {1, 3}, .seed = 11, .guidance = guidance, .shape = {2, 3, 3}};
  request.seeds = {7, std::uint64_t(-1)};
  request.conditions = {{"text", drawn(1, {4}), drawn(2, {4})}};
  if (!masked) return request;
  request.initial_image = drawn(3, {2, 3, 3});
  request.mask = drawn(4, {1, 3, 3}).sigmoid();
  request.strength = 0.8;
  return request;
}

/// Draws twice: at once, and with a stop behind `stop` steps.
void check_stop(AnySampler const& sampler, Request const& request, int stop, GoOnWith with = {}) {
  const std::vector<Network> networks = pair();
  Trajectory run = sampler.begin(networks, request);
  const at::Tensor alone = sampler.finish(networks, run).images;
  for (int k = 0; k < stop && !run.finished(); ++k) sampler.advance(networks, run);
  const std::string path = path_of("run.pt");
  std::filesystem::remove(path);
  save_trajectory(path, sampler, run, fingerprints, {}, Sync::later);
  const std::vector<Network> others = pair();
  with.fingerprints = fingerprints;
  const Trajectory again = load_trajectory(path, sampler, others, with);
  CHECK(again.next == run.next);
  CHECK(again.first == run.first);
  CHECK(again.plan == run.plan);
  CHECK(again.seeds == run.seeds);
  CHECK(again.x.equal(run.x));
  CHECK(again.x.strides() == run.x.strides());
  CHECK(sampler.finish(others, again).images.equal(alone));
}

std::string bytes_of(std::string const& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// As a new file: some disks are waited for where one takes the place of another.
void write(std::string const& path, std::string const& bytes) {
  std::filesystem::remove(path);
  std::ofstream(path, std::ios::binary) << bytes;
}

/// The run of a small file, which is there afterwards.
const DPMSolver small_sampler{schedule, Stitch{.ratio = 0.5}, {.steps = 4}};
Trajectory save_small(std::string const& path) {
  const std::vector<Network> networks = pair();
  Trajectory run = small_sampler.begin(networks, request_of({.scale = 2}, true));
  small_sampler.advance(networks, run);
  small_sampler.advance(networks, run);
  save_trajectory(path, small_sampler, run, fingerprints, {"of a program", {{"kept", drawn(9, {3})}}});
  return run;
}

/// Keeps one member of every kind.
struct Heavy {
  struct State {
    at::Tensor update = {};
    std::vector<at::Tensor> all = {};
    int steps = 0;
    bool odd = false;
    float last = 0;
    std::array<double, 2> two = {};
    std::vector<std::int64_t> indices = {};
    static void members(auto& self, auto const& see) {
      see("update", self.update);
      see("all", self.all);
      see("steps", self.steps);
      see("odd", self.odd);
      see("last", self.last);
      see("two", self.two);
      see("indices", self.indices);
    }
  };
  std::string name() const { return "Heavy"; }
  at::Tensor operator()(StepInput const& in, State& state) const {
    const at::Tensor now = DDIMUpdate{}(in).sub(in.x);
    state.update = state.update.defined() ? state.update.mul(0.25).add(now, 0.75) : now;
    state.all.push_back(state.update);
    state.all.push_back({});
    state.odd = ++state.steps % 2;
    state.last += 0.1F;
    state.two = {state.last * 3, -0.0};
    state.indices.push_back(in.step.index);
    at::Tensor x = in.x.add(state.update, 1 + 0.1 * state.odd + 0.01 * state.two[0]);
    for (std::size_t k = 0; k < state.all.size(); k += 2) x = x.add(state.all[k], 1e-3 * double(state.indices[k / 2]));
    return x;
  }
};

}  // namespace

TEST_CASE("every sampler, guidance, mask and forecast: saved at some step and taken on, a run has its own bits") {
  std::mt19937 random(7);
  std::vector<std::pair<std::string, AnyUpdateRule>> rules;
  for (NamedRule const& named : update_rules()) {
    rules.emplace_back(named.name, named.make({}));
    if (named.option("eta")) rules.emplace_back(named.name + " with eta", named.make({{"eta", 0.7}}));
  }
  rules.emplace_back("adaptive that carries", AdaptiveDPMSolverUpdate{.order = 2, .carry_step_size = true});
  rules.emplace_back("adaptive by pid",
                     AdaptiveDPMSolverUpdate{.order = 3, .pid = PIDController{}, .carry_step_size = true});
  rules.emplace_back("dpm-solver of order 3", DPMSolverUpdate{.order = 3});
  for (auto const& [name, rule] : rules) {
    const bool adaptive = name.find("adaptive") != std::string::npos;
    for (auto const& [guided, guidance] : guidances) {
      for (const bool masked : {false, true}) {
        for (const int forecasts : {0, 1, 2, 3}) {  // of networks, of guidance
          if (adaptive && forecasts) continue;
          SamplingOptions options{.steps = adaptive ? 4 : 10};
          Guidance of_run = guidance;
          if (forecasts & 1) options.forecast = ForecastEvery{.every = 3, .warm_up = 1};
          if (forecasts & 2) of_run.forecast = ForecastEvery{.every = 2, .order = 0, .warm_up = 0, .first_network = 1};
          const AnySampler sampler{schedule, Stitch{.ratio = 0.3}, options, rule};
          const int stop = int(random() % unsigned(options.steps + 1));
          INFO(name << ", guidance " << guided << ", mask " << masked << ", forecasts " << forecasts << ", after "
                    << stop);
          check_stop(sampler, request_of(of_run, masked), stop, {.guidance = of_run});
        }
      }
    }
  }
}

TEST_CASE("switches of networks, tables of forecasts and float64") {
  for (const SwitchPolicy policy : {SwitchPolicy::keep, SwitchPolicy::reset, SwitchPolicy::re_evaluate}) {
    for (int stop = 0; stop <= 8; ++stop) {
      ForecastTable table{.forecast = std::vector<bool>(8), .order = 0};
      table.forecast[5] = table.forecast[6] = true;
      const AnySampler sampler =
          DPMSolver{schedule, Stitch{.ratio = 0.4}, {.steps = 8, .at_switch = policy, .forecast = table}, {.order = 3}};
      Request request = request_of({.scale = 2}, false);
      request.guidance.forecast = table;
      request.initial_noise = drawn(5, {2, 3, 3}).to(at::kDouble).expand({2, 2, 3, 3});
      check_stop(sampler, request, stop);
    }
  }
}

TEST_CASE("noise of torch's generator goes on where it was") {
  for (char const* const name : {"ddpm", "euler-ancestral", "ddim"}) {
    for (int stop = 0; stop <= 6; ++stop) {
      const AnySampler sampler{schedule, Stitch{.ratio = 0.4}, {.steps = 6}, update_rule_by_name(name, {})};
      Request request = request_of({}, false);
      request.noise_source = TorchNoise(std::uint64_t(-5), {.rows_per_image = 2});
      check_stop(sampler, request, stop);
    }
  }
}

TEST_CASE("what x looks like in memory stays, and what is there once is in the file once") {
  const std::vector<Network> networks = pair();
  const std::string path = path_of("strides.pt");
  Trajectory run = save_small(path);
  const std::size_t before = bytes_of(path).size();
  run.x = run.x.transpose(1, 3).contiguous().transpose(1, 3);
  run.x_0 = run.x;
  run.history.assign(1, run.history.back());
  run.history[0].x = run.x;
  save_trajectory(path, small_sampler, run, fingerprints);
  const Trajectory again = load_trajectory(path, small_sampler, networks, {.fingerprints = fingerprints});
  CHECK_FALSE(again.x.is_contiguous());
  CHECK(again.x.strides() == run.x.strides());
  CHECK(again.x.equal(run.x));
  CHECK(again.history[0].x.const_data_ptr() == again.x.const_data_ptr());
  CHECK(bytes_of(path).size() <= before);
}

TEST_CASE("notes of the program, and what a file says of itself") {
  const std::string path = path_of("notes.pt");
  save_small(path);
  const TrajectoryFile file(path);
  CHECK(file.next() == 3);  // of 4 with strength 0.8 the first is left out
  CHECK(file.count() == 4);
  CHECK(file.fingerprints() == fingerprints);
  CHECK(file.notes().text == "of a program");
  REQUIRE(file.notes().tensors.size() == 1);
  CHECK(file.notes().tensors[0].second.equal(drawn(9, {3})));
}

TEST_CASE("callables of the program's own are asked for again, and only then") {
  const AnySampler sampler = DDPM{schedule, Stitch{.ratio = 0.5}, {.steps = 5}};
  Request request = request_of({.scale = 2}, false);
  const NoiseSource own = [](std::vector<std::uint64_t> const& seeds, NoiseAddress address, at::IntArrayRef shape,
                             at::TensorOptions options) { return noise(seeds, address, shape, options).mul(0.9); };
  const auto density = [](at::Tensor const& x, at::Tensor const&, Condition const&) {
    return x.flatten(1).mul(x.flatten(1)).sum(1).neg();
  };
  const auto schedule_of_own = [](Step const& step, std::size_t) { return step.index == 3; };
  request.noise_source = own;
  request.gradient = {.log_density = density, .scale = 0.1, .of = DensityOf::x};
  request.guidance.forecast = schedule_of_own;
  const GoOnWith all{.noise_source = own, .log_density = density, .guidance_forecast = Forecast(schedule_of_own)};
  check_stop(sampler, request, 2, all);
  const auto refused = [&](GoOnWith with) {
    with.fingerprints = fingerprints;
    return message_of<std::invalid_argument>([&] { load_trajectory(path_of("run.pt"), sampler, pair(), with); });
  };
  GoOnWith with = all;
  with.noise_source = {};
  CHECK_THAT(refused(with),
             ContainsSubstring("run.pt': noise_source must be given again, which no file holds, got none"));
  with = all;
  with.log_density = {};
  CHECK_THAT(refused(with), ContainsSubstring("log_density must be given again"));
  with = all;
  with.guidance_forecast = {};
  CHECK_THAT(refused(with), ContainsSubstring("guidance_forecast must be given again"));
  check_stop(sampler, request_of({.scale = 2}, false), 2);
  CHECK_THAT(refused(all), ContainsSubstring("noise_source must be given only where the run had one of its own"));
}

TEST_CASE("another plan, guidance or network is refused, with what differs") {
  const std::string path = path_of("refused.pt");
  save_small(path);
  const auto refused = [&](AnySampler const& sampler, GoOnWith with = {.fingerprints = fingerprints}) {
    return message_of<std::invalid_argument>([&] { load_trajectory(path, sampler, pair(), with); });
  };
  const auto by = [](SamplingOptions const& options, double ratio = 0.5, int order = 2) {
    return DPMSolver{schedule, Stitch{.ratio = ratio}, options, {.order = order}};
  };
  CHECK(refused(by({.steps = 4})) == "nothing was thrown");
  CHECK_THAT(refused(by({.steps = 5})), ContainsSubstring("tstitch::load_trajectory: '") &&
                                            ContainsSubstring("the number of steps must be the run's, '4', got '5'"));
  CHECK_THAT(refused(by({.steps = 4, .spacing = Spacing::leading()})),
             ContainsSubstring("the timestep at 0 must be the run's, '999', got '750'"));
  CHECK_THAT(refused(by({.steps = 4}, 0.25)), ContainsSubstring("the network at 1 must be the run's, '0', got '1'"));
  CHECK_THAT(refused(by({.steps = 4}, 0.5, 3)), ContainsSubstring("the update rule must be the run's, 'DPMSolver"));
  CHECK_THAT(refused(DDIM{schedule, Stitch{.ratio = 0.5}, {.steps = 4}}), ContainsSubstring("got 'DDIM'"));
  CHECK_THAT(refused(by({.steps = 4, .thresholding = Thresholding::clip(2)})),
             ContainsSubstring("the thresholding must be the run's, 'automatic', got 'clip [-2, 2]'"));
  CHECK_THAT(refused(by({.steps = 4, .at_switch = SwitchPolicy::reset})),
             ContainsSubstring("the at_switch must be the run's, 'keep', got 'reset'"));
  CHECK_THAT(refused(by({.steps = 4, .forecast = ForecastEvery{.every = 2, .order = 0, .warm_up = 1, .last = false}})),
             ContainsSubstring("the forecast at "));
  const AnySampler other_levels = DPMSolver{NoiseSchedule::cosine(), Stitch{.ratio = 0.5}, {.steps = 4}};
  CHECK_THAT(refused(other_levels), ContainsSubstring("the noise level at 0 must be the run's"));
  CHECK_THAT(refused(by({.steps = 4}), {.fingerprints = {"small", "other"}}),
             ContainsSubstring("network 1 must be the run's, of fingerprint 'large', got 'other' ('waves')"));
  CHECK_THAT(refused(by({.steps = 4}), {.fingerprints = {"small"}}), ContainsSubstring("2 networks"));
  CHECK_THAT(refused(by({.steps = 4}), {.fingerprints = fingerprints, .guidance = Guidance{.scale = 3}}),
             ContainsSubstring("the guidance scale must be the run's, '2', got '3'"));
  for (auto const& [name, guidance] : std::vector<std::pair<std::string, Guidance>>{
           {"guidance begin", {.scale = 2, .begin = 0.1}},
           {"guidance end", {.scale = 2, .end = 0.9}},
           {"guidance channels", {.scale = 2, .channels = 1}},
           {"guidance rescale", {.scale = 2, .rescale = 0.5}},
           {"projected guidance", {.scale = 2, .projected = ProjectedGuidance{}}},
           {"guide network", {.scale = 2, .guide_network = 0}},
           {"guidance forecast", {.scale = 2, .forecast = ForecastEvery{}}}}) {
    CHECK_THAT(refused(by({.steps = 4}), {.fingerprints = fingerprints, .guidance = guidance}),
               ContainsSubstring("the " + name + " must be the run's"));
  }
}

TEST_CASE("what no file can hold is refused by name, and then nothing is written") {
  struct Unlisted {
    struct State {
      int steps = 0;
    };
    std::string name() const { return "Unlisted"; }
    at::Tensor operator()(StepInput const& in, State& state) const {
      ++state.steps;
      return DDIMUpdate{}(in);
    }
  };
  struct Counts {
    at::Tensor operator()(at::Tensor const& x, at::Tensor const&, Condition const&,
                          Evaluation const& evaluation) const {
      if (evaluation.memory) ++evaluation.memory->as<int>();
      return x;
    }
  };
  const std::string path = path_of("never.pt");
  const std::vector<Network> networks{Network(Counts{})};
  const Request request{.shape = {1, 2, 2}};
  const auto refused = [&](auto const& sampler, std::vector<Network> const& by, std::vector<std::string> const& of) {
    Trajectory run = sampler.begin(by, request);
    sampler.advance(by, run);
    return message_of<std::invalid_argument>([&] { save_trajectory(path, sampler, run, of); });
  };
  const std::vector<Network> plain{Network([](at::Tensor const& x, at::Tensor const&) { return x; })};
  const Sampler unlisted{schedule, SingleNetwork{}, {.steps = 3}, Unlisted{}};
  CHECK_THAT(refused(unlisted, plain, {"one"}), ContainsSubstring("list its members") && ContainsSubstring("Unlisted"));
  CHECK_THAT(refused(AnySampler(unlisted), plain, {"one"}), ContainsSubstring("Unlisted"));
  const DDIM ddim{schedule, SingleNetwork{}, {.steps = 3}};
  CHECK_THAT(refused(ddim, networks, {"one"}),
             ContainsSubstring("must be a FeatureMemory") && ContainsSubstring("network 0"));
  CHECK_THAT(refused(ddim, plain, {}), ContainsSubstring("a fingerprint for each of the 1 networks, got 0"));
  CHECK_FALSE(std::filesystem::exists(path));
  const DDIM other{schedule, SingleNetwork{}, {.steps = 4}};
  const Trajectory run = ddim.begin(plain, request);
  CHECK_THROWS_AS(save_trajectory(path, other, run, {"one"}), std::invalid_argument);
  CHECK_THROWS_AS(save_trajectory(path, ddim, Trajectory{}, {"one"}), std::invalid_argument);
  CHECK_THROWS_AS(save_trajectory(path, ddim, run, {"one"}, {"\xff", {}}), std::invalid_argument);
  CHECK_THROWS_AS(save_trajectory(path_of("no/such/folder.pt"), ddim, run, {"one"}), std::runtime_error);
}

TEST_CASE("a rule's State of every kind of member") {
  for (int stop = 0; stop <= 5; ++stop) {
    check_stop(Sampler{schedule, Stitch{.ratio = 0.5}, {.steps = 5}, Heavy{}}, request_of({}, false), stop);
  }
}

TEST_CASE("a class between classes keeps the forecasts of both") {
  const auto mixed = [] {
    std::vector<Network> networks;
    for (Network const& each : pair()) {
      networks.push_back(ClassMixtures(each, {{.first = 0, .second = 2, .share = 0.3}}).network());
    }
    return networks;
  };
  const DPMSolver sampler{
      schedule, Stitch{.ratio = 0.3}, {.steps = 10, .forecast = ForecastEvery{.every = 2, .warm_up = 1}}};
  Request request = request_of({.scale = 2}, false);
  request.labels = {6, 1};
  const std::vector<Network> networks = mixed();
  Trajectory run = sampler.begin(networks, request);
  const at::Tensor alone = sampler.finish(networks, run).images;
  while (!run.finished()) {
    sampler.advance(networks, run);
    save_trajectory(path_of("mixed.pt"), sampler, run, fingerprints);
    const Trajectory again = load_trajectory(path_of("mixed.pt"), sampler, mixed(), {.fingerprints = fingerprints});
    CHECK(sampler.finish(mixed(), again).images.equal(alone));
  }
}

TEST_CASE("files that are cut off, damaged or of a later version are refused, or are the same run") {
  const std::string path = path_of("small.pt"), damaged = path_of("damaged.pt");
  const std::vector<Network> networks = pair();
  const Trajectory run = save_small(path);
  const at::Tensor alone = small_sampler.finish(networks, run).images;
  const std::string bytes = bytes_of(path);
  const auto load = [&] { return load_trajectory(damaged, small_sampler, networks, {.fingerprints = fingerprints}); };
  int refused = 0;
  write(damaged, bytes);
  for (std::size_t size = bytes.size(); size-- > 0;) {
    std::filesystem::resize_file(damaged, size);
    refused += message_of<std::runtime_error>(load).find("damaged.pt': must be a file of save_trajectory, got ") !=
               std::string::npos;
  }
  CHECK(refused == int(bytes.size()));

  std::mt19937 random(3);
  int same = 0;
  write(damaged, bytes);
  for (int k = 0; k < 2000; ++k) {
    const std::size_t at = random() % bytes.size();
    const auto put = [&](char byte) {
      std::fstream(damaged, std::ios::binary | std::ios::in | std::ios::out).seekp(std::streamoff(at)).put(byte);
    };
    put(char(bytes[at] ^ (1 << (random() % 8))));
    try {
      const Trajectory again = load();
      CHECK(small_sampler.finish(networks, again).images.equal(alone));
      ++same;
    } catch (std::runtime_error const& error) {
      CHECK_THAT(error.what(), ContainsSubstring("damaged.pt': must be a file of save_trajectory, got "));
    }
    put(bytes[at]);
  }
  CHECK(same > 0);  // padding between records, and times
  CHECK(same < 1500);

  // Of the same checksums: what its pickle says is another version, another format, or a run without its x.
  const auto with_pickle = [&](auto change) {
    Records records = records_of(bytes);
    for (auto& [name, record] : records) {
      if (name == "data.pkl") change(record);
    }
    write(damaged, archive_of(records));
  };
  const auto replaced = [&](std::string const& what, std::string const& by) {
    with_pickle([&](std::string& pickle) {
      const std::size_t at = pickle.find(what);
      REQUIRE(at != std::string::npos);
      pickle.replace(at, by.size(), by);
    });
    return message_of<std::runtime_error>(load);
  };
  const std::string key = "version\x8a\x08";
  CHECK(replaced(key, key) == "nothing was thrown");
  CHECK_THAT(replaced(key, key + "\x02"), ContainsSubstring("got 'version 2, where this library knows those up to 1'"));
  CHECK_THAT(replaced(key, key + std::string(1, '\0')), ContainsSubstring("version 0"));
  CHECK_THAT(replaced("tstitch trajectory file", "another kind"), ContainsSubstring("holds something else"));
  for (char const* const name : {"next", "history", "momentum", "seeds", "conditional", "inpainting", "memories"}) {
    CHECK_THAT(replaced(name, "?"), ContainsSubstring("a run without '" + std::string(name) + "'"));
  }
  CHECK_THAT(replaced("labels]", "labels}"), ContainsSubstring("must be a file of save_trajectory"));
  // Whatever its pickle says, it is refused, or what is made of it runs or is refused when it runs.
  int ran = 0;
  for (int k = 0; k < 500; ++k) {
    with_pickle([&](std::string& pickle) {
      const std::size_t at = random() % pickle.size();
      pickle[at] = char(pickle[at] ^ (1 << (random() % 8)));
    });
    try {
      small_sampler.finish(networks, load());
      ++ran;
    } catch (std::exception const& error) {
      CHECK(std::string(error.what()).size() > 0);
    }
  }
  CHECK((ran > 0 && ran < 500));
  write(damaged, "");
  CHECK_THAT(message_of<std::runtime_error>(load), ContainsSubstring("an empty file or a folder"));
}
