// tstitch_inspect: what files are, whether they fit together, and where the small network of a pair will do. Exit
// codes: 0 they can be used, 1 they cannot or something failed, 2 bad arguments.
#include <tstitch/file/condition_file.hpp>
#include <tstitch/file/torchscript.hpp>
#include <tstitch/model/network_wrapper.hpp>
#include <tstitch/output/image.hpp>
#include <tstitch/output/progress.hpp>
#include <tstitch/tstitch.hpp>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <nlohmann/json.hpp>

#include "../common/device.hpp"
#include "../common/diagnostics.hpp"
#include "../common/moment.hpp"
#include "../common/network.hpp"
#include "../common/plot.hpp"
#include "../common/program.hpp"
#include "../common/request.hpp"
#include "../common/strict.hpp"
#include "flops.hpp"

namespace {

using Json = nlohmann::ordered_json;

struct Arguments {
  std::vector<std::string> files{TSTITCH_MODELS "/cifar10_dit_small.pt", TSTITCH_MODELS "/cifar10_dit_large.pt"};
  std::string device = "auto";
  std::string dtype = "auto";
  std::vector<std::int64_t> rows{1, 8};
  std::vector<std::string> conditions;
  int steps = 50;
  std::int64_t count = 8;
  double tolerance = 0.1;
  bool no_probe = false;
  std::string json;
  std::string plot;
};

/// @returns nothing when the program is to go on, else its exit code; help and version have been printed then
/// @throws std::invalid_argument for options that are not what they must be
std::optional<int> parse(int count, char** values, Arguments& arguments) {
  CLI::App app{
      "What networks of files are, whether they fit together, what they cost, and how far into a trajectory "
      "the first agrees with the last. Without files: the bundled pair.\n"
      "Networks are programs: TorchScript files and .pt2 packages run code that they contain, so take them from whom "
      "you trust.",
      "tstitch_inspect"};
  const auto option = [&](char const* name, auto& value, char const* help) {
    return strict(app.add_option(name, value, help), value);
  };
  option("files", arguments.files, "TorchScript files or AOTInductor packages in the order of use, small first")
      ->type_name("FILE");
  option("--device", arguments.device, "auto, cpu, cuda or cuda:N")->capture_default_str();
  one_of(option("--dtype", arguments.dtype, "of the networks: auto, float32, float16 or bfloat16")
             ->type_name("TYPE")
             ->capture_default_str(),
         tstitch::dtype_names());
  add_numbers<std::int64_t>(app, "--rows", arguments.rows, "batch sizes that are timed", 1, 1'000'000)
      ->default_str("1,8");
  option("--condition", arguments.conditions, "file of tensors by name; zeros for what is not given")
      ->type_name("FILE")
      ->allow_extra_args(false);
  option("--steps", arguments.steps, "of the trajectory along which they are compared")
      ->check(in_range(1, 1'000'000))
      ->capture_default_str();
  option("--count", arguments.count, "images that are compared")
      ->check(in_range<std::int64_t>(1, 1'000'000))
      ->capture_default_str();
  option("--tolerance", arguments.tolerance, "share of all differences that the suggested steps may have")
      ->check(in_range(0.0, 1.0))
      ->capture_default_str();
  app.add_flag("--no-probe", arguments.no_probe, "describe and time, but do not compare");
  option("--json", arguments.json, "everything, as JSON")->type_name("FILE");
  file_of(option("--plot", arguments.plot, "the agreement as a PNG")->type_name("FILE"), ".png");
  set_up(app, version_of("tstitch_inspect"));
  return read_arguments(app, count, values);
}

void print(std::string const& key, std::string const& value) {
  std::printf("  %-16s %s\n", key.c_str(), tstitch::words::printable(value).c_str());
}

std::string grouped(std::int64_t number) {
  std::string text = std::to_string(number);
  for (int at = int(text.size()) - 3; at > 0; at -= 3) text.insert(std::size_t(at), ",");
  return text;
}

constexpr int timed_runs = 12;

/// How much of the measuring is done, in rows that networks are asked for.
class Progress {
 public:
  explicit Progress(Arguments const& arguments) {
    for (const std::int64_t rows : arguments.rows) all_ += rows * timed_runs * std::int64_t(arguments.files.size());
    if (arguments.files.size() > 1 && !arguments.no_probe) all_ += arguments.steps * arguments.count;
  }

  void add(std::int64_t rows, std::string const& what) {
    done_ += rows;
    line_.show(done_, all_, {what});
  }

