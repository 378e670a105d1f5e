/// @file
/// The command line of tstitch_sample: which options there are, and what they must be together.
#pragma once

#include <tstitch/peer/by_name.hpp>
#include <tstitch/peer/preset.hpp>
#include <tstitch/plan/by_name.hpp>
#include <tstitch/study/budget.hpp>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../common/device.hpp"
#include "../common/network.hpp"
#include "../common/shape.hpp"
#include "../common/strict.hpp"
#include "arguments.hpp"
#include "preview.hpp"
#include "prompts.hpp"

/// "ddim, dpm-solver++ [0], euler-ancestral [1]": the samplers that take an option, with what they have without.
inline std::string samplers_help(std::string const& option) {
  std::map<std::string, std::vector<std::string>> by_usual;
  for (std::string const& name : samplers_with(option)) {
    by_usual[tstitch::find_update_rule(name).option(option)->usual].push_back(name);
  }
  std::string text;
  for (auto const& [usual, names] : by_usual) text += (text.empty() ? "" : "; ") + joined(names) + " [" + usual + "]";
  return text;
}

/// "stitch (the nearest whole number of steps), ...": the routings, and what they are.
inline std::string routings_help() {
  std::vector<std::string> all;
  for (tstitch::NamedRouting const& each : tstitch::routing::named()) {
    all.push_back(each.name + (each.boundaries.empty() ? "" : ":" + each.boundaries) + " (" + each.help + ")");
  }
  return joined(all) + ". What is behind a colon takes the place of a ratio: T and L are boundaries between networks";
}

inline std::vector<std::string> routings_by_fractions() {
  std::vector<std::string> names;
  for (tstitch::NamedRouting const& each : tstitch::routing::named()) {
    if (each.takes_fractions) names.push_back(each.name);
  }
  return names;
}

/// Takes the boundaries behind the colon of --routing.
/// @throws std::invalid_argument for a routing that there is not
inline void read_routing(Arguments& arguments) {
  std::string text = arguments.routing;
  std::replace(text.begin(), text.begin() + std::ptrdiff_t(std::min(text.find(':'), text.size())), '_', '-');
  auto [routing, boundaries] = tstitch::read_routing(text, tstitch::routing::named(), "--routing");
  arguments.routing = routing.name;
  arguments.boundaries = std::move(boundaries);
  arguments.between = routing.between;
}

/// Whether what is behind the colon lies between networks, one fewer than they are.
inline bool has_boundaries_between(Arguments const& arguments) {
  return !arguments.boundaries.empty() && arguments.between;
}

/// The options in their groups, and what they must be together.
struct CommandLine {
  CLI::App& app;
  Arguments& arguments;
  char const* group = "";
  // Those that others go with or without, or that it matters whether they are given.
  CLI::Option *ratio = nullptr, *fractions = nullptr, *sweep = nullptr, *routing = nullptr;
  CLI::Option *profile = nullptr, *sampler = nullptr, *order = nullptr, *steps = nullptr, *spacing = nullptr;
  CLI::Option *preset = nullptr, *budget = nullptr, *quality = nullptr, *times = nullptr;
  CLI::Option *forecast = nullptr, *forecast_guidance = nullptr, *plan = nullptr;
  CLI::Option *timesteps = nullptr, *sigmas = nullptr, *eta = nullptr, *batch = nullptr, *pad = nullptr;
  CLI::Option *count = nullptr, *video = nullptr, *frame_rate = nullptr;
  CLI::Option *pipeline = nullptr, *model = nullptr, *prompt = nullptr, *prompts = nullptr, *negative = nullptr,
              *prompt_cache = nullptr;
  CLI::Option *init_image = nullptr, *strength = nullptr, *mask = nullptr, *invert = nullptr, *initial_noise = nullptr;
  CLI::Option *interpolate = nullptr, *variations = nullptr, *variation_strength = nullptr;
  CLI::Option *fastest = nullptr, *save_every = nullptr;

