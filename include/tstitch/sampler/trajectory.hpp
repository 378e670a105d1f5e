/// @file
/// A run in flight, and what a caller asks for and gets.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "../model/denoiser.hpp"
#include "noise.hpp"

namespace tstitch {

/// What to draw.
struct Request {
  /// One an image, or one for all `count` of them; empty for networks without classes.
  std::vector<std::int64_t> labels = {};
  /// How many images; 0 means as many as there are seeds or labels, and at least 1.
  std::int64_t count = 0;
  /// Image i has noise seed `seed + i`, unless `seeds` lists one for each.
  std::uint64_t seed = 0;
  std::vector<std::uint64_t> seeds = {};
  Guidance guidance = {};
  /// Images a network sees at once (twice as many rows where guidance is on); 0 means all. For `sample`; `begin` takes
  /// the request as one batch.
  std::int64_t batch_size = 0;
  /// Fill every batch up to batch_size, rounded up to a multiple of 8, so that every network call has one shape. Matrix
  /// products round differently for different shapes, and for rows left over by the tiles of a matrix library; with
  /// this an image has the same bits however many are drawn beside it, at whichever position.
  bool pad_batches = false;
  /// [n, C, H, W] to start from instead of noise by address; float32 or float64. Also states the shape for networks
  /// that do not. Undefined: drawn from the seeds.
  at::Tensor initial_noise = {};
  /// Where noise comes from; noise by address unless stated. Another source is for reproducing the random numbers of
  /// other programs.
  NoiseSource noise_source = noise;
};

/// An earlier step, as multistep rules remember it.
struct Past {
  Step step;
  std::size_t network;
  at::Tensor x;    ///< before the step, or what the rule put in its place (StepOutput::x_from)
  at::Tensor x_0;  ///< what was predicted in it first
};

/// A run in flight: a value. Copying it forks the run; tensors are never changed in place, so copies share them safely.
/// Advance it with any sampler that has the same timesteps, also one that routes the remaining steps differently.
struct Trajectory {
  int next = 0;                    ///< index of the step to come; also how many are done
  int count = 0;                   ///< steps of the whole run
  NoiseLevel level;                ///< of x, as the step to come takes it
  at::Tensor x;                    ///< [n, C, H, W]
  at::Tensor x_0 = {};             ///< newest prediction; undefined before the first step
  std::vector<Past> history = {};  ///< oldest first, as many as the update rule wants
  std::vector<std::uint64_t> seeds;
  BatchLabels labels;
  Guidance guidance;
  NoiseSource noise_source = noise;

  bool finished() const { return next == count; }
};

/// What an observer sees after each step.
struct StepReport {
  Step const& step;
  std::size_t network;
  /// Wall time of the step on the host. GPUs work behind the host: there it is the time to give the work out.
  double seconds;
  at::Tensor const& x;    ///< [n, C, H, W] after the step
  at::Tensor const& x_0;  ///< [n, C, H, W] predicted in it
  std::int64_t first;     ///< position of the batch's first image in the request
  std::int64_t images;    ///< images in the batch; rows after these are padding
};

enum class Control { proceed, cancel };

/// What `sample` returns.
struct Samples {
  /// [n, C, H, W], x_0 of each image in the order of the request. After a cancel, what exists: the finished batches and
  /// the newest prediction of the one that was interrupted.
  at::Tensor images;
  std::vector<std::uint64_t> seeds;  ///< one a row of images
  std::int64_t finished_images = 0;  ///< the first so many rows ran all their steps
  bool finished = true;              ///< whether the request was carried out whole
};

}  // namespace tstitch
