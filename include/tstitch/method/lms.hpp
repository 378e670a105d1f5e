/// @file
/// LMS: the linear multistep method of k-diffusion.
#pragma once

#include <cmath>
#include <span>
#include <vector>

#include "../base/contraction.hpp"
#include "ddim.hpp"
#include "detail/probability_flow.hpp"

TSTITCH_NO_CONTRACTION

namespace tstitch {

/// The weights w of the Adams-Bashforth method on uneven nodes: the integral from nodes[0] to `end` of the polynomial
/// through values f at the nodes is w[0] f[0] + w[1] f[1] + ... Exact up to rounding.
inline std::vector<double> adams_bashforth_weights(std::span<const double> nodes, double end) {
  const double h = end - nodes[0];
  const auto scaled = [&](std::size_t k) { return (nodes[k] - nodes[0]) / h; };  // the integral goes from 0 to 1
  std::vector<double> weights;
  for (std::size_t j = 0; j < nodes.size(); ++j) {
    std::vector<double> lagrange{1};  // coefficients of 1, u, u^2 ... of the polynomial that is 1 at node j, else 0
    for (std::size_t k = 0; k < nodes.size(); ++k) {
      if (k == j) continue;
      const double root = scaled(k), width = scaled(j) - root;
      lagrange.push_back(0);
      for (std::size_t i = lagrange.size(); i-- > 0;) {
        lagrange[i] = ((i > 0 ? lagrange[i - 1] : 0) - root * lagrange[i]) / width;
      }
    }
    double integral = 0;
    for (std::size_t i = 0; i < lagrange.size(); ++i) integral += lagrange[i] / double(i + 1);
    weights.push_back(h * integral);
  }
  return weights;
}

/// The polynomial through the slopes of this step and the ones before it, integrated over s exactly, also to x_0
/// (k-diffusion's sample_lms, diffusers' LMSDiscrete; they integrate numerically). s and slope: see ProbabilityFlow.
///
/// The first steps have less history and use a lower order. The pure noise of a diffusion schedule (zero terminal SNR)
/// has no finite s: the step from it is Euler's, and it is left out of the history.
struct LMSUpdate {
  int order = 4;  ///< 1 to 8; 1 is Euler's method, the higher, the shorter the steps at which it is stable

  static void options(auto& self, auto const& see) { see("order", self.order); }

  std::string name() const { return detail::name_with_options("LMS", *this); }

  int history() const { return order - 1; }

  void validate() const {
    if (order < 1 || order > 8) detail::refuse("LMS", "order must be in [1, 8]", order);
  }

  at::Tensor operator()(StepInput const& in) const {
    const ProbabilityFlow ode{in.noise_schedule};
    const NoiseLevel from = in.step.from;
    std::vector<double> nodes{ode.s(from)};
    if (std::isinf(nodes[0])) return DDIMUpdate{}(in);
    for (std::size_t back = 1; back <= in.history.size(); ++back) {
      const double s = ode.s(past(in, back).step.from);
      if (std::isfinite(s)) nodes.push_back(s);
    }
    return ode.combine(in, in.predict().x_0, adams_bashforth_weights(nodes, ode.s(in.step.to)));
  }
};

/// LMS under a model schedule. `LMS{noise_schedule, Stitch{.ratio = 0.4}, {.steps = 30}, {.order = 4}}`
template <class Schedule>
class LMS : public Sampler<LMSUpdate, Schedule> {
 public:
  using Sampler<LMSUpdate, Schedule>::Sampler;
};
template <class Schedule>
LMS(NoiseSchedule, Schedule, SamplingOptions = {}, LMSUpdate = {}) -> LMS<Schedule>;
template <class Schedule, class... Wrong>
LMS(NoiseSchedule, Schedule, Wrong...) -> LMS<Schedule>;

}  // namespace tstitch

TSTITCH_USUAL_CONTRACTION
