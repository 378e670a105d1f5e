/// @file
/// What a caller asks for and gets.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "../model/condition.hpp"
#include "../model/guidance.hpp"
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
  /// [C, ...] of an image, where the networks leave sizes open (0 in NetworkInfo::shape, or no shape stated). Empty: as
  /// the networks state it.
  std::vector<std::int64_t> shape = {};
  /// [n, C, ...] to start from instead of noise by address; float32 or float64. Also states the shape, as `shape` does.
  /// Undefined: drawn from the seeds.
  at::Tensor initial_noise = {};
  /// [1 or n, C, ...] to begin from, in the networks' space, float32 or float64: x is alpha initial_image + sigma
  /// noise at the level where the run begins (SDEdit, Meng et al. 2022, arXiv 2108.01073). For inversion it is x
  /// itself.
  at::Tensor initial_image = {};
  /// In (0, 1], with an initial_image: how much of the run is left. Of N steps the last round(strength N) are taken.
  /// They go to the networks that they have in the plan of all N steps; to give the first network a share r of those
  /// that are left, use Stitch{1 - strength (1 - r)}. ByTimestep and ByLogSnr know no difference.
  double strength = 1;
  /// [1 or n, 1 or C, ...] with an initial_image, bool or in [0, 1]: 1 where the picture is to be drawn, 0 where
  /// initial_image is kept. The kept part is at every step initial_image with the image's initial noise at that step's
  /// level, and in the end initial_image itself. A value m in between gives m x + (1 - m) times
  /// the kept part after every step, so that each step draws x that far back to initial_image. At strength 1 the run
  /// begins with noise alone where the mask is 1, as one without an image does.
  at::Tensor mask = {};
  /// Where noise comes from; noise by address unless stated. Another source is for reproducing the random numbers of
  /// other programs.
  NoiseSource noise_source = noise;
  /// For `sample`: where memory runs out in a batch, draw that one and those after it in batches of half the size, down
  /// to one image, rather than throw. `tstitch::diagnostics()` says so, and Samples::batch_size which size worked. The
  /// observer sees such a batch begin anew. Pictures have the last bits of the batches that they are drawn in, so this
  /// is refused beside pad_batches, which promises other ones.
  bool smaller_batches = false;
};

/// What `sample` returns.
struct Samples {
  /// [n, C, ...], x_0 of each image in the order of the request. After a cancel, what exists: the finished batches and
  /// the newest prediction of the one that was interrupted, if it had one.
  at::Tensor images;
  std::vector<std::uint64_t> seeds;  ///< one a row of images
  std::int64_t finished_images = 0;  ///< the first so many rows ran all their steps
  bool finished = true;              ///< whether the request was carried out whole
  /// Images of a batch, the last of which may have had fewer: as the request said, or what memory was enough for
  /// (Request::smaller_batches), which is worth asking for the next time. 0: none was begun.
  std::int64_t batch_size = 0;
};

}  // namespace tstitch