  /// For what else is printed.
  void clear() { line_.clear(); }

 private:
  std::int64_t done_ = 0, all_ = 0;
  tstitch::ProgressLine line_;
};

/// A network whose evaluations are shown, where each is a step.
struct Watched : tstitch::NetworkWrapper<Watched> {
  Watched(tstitch::Network network, Progress& shown) : NetworkWrapper(std::move(network)), progress(&shown) {}

  at::Tensor operator()(at::Tensor const& x, at::Tensor const& t, tstitch::Condition const& condition,
                        tstitch::Evaluation const& evaluation) const {
    const at::Tensor output = inner()(x, t, condition, evaluation);
    progress->add(x.size(0), "comparing along the trajectory");
    return output;
  }

  Progress* progress;
};

/// So many steps of a network's trajectory, evenly spaced as networks of its kind are sampled.
/// @param k which of several it is
tstitch::DDIM<tstitch::SingleNetwork> even_sampler(tstitch::NoiseSchedule const& schedule, std::size_t k, int steps) {
  const tstitch::Spacing spacing = schedule.is_flow() ? tstitch::Spacing::shifted() : tstitch::Spacing::linspace();
  return tstitch::DDIM{schedule, tstitch::SingleNetwork{k}, {.steps = steps, .spacing = spacing}};
}

/// The arguments of one evaluation of this many rows.
struct Call {
  at::Tensor x, t;
  tstitch::Condition condition;

