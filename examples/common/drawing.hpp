/// @file
/// From a job to networks that draw it.
#pragma once

#include <ATen/Context.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "job.hpp"

inline tstitch::Plan plan_by(Job const& job, tstitch::AnyModelSchedule const& schedule) {
  return sampler_of(job, schedule).plan(job.guidance, job.arguments.strength);
}

/// That what is to be forecast has no step for it.
inline void note_forecasts(Job& job, tstitch::Plan const& plan) {
  const auto note = [&](std::string const& flag, std::string const& given, bool tstitch::StepForecast::*what) {
    const auto has_it = [&](tstitch::PlannedStep const& planned) { return planned.forecast.*what; };
    if (given == "none" || std::any_of(plan.steps.begin(), plan.steps.end(), has_it)) return;
    job.notes.push_back(flag + " " + given + ": forecasts nothing in these " + counted(plan.steps.size(), "step"));
  };
  note("--forecast", job.arguments.forecast, &tstitch::StepForecast::network);
  note("--forecast-guidance", job.arguments.forecast_guidance, &tstitch::StepForecast::guidance);
}

/// What one may not expect of how the networks share the steps.
inline void note_routing(Job& job, tstitch::Plan const& plan) {
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

/// The pictures must be pictures.
inline void require_pictures(Job const& job) {
  if (job.shape.size() != 3) {
    throw std::invalid_argument("--model: must be networks whose x is a picture, [C, H, W], got x of " +
                                tstitch::words::shape_text(job.shape));
  }
  const std::int64_t channels =
      job.arguments.decoder.empty() ? job.shape[0] : decoder_info(job.arguments).picture_channels;
  if (channels == 1 || channels == 3) return;
  throw std::invalid_argument("--model: must draw pictures of 1 or 3 channels, got " + std::to_string(channels));
}

/// That the decoder turns the networks' x_0 into pictures.
/// @returns what one may not expect of it, in a sentence; empty where there is nothing
/// @throws std::runtime_error for one that does not
inline std::string require_fitting_decoder(Job const& job) {
  if (job.arguments.decoder.empty()) return "";
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
  if (info.latent_scale == 0 || same || known.scaled_latents) return "";
  return "--decoder: " + in_quotes(known.name) + " has latents of scale 1, so it is given what " +
         in_quotes(info.name) + " makes as it is, of scale " + tstitch::words::text(info.latent_scale) + " and shift " +
         tstitch::words::text(info.latent_shift);
}

/// The batch sizes that networks will see.
inline std::vector<std::int64_t> batch_rows(Job const& job, tstitch::Plan const& plan) {
  const std::int64_t images = job.arguments.pad_batches ? (job.arguments.batch + 7) / 8 * 8 : job.arguments.batch;
  std::vector<std::int64_t> rows;
  for (tstitch::PlannedStep const& planned : plan.steps) {
    const std::int64_t these = planned.both_halves() ? 2 * images : images;
    if (std::find(rows.begin(), rows.end(), these) == rows.end()) rows.push_back(these);
  }
  return rows;
}

/// How the networks of a job are loaded.
inline tstitch::LoadOptions load_options(Job const& job, tstitch::Plan const& plan) {
  tstitch::LoadOptions options{.device = job.device, .dtype = tstitch::dtype_named(job.arguments.dtype)};
  // Else torch lets convolutions round to 10 bits.
  if (options.dtype == at::kFloat) at::globalContext().setAllowTF32CuDNN(false);
  // TorchScript compiles for a GPU in its first runs of a shape; they are kept out of the figures.
  // All are warmed up or none: a network that takes no steps may lack conditions, and with them sizes.
  const bool known = std::ranges::all_of(
      job.infos, [&](tstitch::NetworkInfo const& info) { return missing_condition(job, info).empty(); });
  if (job.device.is_cuda() && known) options.warm_up_rows = batch_rows(job, plan);
  options.bridge = job.arguments.bridge;
  if (job.arguments.one_at_a_time) options.residency = tstitch::Residency::one_at_a_time;
  options.warm_up_sizes = job.input_sizes();
  options.warm_up_forecasts =
      std::ranges::any_of(plan.steps, [](tstitch::PlannedStep const& planned) { return planned.forecast.network; });
  return options;
}
