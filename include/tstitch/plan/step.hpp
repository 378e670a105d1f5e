/// @file
/// One step of a plan, and shares of steps. Includes no torch.
#pragma once

#include <cmath>
#include <string>

#include "../base/contraction.hpp"
#include "../base/error.hpp"
#include "noise_schedule.hpp"

TSTITCH_NO_CONTRACTION

namespace tstitch {

/// All that a routing rule may know about *when*.
struct Step {
  int index;        ///< 0 for the noisiest step
  int count;        ///< steps in the whole plan
  double t;         ///< training timestep, fractional under some spacings
  NoiseLevel from;  ///< of x before the step
  NoiseLevel to;    ///< of x after it
  double t_to = 0;  ///< the timestep of `to`; 0 at the clean picture
};

/// How many of `count` steps a share of them is: the nearest integer, ties to even.
///
/// A share is written in decimals (0.85), which binary numbers miss by a little; products within 1e-9 of a tie are
/// therefore ties, so that 0.85 of 50 is 42 however 0.85 was computed.
/// @param place, name of the share, for the message
/// @throws std::invalid_argument unless share is in [0, 1]
inline int share_of_steps(char const* place, char const* name, double share, int count) {
  if (!(share >= 0 && share <= 1)) detail::refuse(place, std::string(name) + " must be in [0, 1]", share);
  const double product = share * count;
  const double half = std::nearbyint(2 * product) / 2;
  return int(std::nearbyint(std::abs(product - half) < 1e-9 * count ? half : product));
}

}  // namespace tstitch

TSTITCH_USUAL_CONTRACTION
