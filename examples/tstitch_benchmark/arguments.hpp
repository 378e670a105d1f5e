/// @file
/// The command line of tstitch_benchmark.
#pragma once

#include <tstitch/method/by_name.hpp>
#include <tstitch/plan/by_name.hpp>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../common/bundled.hpp"
#include "../common/device.hpp"
#include "../common/forecast.hpp"
#include "../common/network.hpp"
#include "../common/shape.hpp"
#include "../common/strict.hpp"

struct Arguments {
  std::vector<std::string> models{bundled_small(), bundled_large()};
  std::vector<std::int64_t> batches;  ///< ascending
  std::vector<std::int64_t> shape;    ///< of x for one sample; until the files are read --shape, or empty
  std::vector<double> ratios{0, .2, .4, .6, .8, 1};  ///< ascending
  std::vector<std::string> dtypes;
  std::vector<std::string> backends{tstitch::backend_names().front()};

  std::string sampler = "ddim";
  std::string spacing;  ///< empty: linspace, or shifted for flow matching
  int steps = 0;
  std::string forecast = "none";           ///< steps of the second network
  std::string forecast_guidance = "none";  ///< of both
  std::optional<double> guidance;          ///< not given: 1.5, or none for networks that know no "no class"
  std::vector<std::string> conditions;     ///< files
  int repeats = 5;
  bool first_picture = true;
  bool accuracy = false;

  std::string device_name = "auto";
  at::Device device = at::kCPU;

  std::string json;
  std::string latents;

  /// Set in the processes that draw one first picture: when they were started, in nanoseconds of the steady clock.
  std::optional<std::int64_t> started;
};

/// Refuses what cannot be measured, and decides what is not given.
inline void complete(Arguments& arguments) {
  // Before networks load.
  if (!arguments.spacing.empty()) tstitch::spacing_by_name(arguments.spacing, "--spacing");
  forecast_of_steps(arguments.forecast, 2);
  forecast_of_guidance(arguments.forecast_guidance);
  if (arguments.models.size() != 2) {
    throw std::invalid_argument("--model: must be two networks, got " + std::to_string(arguments.models.size()));
  }
  arguments.device = device_of(arguments.device_name);
  const bool gpu = arguments.device.is_cuda();
  if (arguments.batches.empty()) {
    arguments.batches = gpu ? std::vector<std::int64_t>{1, 2, 8, 32} : std::vector<std::int64_t>{1, 4};
  }
  if (arguments.dtypes.empty()) arguments.dtypes = {gpu ? "bfloat16" : "float32"};
  if (arguments.steps == 0) arguments.steps = gpu ? 100 : 10;
  const auto ascending = [](auto& measured) {
    std::sort(measured.begin(), measured.end());
    measured.erase(std::unique(measured.begin(), measured.end()), measured.end());
  };
  ascending(arguments.batches);
  ascending(arguments.ratios);
  std::vector<std::pair<std::string, std::string>> read;
  for (std::string const& path : arguments.models) read.emplace_back("--model", path);
  for (std::string const& path : arguments.conditions) read.emplace_back("--condition", path);
  require_different({{"--json", arguments.json}, {"--latents", arguments.latents}}, read);
  const std::size_t cells =
      arguments.batches.size() * arguments.ratios.size() * arguments.dtypes.size() * arguments.backends.size();
  if (!arguments.latents.empty() && cells != 1) {
    throw std::invalid_argument("--latents: is for one batch size, ratio, number format and backend, got " +
                                std::to_string(cells) + " combinations");
  }
}

