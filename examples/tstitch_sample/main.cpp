// tstitch_sample: pictures from the command line. Exit codes: 0 done, 1 failed, 2 bad arguments, 128 + N stopped by
// signal N (130 for Ctrl-C).
#include <tstitch/file/torchscript.hpp>
#include <tstitch/study/fastest_batch.hpp>

#include <ATen/Context.h>

#include <algorithm>
#include <csignal>
#include <exception>
#include <functional>
#include <iostream>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../common/diagnostics.hpp"
#include "../common/network.hpp"
#include "../common/program.hpp"
#include "../common/signals.hpp"
#include "arguments.hpp"
#include "budget.hpp"
#include "command_line.hpp"
#include "editing.hpp"
#include "job.hpp"
#include "output.hpp"
#include "places.hpp"
#include "preview.hpp"
#include "run.hpp"
#include "saved_run.hpp"
#include "sweep.hpp"

namespace {

/// That the decoder turns the networks' x_0 into pictures.
void require_fitting_decoder(Job& job) {
  if (job.arguments.decoder.empty()) return;
  tstitch::NetworkInfo const& info = job.infos.back();
  const tstitch::AutoencoderInfo known = decoder_info(job.arguments);
  if ((known.temporal_upsampling > 0) != job.draws_videos()) {
    throw std::runtime_error(in_quotes(job.arguments.decoder) + ": must be a decoder of " +
                             (job.draws_videos() ? "videos, for x of [C, F, H, W]" : "pictures, for x of [C, H, W]") +
                             ", got one of " + (job.draws_videos() ? "pictures" : "videos"));
  }
  if (const std::string mismatch = latents_mismatch(info, known, true); !mismatch.empty()) {
    throw std::runtime_error(in_quotes(job.arguments.decoder) + ": " + mismatch);
  }
  const bool same = info.latent_scale == known.latent_scale && info.latent_shift == known.latent_shift;
  if (info.latent_scale != 0 && !same && !known.scaled_latents) {
    note(job, "--decoder: " + in_quotes(known.name) + " has latents of scale 1, so it is given what " +
                  in_quotes(info.name) + " makes as it is, of scale " + tstitch::words::text(info.latent_scale) +
                  " and shift " + tstitch::words::text(info.latent_shift));
  }
}

/// The batch sizes that networks will see.
std::vector<std::int64_t> batch_rows(Job const& job, tstitch::Plan const& plan) {
  const std::int64_t images = job.arguments.pad_batches ? (job.arguments.batch + 7) / 8 * 8 : job.arguments.batch;
  std::vector<std::int64_t> rows;
  for (tstitch::PlannedStep const& planned : plan.steps) {
    const std::int64_t these = planned.both_halves() ? 2 * images : images;
    if (std::find(rows.begin(), rows.end(), these) == rows.end()) rows.push_back(these);
  }
  return rows;
}

/// What is drawn how, in a line.
std::string summary(Job const& job, tstitch::Plan const& plan) {
  std::string text = "drawing " + counted(job.images(), job.noun());
  const std::int64_t drawn = std::int64_t(job.labels.size()), classes = job.infos.back().num_classes;
  if (job.between == Between::classes) {
    std::vector<std::string> ends{in_quotes(job.class_name(0))};
    for (tstitch::ClassMixture const& each : job.mixtures) {
      if (each.share < 1.5 / double(job.arguments.interpolate + 1))
        ends.push_back(in_quotes(job.name_of_class(each.second)));
    }
    text += " from " + ends[0];
    for (std::size_t i = 1; i < ends.size(); ++i) text += " to " + ends[i];
  } else if (drawn > 0) {
    if (drawn < classes) text += " of " + std::to_string(drawn);
    text += " of " + std::to_string(classes) + (classes == 1 ? " class" : " classes");
  }
  if (job.prompts > 1) text += " of " + std::to_string(job.prompts) + " prompts";
  constexpr std::size_t most = 3;  // of the prompts, for the line is to be read
  for (std::size_t i = 0; i < std::min(job.texts.size(), most); ++i) {
    text += (i ? ", " : job.prompts > 1 ? " (" : " of ") + in_quotes(job.texts[i]);
  }
  if (job.texts.size() > most) text += ", ...";
  if (!job.texts.empty() && job.prompts > 1) text += ")";
  if (!job.arguments.sweep.empty()) {
    const std::size_t ratios = sweep_ratios(job.arguments.sweep).size();
    return text + " at " + (ratios == 1 ? "" : "each of ") + counted(ratios, "ratio") + ", " +
           counted(plan.steps.size(), "step");
  }
  text += ", " + steps_text(job, plan);
  if (job.arguments.routing != "stitch") text += " by the routing " + job.arguments.routing;
  std::string scales;
  for (const double scale : job.guidance.scale.values()) {
    scales += (scales.empty() ? "" : ",") + tstitch::words::text(scale);
  }
  text += ", guidance " + scales;
  if (!job.arguments.preset.empty()) text += ", preset " + job.arguments.preset;
  if (job.arguments.forecast != "none") text += ", forecast " + job.arguments.forecast;
  if (job.arguments.forecast_guidance != "none") text += ", forecast guidance " + job.arguments.forecast_guidance;
  return text;
}

tstitch::Plan plan_by(Job const& job, tstitch::AnyModelSchedule const& schedule) {
  return sampler_of(job, schedule).plan(job.guidance, job.arguments.strength);
}

/// That what is to be forecast has no step for it.
void note_forecasts(Job& job, tstitch::Plan const& plan) {
  const auto note = [&](std::string const& flag, std::string const& given, bool tstitch::StepForecast::*what) {
    const auto has_it = [&](tstitch::PlannedStep const& planned) { return planned.forecast.*what; };
    if (given == "none" || std::any_of(plan.steps.begin(), plan.steps.end(), has_it)) return;
    job.notes.push_back(flag + " " + given + ": forecasts nothing in these " + counted(plan.steps.size(), "step"));
  };
  note("--forecast", job.arguments.forecast, &tstitch::StepForecast::network);
  note("--forecast-guidance", job.arguments.forecast_guidance, &tstitch::StepForecast::guidance);
}

/// What one may not expect of how the networks share the steps.
void note_routing(Job& job, tstitch::Plan const& plan) {
  Arguments const& arguments = job.arguments;
  const tstitch::AnyModelSchedule schedule = routing(job, arguments.routing);
  const tstitch::Plan whole = sampler_of(job, schedule).plan(job.guidance);
  std::vector<double> shares = arguments.fractions;
  if (!arguments.boundaries.empty()) {
    shares = {};
  } else if (shares.empty()) {
    shares = {arguments.ratio, 1 - arguments.ratio};
  }
  note_shares(job.notes, shares, whole, plan, job.infos);
  const std::string published = job.way->routing;
  if (arguments.routing != "stitch" || published.empty() || !arguments.fractions.empty()) return;
  const tstitch::Plan theirs = plan_by(job, routing(job, published));
  if (theirs.calls(job.infos.size()) == plan.calls(job.infos.size())) return;
  job.notes.push_back("--routing: stitch gives " + steps_text(job, plan) + "; the code that came with T-Stitch gives " +
                      steps_text(job, theirs) + " (--routing " + published + ")");
}

/// Times batches, and draws in those that are the fastest.
void take_fastest_batch(Job& job, tstitch::Plan const& plan, std::vector<tstitch::Network> const& networks) {
  const std::vector<tstitch::BatchTime> times =
      tstitch::time_batches(plan, networks, job.arguments.batch, job.input_sizes());
  job.arguments.batch = tstitch::fastest_batch(times);
  std::string found;
  for (tstitch::BatchTime const& time : times) {
    char text[64];
    std::snprintf(text, sizeof text, "%s%lld: %.4g", found.empty() ? "" : ", ", static_cast<long long>(time.batch),
                  time.seconds);
    found += text;
  }
  say(job, "seconds a picture by batch: ", found, "; drawing in batches of ", job.arguments.batch);
}

int tstitch_sample(Arguments arguments) {
  Job job = prepare(std::move(arguments));
  const bool sweep = !job.arguments.sweep.empty();
  // The plan, of a sweep's first ratio, checks ratios, steps and guidance before any weights are read.
  const tstitch::Plan plan =
      plan_by(job, sweep ? tstitch::Stitch{sweep_ratios(job.arguments.sweep)[0]} : routing(job, job.arguments.routing));
  const bool chosen_later = !job.arguments.budget.empty();
  if (!sweep && !chosen_later) {
    if (job.infos.size() > 1) note_routing(job, plan);
    note_forecasts(job, plan);
  }
  for (std::string const& sentence : std::exchange(job.notes, {})) note(job, sentence);
  if (job.arguments.plan) {
    std::cout << plan << std::flush;
    if (!std::cout) throw std::runtime_error("--plan: must be able to print, got an output that takes nothing");
    return 0;
  }
  require_conditions(job, plan);
  require_apart(job);
  // Who no longer reads what is printed gets the pictures all the same.
  for (const int signal : {SIGPIPE, SIGXFSZ}) std::signal(signal, SIG_IGN);
  tstitch::require_device(job.device);
  require_writable(job);
  if (job.draws_videos() && job.arguments.video == "mp4") tstitch::require_ffmpeg();
  take_editing(job);
  if (job.arguments.preview == "auto") {
    std::string why;
    job.arguments.preview = detect_preview(why);
    if (!why.empty()) note(job, "--preview: draws nothing, for " + why);
  }
  SavedRun saved(job);
  if (!chosen_later) say(job, summary(job, plan));

  tstitch::LoadOptions options{.device = job.device, .dtype = tstitch::dtype_named(job.arguments.dtype)};
  // Else torch lets convolutions round to 10 bits.
  if (options.dtype == at::kFloat) at::globalContext().setAllowTF32CuDNN(false);
  // TorchScript compiles for a GPU in its first runs of a shape; they are kept out of the figures.
  // All are warmed up or none: a network that takes no steps may lack conditions, and with them sizes.
  const bool known = std::ranges::all_of(
      job.infos, [&](tstitch::NetworkInfo const& info) { return missing_condition(job, info).empty(); });
  if (job.device.is_cuda() && !job.arguments.fastest_batch && known) options.warm_up_rows = batch_rows(job, plan);
  options.bridge = job.arguments.bridge;
  options.warm_up_sizes = job.input_sizes();
  options.warm_up_forecasts =
      std::ranges::any_of(plan.steps, [](tstitch::PlannedStep const& planned) { return planned.forecast.network; });
  require_fitting_decoder(job);
  require_grid(job);
  std::optional<tstitch::Decoder> decoder;  // of x_0 that is no picture
  std::vector<std::function<void()>> others;
  if (!job.arguments.decoder.empty()) {
    // Some decoders need float32; the file knows.
    others.push_back([&] { decoder = tstitch::load_decoder(job.arguments.decoder, {.device = job.device}); });
  }
  std::vector<tstitch::Network> networks = load_networks(job.arguments.models, options, job.arguments.backends, others);
  if (chosen_later) {
    take_budget(job, networks);
    say(job, summary(job, plan_by(job, routing(job, job.arguments.routing))));
  }
  for (tstitch::Network& network : networks) {
    if (job.mixtures.empty() || network.info().num_classes == 0) continue;
    network = tstitch::ClassMixtures(network, job.mixtures).network();
  }
  if (job.arguments.fastest_batch) take_fastest_batch(job, plan, networks);
  if (job.to_invert.defined()) job.initial_noise = inverted(job, networks, job.to_invert);
  has_begun = true;
  Preview preview(job.arguments.preview, grid_columns(job), job.arguments.scale);
  return sweep ? run_sweep(job, networks, decoder, preview) : run(job, networks, decoder, preview, saved);
}

}  // namespace

int main(int count, char** values) {
  watch_for_signals();
  return exit_code("tstitch_sample", [&] {
    Arguments arguments;
    if (const std::optional<int> code = parse(count, values, arguments)) return *code;
    const DiagnosticsAtEnd diagnostics("tstitch_sample", arguments.quiet);
    return tstitch_sample(std::move(arguments));
  });
}
