// An MMDiT by the engine and by TorchScript: mmdit_calls FILE [DEVICE [CONDITIONS HEIGHT WIDTH]]
//
// With CONDITIONS it prints what largest_inputs finds along trajectories of x of this size, one for each of their rows.
// Compares both in many shapes, types and ways to be asked, and prints the largest differences. Exit code 1: one is too
// large, or an exception. tests/engine/mmdit_test.py makes files.
#include <tstitch/file/condition_file.hpp>
#include <tstitch/file/dit.hpp>
#include <tstitch/study/calibration.hpp>
#ifdef TSTITCH_WITH_CUDA
#include <tstitch/engine/cuda_graph.hpp>
#endif

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

using namespace tstitch;

namespace {

void require(bool holds, std::string const& what) {
  if (holds) return;
  std::printf("failed: %s\n", what.c_str());
  std::exit(1);
}

/// The largest difference, or the root mean square one, relative to the RMS of what is expected.
double relative(at::Tensor const& got, at::Tensor const& expected, bool largest = true) {
  require(got.sizes() == expected.sizes(), "sizes must be the same");
  const at::Tensor off = got.to(at::kDouble).sub(expected.to(at::kDouble));
  const double rms = expected.to(at::kDouble).square().mean().sqrt().item<double>();
  return (largest ? off.abs().max() : off.square().mean().sqrt()).item<double>() / rms;
}

/// What a network is asked.
struct Asked {
  at::Tensor x, t;
  Condition condition;
};

class Asker {
 public:
  Asker(NetworkInfo info, at::Device device) : info_(std::move(info)), device_(device) {}

  at::Tensor normal(std::vector<std::int64_t> const& sizes) {
    std::vector<std::uint64_t> seeds;
    for (std::int64_t k = 0; k < sizes[0]; ++k) seeds.push_back(next_++);
    return noise(seeds, NoiseAddress::initial(), {1, 1, c10::multiply_integers(sizes) / sizes[0]},
                 at::TensorOptions().dtype(at::kFloat).device(device_))
        .view(sizes);
  }

  Asked operator()(std::int64_t rows, std::int64_t height, std::int64_t width, std::int64_t tokens) {
    Asked asked{normal({rows, info_.channels, height, width}), normal({rows}).abs().mul(300).clamp_max(1000), {}};
    asked.condition.tensors = {{"text_embedding", normal({rows, tokens, info_.conditions[0].shape[1]})},
                               {"pooled_embedding", normal({rows, info_.conditions[1].shape[0]})}};
    return asked;
  }