  CLI::Option* option(char const* name, auto& value, std::string const& help) const {
    return strict(app.add_option(name, value, help)->group(group), value);
  }
  /// The same with its default in the help.
  CLI::Option* shown(char const* name, auto& value, std::string const& help) const {
    return option(name, value, help)->capture_default_str();
  }
  CLI::Option* numbers(char const* name, std::vector<double>& value, char const* help) const {
    return add_numbers(app, name, value, help)->group(group);
  }
  CLI::Option* flag(char const* name, bool& value, char const* help) const {
    return app.add_flag(name, value, help)->group(group);
  }

  void add_routing();
  void add_sampling();
  void add_pictures();
  void add_editing();
  void add_machine();
  void add_output();
  void add_video(CLI::Option* output);
  void add_saving();

  /// Pictures of each class or prompt where several seeds are given, or variations are asked for.
  std::int64_t wanted_count() const {
    if (arguments.variations > 0) return std::int64_t(arguments.seeds.size()) * (arguments.variations + 1);
    return (std::int64_t(arguments.seeds.size()) - 1) * (arguments.interpolate + 1) + 1;
  }
  /// Takes what the options say beside their values.
  void take_given() const;
  /// Takes what the pipeline says and the options do not.
  void take_pipeline() const;
  /// Takes the prompts of a file behind those that are given.
  void take_prompts() const;
  /// Refuses what would have no effect, rather than ignore it.
  void require_effect() const;
  /// Refuses numbers that are too many, too few, too large or too small.
  void require_numbers() const;
};

inline void CommandLine::add_routing() {
  group = "Routing";
  model = option("--model", arguments.models,
                 "TorchScript file or AOTInductor package; repeat in the order of use, small first")
              ->type_name("FILE")
              ->allow_extra_args(false);
  pipeline =
      option("--pipeline", arguments.pipeline,
             "folder of export_pipeline.py, which has networks, text encoders and decoder and says how they draw")
          ->type_name("FOLDER")
          ->excludes(model);
  flag("--bridge", arguments.bridge,
       "take networks of other latents or another noise schedule than the last one's, too, at the same signal-to-noise "
       "ratio");
  ratio = shown("--ratio", arguments.ratio, "share of the steps for the first of two networks");
  fractions =
      numbers("--fractions", arguments.fractions, "share of the steps for each network, adding up to 1: 0.3,0.3,0.4");
  sweep = option("--sweep", arguments.sweep, "many ratios from the same noise, FROM:TO:STEP, one row of the grid each");
  fractions->excludes(ratio)->excludes(sweep);
  sweep->type_name("A:B:C")->excludes(ratio);
  routing = shown("--routing", arguments.routing, "how networks share the steps: " + routings_help());
  routing->type_name("RULE")->excludes(sweep);
  plan = flag("--plan", arguments.plan, "print what each step would do, and stop");
}

