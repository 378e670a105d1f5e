// Calls of compiled networks: aot_inductor_calls TORCHSCRIPT ANY LIST UNET
//
// Three files of one network that takes classes: TorchScript, compiled for 1 to 512 rows with its parts, and for 2 and
// 4 rows. And one of a network whose feature is forecast, compiled for 2 rows with its parts.
// tests/export/aot_inductor_test.py makes them. Ends with 1 and a line on stderr at the first thing that is wrong.
#include <tstitch/file/aot_inductor.hpp>
#include <tstitch/file/torchscript.hpp>
#include <tstitch/tstitch.hpp>

#include <ATen/Parallel.h>

#include <filesystem>
#include <fstream>
#include <iostream>
#include <set>
#include <thread>

using namespace tstitch;

namespace {

void require(bool holds, std::string const& what) {
  if (!holds) throw std::logic_error(what);
}

struct Inputs {
  at::Tensor x, t;
  Condition condition;
};

Inputs inputs(NetworkInfo const& info, std::int64_t rows, std::uint64_t seed) {
  std::vector<std::uint64_t> seeds;
  std::vector<std::int64_t> times, labels;
  for (std::int64_t i = 0; i < rows; ++i) {
    seeds.push_back(seed + std::uint64_t(i));
    times.push_back((37 * i + 5) % 1000);
    labels.push_back(i % info.num_classes);
  }
  return {noise(seeds, NoiseAddress::initial(), {info.channels, info.height, info.width}, at::kFloat),
          tstitch::detail::to_device(times, at::kCPU),
          {.labels = tstitch::detail::to_device(labels, at::kCPU)}};
}

at::Tensor run(Network const& network, Inputs const& in) {
  return network(in.x, in.t, in.condition);
}

double difference(at::Tensor const& got, at::Tensor const& expected) {
  require(got.sizes() == expected.sizes(), "the output has other sizes");
  return got.sub(expected).abs().max().item<double>() / expected.square().mean().sqrt().item<double>();
}

template <class Call>
void must_refuse(std::string const& says, Call call) {
  try {
    call();
  } catch (std::invalid_argument const& error) {
    const std::string got = error.what();
    require(got.find(says) != std::string::npos, "'" + says + "' must be in '" + got + "'");
    return;
  }
  require(false, "must be refused: " + says);
}

/// The unpacked machine code that this process has in memory.
std::set<std::string> unpacked() {
  std::set<std::string> found;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    const std::size_t begin = line.find('/');
    if (begin != std::string::npos && line.ends_with(".wrapper.so")) found.insert(line.substr(begin));
  }
  return found;
}

void check(Network const& oracle, Network const& any, Network const& list) {
  NetworkInfo const& info = oracle.info();
  require(any.info().name == info.name, "the files must say the same of the network");
  for (std::int64_t rows = 1; rows <= 9; ++rows) {
    const Inputs in = inputs(info, rows, 100);
    const at::Tensor expected = run(oracle, in);
    require(difference(run(any, in), expected) < 1e-4, "a batch of any size differs");
    if (rows <= 4) require(difference(run(list, in), expected) < 1e-4, "a batch of a listed size differs");
  }

  // Compiled code takes memory as it is; what it is given is put in order.
  const Inputs in = inputs(info, 3, 7);
  const at::Tensor expected = run(any, in);
  Inputs other = in;
  other.x = in.x.transpose(2, 3).contiguous().transpose(2, 3);
  require(!other.x.is_contiguous() && run(any, other).equal(expected), "strides must not matter");
  other.x = in.x.to(at::kDouble);
  other.t = in.t.to(at::kFloat);
  require(run(any, other).equal(expected), "types of numbers must not matter");
  require(!run(any, in).requires_grad(), "there must be no gradients");

  const std::string place = "tstitch::Network '" + info.name + "': ", sizes = "must be [3, 3, 8, 8], got ";
  other = in;
  other.x = in.x.narrow(2, 0, 7);
  must_refuse(place + "x " + sizes + "[3, 3, 7, 8]", [&] { run(any, other); });
  other.x = at::Tensor();
  must_refuse(place + "x must be [0, 3, 8, 8], got an undefined tensor", [&] { run(any, other); });
  other = in;
  other.t = in.t.narrow(0, 0, 2);
  must_refuse(place + "t must be [3], got [2]", [&] { run(any, other); });
  other = in;
  other.condition.labels = at::Tensor();
  must_refuse(place + "labels must be [3], got an undefined tensor", [&] { run(any, other); });
  other.condition.labels = in.t.to(at::kFloat);
  must_refuse(place + "labels must be Long, got Float", [&] { run(any, other); });
  must_refuse("rows, which it was compiled for, got 5", [&] { run(list, inputs(info, 5, 0)); });
  must_refuse("a batch must have 1 to 512 rows, which it was compiled for, got 513",
              [&] { run(any, inputs(info, 513, 0)); });

  // Several threads.
  std::vector<at::Tensor> expectations;
  for (std::uint64_t i = 0; i < 4; ++i) expectations.push_back(run(list, inputs(info, std::int64_t(i) + 1, i)));
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (std::uint64_t i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      for (int k = 0; k < 50; ++k) wrong += !run(list, inputs(info, std::int64_t(i) + 1, i)).equal(expectations[i]);
    });
  }
  for (std::thread& thread : threads) thread.join();
  require(wrong == 0, "threads must not disturb each other");
}

