/// @file
/// Pictures that are edited: what a run begins from, and what it keeps.
#pragma once

#include <tstitch/file/torchscript.hpp>
#include <tstitch/method/ddim.hpp>
#include <tstitch/method/inversion.hpp>
#include <tstitch/output/npy.hpp>

#include <ATen/ops/adaptive_avg_pool2d.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "../common/job.hpp"
#include "../common/picture_file.hpp"

/// Whether the file holds what networks know, and is no picture.
inline bool is_npy(std::string const& path) {
  return path.ends_with(".npy");
}

/// @param rows how many there may be besides one
/// @returns [1 or rows, C, ...] of the shape that is drawn, float32
inline at::Tensor read_array(Job const& job, std::string const& option, std::string const& path, std::int64_t rows) {
  const at::Tensor read = tstitch::read_npy(path).to(at::kFloat);
  if (!read.isfinite().all().item<bool>()) {
    throw std::invalid_argument(option + ": " + in_quotes(path) + " must have finite numbers, got nan or infinity");
  }
  const auto shape = [&](std::int64_t n) {
    std::vector<std::int64_t> sizes = job.shape;
    sizes.insert(sizes.begin(), n);
    return sizes;
  };
  if (read.sizes() == shape(1) || read.sizes() == shape(rows)) return read;
  throw std::invalid_argument(option + ": " + in_quotes(path) + " must be " + tstitch::words::shape_text(shape(1)) +
                              (rows > 1 ? " or " + tstitch::words::shape_text(shape(rows)) : "") + ", got " +
                              tstitch::words::shape_text(read.sizes()));
}

/// What turns pictures into what the networks know; nothing where that is the picture.
inline std::optional<tstitch::Encoder> load_encoder(Job const& job) {
  if (job.arguments.encoder.empty()) return {};
  tstitch::Encoder encoder = tstitch::load_encoder(job.arguments.encoder, {.device = job.device});
  if (encoder.info().latent_channels != job.shape[0]) {
    throw std::runtime_error("--encoder: " + in_quotes(job.arguments.encoder) + " must make " +
                             std::to_string(job.shape[0]) + " channels for " + in_quotes(job.infos.back().name) +
                             ", got " + std::to_string(encoder.info().latent_channels));
  }
  return encoder;
}

/// A picture as networks know it.
/// @returns [1, C, ...] on the job's device
inline at::Tensor read_image(Job const& job, std::optional<tstitch::Encoder> const& encoder, std::string const& option,
                             std::string const& path) {
  if (is_npy(path)) return read_array(job, option, path, 1).to(job.device);
  if (job.shape.size() != 3) {
    throw std::invalid_argument(option + ": must be a .npy file for networks whose x is no picture, got " +
                                in_quotes(path));
  }
  const bool pixels = job.infos.back().decoding == tstitch::Decoding::pixels;
  if (pixels && encoder) {
    throw std::invalid_argument("--encoder: is for networks that make latents, got " +
                                in_quotes(job.arguments.encoder));
  }
  if (!pixels && !encoder) {
    throw std::invalid_argument("--encoder: is needed by networks that make latents, got none for " + in_quotes(path));
  }
  const std::int64_t times = encoder ? encoder->info().upsampling : 1;
  const int channels = int(encoder ? encoder->info().picture_channels : job.shape[0]);
  const at::Tensor picture =
      resized(option, read_picture(option, path, channels), times * job.shape[1], times * job.shape[2]);
  return encoder ? (*encoder)(picture.to(job.device)) : picture.to(job.device);
}

/// White is drawn, black is kept.
/// @returns [1, 1, H, W] in [0, 1] of the size that networks know
inline at::Tensor read_mask(Job const& job, std::optional<tstitch::Encoder> const& encoder, std::string const& path) {
  const std::int64_t times = encoder ? encoder->info().upsampling : 1;
  const at::Tensor grey = read_picture("--mask", path, 1).add_(1).div_(2);
  // Of latents each is of a square of pixels, and is drawn as far as they are.
  const at::Tensor sized = resized("--mask", grey, times * job.shape[1], times * job.shape[2]).clamp_(0, 1);
  return times == 1 ? sized : at::adaptive_avg_pool2d(sized, {job.shape[1], job.shape[2]});
}

/// The noise that DDIM makes the picture of, at the steps of the run and without guidance.
/// @param picture [1, C, ...]
inline at::Tensor inverted(Job const& job, std::vector<tstitch::Network> const& networks, at::Tensor const& picture) {
  tstitch::SamplingOptions options = job.way->options;
  options.forecast = {};
  const tstitch::Inversion inversion{job.way->noise_schedule, routing(job, job.arguments.routing), options,
                                     tstitch::DDIMUpdate{}};
  tstitch::Request request = job.request(0, 1);
  request.guidance = {};
  request.initial_noise = at::Tensor();
  request.initial_image = picture;
  request.pad_batches = false;
  if (tstitch::NetworkInfo const& info = job.infos.back(); info.null_class) request.labels = {*info.null_class};
  for (tstitch::NamedCondition& each : request.conditions) {
    if (each.null.defined()) each.value = each.null;
  }
  return inversion.sample(networks, request).images;
}

/// Reads what the options of editing name.
inline void take_editing(Job& job) {
  Arguments const& a = job.arguments;
  if (!a.initial_noise.empty()) {
    job.initial_noise =
        read_array(job, "--initial-noise", a.initial_noise, a.variations > 0 ? 1 : job.images()).to(job.device);
  }
  const std::optional<tstitch::Encoder> encoder = load_encoder(job);
  if (!a.init_image.empty()) job.initial_image = read_image(job, encoder, "--init-image", a.init_image);
  if (!a.invert.empty()) job.to_invert = read_image(job, encoder, "--invert", a.invert);
  if (!a.mask.empty()) job.mask = read_mask(job, encoder, a.mask).to(job.device);
}