inline void CommandLine::add_sampling() {
  group = "Sampling";
  std::string presets;
  for (tstitch::NamedPreset const& each : tstitch::presets()) {
    presets += (presets.empty() ? "" : "; ") + each.name + " (" + each.help + ")";
  }
  preset =
      option("--preset", arguments.preset, "how two networks are sampled, in a word: " + presets)->type_name("NAME");
  one_of(preset, names_in(tstitch::presets()));
  budget = option("--budget", arguments.budget,
                  "what drawing may cost: " + tstitch::budgets_text() +
                      "; takes what is best for that by a quality table, or as many steps of the large network as fit")
               ->type_name("COST");
  quality = option("--quality", arguments.quality,
                   "table of measure_quality.py that the budget chooses from [the bundled pair's, with that pair]")
                ->type_name("FILE")
                ->needs(budget);
  times = option("--times", arguments.times,
                 "file that keeps what networks take, none for nowhere [tstitch/times.txt in the user's cache]")
              ->type_name("FILE")
              ->needs(budget);
  const std::vector<std::string> profile_names = names_in(tstitch::profiles());
  profile = option("--profile", arguments.profile,
                   "instead of sampler, order, spacing and eta, this library's choice or what another program does: " +
                       joined(profile_names) + " [what the last network recommends]")
                ->type_name("NAME");
  one_of(profile, profile_names);
  const std::vector<std::string> sampler_names = names_in(tstitch::update_rules());
  sampler = shown("--sampler", arguments.sampler, "update rule: " + joined(sampler_names))->type_name("NAME");
  one_of(sampler, sampler_names);
  order = option("--order", arguments.order,
                 "1 to 3, of the adaptive ones 2 or 3, of lms 1 to 8: " + samplers_help("order"));
  steps = option("--steps", arguments.steps,
                 "50, or what the last network recommends where no other sampling option is given; some "
                 "samplers evaluate a network more than once in each, as --plan shows");
  spacing = option("--spacing", arguments.spacing,
                   tstitch::spacings_text() +
                       ", or a list of timesteps; shifted is for flow matching [linspace; shifted for flow "
                       "matching]")
                ->type_name("NAME");
  timesteps = numbers("--timesteps", arguments.timesteps,
                      "instead of steps and spacing: where each step begins, the noisiest first");
  sigmas = numbers("--sigmas", arguments.sigmas,
                   "the same by noise levels, sigma / alpha; a last one of 0 is where the last step ends");
  eta = option("--eta", arguments.eta,
               "how much noise a step renews, 0 to 1, of dpm-solver++ 0 or more: " + samplers_help("eta"));
  forecast = shown("--forecast", arguments.forecast,
                   "steps in which the blocks of the last network do not run, for what they add is forecast: " +
                       tstitch::forecasts_text() +
                       ", as every:2 computes one of 2, all:every:2 of all networks; or the file of a table "
                       "(tstitch_inspect --forecast)")
                 ->type_name("NAME");
  for (auto const& list : {timesteps, sigmas}) list->excludes(steps)->excludes(spacing);
  timesteps->excludes(sigmas);
  for (auto const& part : {sampler, order, spacing, eta}) profile->excludes(part);
  for (auto const& part :
       {profile, sampler, order, steps, spacing, timesteps, sigmas, eta, forecast, fractions, budget}) {
    preset->excludes(part);
  }
  for (auto const& part : {fractions, sweep, plan}) budget->excludes(part);
  for (auto const& part : {order, spacing, timesteps, sigmas, eta}) quality->excludes(part);
}

