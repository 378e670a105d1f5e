// tstitch_sample: pictures from the command line. Exit codes: 0 done, 1 failed, 2 bad arguments, 128 + N stopped by
// signal N (130 for Ctrl-C).
#include <tstitch/file/torchscript.hpp>
#include <tstitch/study/fastest_batch.hpp>

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

#include "../common/arguments.hpp"
#include "../common/diagnostics.hpp"
#include "../common/drawing.hpp"
#include "../common/job.hpp"
#include "../common/network.hpp"
#include "../common/program.hpp"
#include "../common/signals.hpp"
#include "budget.hpp"
#include "command_line.hpp"
#include "editing.hpp"
#include "output.hpp"
#include "places.hpp"
#include "preview.hpp"
#include "run.hpp"
#include "saved_run.hpp"
#include "sweep.hpp"

namespace {

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

  tstitch::LoadOptions options = load_options(job, plan);
  if (job.arguments.fastest_batch) options.warm_up_rows.clear();
  if (const std::string sentence = require_fitting_decoder(job); !sentence.empty()) note(job, sentence);
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
