/// @file
/// The command line of tstitch_sample.
#pragma once

#include <tstitch/plan/plan.hpp>

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "../common/network.hpp"
#include "../common/strict.hpp"

struct Arguments {
  std::vector<std::string> models{TSTITCH_MODELS "/cifar10_dit_small.pt", TSTITCH_MODELS "/cifar10_dit_large.pt"};
  double ratio = 0.4;
  std::vector<double> fractions;
  std::string sweep;
  std::string routing = "stitch";

  std::string profile;  ///< takes the place of sampler, order, spacing and eta
  std::string sampler = "ddim";
  int order = 2;
  int steps = 50;
  std::string spacing;  ///< empty: linspace, or shifted for flow matching
  double eta = 0;

  std::vector<std::string> classes;
  std::vector<std::string> conditions;
  std::int64_t count = 1;
  std::vector<double> guidance;
  std::string guidance_interval = "0:1";
  std::uint64_t seed = 0;
  std::int64_t batch = 0;
  bool pad_batches = false;
  bool fastest_batch = false;

  std::string device = "auto";
  std::string dtype = "auto";
  std::vector<std::string> backends{"auto"};

  std::string decoder;
  std::int64_t tile = 0;
  std::string latents;
  std::string output;
  std::string grid;
  int scale = 3;
  std::string report;
  bool plan = false;
  bool quiet = false;
};

/// Which samplers --order and --eta are for.
inline bool has_order(std::string const& sampler) {
  return sampler.rfind("dpm-solver", 0) == 0 || sampler == "unipc" || sampler == "deis" || sampler == "lms";
}
inline bool has_eta(std::string const& sampler) {
  return sampler == "ddim" || sampler == "dpm-solver++";
}

/// Numbers between colons: "0:1:0.1" is {0, 1, 0.1}.
/// @throws std::invalid_argument unless there are exactly `count`
inline std::vector<double> colon_numbers(std::string const& option, std::string const& text, std::size_t count) {
  std::vector<double> numbers;
  std::size_t begin = 0;
  while (begin <= text.size()) {
    const std::size_t end = std::min(text.find(':', begin), text.size());
    std::size_t used = 0;
    try {
      numbers.push_back(std::stod(text.substr(begin, end - begin), &used));
    } catch (std::exception const&) {}
    if (used != end - begin || used == 0) numbers.resize(count + 1);
    begin = end + 1;
  }
  if (numbers.size() != count) {
    throw std::invalid_argument(option + ": must be " + std::to_string(count) + " numbers with colons between, got '" +
                                text + "'");
  }
  return numbers;
}

/// The ratios of a sweep "from:to:step", both ends included.
inline std::vector<double> sweep_ratios(std::string const& text) {
  const std::vector<double> numbers = colon_numbers("--sweep", text, 3);
  const double from = numbers[0], to = numbers[1], step = numbers[2];
  if (!(from >= 0 && from <= to && to <= 1 && step > 0)) {
    throw std::invalid_argument("--sweep: must be FROM:TO:STEP with 0 <= FROM <= TO <= 1 and STEP above 0, got '" +
                                text + "'");
  }
  std::vector<double> ratios;
  const double last = std::floor((to - from) / step + 1e-9);
  if (!(last <= 1000)) throw std::invalid_argument("--sweep: must be at most 1001 ratios, got '" + text + "'");
  for (int i = 0; i <= int(last); ++i) ratios.push_back(std::min(from + i * step, 1.0));
  return ratios;
}

