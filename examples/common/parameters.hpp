/// @file
/// What a job is drawn with, in the words of a report.
#pragma once

#include <tstitch/output/image.hpp>
#include <tstitch/version.hpp>

#include <cstdint>
#include <string>
#include <utility>

#include "job.hpp"

inline Json parameters(Job const& job) {
  Arguments const& a = job.arguments;
  Json json{{"networks", job.names}, {"fingerprints", job.fingerprints}};
  if (!a.pipeline.empty()) json["pipeline"] = a.parts.name;
  if (!a.preset.empty()) {
    json["preset"] = a.preset;
  } else if (a.profile.empty()) {
    json["sampler"] = a.sampler;
    if (takes(a, "order")) json["order"] = order_of(a);
    if (takes(a, "eta")) json["eta"] = eta_of(a);
    if (!a.timesteps.empty()) {
      json["timesteps"] = a.timesteps;
    } else if (!a.sigmas.empty()) {
      json["sigmas"] = a.sigmas;
    } else {
      json["spacing"] = a.spacing;
    }
  } else {
    json["profile"] = a.profile;
  }
  json["sampler_name"] = job.way->rule.name();
  if (!a.fractions.empty())
    json["fractions"] = a.fractions;
  else if (!a.sweep.empty())
    json["sweep"] = a.sweep;
  else if (job.infos.size() == 2 && a.boundaries.empty())
    json["ratio"] = a.ratio;
  if (job.infos.size() > 1) json["routing"] = a.routing;
  if (!a.boundaries.empty()) json["boundaries"] = a.boundaries;
  json["steps"] = a.steps;
  json["guidance"] = job.guidance.scale.values();
  json["guidance_interval"] = a.guidance_interval;
  if (a.forecast != "none") json["forecast"] = a.forecast;
  if (a.forecast_guidance != "none") json["forecast_guidance"] = a.forecast_guidance;
  if (a.guidance_rescale != 0) json["guidance_rescale"] = a.guidance_rescale;
  if (!a.guidance_projection.empty()) json["guidance_projection"] = a.guidance_projection;
  if (a.guidance_network) json["guidance_network"] = *a.guidance_network;
  if (a.seeds.size() == 1) {
    json["seed"] = a.seeds[0];
  } else {
    json["seeds"] = a.seeds;
  }
  for (auto const& [name, path] :
       {std::pair{"init_image", &a.init_image}, std::pair{"mask", &a.mask}, std::pair{"invert", &a.invert},
        std::pair{"initial_noise", &a.initial_noise}, std::pair{"encoder", &a.encoder}}) {
    if (!path->empty()) json[name] = *path;
  }
  if (!a.init_image.empty()) json["strength"] = a.strength;
  if (a.interpolate > 0) {
    json["interpolate"] = a.interpolate;
    json["interpolated"] = job.between == Between::seeds     ? "seeds"
                           : job.between == Between::classes ? "classes"
                                                             : "prompts";
  }
  if (a.variations > 0) {
    json["variations"] = a.variations;
    json["variation_strength"] = a.variation_strength;
  }
  json["images"] = job.images();
  if (!a.shape.empty()) json["shape"] = a.shape;
  if (!a.conditions.empty()) json["conditions"] = a.conditions;
  if (!a.text_encoders.empty()) json["text_encoders"] = a.text_encoders;
  if (!a.prompt_cache.empty()) json["prompt_cache"] = a.prompt_cache;
  if (a.negative) json["negative"] = *a.negative;
  if (!a.decoder.empty()) json["decoder"] = a.decoder;
  if (a.tile) json["tile"] = a.tile;
  if (job.draws_videos()) {
    json["video"] = a.video;
    json["frames_per_second"] = a.frames_per_second;
  }
  json["batch"] = a.batch;
  if (a.pad_batches) json["pad_batches"] = true;
  json["device"] = job.device.str();
  json["dtype"] = a.dtype;
  json["backend"] = a.backends;
  if (a.bridge) json["bridge"] = true;
  json["version"] = TSTITCH_VERSION;
  return json;
}

/// Names come from files, which may hold bytes that are not UTF-8.
inline std::string text_of(Json const& json, int indent = -1) {
  return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

inline tstitch::PngText png_text(Json const& parameters) {
  return {{"Software", "tstitch " TSTITCH_VERSION}, {"parameters", text_of(parameters)}};
}

/// The parameters with those of one picture.
inline Json about_picture(Job const& job, Json made_with, std::int64_t image) {
  made_with["image_seed"] = job.seed(image);
  job.describe(image, made_with);
  if (!job.texts.empty()) made_with["prompt_text"] = job.text(image);
  return made_with;
}
