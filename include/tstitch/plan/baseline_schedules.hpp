/// @file
/// Other ways to share the steps of a run among a small and a large network, as baselines for Stitch (arXiv 2402.14167,
/// Table 7). Host only; includes no torch.
#pragma once

#include <cstdint>
#include <random>

#include "model_schedule.hpp"

namespace tstitch {

/// Stitch turned around: the first steps to network 1, the large one, the last round(ratio x steps) to network 0.
struct LargeFirst {
  double ratio = 0.5;  ///< share of the small network, in [0, 1]

  std::size_t operator()(Step const& step) const {
    return step.index < step.count - share_of_steps("LargeFirst", "ratio", ratio, step.count) ? 1 : 0;
  }
};

/// Network 0 at both ends: of its round(ratio x steps) steps the first half, of an odd number the larger one, begins
/// the run, and the other ends it.
struct BothEnds {
  double ratio = 0.5;  ///< share of the small network, in [0, 1]

  std::size_t operator()(Step const& step) const {
    const std::int64_t small_steps = share_of_steps("BothEnds", "ratio", ratio, step.count);
    return step.index < (small_steps + 1) / 2 || step.index >= step.count - small_steps / 2 ? 0 : 1;
  }
};

/// The round(ratio x steps) steps of network 0 spread evenly over the run, beginning with the first step.
struct Interleaved {
  double ratio = 0.5;  ///< share of the small network, in [0, 1]

  std::size_t operator()(Step const& step) const {
    const std::int64_t small_steps = share_of_steps("Interleaved", "ratio", ratio, step.count);
    return step.index * small_steps % step.count < small_steps ? 0 : 1;
  }
};

/// Each step by chance, the same for a seed: network 0 with a probability that falls linearly and is `ratio` on
/// average, from 1 where ratio is at least 1/2, to 0 where it is at most 1/2. How many steps it has is ratio x steps on
/// average.
struct FallingProbability {
  double ratio = 0.5;  ///< in [0, 1]
  std::uint32_t seed = 0;

  std::size_t operator()(Step const& step) const {
    if (!(ratio >= 0 && ratio <= 1)) detail::refuse("FallingProbability", "ratio must be in [0, 1]", ratio);
    const double where = (step.index + 0.5) / step.count;
    const double probability = ratio < 0.5 ? 2 * ratio * (1 - where) : 1 - 2 * (1 - ratio) * where;
    std::mt19937 generator(seed);  // the same numbers in every implementation
    generator.discard(static_cast<unsigned long long>(step.index));
    return (double(generator()) + 0.5) * 0x1p-32 < probability ? 0 : 1;
  }
};

}  // namespace tstitch
