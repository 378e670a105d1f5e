/// @file
/// Options that say what is drawn and how, which programs share, and what they must be together.
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

#include "arguments.hpp"
#include "device.hpp"
#include "network.hpp"
#include "prompts.hpp"
#include "shape.hpp"
#include "strict.hpp"

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
  CLI::Option *shape = nullptr, *ratio = nullptr, *fractions = nullptr, *sweep = nullptr, *routing = nullptr;
  CLI::Option *profile = nullptr, *sampler = nullptr, *order = nullptr, *steps = nullptr, *spacing = nullptr;
  CLI::Option *preset = nullptr, *budget = nullptr, *quality = nullptr, *times = nullptr;
  CLI::Option *forecast = nullptr, *forecast_guidance = nullptr, *plan = nullptr;
  CLI::Option *timesteps = nullptr, *sigmas = nullptr, *eta = nullptr, *batch = nullptr, *pad = nullptr;
  CLI::Option *count = nullptr, *video = nullptr, *frame_rate = nullptr;
  CLI::Option *pipeline = nullptr, *model = nullptr, *prompt = nullptr, *prompts = nullptr, *negative = nullptr,
              *prompt_cache = nullptr;
  CLI::Option *init_image = nullptr, *strength = nullptr, *mask = nullptr, *invert = nullptr, *initial_noise = nullptr;
  CLI::Option *interpolate = nullptr, *variations = nullptr, *variation_strength = nullptr;

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
  void add_machine();
  /// @returns --decoder
  CLI::Option* add_decoder();

  /// Whether a program has the option, and it is given.
  static bool is_given(CLI::Option const* option) { return option && option->count() > 0; }

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
  flag("--one-at-a-time", arguments.one_at_a_time,
       "keep one network in memory at a time, and load the next one where it takes over, in each batch");
  ratio = shown("--ratio", arguments.ratio, "share of the steps for the first of two networks");
  fractions =
      numbers("--fractions", arguments.fractions, "share of the steps for each network, adding up to 1: 0.3,0.3,0.4");
  fractions->excludes(ratio);
  routing = shown("--routing", arguments.routing, "how networks share the steps: " + routings_help());
  routing->type_name("RULE");
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
  for (auto const& part : {profile, sampler, order, steps, spacing, timesteps, sigmas, eta, forecast, fractions}) {
    preset->excludes(part);
  }
}

inline void CommandLine::add_pictures() {
  group = "Pictures";
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
  shape = add_shape(app, arguments.shape)->group(group);
  add_size(app, arguments.size)->group(group)->excludes(shape);
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
}

inline CLI::Option* CommandLine::add_decoder() {
  const auto decoder =
      option("--decoder", arguments.decoder, "decoder of the autoencoder, for networks that make latents");
  decoder->type_name("FILE");
  option("--tile", arguments.tile, "decode in tiles of so many pixels of the latent a side [whole pictures]")
      ->needs(decoder)
      ->check(in_range<std::int64_t>(17, 65536));
  return decoder;
}

inline void CommandLine::take_given() const {
  for (CLI::Option const* const part : {profile, sampler, order, spacing, timesteps, sigmas, eta}) {
    arguments.sampling_given = arguments.sampling_given || is_given(part);
  }
  arguments.steps_given = is_given(steps);
  if ((arguments.seeds.size() > 1 || arguments.variations > 0) && !is_given(count)) arguments.count = wanted_count();
  arguments.ratio_given = is_given(ratio);
  arguments.video_given = is_given(video) || is_given(frame_rate);
  arguments.forecast_given = is_given(forecast);
  arguments.forecast_guidance_given = is_given(forecast_guidance);
  for (CLI::Option const* const part : {order, spacing, timesteps, sigmas, eta}) {
    arguments.spacing_given = arguments.spacing_given || is_given(part);
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
  if (arguments.parts.networks.empty()) arguments.parts = tstitch::read_pipeline_info(arguments.pipeline);
  tstitch::PipelineInfo const& parts = arguments.parts;
  arguments.models = parts.networks;
  for (tstitch::PipelineInfo::TextEncoder const& each : parts.text_encoders)
    arguments.text_encoders.push_back(each.file);
  if (arguments.decoder.empty()) arguments.decoder = parts.decoder;
  if (arguments.encoder.empty()) arguments.encoder = parts.encoder;
  if (!is_given(ratio) && parts.networks.size() == 2) arguments.ratio = parts.ratio;
  const bool other = std::ranges::any_of(std::initializer_list<CLI::Option*>{fractions, routing, sweep, preset, budget},
                                         &CommandLine::is_given) ||
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
    if (is_given(given) && !there)
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
    if (is_given(given) && !useful) {
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
  const std::string each = std::to_string(arguments.seeds.size()) + " seeds";
  only(variations, arguments.seeds.size() == 1 || (!is_given(invert) && !is_given(initial_noise)),
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
  if (is_given(batch) && (arguments.batch < 1 || arguments.batch > most)) {
    throw std::invalid_argument("--batch: must be in [1, " + std::to_string(most) + "]" +
                                (arguments.pad_batches ? " with --pad-batches" : "") + ", got " +
                                std::to_string(arguments.batch));
  }
}
