/// @file
/// The command line of tstitch_sample.
#pragma once

#include <CLI/CLI.hpp>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "../common/command_line.hpp"
#include "preview.hpp"

/// The options that programs share, and what is for single pictures.
struct SampleCommandLine : CommandLine {
  CLI::Option *fastest = nullptr, *save_every = nullptr;

  void add_sweep();
  void add_budget();
  void add_count();
  void add_editing();
  void add_batches();
  void add_output();
  void add_video(CLI::Option* output);
  void add_saving();
  /// Refuses what would have no effect, rather than ignore it.
  void require_saving() const;
};

inline void SampleCommandLine::add_sweep() {
  sweep = option("--sweep", arguments.sweep, "many ratios from the same noise, FROM:TO:STEP, one row of the grid each");
  sweep->type_name("A:B:C")->excludes(ratio);
  fractions->excludes(sweep);
  routing->excludes(sweep);
}

inline void SampleCommandLine::add_budget() {
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
  preset->excludes(budget);
  for (auto const& part : {fractions, sweep, plan}) budget->excludes(part);
  for (auto const& part : {order, spacing, timesteps, sigmas, eta}) quality->excludes(part);
}

inline void SampleCommandLine::add_count() {
  option("--class", arguments.classes,
         "name, one of its synonyms, or number; repeat for more, or with commas between; all for each [all of up to 10 "
         "classes, else 10]")
      ->type_name("CLASS")
      ->allow_extra_args(false);
  count = shown("--count", arguments.count, "pictures of each class, or of each prompt");
  option("--frames", arguments.frames, "of a video, for networks that leave it open: 81")
      ->check(in_range<std::int64_t>(1, 100'000))
      ->excludes(shape);
  add_numbers(app, "--seed", arguments.seeds,
              "picture i has seed SEED + i, and its noise depends on nothing else; of several, 3,7,12, each "
              "class or prompt is drawn with each [0]")
      ->group(group);
}

inline void SampleCommandLine::add_editing() {
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

inline void SampleCommandLine::add_batches() {
  batch = option("--batch", arguments.batch, "pictures at once [256 on a GPU, 16 on the CPU]");
  pad = flag("--pad-batches", arguments.pad_batches,
             "give every batch one shape, so that pictures are bit-equal whatever is drawn beside them");
  fastest = flag("--fastest-batch", arguments.fastest_batch,
                 "measure batches of 1, 2, 4 ... pictures up to --batch first, and draw in the fastest")
                ->excludes(pad)
                ->excludes(budget);
}

inline void SampleCommandLine::add_output() {
  group = "Output";
  add_decoder();
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

inline void SampleCommandLine::add_saving() {
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

inline void SampleCommandLine::require_saving() const {
  if (save_every->count() && arguments.save_run.empty() && arguments.resume.empty()) {
    throw std::invalid_argument("--save-every: must come with --save-run or --resume, got none");
  }
}

inline void SampleCommandLine::add_video(CLI::Option* output) {
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
  SampleCommandLine line{{app, arguments}};
  line.add_routing();
  line.add_sweep();
  line.add_sampling();
  line.add_budget();
  line.add_pictures();
  line.add_count();
  line.add_editing();
  line.add_machine();
  line.add_batches();
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
  line.require_saving();
  line.require_numbers();
  return std::nullopt;
}
