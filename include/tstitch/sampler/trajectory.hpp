/// @file
/// A run in flight, and what a caller asks for and gets.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "../model/denoiser.hpp"
#include "../tensor/noise.hpp"

namespace tstitch {

/// What to draw.
struct Request {
  /// One an image, or one for all `count` of them; empty for networks without classes.
  std::vector<std::int64_t> labels = {};
  /// What else the networks are conditioned on, by name; all that any of them asks for. What none asks for is refused.
  std::vector<NamedCondition> conditions = {};
  /// How many images, at most 2^24; 0 means as many as there are seeds or labels, and at least 1.
  std::int64_t count = 0;
  /// Image i has noise seed `seed + i`, at most 2^64 - 1, unless `seeds` lists one for each.
  std::uint64_t seed = 0;
  std::vector<std::uint64_t> seeds = {};
  Guidance guidance = {};
  GradientGuidance gradient = {};
  /// Images a network sees at once (twice as many rows where guidance is on), at most 2^24; 0 means all. For `sample`;
  /// `begin` takes the request as one batch.
  std::int64_t batch_size = 0;
  /// Fill every batch up to batch_size, rounded up to a multiple of 8, so that every network call has one shape. Matrix
  /// products round differently for different shapes, and for rows left over by the tiles of a matrix library; with
  /// this an image has the same bits however many are drawn beside it, at whichever position and after whatever else,
  /// for all batch sizes that are filled up to the same number. On a CPU torch's own GELU and SiLU keep that where its
  /// number of threads is a power of two; the native engine has its own way with any.
  bool pad_batches = false;
  /// [n, C, H, W] to start from instead of noise by address; float32 or float64. Also states the shape for networks
  /// that do not. Undefined: drawn from the seeds.
  at::Tensor initial_noise = {};
  /// [1 or n, C, H, W] to begin from, in the networks' space, float32 or float64: x is alpha initial_image + sigma
  /// noise at the level where the run begins (SDEdit, Meng et al. 2022, arXiv 2108.01073). For inversion it is x
  /// itself.
  at::Tensor initial_image = {};
  /// In (0, 1], with an initial_image: how much of the run is left. Of N steps the last round(strength N) are taken.
  /// They go to the networks that they have in the plan of all N steps; to give the first network a share r of those
  /// that are left, use Stitch{1 - strength (1 - r)}. ByTimestep and ByLogSnr know no difference.
  double strength = 1;
  /// [1 or n, 1 or C, H, W] with an initial_image, bool or in [0, 1]: 1 where the picture is to be drawn, 0 where
  /// initial_image is kept. The kept part is at every step initial_image with the image's initial noise at that step's
  /// level, and in the end initial_image itself. A value m in between gives m x + (1 - m) times
  /// the kept part after every step, so that each step draws x that far back to initial_image. At strength 1 the run
  /// begins with noise alone where the mask is 1, as one without an image does.
  at::Tensor mask = {};
  /// Where noise comes from; noise by address unless stated. Another source is for reproducing the random numbers of
  /// other programs.
  NoiseSource noise_source = noise;
};

/// An earlier step, as multistep rules remember it.
struct Past {
  Step step;
  std::size_t network;
  at::Tensor x;    ///< before the step
  at::Tensor x_0;  ///< what was predicted in it first
};

/// What a run with a mask keeps.
struct Inpainting {
  at::Tensor mask;   ///< [1 or n, 1 or C, H, W], 1 where the picture is drawn; undefined: nothing is kept
  at::Tensor image;  ///< [n, C, H, W]
  at::Tensor noise;  ///< [n, C, H, W]

  /// x with the kept part in its place.
  /// @param x [n, C, H, W] at `level`
  at::Tensor operator()(at::Tensor const& x, NoiseLevel level) const {
    return weighted_sum(level.alpha, image, level.sigma, noise).lerp(x, mask);
  }
};

/// A run in flight: a value. Copying it forks the run; tensors are never changed in place, so copies share them safely.
/// Advance it with any sampler that has the same timesteps, also one that routes the remaining steps differently.
struct Trajectory {
  int next = 0;                    ///< index of the step to come; also how many are done
  int count = 0;                   ///< steps of the whole run
  std::uint64_t timesteps = 0;     ///< timesteps_fingerprint of the plan that it follows
  NoiseLevel level;                ///< of x, as the step to come takes it
  at::Tensor x;                    ///< [n, C, H, W]
  at::Tensor x_0 = {};             ///< newest prediction; undefined before the first step
  std::vector<Past> history = {};  ///< steps just before this one, oldest first, as many as the update rule wanted
  std::vector<std::uint64_t> seeds;
  BatchCondition condition;
  Guidance guidance;
  NoiseSource noise_source = noise;
  GradientGuidance gradient = {};
  at::Tensor momentum = {};  ///< newest Prediction::momentum of a step's first evaluation
  Inpainting inpainting = {};

  bool finished() const { return next >= count; }
};

/// What an observer sees after each step, and of AdaptiveDPMSolver, whose steps are long, after each evaluation too.
struct StepReport {
  Step const& step;
  std::size_t network;
  /// Wall time of the step on the host. GPUs work behind the host: there it is the time to give the work out.
  double seconds;
  at::Tensor const& x;    ///< [n, C, H, W] after the step, or that was evaluated
  at::Tensor const& x_0;  ///< [n, C, H, W] predicted in it, or there
  std::int64_t first;     ///< position of the batch's first image in the request
  std::int64_t images;    ///< images in the batch; rows after these are padding
  int done;               ///< steps of the batch, with this one once it is done
  int steps;              ///< that the batch has in all
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
