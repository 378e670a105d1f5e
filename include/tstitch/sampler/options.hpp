/// @file
/// What a run looks like, whichever update rule carries it out.
#pragma once

#include "../model/thresholding.hpp"
#include "../plan/plan.hpp"

namespace tstitch {

/// What becomes of a multistep rule's history when another network takes over.
enum class SwitchPolicy {
  keep,         ///< the new network goes on with the predictions of the old one; docs/ratio.md has what each costs
  reset,        ///< it begins without history, and so with a lower order
  re_evaluate,  ///< it predicts again at the points of the history: as many evaluations more, once a switch
};

/// What a run looks like, whichever update rule carries it out.
struct SamplingOptions {
  int steps = 50;  ///< in [1, T]
  Spacing spacing = Spacing::linspace();
  FinalSigma final_sigma = FinalSigma::zero;
  Thresholding thresholding = Thresholding::automatic();
  PreviousTimestep previous_timestep = PreviousTimestep::in_plan;
  SwitchPolicy at_switch = SwitchPolicy::keep;
  /// When the blocks of a network do not run, and what they would add is extrapolated from its last computed steps. For
  /// networks that can (Network::forecasts), and update rules whose evaluations are known before the run; each of the
  /// evaluations of a step is extrapolated from the same one of earlier steps.
  Forecast forecast = {};
};

}  // namespace tstitch
