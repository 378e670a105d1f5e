/// @file
/// What tstitch_inspect is asked.
#pragma once

#include <tstitch/load.hpp>
#include <tstitch/method/by_name.hpp>
#include <tstitch/peer/by_name.hpp>

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "../common/bundled.hpp"
#include "../common/device.hpp"
#include "../common/shape.hpp"
#include "../common/strict.hpp"

struct Arguments {
  std::vector<std::string> files{bundled_small(), bundled_large()};
  std::string device = "auto";
  std::string dtype = "auto";
  std::vector<std::int64_t> rows{1, 8};
  std::vector<std::int64_t> shape;  ///< empty: what the networks state
  std::vector<std::string> conditions;
  int steps = 50;
  std::int64_t count = 8;
  double tolerance = 0.1;
  bool no_probe = false;
  bool details = false;
  bool bundled = true;  ///< no files are named
  bool orders = false, intervals = false;
  std::string forecast;  ///< file of the table to write; empty: none is made
  int computed = 0;      ///< steps of the last network; 0: half of them
  int order = 1;
  double ratio = 0.4;
  std::string sampler = "ddim";
  std::string profile;  ///< takes the place of sampler
  std::string json;
};

/// @returns nothing when the program is to go on, else its exit code; help and version have been printed then
/// @throws std::invalid_argument for options that are not what they must be
inline std::optional<int> parse(int count, char** values, Arguments& arguments) {
  CLI::App app{
      "What networks of files are, whether they fit together, what they cost, and how far into a trajectory "
      "the first agrees with the last: a page, with the command that draws so. Without files: the bundled pair.\n"
      "Networks are programs: TorchScript files and .pt2 packages run code that they contain, so take them from whom "
      "you trust.",
      "tstitch_inspect"};
  const auto option = [&](char const* name, auto& value, char const* help) {
    return strict(app.add_option(name, value, help), value);
  };
  CLI::Option* const files =
      option("files", arguments.files,
             "TorchScript files or AOTInductor packages in the order of use, small first; and the decoder or the "
             "encoder of their latents")
          ->type_name("FILE");
  option("--device", arguments.device, "auto, cpu, cuda or cuda:N")->capture_default_str();
  one_of(option("--dtype", arguments.dtype, "of the networks: auto, float32, float16 or bfloat16")
             ->type_name("TYPE")
             ->capture_default_str(),
         tstitch::dtype_names());
  add_numbers<std::int64_t>(app, "--rows", arguments.rows, "batch sizes that are timed", 1, 1'000'000)
      ->default_str("1,8");
  add_shape(app, arguments.shape);
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
  app.add_flag("--details", arguments.details,
               "all that the files say, what each call takes, and where along the trajectory the networks agree");
  app.add_flag("--no-probe", arguments.no_probe, "describe and time, but do not compare");
  const auto forecast =
      option("--forecast", arguments.forecast,
             "find the steps in which the last network is best forecast, and write them there for tstitch_sample "
             "--forecast FILE");
  forecast->type_name("FILE");
  app.add_flag("--orders", arguments.orders,
               "compare small first, large first and small at both ends at equal cost, by the distance from the large "
               "network's own pictures");
  app.add_flag("--intervals", arguments.intervals,
               "compare guidance on parts of the steps with guidance that is forecast, and suggest one");
  CLI::Option* const sampler =
      one_of(option("--sampler", arguments.sampler, "update rule of what --forecast, --orders and --intervals draw")
                 ->type_name("NAME")
                 ->capture_default_str(),
             names_in(tstitch::update_rules()));
  CLI::Option* const profile = one_of(
      option("--profile", arguments.profile, "instead of the sampler, as tstitch_sample has it")->type_name("NAME"),
      names_in(tstitch::profiles()));
  profile->excludes(sampler);
  for (CLI::Option* const part :
       {option("--computed", arguments.computed, "steps of the last network that are not forecast [half of them]")
            ->check(in_range(1, 1'000'000)),
        option("--order", arguments.order, "of the polynomial that forecasts: 0 to 2")
            ->check(in_range(0, 2))
            ->capture_default_str()}) {
    part->needs(forecast);
  }
  CLI::Option* const ratio =
      option("--ratio", arguments.ratio, "share of the steps for the first of two networks there")
          ->check(in_range(0.0, 1.0))
          ->capture_default_str();
  option("--json", arguments.json, "everything, as JSON")->type_name("FILE");
  set_up(app, version_of("tstitch_inspect"));
  if (const std::optional<int> code = read_arguments(app, count, values)) return code;
  arguments.bundled = files->count() == 0;
  for (CLI::Option const* const part : {sampler, profile, ratio}) {
    if (part->count() == 0 || !arguments.forecast.empty() || arguments.orders || arguments.intervals) continue;
    throw std::invalid_argument(part->get_name() + ": is for --forecast, --orders and --intervals, got none of them");
  }
  return std::nullopt;
}
