/// @file
/// What the command line of tstitch_sample says.
#pragma once

#include <tstitch/file/pipeline.hpp>
#include <tstitch/method/by_name.hpp>
#include <tstitch/model/autoencoder.hpp>
#include <tstitch/peer/by_name.hpp>
#include <tstitch/peer/preset.hpp>
#include <tstitch/plan/by_name.hpp>
#include <tstitch/study/budget.hpp>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bundled.hpp"
#include "device.hpp"
#include "forecast.hpp"
#include "network.hpp"
#include "shape.hpp"
#include "strict.hpp"

struct Arguments {
  std::string pipeline;         ///< folder that says what is not given
  tstitch::PipelineInfo parts;  ///< that it says, or the text encoders that are given
  std::vector<std::string> models{bundled_small(), bundled_large()};
  bool bridge = false;         ///< networks of other latents or noise schedules than the last one's
  bool one_at_a_time = false;  ///< networks are in memory
  double ratio = 0.4;
  std::vector<double> fractions;
  std::string sweep;
  std::string routing = "stitch";
  std::vector<double> boundaries;  ///< behind the colon of --routing
  bool between = true;             ///< see NamedRouting::between

  std::string preset;   ///< takes the place of all options of sampling but guidance, and of ratio
  std::string budget;   ///< see budget.hpp
  std::string quality;  ///< the table that it chooses from; empty: the bundled pair's, with the bundled pair
  std::string times;    ///< file of what networks take; empty: in the user's cache, "none": nowhere
  std::string profile;  ///< takes the place of sampler, order, spacing and eta
  std::string sampler = "ddim";
  std::optional<int> order;  ///< not given: the sampler's own
  int steps = 50;
  std::string spacing;  ///< empty: linspace, or shifted for flow matching
  std::vector<double> timesteps;
  std::vector<double> sigmas;
  std::optional<double> eta;    ///< not given: the sampler's own
  bool sampling_given = false;  ///< any of these
  bool steps_given = false, ratio_given = false, forecast_given = false, forecast_guidance_given = false;
  bool spacing_given = false;  ///< or anything else of a sampler beside its name

  std::vector<std::string> classes;
  std::vector<std::string> conditions;
  std::vector<std::string> prompts;
  std::optional<std::string> negative;     ///< without: no text
  std::vector<std::string> text_encoders;  ///< of the prompts; their states stand side by side without a pipeline
  std::string prompts_file;                ///< one a line
  std::string prompt_cache;                ///< a folder
  std::int64_t count = 1;
  std::int64_t images = 0;          ///< all in all, whichever classes and prompts they are of; 0: count of each
  std::vector<std::int64_t> shape;  ///< empty: what the networks state
  std::vector<std::int64_t> size;   ///< height and width in pixels; empty: what the shape says
  std::int64_t frames = 0;          ///< of a video; 0: what the shape says
  std::vector<double> guidance;
  std::string guidance_interval = "0:1";
  std::string forecast = "none";
  std::string forecast_guidance = "none";
  std::vector<std::uint64_t> seeds{0};  ///< one is the first picture's, and others follow; of several each is drawn
  std::int64_t interpolate = 0;         ///< pictures between each two seeds, classes or prompts
  std::int64_t variations = 0;          ///< of the picture of each seed
  double variation_strength = 0.2;
  double guidance_rescale = 0;
  std::vector<double> guidance_projection;       ///< eta, norm, momentum
  std::optional<std::int64_t> guidance_network;  ///< the index of the guide
  std::int64_t batch = 0;                        ///< 0: what suits the device
  bool pad_batches = false;
  bool fastest_batch = false;

  std::string init_image;  ///< a picture, or .npy of what networks know
  double strength = 1;
  std::string mask;
  std::string invert;
  std::string initial_noise;
  std::string encoder;

  std::string device = "auto";
  std::string dtype = "auto";
  std::vector<std::string> backends{"auto"};