 private:
  NetworkInfo info_;
  at::Device device_;
  std::uint64_t next_ = 0;
};

at::Tensor whole(Network const& network, Asked const& asked) {
  return network(asked.x, asked.t, asked.condition);
}

/// The largest difference of all that two networks answer.
double largest_difference(Network const& network, Network const& oracle, std::vector<Asked> const& all) {
  double worst = 0;
  for (Asked const& asked : all) worst = std::max(worst, relative(whole(network, asked), whole(oracle, asked)));
  return worst;
}

/// The outputs of a computed step that is kept, and of one that is forecast from it and from another.
std::vector<at::Tensor> forecast(Network const& network, std::vector<Asked> const& steps, bool both_halves) {
  Memory memory;
  std::vector<at::Tensor> made;
  const StepForecast keeping{.keep = 2};
  const std::vector<ForecastTerm> terms{{0, -0.5}, {1, 1.5}};
  const StepForecast forecasting{.network = true, .conditional = terms, .unconditional = terms};
  for (int k = 0; k < int(steps.size()); ++k) {
    const Step step{.index = k, .count = int(steps.size()), .t = 0, .from = {}, .to = {}};
    Asked const& asked = steps[std::size_t(k)];
    made.push_back(network(asked.x, asked.t, asked.condition,
                           Evaluation{.step = &step,
                                      .memory = &memory,
                                      .forecast = k < 2 ? &keeping : &forecasting,
                                      .both_halves = both_halves}));
  }
  return made;
}

void check_forecasts(Network const& network, Network const& oracle, Asker& asker, double most) {
  require(network.forecasts() && oracle.forecasts(), "both must forecast");
  for (const bool both_halves : {false, true}) {
    const std::vector<Asked> steps{asker(2, 8, 8, 5), asker(2, 8, 8, 5), asker(2, 8, 8, 5)};
    const std::vector<at::Tensor> got = forecast(network, steps, both_halves),
                                  expected = forecast(oracle, steps, both_halves);
    for (std::size_t k = 0; k < got.size(); ++k) require(relative(got[k], expected[k]) < most, "forecasts");
    require(relative(got[2], whole(oracle, steps[2])) > 10 * most, "a forecast must be none of the network's own");
  }
}

/// Ways to be asked that make no difference.
void check_askings(Network const& network, Asker& asker) {
  Asked asked = asker(4, 8, 8, 7);
  const std::int64_t half = 2;
  asked.x = asked.x.narrow(0, 0, half).repeat({2, 1, 1, 1});
  asked.t.fill_(321);
  const at::Tensor expected = whole(network, asked);
  require(network.knows_timestep() && network.repeats_x(), "t and half of x may be left out");
  require(network(asked.x.narrow(0, 0, half), asked.t, asked.condition).equal(expected), "x comes twice");
  require(network(asked.x, {}, asked.condition, 321.0).equal(expected), "the timestep is enough");
  require(network(asked.x.narrow(0, 0, half), {}, asked.condition, 321.0).equal(expected), "both");
}

/// What is computed ahead has the same bits, and is not taken for another text.
void check_preparation(Network const& network, Asker& asker) {
  const std::vector<double> timesteps{999, 500.25, 3};
  Asked asked = asker(2, 8, 8, 7), other = asker(2, 8, 8, 7);
  const auto at = [&](Asked const& of, double t) { return network(of.x, {}, of.condition, t); };
  std::vector<at::Tensor> expected;
  for (Asked const* const of : {&asked, &other}) {
    for (const double t : {999.0, 500.25, 3.0, 7.0}) expected.push_back(at(*of, t));
  }
  require(network.prepares(), "it wants to know runs");
  network.prepare(timesteps, asked.condition);
  std::size_t k = 0;
  for (Asked const* const of : {&asked, &other}) {
    for (const double t : {999.0, 500.25, 3.0, 7.0}) require(at(*of, t).equal(expected[k++]), "prepared bits");
  }
  other.x = asked.x;
  other.condition.tensors[0] = asked.condition.tensors[0];
  const at::Tensor of_other = at(other, 999);
  asked.condition.tensors[1].second.copy_(other.condition.tensors[1].second);
  require(at(asked, 999).equal(of_other) && !of_other.equal(expected[0]), "what has been changed is not looked up");
  network.prepare(std::vector<double>{}, asked.condition);
  network.prepare(timesteps, {});
}

void check_refusals(Network const& network, Asker& asker, std::int64_t channels) {
  const Asked good = asker(2, 8, 8, 5);
  const auto refused = [&](Asked const& asked, std::string const& words, std::optional<double> timestep = 9.0) {
    try {
      network(asked.x, asked.t, asked.condition, timestep);
    } catch (std::invalid_argument const& error) {
      return require(std::string(error.what()).find(words) != std::string::npos, error.what());
    }
    require(false, "must refuse: " + words);
  };
  const auto with_x = [&](at::Tensor const& x) { return Asked{x, good.t, good.condition}; };
  const std::string x = "x must be [n or n / 2, " + std::to_string(channels) + ", H, W] with n of 2, H and W multiples";
  for (at::Tensor const& odd :
       {good.x.narrow(1, 0, channels - 1), good.x.narrow(2, 0, 7), good.x.narrow(3, 0, 5), good.x.narrow(2, 0, 0),
        good.x.repeat({2, 1, 1, 1}), good.x[0], good.x.repeat({1, 1, 1, 16}), at::Tensor()}) {
    refused(with_x(odd), x);
  }
  Asked odd = good;
  odd.t = at::Tensor();
  refused(odd, "t must be [2], or the timestep given, got none", std::nullopt);
  odd = good;
  odd.t = good.t.narrow(0, 0, 1);
  refused(odd, "t must be [2], or the timestep given, got [1]");
  const auto with = [&](std::size_t which, at::Tensor const& tensor) {
    Asked changed = good;
    changed.condition.tensors[which].second = tensor;
    return changed;
  };
  at::Tensor const &text = good.condition.tensors[0].second, &pooled = good.condition.tensors[1].second;
  for (at::Tensor const& each : {text[0], text.narrow(0, 0, 1), text.narrow(1, 0, 0), text.narrow(2, 1, 3)}) {
    refused(with(0, each), "text_embedding must be [2, tokens, ");
  }
  for (at::Tensor const& each : {pooled[0], pooled.narrow(0, 0, 0), pooled.narrow(1, 0, 3)}) {
    refused(with(1, each), "pooled_embedding must be [n, ");
  }
  odd = good;
  odd.condition.tensors.pop_back();
  refused(odd, "must have 'pooled_embedding'");
}

#ifdef TSTITCH_WITH_CUDA
void check_graphs(Network const& network, std::vector<Asked> const& all) {
  std::vector<std::string> reasons;
  const Network graph =
      captured(network, {.on_fallback = [&](std::string const& reason) { reasons.push_back(reason); }});
  for (int time = 0; time < 2; ++time) {
    for (Asked const& asked : all) require(whole(graph, asked).equal(whole(network, asked)), "graphs: bits");
  }
  require(reasons.empty(), "graphs: " + (reasons.empty() ? "" : reasons[0]));
}
#endif

/// Of e4m3: the root mean square difference with all layers in 8 bits.
double of_8_bits(std::string const& file, TorchScriptOptions const& options, Network const& oracle,
                 std::vector<Asked> const& all, bool plain, std::size_t& layers) {
  std::map<std::size_t, double> largest;
  const auto look = [&](std::size_t layer, at::Tensor const& input) {
    largest[layer] = std::max(largest[layer], input.abs().max().item<double>());
  };
  const Network observed = load_dit(file, options, {.plain = plain, .observer = look});
  for (Asked const& asked : all) whole(observed, asked);
  std::vector<double> inputs;
  for (auto const& [layer, value] : largest) {
    require(layer == inputs.size() && value > 0, "every layer is observed, in order");
    inputs.push_back(value);
  }
  layers = inputs.size();
  const Network eighth = load_dit(file, options, {.plain = plain, .e4m3_inputs = inputs});
  double worst = 0;
  for (Asked const& asked : all) worst = std::max(worst, relative(whole(eighth, asked), whole(oracle, asked), false));
  std::vector<double> some = inputs;  // each kind of layer alone as it is
  for (std::size_t kind = 0; kind < 3; ++kind) {
    for (std::size_t k = 0; k < some.size(); ++k) some[k] = k % 3 == kind ? 0 : inputs[k];
    const Network mixed = load_dit(file, options, {.plain = plain, .e4m3_inputs = some});
    require(relative(whole(mixed, all[0]), whole(oracle, all[0]), false) < 0.08, "some layers in 8 bits");
  }
  try {
    inputs.pop_back();
    load_dit(file, options, {.e4m3_inputs = inputs});
    require(false, "a layer without its input must be refused");
  } catch (std::invalid_argument const& error) {
    require(std::string(error.what())
                    .find("tstitch::MMDiT: e4m3_inputs must be one for each of the " +
                          std::to_string(inputs.size() + 1) + " layers") != std::string::npos,
            error.what());
  }
  return worst;
}

/// What the calibration sees along a trajectory is of use, and it says what it needs.
void check_calibration(std::string const& file, TorchScriptOptions const& options, Asker& asker, std::size_t layers) {
  const Asked asked = asker(1, 8, 8, 7), null = asker(1, 8, 8, 7);
  CalibrationOptions calibration{.steps = 3, .images = 2, .shape = {asked.x.size(1), 8, 8}};
  try {
    largest_inputs(file, options, calibration);
    require(false, "a calibration without a text must be refused");
  } catch (std::invalid_argument const& error) {
    require(std::string(error.what()).find("must have 'text_embedding'") != std::string::npos, error.what());
  }
  for (std::size_t k = 0; k < 2; ++k) {
    auto const& [name, tensor] = asked.condition.tensors[k];
    calibration.conditions.push_back({name, tensor, null.condition.tensors[k].second});
  }
  const std::vector<double> found = largest_inputs(file, options, calibration);
  require(found.size() == layers, "one for each layer");
  for (const double each : found) require(each > 0.1 && each < 1000, "inputs of the size of numbers");
}

void print_largest_inputs(std::string const& file, TorchScriptOptions const& options, char const* const* given) {
  CalibrationOptions calibration{.conditions = load_conditions(given[0])};
  calibration.images = calibration.conditions.at(0).value.size(0);
  calibration.shape = {read_network_info(file).channels, std::atoll(given[1]), std::atoll(given[2])};
  for (const double each : largest_inputs(file, options, calibration)) std::printf("%.9g\n", each);
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 2) return 2;
  const std::string file = argv[1];
  const at::Device device(argc > 2 ? argv[2] : "cpu");
  const c10::AutoGradMode no_gradients(false);
  const TorchScriptOptions exact{.device = device, .dtype = at::kFloat};
  if (argc == 6) {
    print_largest_inputs(file, exact, argv + 3);
    return 0;
  }
  const Network oracle = load_torchscript(file, exact);
  Asker asker(oracle.info(), device);
  std::vector<Asked> all;
  for (auto [rows, height, width, tokens] :
       {std::array<std::int64_t, 4>{1, 8, 8, 20}, {3, 8, 8, 1}, {2, 4, 12, 7}, {4, 16, 4, 600}, {2, 12, 20, 33}}) {
    all.push_back(asker(rows, height, width, tokens));
  }
  for (const bool plain : {false, true}) {
    const Network engine = load_dit(file, exact, {.plain = plain});
    const double worst = largest_difference(engine, oracle, all);
    std::printf("float32%s: %.1e\n", plain ? ", plain" : "", worst);
    require(worst < 3e-5, "float32");
    check_forecasts(engine, oracle, asker, 5e-5);
    check_askings(engine, asker);
    check_preparation(engine, asker);
    check_refusals(engine, asker, oracle.info().channels);
#ifdef TSTITCH_WITH_CUDA
    if (device.is_cuda()) check_graphs(engine, all);
#endif
  }
  for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) {
    const TorchScriptOptions half{.device = device, .dtype = type};
    const Network engine = load_dit(file, half), scripted = load_torchscript(file, half);
    double of_engine = 0, of_scripted = 0;
    for (Asked const& asked : all) {
      of_engine = std::max(of_engine, relative(whole(engine, asked), whole(oracle, asked), false));
      of_scripted = std::max(of_scripted, relative(whole(scripted, asked), whole(oracle, asked), false));
    }
    std::printf("%s: %.1e, TorchScript %.1e\n", at::toString(type), of_engine, of_scripted);
    require(of_engine < 1.5 * of_scripted, "as near as TorchScript in 16 bits");
#ifdef TSTITCH_WITH_CUDA
    if (device.is_cuda()) check_graphs(engine, all);
#endif
  }
  for (const bool plain : {false, true}) {
    const TorchScriptOptions options =
        device.is_cuda() ? TorchScriptOptions{.device = device, .dtype = at::kBFloat16} : exact;
    std::size_t layers = 0;
    const double off = of_8_bits(file, options, oracle, all, plain, layers);
    if (plain) check_calibration(file, options, asker, layers);
    std::printf("8 bits%s: %.1e\n", plain ? ", plain" : "", off);
    require(off > 3e-3 && off < 8e-2, "8 bits");
  }
  return 0;
} catch (std::exception const& error) {
  std::printf("%s\n", error.what());
  return 1;
}