  Call(tstitch::Network const& network, std::vector<tstitch::NamedCondition> const& given, std::int64_t rows) {
    const auto sampler = even_sampler(network.noise_schedule(), 0, 2);
    const tstitch::Trajectory run = sampler.begin({network}, request_for({network}, given, rows));
    x = run.x;
    condition = run.condition.conditional;
    t = tstitch::timestep_rows(network, x, network.noise_schedule().noisiest() / 2, rows);
  }
};

/// Weights and operations of a TorchScript file.
void describe_module(std::string const& path, tstitch::Network const& network,
                     std::vector<tstitch::NamedCondition> const& conditions, Json& json) {
  const torch::jit::Module module = tstitch::load_torchscript_module(path);
  std::int64_t parameters = 0;
  std::string type;
  for (at::Tensor const& parameter : module.parameters()) {
    parameters += parameter.numel();
    if (type.empty()) type = at::toString(parameter.scalar_type());
  }
  print("parameters", grouped(parameters) + ", " + type);
  json["parameters"] = parameters;

  // Of the module as the file has it and at its first call: later ones run other operations.
  torch::jit::Module plain = module;
  plain.eval();
  plain.to(at::kCPU, at::kFloat);
  const Call call(network, conditions, 1);
  std::vector<c10::IValue> inputs{call.x.cpu(), call.t.cpu()};
  if (network.info().num_classes) inputs.emplace_back(call.condition.labels.cpu());
  for (tstitch::ConditionInfo const& wanted : network.info().conditions) {
    inputs.emplace_back(call.condition.at(wanted.name).cpu());
  }
  const FlopCounter counter;
  plain.forward(std::move(inputs));
  json["gflop"] = counter.count() / 1e9;
  print("GFLOP a row", tstitch::words::text(std::round(counter.count() / 1e6) / 1e3));
}

/// What an AOTInductor package was compiled for.
void describe_package(std::string const& path, Json& json) {
  const tstitch::CompiledFor compiled = tstitch::read_compiled_for(path);
  std::string dtype;
  for (std::string const& name : tstitch::dtype_names()) {
    if (tstitch::dtype_named(name) == compiled.dtype) dtype = name;
  }
  const std::string target = compiled.device + (compiled.device == "cuda" ? " " + compiled.compute_capability : "");
  print("compiled for", target + ", " + dtype + ", batches of " + compiled.batch);
  json["compiled_for"] = {{"device", compiled.device}, {"dtype", dtype}, {"batch", compiled.batch}};
}

/// How many layers can compute in 8 bits, and how many of them have weights for it.
void describe_eight_bits(tstitch::NetworkInfo::Architecture const& architecture, Json& json) {
  std::vector<double> const& inputs = architecture.e4m3_inputs;
  if (inputs.empty()) return;
  const auto layers = [](std::vector<double> const& of) {
    return std::int64_t(of.size()) - std::ranges::count(of, 0.0);
  };
  const std::int64_t eighth = layers(inputs), weights = layers(architecture.e4m3_weight_scales);
  print("8 bits", std::to_string(eighth) + " of " + std::to_string(inputs.size()) + " layers, " +
                      std::to_string(weights) + " with weights for it");
  json["e4m3_layers"] = eighth;
  json["e4m3_weights"] = weights;
}

/// What the file says of itself.
void describe_info(tstitch::Network const& network, Json& json) {
  tstitch::NetworkInfo const& info = network.info();
  print("name", info.name);
  std::string input = tstitch::words::shape_text({info.channels, info.height, info.width});
  if (info.num_classes) input += ", " + std::to_string(info.num_classes) + " classes";
  if (info.null_class) input += ", null class " + std::to_string(*info.null_class);
  for (tstitch::ConditionInfo const& wanted : info.conditions) {
    input += ", " + wanted.name + " " + tstitch::text_of(wanted);
    json["conditions"].push_back(wanted.name + " " + tstitch::text_of(wanted));
  }
  print("input", input);
  json["input"] = {info.channels, info.height, info.width};
  json["num_classes"] = info.num_classes;
  print("predicts", to_string(info.prediction_type) + (info.learned_variance ? " and a variance" : ""));
  json["prediction"] = to_string(info.prediction_type);
  print("noise schedule", network.noise_schedule().name());
  json["noise_schedule"] = network.noise_schedule().name();
  print("makes", info.decoding == tstitch::Decoding::pixels ? "pictures" : "latents");
  describe_eight_bits(info.architecture, json);
  for (auto const& [key, value] : {std::pair{"trained on", info.training_data}, std::pair{"licence", info.license}}) {
    if (!value.empty()) print(key, value);
  }
}

/// Milliseconds of one evaluation of so many rows, the median.
double time_rows(tstitch::Network const& network, std::vector<tstitch::NamedCondition> const& conditions,
                 std::int64_t rows, Progress& progress) {
  const Call call(network, conditions, rows);
  std::vector<double> milliseconds;
  for (int run = 0; run < timed_runs; ++run) {
    wait(network.device());
    const Clock::time_point start = Clock::now();
    network(call.x, call.t, call.condition);
    wait(network.device());
    if (run > 3) milliseconds.push_back(1e3 * seconds_since(start));  // TorchScript compiles in the first ones
    progress.add(rows, "timing " + std::to_string(rows) + " rows");
  }
  progress.clear();
  std::nth_element(milliseconds.begin(), milliseconds.begin() + 4, milliseconds.end());
  return milliseconds[4];
}

Json describe(std::string const& path, tstitch::Network const& network, Arguments const& arguments,
              std::vector<tstitch::NamedCondition> const& conditions, Progress& progress) {
  Json json{{"file", path}, {"name", network.info().name}};
  std::printf("%s\n", tstitch::words::printable(path).c_str());
  describe_info(network, json);
  const c10::AutoGradMode no_gradients(false);
  if (tstitch::is_aot_inductor(path)) {
    describe_package(path, json);
  } else {
    describe_module(path, network, conditions, json);
  }
  for (const std::int64_t rows : arguments.rows) {
    const double each = time_rows(network, conditions, rows, progress) / double(rows);
    print("ms a row", tstitch::words::text(std::round(each * 1e3) / 1e3) + " of " + std::to_string(rows) + " on " +
                          network.device().str());
    json["milliseconds_a_row"][std::to_string(rows)] = each;
  }
  return json;
}

/// Where the first network agrees with the last, along the last one's trajectory.
Json probe(std::vector<tstitch::Network> networks, Arguments const& arguments,
           std::vector<tstitch::NamedCondition> const& conditions, Progress& progress) {
  const std::size_t last = networks.size() - 1;
  const auto sampler = even_sampler(networks[last].noise_schedule(), last, arguments.steps);
  tstitch::Request request = request_for(networks, conditions, arguments.count);
  request.guidance.scale = networks[last].info().null_class ? networks[last].info().guidance_scale : 1;
  networks[0] = Watched(networks[0], progress).network();
  const tstitch::Agreement agreement = tstitch::measure_agreement(sampler, networks, request, 0, last);
  progress.clear();
  const std::vector<double> means = tstitch::Agreement::means(agreement.cosines);
  const std::vector<double> differences = tstitch::Agreement::means(agreement.differences);
  const std::vector<double> shares = agreement.cumulative_share();
  Json json{{"steps", arguments.steps}, {"images", arguments.count}};
  const auto name = [&](std::size_t k) { return tstitch::words::printable(networks[k].info().name, 60); };
  std::printf("agreement of '%s' with '%s' along the trajectory of '%s', %lld images\n", name(0).c_str(),
              name(last).c_str(), name(last).c_str(), static_cast<long long>(arguments.count));
  std::printf("  %8s %8s %12s %8s\n", "t", "cosine", "difference", "sum");
  Curve cosine{.color = {31, 119, 180}}, sum{.color = {214, 90, 20}};
  const std::size_t every = std::max<std::size_t>(1, means.size() / 10);
  for (std::size_t i = 0; i < means.size(); ++i) {
    const double t = agreement.steps[i].step.t;
    if (i % every == 0 || i + 1 == means.size()) {
      std::printf("  %8.1f %8.4f %12.6f %7.1f%%\n", t, means[i], differences[i], 100 * shares[i]);
    }
    json["timesteps"].push_back(t);
    json["cosines"].push_back(means[i]);
    json["differences"].push_back(differences[i]);
    cosine.x.push_back(double(i) / double(means.size()));
    cosine.y.push_back(means[i]);
    sum.x.push_back(double(i + 1) / double(means.size()));
    sum.y.push_back(shares[i]);
  }
  std::printf("cosine: of the noise that they predict; difference: of x after the step, root mean square\n");
  const double ratio = agreement.ratio(arguments.tolerance);
  json["tolerance"] = arguments.tolerance;
  json["suggested_ratio"] = ratio;
  std::printf("suggested ratio: %.2f (steps with %g of the difference that the first network would make in all)\n",
              ratio, arguments.tolerance);
  if (!arguments.plot.empty()) {
    char title[128];
    std::snprintf(title, sizeof title, "cosine of noise (blue), sum of differences (orange), ratio %.2f", ratio);
    const Plot plot{.title = title, .x_label = "share of the steps", .curves = {cosine, sum}, .marks = {ratio}};
    tstitch::write_png(arguments.plot, plot.draw());
    std::printf("plot: %s\n", arguments.plot.c_str());
  }
  return json;
}

int inspect(Arguments const& arguments) {
  // What would fail or have no effect later is refused now.
  if (!arguments.plot.empty() && (arguments.files.size() < 2 || arguments.no_probe)) {
    throw std::invalid_argument("--plot: is for networks that are compared, got " + in_quotes(arguments.plot));
  }
  std::vector<std::pair<std::string, std::string>> read;
  for (std::string const& path : arguments.files) read.emplace_back("FILE", path);
  for (std::string const& path : arguments.conditions) read.emplace_back("--condition", path);
  require_different({{"--json", arguments.json}, {"--plot", arguments.plot}}, read);
  for (std::string const& path : {arguments.json, arguments.plot}) {
    if (!path.empty()) tstitch::require_writable(path);
  }
  const tstitch::LoadOptions options{.device = device_of(arguments.device),
                                     .dtype = tstitch::dtype_named(arguments.dtype)};
  std::vector<tstitch::NamedCondition> conditions;
  for (std::string const& path : arguments.conditions) {
    for (tstitch::NamedCondition& each : tstitch::load_conditions(path)) conditions.push_back(std::move(each));
  }
  Json json;
  Progress progress(arguments);
  std::vector<tstitch::Network> networks;
  for (std::string const& path : arguments.files) {
    networks.push_back(tstitch::load_network(path, options));
    json["networks"].push_back(describe(path, networks.back(), arguments, conditions, progress));
  }
  const std::vector<std::string> mismatches = tstitch::mismatches(networks);
  if (networks.size() > 1) {
    std::printf(mismatches.empty() ? "these networks fit together\n" : "these networks cannot share a trajectory\n");
    for (std::string const& line : mismatches) std::printf("  %s\n", line.c_str());
    json["mismatches"] = mismatches;
  }
  if (networks.size() > 1 && mismatches.empty() && !arguments.no_probe) {
    json["agreement"] = probe(networks, arguments, conditions, progress);
  }
  if (!arguments.json.empty()) {
    json["diagnostics"] = tstitch::diagnostics();
    tstitch::write_file(arguments.json, json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  }
  return mismatches.empty() ? 0 : 1;
}

}  // namespace

int main(int count, char** values) {
  return exit_code("tstitch_inspect", [&] {
    Arguments arguments;
    if (const std::optional<int> code = parse(count, values, arguments)) return *code;
    const DiagnosticsAtEnd diagnostics("tstitch_inspect");
    return inspect(arguments);
  });
}