/// A spacing by name, with a number as "shifted:3", or a list of timesteps "999,750,500".
inline tstitch::Spacing spacing_of(std::string const& name) {
  using tstitch::Spacing;
  if (name == "leading") return Spacing::leading();
  if (name == "linspace") return Spacing::linspace();
  if (name == "trailing") return Spacing::trailing();
  if (name == "ddim") return Spacing::ddim_stride();
  if (name == "logsnr") return Spacing::uniform_logsnr();
  if (name == "karras") return Spacing::karras();
  if (name == "quadratic") return Spacing::quadratic({.include_last = false, .round = true});
  if (name == "beta") return Spacing::beta(0.6, 0.8, {.include_last = false, .round = true});
  if (name == "shifted") return Spacing::shifted();
  if (name.rfind("shifted:", 0) == 0) return Spacing::shifted(colon_numbers("--spacing", name.substr(8), 1)[0]);
  const bool sections = name.rfind("sections:", 0) == 0;
  std::vector<double> numbers;
  std::stringstream list(sections ? name.substr(9) : name);
  for (std::string part; std::getline(list, part, ',');) {
    std::size_t used = 0;
    try {
      numbers.push_back(std::stod(part, &used));
    } catch (std::exception const&) {}
    if (used == 0 || used != part.size()) {
      throw std::invalid_argument(
          "--spacing: must be leading, linspace, trailing, ddim, logsnr, karras, quadratic, beta, sections:N,N,..., "
          "shifted, shifted:S or a list of timesteps, got '" +
          name + "'");
    }
  }
  if (!sections) return Spacing::list(numbers);
  for (const double number : numbers) {
    if (number >= 0 && number <= 1e6 && number == std::trunc(number)) continue;
    throw std::invalid_argument("--spacing: sections must be whole numbers, got '" + name + "'");
  }
  return Spacing::sections({numbers.begin(), numbers.end()});
}

