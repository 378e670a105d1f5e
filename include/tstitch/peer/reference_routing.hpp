/// @file
/// The routing rules of the code that came with T-Stitch, for reproducing its runs. Host only; includes no torch.
///
/// Each decides in floating point what `Stitch` decides in whole steps, so that off the round ratios they give network
/// 0 a step more or less, and under spacings that are not even in t something else altogether. New work wants `Stitch`.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "../base/contraction.hpp"
#include "../plan/by_name.hpp"

TSTITCH_NO_CONTRACTION

namespace tstitch::routing {

namespace detail {

inline void require_ratio(char const* rule, double ratio) {
  if (!(ratio >= 0 && ratio <= 1)) {
    tstitch::detail::refuse(std::string("routing::") + rule, "ratio must be in [0, 1]", ratio);
  }
}

inline void require_timesteps(char const* rule, int num_train_timesteps) {
  if (num_train_timesteps < 1) {
    tstitch::detail::refuse(std::string("routing::") + rule, "num_train_timesteps must be at least 1",
                            num_train_timesteps);
  }
}

}  // namespace detail

/// DiT, two networks: network 0 where t / T >= 1 - ratio.
struct DiT {
  double ratio = 0.4;  ///< in [0, 1]
  int num_train_timesteps = 1000;

  std::size_t operator()(Step const& step) const {
    detail::require_ratio("DiT", ratio);
    detail::require_timesteps("DiT", num_train_timesteps);
    return step.t / num_train_timesteps >= 1 - ratio ? 0 : 1;
  }
};

/// DiT, any number of networks: the first k whose running sum of fractions is at least 1 - t / T. Fractions are rounded
/// to float32, summed in double, and the sum is rounded and compared in float32.
struct DiTFractions {
  std::vector<double> fractions;
  int num_train_timesteps = 1000;

  /// @throws std::invalid_argument where the fractions end before the trajectory does
  std::size_t operator()(Step const& step) const {
    detail::require_timesteps("DiTFractions", num_train_timesteps);
    const float done = float(1 - step.t / num_train_timesteps);
    double sum = 0;
    std::size_t network = fractions.size();
    for (std::size_t k = 0; k < fractions.size(); ++k) {
      if (!(fractions[k] >= 0 && fractions[k] <= 1)) {
        tstitch::detail::refuse("routing::DiTFractions", "each fraction must be in [0, 1]", fractions[k]);
      }
      sum += double(float(fractions[k]));
      if (network == fractions.size() && done <= float(sum)) network = k;
    }
    if (network < fractions.size()) return network;
    tstitch::detail::refuse("routing::DiTFractions",
                            "fractions must reach 1 - t / T at t = " + tstitch::detail::text(step.t), sum);
  }
};

/// Latent diffusion: network 0 where t / T > 1 - ratio; a ratio of 1 is all of them.
struct LatentDiffusion {
  double ratio = 0.4;  ///< in [0, 1]
  int num_train_timesteps = 1000;

  std::size_t operator()(Step const& step) const {
    detail::require_ratio("LatentDiffusion", ratio);
    detail::require_timesteps("LatentDiffusion", num_train_timesteps);
    return ratio == 1 || step.t / num_train_timesteps > 1 - ratio ? 0 : 1;
  }
};

/// Stable Diffusion, SDXL and ControlNet: network 0 where (index + 1) / steps <= ratio.
struct StableDiffusion {
  double ratio = 0.4;  ///< in [0, 1]

  std::size_t operator()(Step const& step) const {
    detail::require_ratio("StableDiffusion", ratio);
    return double(step.index + 1) / step.count <= ratio ? 0 : 1;
  }
};

/// Latent consistency models: network 0 where index / steps <= ratio, but never at ratio 0 and always at ratio 1.
struct LatentConsistency {
  double ratio = 0.4;  ///< in [0, 1]

  std::size_t operator()(Step const& step) const {
    detail::require_ratio("LatentConsistency", ratio);
    if (ratio == 0) return 1;
    return ratio == 1 || double(step.index) / step.count <= ratio ? 0 : 1;
  }
};

/// By name: those of plan/ and, behind them, these.
inline std::vector<NamedRouting> const& named() {
  using Options = RoutingOptions;
  static const std::vector<NamedRouting> list = [] {
    std::vector<NamedRouting> all = routings();
    const std::vector<NamedRouting> published{
        {.name = "dit",
         .help = "as T-Stitch's code for DiT",
         .takes_fractions = true,
         .make = [](Options const& options) -> AnyModelSchedule {
           if (!options.fractions.empty()) return DiTFractions{options.fractions, options.num_train_timesteps};
           return DiT{options.ratio, options.num_train_timesteps};
         }},
        {.name = "stable-diffusion",
         .help = "as T-Stitch's code for Stable Diffusion",
         .make = [](Options const& options) -> AnyModelSchedule { return StableDiffusion{options.ratio}; }},
        {.name = "latent-diffusion",
         .help = "as T-Stitch's code for latent diffusion",
         .make = [](Options const& options) -> AnyModelSchedule {
           return LatentDiffusion{options.ratio, options.num_train_timesteps};
         }},
        {.name = "latent-consistency",
         .help = "as T-Stitch's code for latent consistency models",
         .make = [](Options const& options) -> AnyModelSchedule { return LatentConsistency{options.ratio}; }},
    };
    all.insert(all.end(), published.begin(), published.end());
    return all;
  }();
  return list;
}

}  // namespace tstitch::routing

TSTITCH_USUAL_CONTRACTION