inline void CommandLine::add_pictures() {
  group = "Pictures";
  option("--class", arguments.classes,
         "name, one of its synonyms, or number; repeat for more, or with commas between; all for each [all of up to 10 "
         "classes, else 10]")
      ->type_name("CLASS")
      ->allow_extra_args(false);
  option("--condition", arguments.conditions,
         "file of tensors by name, such as the embedding of a prompt (encode_prompt.py); repeat for more")
      ->type_name("FILE")
      ->allow_extra_args(false);
  prompt = option("--prompt", arguments.prompts, "text to draw, for networks that draw from text; repeat for more")
               ->type_name("TEXT")
               ->allow_extra_args(false);
  prompts = option("--prompts", arguments.prompts_file, "file with more such texts, one a line")->type_name("FILE");
  CLI::Option* const text_encoder =
      option("--text-encoder", arguments.text_encoders,
             "file that encodes the prompts (export_text_encoder.py); repeat for networks that take the states of "
             "several side by side")
          ->type_name("FILE")
          ->allow_extra_args(false);
  prompt_cache = option("--prompt-cache", arguments.prompt_cache,
                        "folder that keeps what prompts were encoded to, so that none is encoded twice; is made where "
                        "it is not there")
                     ->type_name("FOLDER");
  pipeline->excludes(text_encoder);
  negative =
      option("--negative", arguments.negative, "text that guidance leads away from [no text]")->type_name("TEXT");
  count = shown("--count", arguments.count, "pictures of each class, or of each prompt");
  CLI::Option* const shape = add_shape(app, arguments.shape)->group(group);
  add_size(app, arguments.size)->group(group)->excludes(shape);
  option("--frames", arguments.frames, "of a video, for networks that leave it open: 81")
      ->check(in_range<std::int64_t>(1, 100'000))
      ->excludes(shape);
  numbers("--guidance", arguments.guidance,
          "classifier-free guidance scale, 1 for none, or one for each network: 1.5,3 [what the last network "
          "recommends]");
  shown("--guidance-interval", arguments.guidance_interval, "share of the steps at which guidance begins and ends")
      ->type_name("A:B");
  forecast_guidance =
      shown("--forecast-guidance", arguments.forecast_guidance,
            "steps in which what guidance adds is forecast, and networks run with the class or prompt alone: " +
                tstitch::forecasts_text())
          ->type_name("NAME");
  preset->excludes(forecast_guidance);
  shown("--guidance-rescale", arguments.guidance_rescale,
        "0 to 1: how far guided outputs are brought to the deviation of those with the condition; 0.7 is usual "
        "(arXiv 2305.08891)")
      ->check(in_range(0.0, 1.0));
  numbers("--guidance-projection", arguments.guidance_projection,
          "ETA[,NORM[,MOMENTUM]], adaptive projected guidance, for high scales (arXiv 2410.02416): "
          "0 to 1 of the part along the prediction is kept, the norm is at most NORM, and "
          "MOMENTUM, inside -1 to 1, of what was added before is added again");
  option("--guidance-network", arguments.guidance_network,
         "autoguidance (arXiv 2406.02507): the prediction of this network, 0 for the first, in place of the one "
         "without class or prompt");
  add_numbers(app, "--seed", arguments.seeds,
              "picture i has seed SEED + i, and its noise depends on nothing else; of several, 3,7,12, each "
              "class or prompt is drawn with each [0]")
      ->group(group);
}

inline void CommandLine::add_editing() {
  group = "Editing";
  init_image = option("--init-image", arguments.init_image,
                      "begin from this picture with noise on it: PNG or JPEG of the shape that is drawn; or .npy of "
                      "what networks know, float [1, C, ...]")
                   ->type_name("FILE");
  strength = shown("--strength", arguments.strength,
                   "above 0 to 1: how much of the run is left to change it; of N steps the last STRENGTH N are taken, "
                   "by the networks that they have in the whole run")
                 ->needs(init_image);
  mask =
      option("--mask", arguments.mask, "picture: white is drawn, black is kept of --init-image, and grey is in between")
          ->type_name("FILE")
          ->needs(init_image);
  invert = option("--invert", arguments.invert,
                  "begin from the noise that DDIM makes this picture of, at the steps of the run and without class, "
                  "prompt and guidance; a file like that of --init-image")
               ->type_name("FILE");
  initial_noise = file_of(option("--initial-noise", arguments.initial_noise,
                                 "begin from this noise: .npy, float [1, C, ...], or one for each picture")
                              ->type_name("FILE"),
                          ".npy");
  option("--encoder", arguments.encoder, "encoder of the autoencoder, for networks that make latents")
      ->type_name("FILE");
  interpolate = option("--interpolate", arguments.interpolate,
                       "from each seed of a list to the next over so many pictures in between, whose noise is between "
                       "theirs; with one seed from each class that is named to the next, or from each prompt")
                    ->check(in_range<std::int64_t>(1, 10'000));
  variations = option("--variations", arguments.variations,
                      "the picture of each seed, and so many variations of it: its noise mixed with that of the seeds "
                      "that follow")
                   ->check(in_range<std::int64_t>(1, 10'000));
  variation_strength = shown("--variation-strength", arguments.variation_strength,
                             "how much of the other noise: 0 is the picture itself, 1 that of the other seed")
                           ->needs(variations)
                           ->check(in_range(0.0, 1.0));
  interpolate->excludes(budget)->excludes(variations);
  invert->excludes(init_image)->excludes(initial_noise);
  for (auto const& part : {init_image, invert, initial_noise}) part->excludes(sweep)->excludes(budget);
}

inline void CommandLine::add_machine() {
  group = "Machine";
  shown("--device", arguments.device, "auto, cpu, cuda or cuda:N");
  one_of(shown("--dtype", arguments.dtype,
               "of the networks: float32, float16 or bfloat16; auto is float32 on the CPU, the file's own on a GPU and "
               "of packages; float32 is without TF32")
             ->type_name("TYPE"),
         tstitch::dtype_names());
  add_names(app, "--backend", arguments.backends,
            "how networks are run, for all or for each: torchscript, native (DiTs by the library's own engine), "
            "native-e4m3 (in 8 bits) or aot-inductor, each with +graph for CUDA graphs; auto is the fastest that "
            "keeps the number format",
            tstitch::backend_names())
      ->group(group)
      ->default_str("auto");
  batch = option("--batch", arguments.batch, "pictures at once [256 on a GPU, 16 on the CPU]");
  pad = flag("--pad-batches", arguments.pad_batches,
             "give every batch one shape, so that pictures are bit-equal whatever is drawn beside them");
  fastest = flag("--fastest-batch", arguments.fastest_batch,
                 "measure batches of 1, 2, 4 ... pictures up to --batch first, and draw in the fastest")
                ->excludes(pad)
                ->excludes(budget);
}

inline void CommandLine::add_output() {
  group = "Output";
  const auto decoder =
      option("--decoder", arguments.decoder, "decoder of the autoencoder, for networks that make latents");
  decoder->type_name("FILE");
  option("--tile", arguments.tile, "decode in tiles of so many pixels of the latent a side [whole pictures]")
      ->needs(decoder)
      ->check(in_range<std::int64_t>(17, 65536));
  file_of(
      option("--latents", arguments.latents, "what the networks made, before it is decoded: .npy, float32 [n, C, ...]")
          ->type_name("FILE")
          ->excludes(sweep),
      ".npy");
  const auto output =
      option("--output", arguments.output, "one PNG for each picture goes into this folder, or one video");
  output->type_name("DIR");
  add_video(output);
  file_of(option("--grid", arguments.grid, "all pictures in one PNG [samples.png, where nothing else is to be written]")
              ->type_name("FILE"),
          ".png");
  const auto animation =
      file_of(option("--animation", arguments.animation,
                     "pictures one after another in one animated PNG, those of all classes or prompts side by side")
                  ->type_name("FILE")
                  ->excludes(sweep),
              ".png");
  shown("--frame-seconds", arguments.frame_seconds, "how long each picture of the animation is shown")
      ->needs(animation)
      ->check(in_range(0.01, 60.0));
  option("--scale", arguments.scale,
         "pictures of the grid and the animation are so many times larger: 3 where they are at most 100 pixels wide, "
         "else 1")
      ->check(in_range(1, 64));
  const auto read_preview = [this](std::vector<std::string> const& given) {
    std::string kind = given.empty() || given[0].empty() ? "auto" : given[0];
    if (const std::string error = find_name(kind, preview_kinds()); !error.empty()) {
      throw std::invalid_argument("--preview: " + error);
    }
    require_preview(kind);
    arguments.preview = kind;
  };
  app.add_option_function<std::vector<std::string>>(
         "--preview", read_preview,
         "draw pictures in the terminal as soon as they are there: auto, which looks what the terminal knows, kitty, "
         "sixel (in programs built with libchafa), blocks (half blocks in colour) or none [none; auto without a value]")
      ->expected(0, 1)
      ->type_name("[KIND]")
      ->group(group);
  add_saving();
  option("--report", arguments.report, "parameters, calls and seconds as JSON")->type_name("FILE");
  flag("--quiet", arguments.quiet, "print errors only");
}

inline void CommandLine::add_saving() {
  const auto save_run = option("--save-run", arguments.save_run,
                               "file that keeps the run when it is stopped, so that --resume goes on with it; gone "
                               "when all is drawn")
                            ->type_name("FILE");
  save_every = option("--save-every", arguments.save_every, "keep it also every so many steps, and before each batch")
                   ->type_name("STEPS")
                   ->check(in_range<std::int64_t>(1, 1'000'000));
  const auto resume = option("--resume", arguments.resume,
                             "go on with the run of such a file, with the other options as they were, to the same bits")
                          ->type_name("FILE");
  resume->excludes(save_run);
  for (auto const& file : {save_run, resume}) file->excludes(sweep)->excludes(budget)->excludes(fastest);
}

inline void CommandLine::add_video(CLI::Option* output) {
  video = shown("--video", arguments.video,
                "what a video is written as: apng (animated PNG), mp4 (H.264, by the program ffmpeg) or png (a folder "
                "with its frames)")
              ->type_name("FORMAT")
              ->needs(output);
  one_of(video, video_formats());
  frame_rate = shown("--frames-per-second", arguments.frames_per_second, "of videos")
                   ->needs(output)
                   ->check(in_range(1.0, 100.0));
}

inline void CommandLine::take_given() const {
  for (CLI::Option const* const part : {profile, sampler, order, spacing, timesteps, sigmas, eta}) {
    arguments.sampling_given = arguments.sampling_given || part->count() > 0;
  }
  arguments.steps_given = steps->count() > 0;
  if ((arguments.seeds.size() > 1 || arguments.variations > 0) && count->count() == 0) arguments.count = wanted_count();
  arguments.ratio_given = ratio->count() > 0;
  arguments.video_given = video->count() > 0 || frame_rate->count() > 0;
  arguments.forecast_given = forecast->count() > 0;
  arguments.forecast_guidance_given = forecast_guidance->count() > 0;
  for (CLI::Option const* const part : {order, spacing, timesteps, sigmas, eta}) {
    arguments.spacing_given = arguments.spacing_given || part->count() > 0;
  }
  if (arguments.sigmas.size() > 1 && arguments.sigmas.back() == 0) arguments.sigmas.pop_back();
  if (const std::size_t listed = arguments.timesteps.size() + arguments.sigmas.size(); listed > 0) {
    arguments.steps = int(listed);
  }
}

inline void CommandLine::take_pipeline() const {
  if (arguments.pipeline.empty()) {
    for (std::string const& each : arguments.text_encoders) arguments.parts.text_encoders.push_back({each});
    return;
  }
  arguments.parts = tstitch::read_pipeline_info(arguments.pipeline);
  tstitch::PipelineInfo const& parts = arguments.parts;
  arguments.models = parts.networks;
  for (tstitch::PipelineInfo::TextEncoder const& each : parts.text_encoders)
    arguments.text_encoders.push_back(each.file);
  if (arguments.decoder.empty()) arguments.decoder = parts.decoder;
  if (arguments.encoder.empty()) arguments.encoder = parts.encoder;
  if (ratio->count() == 0 && parts.networks.size() == 2) arguments.ratio = parts.ratio;
  const auto is_given = [](CLI::Option const* option) { return option->count() > 0; };
  const bool other =
      std::ranges::any_of(std::initializer_list<CLI::Option*>{fractions, routing, sweep, preset, budget}, is_given) ||
      (is_given(ratio) && parts.has_boundaries());
  if (!other) {
    arguments.routing = parts.routing;
  }
  if (arguments.guidance.empty()) arguments.guidance = parts.guidance;
  if (!arguments.negative) arguments.negative = parts.negative;
  if (arguments.shape.empty()) arguments.shape = parts.shape;
  if (arguments.sampling_given || !arguments.preset.empty()) return;
  arguments.profile = parts.profile;
  if (parts.steps > 0 && !arguments.steps_given) arguments.steps = parts.steps;
}

inline void CommandLine::take_prompts() const {
  if (!arguments.prompts_file.empty()) {
    for (std::string& each : prompts_in(arguments.prompts_file)) arguments.prompts.push_back(std::move(each));
  }
  const auto with = [](CLI::Option const* given, bool there, std::string const& what) {
    if (given->count() && !there)
      throw std::invalid_argument(given->get_name() + ": must come with " + what + ", got none");
  };
  std::string const& folder = arguments.pipeline;
  if (!folder.empty() && arguments.text_encoders.empty() && !arguments.prompts.empty()) {
    throw std::invalid_argument("--prompt: is for pipelines with text encoders, got " + in_quotes(folder));
  }
  for (CLI::Option const* const each : {prompt, prompts}) {
    with(each, !arguments.text_encoders.empty(), "--text-encoder or --pipeline");
  }
  const bool prompted = !arguments.prompts.empty();
  with(negative, prompted, "--prompt");
  with(prompt_cache, !arguments.text_encoders.empty(), "--text-encoder or --pipeline");
  if (folder.empty() && !arguments.text_encoders.empty() && !prompted) {
    throw std::invalid_argument("--text-encoder: must come with --prompt, got none");
  }
}

inline void CommandLine::require_effect() const {
  const auto only = [](CLI::Option const* given, bool useful, std::string const& rule, std::string const& got) {
    if (given->count() && !useful) {
      throw std::invalid_argument(given->get_name() + ": is for " + rule + ", got " + got);
    }
  };
  const std::size_t networks = arguments.models.size();
  const bool bounded = !arguments.boundaries.empty();
  only(ratio, networks == 2, "two networks", std::to_string(networks));
  only(ratio, !bounded, "routing by shares of the steps", arguments.routing);
  only(sweep, networks == 2, "two networks", std::to_string(networks));
  const std::vector<std::string> by_fractions = routings_by_fractions();
  only(fractions, std::ranges::count(by_fractions, arguments.routing) > 0,
       "the routings " + joined_with_and(by_fractions), arguments.routing);
  const bool several = has_boundaries_between(arguments) || !arguments.fractions.empty();
  only(routing, several ? networks > 1 : networks == 2, several ? "several networks" : "two networks",
       std::to_string(networks));
  only(timesteps, arguments.profile.empty(), "runs without --profile", arguments.profile);
  only(sigmas, arguments.profile.empty(), "runs without --profile", arguments.profile);
  only(order, takes(arguments, "order"), joined_with_and(samplers_with("order")), arguments.sampler);
  only(preset, networks == 2, "two networks", std::to_string(networks));
  only(budget, arguments.routing == "stitch", "the routing stitch", arguments.routing);
  only(pad, arguments.sweep.empty(), "runs without --sweep", in_quotes(arguments.sweep));
  for (CLI::Option const* const noise : {invert, initial_noise}) {
    only(noise, arguments.interpolate == 0 || arguments.seeds.size() == 1,
         "runs without --interpolate from seed to seed, which has noise of its own",
         std::to_string(arguments.seeds.size()) + " seeds");
  }
  if (save_every->count() && arguments.save_run.empty() && arguments.resume.empty()) {
    throw std::invalid_argument("--save-every: must come with --save-run or --resume, got none");
  }
  const std::string each = std::to_string(arguments.seeds.size()) + " seeds";
  only(variations, arguments.seeds.size() == 1 || (invert->count() == 0 && initial_noise->count() == 0),
       "one seed where noise is given or of a picture", each);
  only(eta, takes(arguments, "eta"), joined_with_and(samplers_with("eta")), arguments.sampler);
}

inline void CommandLine::require_numbers() const {
  const std::size_t networks = arguments.models.size();
  if (has_boundaries_between(arguments) && arguments.boundaries.size() + 1 != networks) {
    throw std::invalid_argument("--routing: must have a boundary between each two of the " + std::to_string(networks) +
                                " networks, got " + std::to_string(arguments.boundaries.size()));
  }
  if (const std::size_t scales = arguments.guidance.size(); scales > 1 && scales != networks) {
    throw std::invalid_argument("--guidance: must be one scale, or one for each of the " + std::to_string(networks) +
                                " networks, got " + std::to_string(scales));
  }
  if ((arguments.seeds.size() > 1 || arguments.variations > 0) && arguments.count != wanted_count()) {
    throw std::invalid_argument("--count: must be as many as the seeds " +
                                std::string(arguments.variations > 0 ? "and their variations " : "") + "ask for, " +
                                std::to_string(wanted_count()) + ", or be left out, got " +
                                std::to_string(arguments.count));
  }
  if (!(arguments.strength > 0 && arguments.strength <= 1)) {
    throw std::invalid_argument("--strength: must be above 0 and at most 1, got " +
                                tstitch::words::text(arguments.strength));
  }
  if (arguments.guidance_projection.size() > 3) {
    throw std::invalid_argument("--guidance-projection: must be one to three numbers, got " +
                                std::to_string(arguments.guidance_projection.size()));
  }
  if (arguments.guidance_network &&
      (*arguments.guidance_network < 0 || *arguments.guidance_network >= std::int64_t(networks))) {
    throw std::invalid_argument("--guidance-network: must be the number of one of the " + std::to_string(networks) +
                                " networks, from 0 on, got " + std::to_string(*arguments.guidance_network));
  }
  if (arguments.count < 1) {
    throw std::invalid_argument("--count: must be at least 1, got " + std::to_string(arguments.count));
  }
  // Padded batches have their size however few pictures are in them.
  const std::int64_t most = arguments.pad_batches ? 65'536 : 1'000'000;
  if (batch->count() && (arguments.batch < 1 || arguments.batch > most)) {
    throw std::invalid_argument("--batch: must be in [1, " + std::to_string(most) + "]" +
                                (arguments.pad_batches ? " with --pad-batches" : "") + ", got " +
                                std::to_string(arguments.batch));
  }
}

/// @returns nothing when the program is to go on, else its exit code; help and version have been printed then
/// @throws std::invalid_argument for options that are not what they must be, or do not suit each other
inline std::optional<int> parse(int count, char** values, Arguments& arguments) {
  CLI::App app{
      "Samples class-conditional pictures with several diffusion transformers in turn: the first, noisy steps go to "
      "the first network, the later ones to the next (T-Stitch, arXiv 2402.14167).\n"
      "Without arguments: one picture of each class from the bundled pair, into samples.png.\n"
      "Networks and decoders are programs: TorchScript files and .pt2 packages run code that they contain, so take "
      "them from whom you trust.",
      "tstitch_sample"};
  CommandLine line{app, arguments};
  line.add_routing();
  line.add_sampling();
  line.add_pictures();
  line.add_editing();
  line.add_machine();
  line.add_output();
  set_up(app, version_of("tstitch_sample"),
         {{"Routing", "tstitch_sample --ratio 0.6 --plan"},
          {"Sampling", "tstitch_sample --sampler dpm-solver++ --spacing logsnr --steps 20"},
          {"Pictures", "tstitch_sample --class horse --class ship --seed 3,7,12 --guidance 1.5"},
          {"Editing", "tstitch_sample --init-image horse.png --strength 0.6 --class deer"},
          {"Machine", "tstitch_sample --device cpu --batch 8 --pad-batches"},
          {"Output", "tstitch_sample --class cat,dog --interpolate 15 --animation cat_to_dog.png"}});
  if (const std::optional<int> code = read_arguments(app, count, values)) return code;
  line.take_given();
  line.take_pipeline();
  line.take_prompts();
  read_routing(arguments);
  line.require_effect();
  line.require_numbers();
  return std::nullopt;
}