/// A network in two steps of a run: in the first what it makes is kept, and in the second repeated.
class Repeating {
 public:
  explicit Repeating(Network const& network) : network_(network) {}

  at::Tensor compute(Inputs const& in) { return ask(0, in, {.keep = 1}); }
  at::Tensor repeat(Inputs const& in) { return ask(1, in, {.network = true, .conditional = {{0, 1}}}); }

  Memory memory = {};

 private:
  at::Tensor ask(int index, Inputs const& in, StepForecast const& forecast) {
    const c10::AutoGradMode no_gradients(false);
    const Step step{.index = index, .count = 2, .t = 0, .from = {}, .to = {}};
    return network_(in.x, in.t, in.condition,
                    Evaluation{.timestep = 0.0, .step = &step, .memory = &memory, .forecast = &forecast});
  }

  Network network_;
};

void check_forecasts(Network const& oracle, Network const& any, Network const& list, Network const& unet) {
  require(oracle.forecasts() && any.forecasts() && unet.forecasts(), "networks with parts must forecast");
  require(!list.forecasts(), "a package without parts must not forecast");
  for (const std::int64_t rows : {1, 3}) {
    const Inputs first = inputs(oracle.info(), rows, 20), second = inputs(oracle.info(), rows, 30);
    Repeating expected(oracle), got(any);
    require(difference(got.compute(first), run(oracle, first)) < 1e-4, "a step that is kept differs");
    expected.compute(first);
    require(difference(got.repeat(first), run(oracle, first)) < 1e-4, "its own forecast must be what was computed");
    const at::Tensor repeated = expected.repeat(second);
    require(difference(got.repeat(second), repeated) < 1e-4, "a forecast differs");
    require(difference(run(oracle, second), repeated) > 1e-2, "what is forecast must matter");
  }
  // Compiled code does not look at what it gets.
  const std::vector<std::uint64_t> seeds{1, 2};
  const Inputs in{noise(seeds, NoiseAddress::initial(), unet.info().shape, at::kFloat),
                  tstitch::detail::to_device(std::vector<std::int64_t>{5, 500}, at::kCPU),
                  {}};
  Repeating repeating(unet);
  repeating.compute(in);
  const at::Tensor kept = repeating.repeat(in);
  require(difference(kept, run(unet, in)) < 1e-4, "its own forecast must be what was computed");
  const StepForecast forecast{.keep = 1};
  const Step step{.index = 0, .count = 2, .t = 0, .from = {}, .to = {}};
  const auto keep = [&](at::Tensor const& feature) {
    const Evaluation evaluation{.timestep = 0.0, .step = &step, .memory = &repeating.memory, .forecast = &forecast};
    repeating.memory.as<FeatureMemory>().keep(evaluation, feature);
  };
  keep(in.x);
  must_refuse("the feature must be [2, 8, 8, 8], got [2, 3, 8, 8]", [&] { repeating.repeat(in); });
}

}  // namespace

int main(int count, char** values) {
  try {
    require(count == 5, "the arguments must be four files");
    at::set_num_threads(1);
    std::set<std::string> code;
    {
      const Network oracle = load_torchscript(values[1]);
      std::optional<Network> any, list;
      std::thread first([&] { any = load_aot_inductor(values[2], {.dtype = at::kFloat, .warm_up_rows = {512}}); });
      std::thread second([&] { list = load_aot_inductor(values[3]); });
      first.join();
      second.join();
      check(oracle, any.value(), list.value());
      check_forecasts(oracle, any.value(), list.value(), load_aot_inductor(values[4]));
      code = unpacked();
      require(code.size() == 6, "there must be a library for each model, got " + std::to_string(code.size()));
    }
    for (std::string const& file : code) {
      require(!std::filesystem::exists(file), file + " must be removed with its network");
    }
    require(unpacked().empty(), "what no network needs must be unloaded");
  } catch (std::exception const& error) {
    std::cerr << "aot_inductor_calls: " << error.what() << "\n";
    return 1;
  }
  std::cout << "every call agrees\n";
}