  std::string decoder;
  std::optional<tstitch::AutoencoderInfo> known_decoder;  ///< what its file says, where that has been read
  std::int64_t tile = 0;
  std::string latents;
  std::string output;
  std::string video = "apng";  ///< as what videos go into output
  double frames_per_second = 16;
  bool video_given = false;  ///< either
  std::string grid;
  std::string animation;
  double frame_seconds = 0.1;
  int scale = 0;  ///< 0: by the width of the pictures
  std::string preview = "none";
  std::string report;
  std::string save_run;         ///< file of the run, so that it can go on
  std::int64_t save_every = 0;  ///< steps; 0: when it is stopped
  std::string resume;           ///< such a file, with which to go on
  bool plan = false;
  bool quiet = false;
};

inline std::vector<std::string> video_formats() {
  return {"apng", "mp4", "png"};
}

/// The samplers that take an option, as `--order` and `--eta` are for.
inline std::vector<std::string> samplers_with(std::string const& option) {
  std::vector<std::string> names;
  for (tstitch::NamedRule const& rule : tstitch::update_rules()) {
    if (rule.option(option)) names.push_back(rule.name);
  }
  return names;
}

/// Whether the sampler that the arguments name takes an option.
inline bool takes(Arguments const& arguments, std::string const& option) {
  return tstitch::find_update_rule(arguments.sampler).option(option) != nullptr;
}

/// --eta, or what the sampler has where it is not given.
inline double eta_of(Arguments const& arguments) {
  const std::string usual = tstitch::find_update_rule(arguments.sampler).option("eta")->usual;
  return arguments.eta ? *arguments.eta : number_of<double>(usual).value();
}

/// --order, or what the sampler has where it is not given.
inline int order_of(Arguments const& arguments) {
  const std::string usual = tstitch::find_update_rule(arguments.sampler).option("order")->usual;
  return arguments.order ? *arguments.order : number_of<int>(usual).value();
}

/// The sampler that the arguments name, with their options.
inline tstitch::AnyUpdateRule rule_of(Arguments const& arguments) {
  tstitch::OptionValues options;
  if (takes(arguments, "order")) options.emplace("order", order_of(arguments));
  if (takes(arguments, "eta")) options.emplace("eta", eta_of(arguments));
  return tstitch::update_rule_by_name(arguments.sampler, options);
}

/// The ratios of a sweep "from:to:step", both ends included.
inline std::vector<double> sweep_ratios(std::string const& text) {
  const std::vector<double> numbers = numbers_of("--sweep", text, ':', 3);
  const double from = numbers[0], to = numbers[1], step = numbers[2];
  if (!(from >= 0 && from <= to && to <= 1 && step > 0)) {
    throw std::invalid_argument("--sweep: must be FROM:TO:STEP with 0 <= FROM <= TO <= 1 and STEP above 0, got " +
                                in_quotes(text));
  }
  std::vector<double> ratios;
  const double last = std::floor((to - from) / step + 1e-9);
  if (!(last <= 1000)) throw std::invalid_argument("--sweep: must be at most 1001 ratios, got " + in_quotes(text));
  for (int i = 0; i <= int(last); ++i) {
    const double ratio = std::min(from + i * step, 1.0);
    if (i > 0 && !(ratio > ratios.back())) {
      throw std::invalid_argument("--sweep: must have steps that change the ratio, got " + in_quotes(text));
    }
    ratios.push_back(ratio);
  }
  return ratios;
}

/// Each ratio in as many digits as tell it from the others, and 4 at least where it has them.
inline std::vector<std::string> ratio_names(std::vector<double> const& ratios) {
  for (int digits = 4;; ++digits) {
    std::vector<std::string> names;
    for (const double ratio : ratios) {
      char name[32];
      std::snprintf(name, sizeof name, "%.*g", digits, ratio);
      names.emplace_back(name);
    }
    // They rise, so those that are the same are neighbours. 17 digits tell all numbers apart.
    if (digits == 17 || std::adjacent_find(names.begin(), names.end()) == names.end()) return names;
  }
}
