/// @file
/// UniPC: Zhao, Bai, Rao, Zhou and Lu 2023, "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of
/// Diffusion Models", arXiv 2302.04867.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <span>
#include <vector>

#include "../base/contraction.hpp"
#include "detail/exponential_integrator.hpp"
#include "detail/multistep.hpp"

TSTITCH_NO_CONTRACTION

namespace tstitch {

/// The paper's B(h), which counts only where two predictions are combined: with more it cancels (diffusers'
/// solver_type).
enum class UniPCVariant {
  bh1,  ///< B(h) = h
  bh2,  ///< B(h) = exp(h) - 1
};

constexpr std::array<char const*, 2> names_of(UniPCVariant) {
  return {"bh1", "bh2"};
}

/// The predictor UniP (section 3.2) takes the step from the predictions of this and of earlier steps; when the next
/// step has asked the network where that led, the corrector UniC (section 3.1) puts this newest prediction to use and
/// takes the earlier step again. No evaluation is added, and the order rises by one. The network is not asked again at
/// the corrected x (Algorithms 1 and 2).
///
/// Both integrate the polynomial in lambda through the predictions; with two of them the paper sets a_1 = 1/2 and B(h)
/// remains. So without the corrector this is DPMSolver: of order 2 with bh2 its midpoint form, of order 3 its own form.
///
/// Predictor and corrector of a step begin at the same x. The corrected x therefore is the predicted x plus a sum of
/// predictions, and is never formed: correction and next prediction are one weighted sum.
///
/// The first steps have less history and use a lower order. A step that ends at x_0 is of order 1, the limit of all
/// forms, where bh1 by itself has infinity times zero. A step that begins at pure noise (zero terminal SNR, flow
/// matching) is of order 1 too, is not corrected, and its prediction is left out of the history: lambda is infinite
/// there.
struct UniPCUpdate {
  int order = 2;  ///< 1, 2 or 3, of the predictor
  UniPCVariant variant = UniPCVariant::bh2;
  bool predict_x_0 = true;  ///< whether the predicted x_0 is integrated or the predicted noise (diffusers' predict_x0)
  bool corrector = true;
  /// The first step that is corrected. Under much guidance the first corrections may do harm (diffusers'
  /// disable_corrector, which lists the steps before this).
  int corrector_from = 0;
  bool lower_order_final = true;  ///< lowers the order of the last steps (2, then 1), which is more stable

  static void options(auto& self, auto const& see) {
    see("order", self.order);
    see("variant", self.variant);
    see("predict_x_0", self.predict_x_0);
    see("corrector", self.corrector);
    see("corrector_from", self.corrector_from);
    see("lower_order_final", self.lower_order_final);
  }

  std::string name() const { return detail::name_with_options("UniPC", *this); }

  int history() const { return corrector ? order : order - 1; }

  void validate() const {
    if (order < 1 || order > 3) detail::refuse("UniPC", "order must be 1, 2 or 3", order);
    if (corrector_from < 0) detail::refuse("UniPC", "corrector_from must not be negative", corrector_from);
  }

  /// The order of the step, once the earlier predictions in `history` are known.
  int order_of(Step const& step, int history) const {
    const int left = step.count - step.index;  // 1 in the last step
    if (step.to == NoiseLevel::clean()) return 1;
    return std::min({order, history + 1, lower_order_final ? left : order});
  }

  at::Tensor operator()(StepInput const& in) const {
    if (in.step.from.alpha == 0 && !predict_x_0) {  // in order 1 both forms are one, and this one can begin here
      UniPCUpdate rule = *this;
      rule.predict_x_0 = true;
      return rule(in);
    }
    std::vector<double> lambdas{in.step.from.lambda()};  // of this step's prediction and of those before, newest first
    for (std::size_t back = 1; back <= in.history.size(); ++back) {
      const double lambda = past(in, back).step.from.lambda();
      if (std::isfinite(lambda)) lambdas.push_back(lambda);
    }
    const int known = int(lambdas.size()) - 1;
    const double scale = this->scale(in.step);
    std::vector<double> w = weights(in.step, std::span(lambdas).first(std::size_t(order_of(in.step, known))));
    w.resize(lambdas.size());
    if (corrector && known > 0 && past(in, 1).step.index >= corrector_from) {
      Step const& before = past(in, 1).step;
      std::vector<double> nodes(lambdas.begin() + 1, lambdas.begin() + 1 + order_of(before, known - 1));
      const std::vector<double> predicted = weights(before, nodes);
      nodes.push_back(before.to.lambda());
      const std::vector<double> corrected = weights(before, nodes);
      w[0] += scale * corrected.back();
      for (std::size_t k = 0; k < predicted.size(); ++k) w[k + 1] += scale * (corrected[k] - predicted[k]);
    }
    const at::Tensor x_0 = in.predict().x_0;
    return (predict_x_0 ? combine_x_0(in, x_0, scale, w) : combine_epsilon(in, x_0, scale, w)).value();
  }

 private:
  double scale(Step const& step) const {
    return predict_x_0 ? step.to.sigma / step.from.sigma : step.to.alpha / step.from.alpha;
  }

  /// x at step.to is scale x + the sum of these weights times the predictions at these lambdas, x_0 or eps.
  /// @param lambdas the first is that of step.from
  std::vector<double> weights(Step const& step, std::span<const double> lambdas) const {
    const double size_from = predict_x_0 ? step.from.alpha : step.from.sigma;
    const double size = predict_x_0 ? step.to.alpha : step.to.sigma;
    // -size (exp(z) - 1), also where z is infinite
    if (lambdas.size() == 1) return {size - scale(step) * size_from};
    const double h = step.to.lambda() - lambdas[0], z = predict_x_0 ? -h : h;
    std::vector<double> nodes;  // 0 where the step begins, 1 where it ends; the paper's r_m
    for (const double lambda : lambdas) nodes.push_back((lambda - lambdas[0]) / h);
    std::vector<double> w;
    if (lambdas.size() == 2) {
      w = detail::exponential_weights_of_two(z, nodes[1], variant == UniPCVariant::bh1 ? z : std::expm1(z));
    } else {
      w = detail::exponential_weights(z, nodes);
    }
    for (double& weight : w) weight *= -size;
    return w;
  }
};

/// UniPC under a model schedule. `UniPC{noise_schedule, Stitch{.ratio = 0.4}, {.steps = 10}, {.order = 3}}`
template <class Schedule>
class UniPC : public Sampler<UniPCUpdate, Schedule> {
 public:
  using Sampler<UniPCUpdate, Schedule>::Sampler;
};
template <class Schedule>
UniPC(NoiseSchedule, Schedule, SamplingOptions = {}, UniPCUpdate = {}) -> UniPC<Schedule>;
template <class Schedule, class... Wrong>
UniPC(NoiseSchedule, Schedule, Wrong...) -> UniPC<Schedule>;

}  // namespace tstitch

TSTITCH_USUAL_CONTRACTION