/// @returns nothing when the program is to go on, else its exit code; help and errors have been printed then
/// @throws std::invalid_argument for options that do not suit each other
inline std::optional<int> parse(int count, char** values, Arguments& arguments) {
  CLI::App app{
      "Samples class-conditional pictures with several diffusion transformers in turn: the first, noisy steps go to "
      "the first network, the later ones to the next (T-Stitch, arXiv 2402.14167).\n"
      "Without arguments: one picture of each class from the bundled pair, into samples.png.",
      "tstitch_sample"};
  app.get_formatter()->column_width(36);
  char const* group = "";
  const auto option = [&](char const* name, auto& value, char const* help) {
    return strict(app.add_option(name, value, help)->group(group), value);
  };
  const auto shown = [&](char const* name, auto& value, char const* help) {  // help shows the default
    return option(name, value, help)->capture_default_str();
  };
  const auto flag = [&](char const* name, bool& value, char const* help) {
    return app.add_flag(name, value, help)->group(group);
  };

  group = "Routing";
  option("--model", arguments.models,
         "TorchScript file or AOTInductor package; repeat in the order of use, small first")
      ->type_name("FILE")
      ->allow_extra_args(false);
  const auto ratio = shown("--ratio", arguments.ratio, "share of the steps for the first of two networks");
  const auto fractions =
      option("--fractions", arguments.fractions, "share of the steps for each network, adding up to 1: 0.3,0.3,0.4");
  const auto sweep =
      option("--sweep", arguments.sweep, "many ratios from the same noise, FROM:TO:STEP, one row of the grid each");
  fractions->delimiter(',')->excludes(ratio)->excludes(sweep);
  sweep->type_name("A:B:C")->excludes(ratio);
  const auto routing = shown(
      "--routing", arguments.routing,
      "how two networks share the steps: stitch, or as baselines large-first, interleaved, or falling probability");
  routing->check(CLI::IsMember({"stitch", "large-first", "interleaved", "falling"}))
      ->excludes(fractions)
      ->excludes(sweep);
  flag("--plan", arguments.plan, "print what each step would do, and stop");

  group = "Sampling";
  const auto profile = option("--profile", arguments.profile,
                              "instead of sampler, order, spacing and eta: recommended, or what another program does")
                           ->type_name("NAME")
                           ->check(CLI::IsMember({"recommended", "dit", "dit-ddim", "diffusers-ddpm", "diffusers-ddim",
                                                  "diffusers-dpmpp", "diffusers-pndm", "diffusers-lcm", "dpm-solver",
                                                  "k-diffusion", "latent-diffusion"}));
  const auto sampler = shown("--sampler", arguments.sampler, "update rule");
  sampler->check(CLI::IsMember({"ddpm", "ddim", "dpm-solver", "dpm-solver++", "unipc", "deis", "lms", "pndm", "heun"}));
  const auto order =
      shown("--order", arguments.order, "order of dpm-solver, dpm-solver++, unipc, deis (1 to 3) and lms");
  shown("--steps", arguments.steps, "steps of a picture; heun evaluates a network twice in each");
  const auto spacing = option("--spacing", arguments.spacing,
                              "leading, linspace, trailing, ddim, logsnr, karras, quadratic, beta, sections:N,N,..., "
                              "shifted or shifted:S for flow matching, or a list of timesteps [linspace; shifted for "
                              "flow matching]");
  const auto eta = shown("--eta", arguments.eta, "noise of ddim, 0 to 1, and of dpm-solver++");
  profile->excludes(sampler)->excludes(order)->excludes(spacing)->excludes(eta);

  group = "Pictures";
  option("--class", arguments.classes, "name or number; repeat for more [all classes]")
      ->type_name("CLASS")
      ->allow_extra_args(false);
  option("--condition", arguments.conditions,
         "file of tensors by name, such as the embedding of a prompt (encode_prompt.py); repeat for more")
      ->type_name("FILE")
      ->allow_extra_args(false);
  shown("--count", arguments.count, "pictures of each class, or of each prompt");
  option("--guidance", arguments.guidance,
         "classifier-free guidance scale, or one for each network: 1.5,3 [what the last network recommends]")
      ->delimiter(',');
  shown("--guidance-interval", arguments.guidance_interval, "share of the steps at which guidance begins and ends")
      ->type_name("A:B");
  shown("--seed", arguments.seed, "picture i has seed SEED + i, and its noise depends on nothing else");

  group = "Machine";
  shown("--device", arguments.device, "auto, cpu, cuda or cuda:N");
  shown("--dtype", arguments.dtype,
        "of the networks; auto is float32 on the CPU, the file's own on a GPU and of packages; float32 is without TF32")
      ->check(CLI::IsMember({"auto", "float32", "float16", "bfloat16"}));
  shown(
      "--backend", arguments.backends,
      "how networks are run, for all or for each: torchscript, native (DiTs by the library's own engine), native-e4m3 "
      "(in 8 bits) or aot-inductor, each with +graph for CUDA graphs; auto is the fastest that keeps the number format")
      ->type_name("NAME")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::IsMember(backend_names()));
  option("--batch", arguments.batch, "pictures at once [256 on a GPU, 16 on the CPU]");
  const auto pad = flag("--pad-batches", arguments.pad_batches,
                        "give every batch one shape, so that pictures are bit-equal whatever is drawn beside them");
  flag("--fastest-batch", arguments.fastest_batch,
       "measure batches of 1, 2, 4 ... pictures up to --batch first, and draw in the fastest")
      ->excludes(pad);

  group = "Output";
  const auto decoder =
      option("--decoder", arguments.decoder, "decoder of the autoencoder, for networks that make latents");
  decoder->type_name("FILE");
  option("--tile", arguments.tile, "decode in tiles of so many pixels of the latent a side [whole pictures]")
      ->needs(decoder)
      ->check(CLI::Range(std::int64_t(17), std::int64_t(65536)));
  option("--latents", arguments.latents, "what the networks made, before it is decoded: .npy, float32 [n, C, H, W]")
      ->type_name("FILE")
      ->excludes(sweep);
  option("--output", arguments.output, "one PNG for each picture goes into this folder")->type_name("DIR");
  option("--grid", arguments.grid, "all pictures in one PNG [samples.png, unless --output is given]")
      ->type_name("FILE");
  shown("--scale", arguments.scale, "the grid's pictures are so many times larger")->check(CLI::Range(1, 64));
  option("--report", arguments.report, "parameters, calls and seconds as JSON")->type_name("FILE");
  flag("--quiet", arguments.quiet, "print errors only");

  try {
    app.parse(count, values);
  } catch (CLI::ParseError const& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  // What would have no effect is refused rather than ignored.
  const auto only = [](CLI::Option const* given, bool useful, std::string const& rule, std::string const& got) {
    if (given->count() && !useful) throw std::invalid_argument(given->get_name() + ": is for " + rule + ", got " + got);
  };
  only(ratio, arguments.models.size() == 2, "two networks", std::to_string(arguments.models.size()));
  only(sweep, arguments.models.size() == 2, "two networks", std::to_string(arguments.models.size()));
  only(routing, arguments.models.size() == 2, "two networks", std::to_string(arguments.models.size()));
  only(order, has_order(arguments.sampler), "dpm-solver, dpm-solver++, unipc, deis and lms", arguments.sampler);
  only(pad, arguments.sweep.empty(), "runs without --sweep", arguments.sweep);
  only(eta, has_eta(arguments.sampler), "ddim and dpm-solver++", arguments.sampler);
  return std::nullopt;
}
