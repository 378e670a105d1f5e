/// @file
/// DDIM: Song, Meng and Ermon 2021, "Denoising Diffusion Implicit Models", arXiv 2010.02502.
#pragma once

#include <cmath>

#include "../base/contraction.hpp"
#include "../sampler/sampler.hpp"

TSTITCH_NO_CONTRACTION

namespace tstitch {

/// Eq. 12 with sigma_t of Eq. 16. Their alpha_t is our alpha^2, their sigma_t is `sigma` below.
///
/// eta = 0 is deterministic, eta = 1 is DDPM with the fixed small variance. No noise is added in a step that ends at
/// x_0.
struct DDIMUpdate {
  double eta = 0;  ///< in [0, 1]
  /// Whether eps is the one that belongs to the thresholded x_0, as in DiT's code, or the network's own, as in
  /// diffusers (whose use_clipped_model_output this is). No difference where nothing is thresholded.
  bool eps_of_thresholded = true;

  static void options(auto& self, auto const& see) {
    see("eta", self.eta);
    see("eps_of_thresholded", self.eps_of_thresholded);
  }

  std::string name() const { return detail::name_with_options("DDIM", *this); }

  void validate() const {
    if (!(eta >= 0 && eta <= 1)) detail::refuse("DDIM", "eta must be in [0, 1]", eta);
  }

  at::Tensor operator()(StepInput const& in) const {
    const auto [from, to] = std::pair{in.step.from, in.step.to};
    const Prediction prediction = in.predict();
    const at::Tensor& x_0 = prediction.x_0;
    if (to == NoiseLevel::clean()) return x_0;
    // Eq. 16: 1 - alpha_bar(from) / alpha_bar(to) over 1 - alpha_bar(from), written so that it holds for flow matching.
    const double ratio = from.alpha * to.sigma / (to.alpha * from.sigma);
    const double sigma = eta > 0 ? eta * to.sigma * std::sqrt(1 - ratio * ratio) : 0;
    // eps = (x - from.alpha x_0) / from.sigma, put into Eq. 12.
    const double keep = std::sqrt(to.sigma * to.sigma - sigma * sigma) / from.sigma;
    WeightedSum x;
    x.add(keep, in.x).add(to.alpha, x_0);
    x.add(-keep * from.alpha, eps_of_thresholded ? x_0 : prediction.unclipped_x_0);
    if (sigma > 0) x.add(sigma, in.noise(0));
    return x.value();
  }
};

/// The DDIM sampler under a model schedule. `DDIM{noise_schedule, Stitch{.ratio = 0.4}, {.steps = 50}, {.eta = 0}}`
template <class Schedule>
class DDIM : public Sampler<DDIMUpdate, Schedule> {
 public:
  using Sampler<DDIMUpdate, Schedule>::Sampler;
};
template <class Schedule>
DDIM(NoiseSchedule, Schedule, SamplingOptions = {}, DDIMUpdate = {}) -> DDIM<Schedule>;
template <class Schedule, class... Wrong>
DDIM(NoiseSchedule, Schedule, Wrong...) -> DDIM<Schedule>;

}  // namespace tstitch

TSTITCH_USUAL_CONTRACTION