inline void add_cells(CLI::App& app, Arguments& arguments) {
  constexpr auto group = "Cells (comma-separated lists; every combination is measured)";
  strict(app.add_option("--model", arguments.models, "network's file; twice, the small one first"), arguments.models)
      ->group(group)
      ->type_name("FILE")
      ->allow_extra_args(false);
  add_numbers<std::int64_t>(app, "--batch", arguments.batches, "pictures at once [1,2,8,32 on a GPU, 1,4 on the CPU]",
                            1, 1'000'000)
      ->group(group);
  add_numbers(app, "--ratio", arguments.ratios, "shares of the steps for the small network", 0.0, 1.0)
      ->group(group)
      ->default_str("0,0.2,0.4,0.6,0.8,1");
  add_names(app, "--dtype", arguments.dtypes,
            "of the networks: float32, float16, bfloat16 [bfloat16 on a GPU, float32 on the CPU]",
            {"float32", "float16", "bfloat16"})
      ->group(group);
  add_names(app, "--backend", arguments.backends,
            "how the networks are run: auto, torchscript, native, native-e4m3 or aot-inductor, each but the first "
            "with +graph for CUDA graphs",
            tstitch::backend_names())
      ->group(group)
      ->default_str("auto");
}

/// @returns nothing when the program is to go on, else its exit code; help and errors have been printed then
/// @throws std::invalid_argument for options that do not suit each other
inline std::optional<int> parse(int count, char** values, Arguments& arguments) {
  CLI::App app{
      "Measures two networks and stitched trajectories of them: time of a forward pass, of whole trajectories at "
      "several ratios, of the sampler by itself, of the first picture from the start of a process, and memory.\n"
      "Figures are medians after a warm-up. Without arguments: the bundled pair.",
      "tstitch_benchmark"};
  char const* group = "";
  const auto option = [&](char const* name, auto& value, std::string const& help) {
    return strict(app.add_option(name, value, help)->group(group), value);
  };
  add_cells(app, arguments);

  group = "Trajectories";
  add_shape(app, arguments.shape)->group(group);
  const std::vector<std::string> samplers = names_in(tstitch::update_rules());
  one_of(option("--sampler", arguments.sampler, "update rule: " + joined(samplers))
             ->type_name("NAME")
             ->capture_default_str(),
         samplers);
  option("--spacing", arguments.spacing,
         "of the timesteps: " + tstitch::spacings_text() + " [linspace; shifted for flow matching]")
      ->type_name("NAME");
  option("--steps", arguments.steps, "steps of a trajectory [100 on a GPU, 10 on the CPU]")
      ->check(in_range(1, 1'000'000));
  option("--guidance", arguments.guidance, "classifier-free guidance scale; 1 is without [1.5]");
  option("--condition", arguments.conditions, "file of tensors by name; zeros for what is not given")
      ->type_name("FILE")
      ->allow_extra_args(false);
  option("--forecast", arguments.forecast,
         "steps of the second network that are forecast: " + tstitch::forecasts_text() + "; of both with all: before it")
      ->type_name("NAME")
      ->capture_default_str();
  option("--forecast-guidance", arguments.forecast_guidance, "steps in which guidance is forecast, likewise")
      ->type_name("NAME")
      ->capture_default_str();

  group = "Measuring";
  option("--repeats", arguments.repeats, "how often each time is taken")
      ->check(in_range(1, 1'000'000))
      ->capture_default_str();
  bool no_first_picture = false;
  app.add_flag("--no-first-picture", no_first_picture, "start no processes to see how soon the first picture is there")
      ->group(group);
  app.add_flag("--accuracy", arguments.accuracy, "say how far the networks are from what TorchScript makes in float32")
      ->group(group);
  option("--device", arguments.device_name, "auto, cpu, cuda or cuda:N")->capture_default_str();

  group = "Output";
  option("--json", arguments.json, "everything, as JSON; written after every batch size")->type_name("FILE");
  file_of(
      option("--latents", arguments.latents, "what the last trajectory made: .npy, float32 [n, C, ...]; for one cell")
          ->type_name("FILE"),
      ".npy");
  option("--started", arguments.started, "for the program's own use")->group("");  // not in the help

  set_up(app, version_of("tstitch_benchmark"));
  if (const std::optional<int> code = read_arguments(app, count, values)) return code;
  arguments.first_picture = !no_first_picture;
  complete(arguments);
  return std::nullopt;
}
