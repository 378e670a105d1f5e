/// @file
/// DPM-Solver (Lu et al. 2022, arXiv 2206.00927) and DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095), multistep.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>
#include <vector>

#include "../base/contraction.hpp"
#include "detail/exponential_integrator.hpp"
#include "detail/multistep.hpp"

TSTITCH_NO_CONTRACTION

namespace tstitch {

/// diffusers' algorithm_type.
enum class AlgorithmType {
  dpmsolver,            ///< integrates the predicted noise
  dpmsolver_plus_plus,  ///< integrates the predicted x_0; the one to use with guidance
};

/// How order 2 uses the slope between two predictions (diffusers' solver_type).
enum class SolverType {
  midpoint,  ///< as if the prediction at the middle of the step held all along
  heun,      ///< integrates the line through both exactly; dpm_solver's "taylor"
};

constexpr std::array<char const*, 2> names_of(AlgorithmType) {
  return {"dpmsolver", "dpmsolver++"};
}
constexpr std::array<char const*, 2> names_of(SolverType) {
  return {"midpoint", "heun"};
}

/// Multistep DPM-Solver of order 1, 2 ("2M") or 3 ("3M"), and with eta above 0 the stochastic SDE-DPM-Solver++.
///
/// With h = lambda(to) - lambda(from) and m0, m1, m2 the predictions of this step and the ones before it:
/// arXiv 2211.01095, Eq. 9 and Algorithm 2 for ++, arXiv 2206.00927, Appendix B and D for the noise form, and
/// arXiv 2211.01095, Eq. 18 and 19 for the SDE, where k-diffusion has added eta (h there is (1 + eta) h in the
/// exponentials).
/// The first steps have less history and use a lower order. A step that ends at x_0 is of order 1, where all forms
/// agree.
struct DPMSolverUpdate {
  int order = 2;  ///< 1, 2 or 3
  AlgorithmType algorithm_type = AlgorithmType::dpmsolver_plus_plus;
  SolverType solver_type = SolverType::midpoint;
  /// How much noise a step replaces, at least 0: 0 follows the probability-flow ODE, 1 is SDE-DPM-Solver++. For
  /// dpmsolver_plus_plus only.
  double eta = 0;
  /// Runs of fewer steps than this lower the order of the last steps (2, then 1), which is more stable. diffusers uses
  /// 15, the authors' dpm_solver 10; 0 means never.
  int lower_order_final_below = 15;
  /// The last step is of order 1 in any case (diffusers' euler_at_final).
  bool euler_at_final = false;
  /// Order 3 as the authors' dpm_solver, diffusers and k-diffusion compute it. Their D2 is a divided difference, half
  /// of the second derivative that the formula asks for, so that it converges with order 2; without this it does
  /// with 3.
  bool published_third_order = false;

  static void options(auto& self, auto const& see) {
    see("order", self.order);
    see("algorithm_type", self.algorithm_type);
    see("solver_type", self.solver_type);
    see("eta", self.eta);
    see("lower_order_final_below", self.lower_order_final_below);
    see("euler_at_final", self.euler_at_final);
    see("published_third_order", self.published_third_order);
  }

  std::string name() const { return detail::name_with_options("DPMSolver", *this); }

  int history() const { return order - 1; }

  void validate() const {
    if (order < 1 || order > 3) detail::refuse("DPMSolver", "order must be 1, 2 or 3", order);
    if (lower_order_final_below < 0) {
      detail::refuse("DPMSolver", "lower_order_final_below must not be negative", lower_order_final_below);
    }
    if (!(eta >= 0 && std::isfinite(eta))) detail::refuse("DPMSolver", "eta must be at least 0", eta);
    if (eta > 0 && algorithm_type == AlgorithmType::dpmsolver) {
      detail::refuse("DPMSolver", "eta must be 0 for algorithm_type dpmsolver, which has no stochastic form here", eta);
    }
  }

  /// The order of the step, once the earlier predictions in `history` are known.
  int order_of(Step const& step, int history) const {
    const int left = step.count - step.index;  // 1 in the last step
    int limit = std::min(order, history + 1);
    if (step.count < lower_order_final_below) limit = std::min(limit, left);
    if (left == 1 && euler_at_final) limit = 1;
    return limit;
  }

  at::Tensor operator()(StepInput const& in) const {
    const auto [from, to] = std::pair{in.step.from, in.step.to};
    const at::Tensor x_0 = in.predict().x_0;
    if (to == NoiseLevel::clean()) return x_0;
    const int used = order_of(in.step, int(in.history.size()));
    // In order 1 both forms are one, and this one can begin at pure noise.
    const bool plus_plus = used == 1 || algorithm_type == AlgorithmType::dpmsolver_plus_plus;

    const double h = to.lambda() - from.lambda();
    // From pure noise h is infinite.
    const double decay = eta > 0 ? std::exp(-eta * h) : 1;
    const double scale = plus_plus ? to.sigma / from.sigma * decay : to.alpha / from.alpha;
    const std::vector<double> w = weights(in, used, h, plus_plus ? -(1 + eta) * h : h, plus_plus ? to.alpha : to.sigma);
    WeightedSum x = plus_plus ? combine_x_0(in, x_0, scale, w) : combine_epsilon(in, x_0, scale, w);
    if (eta > 0) x.add(to.sigma * std::sqrt(-std::expm1(-2 * eta * h)), in.noise(0));
    return x.value();
  }

 private:
  /// Of the predictions of this step and the ones before it.
  /// @param z, size see exponential_integrator.hpp; with eta z is (1 + eta) times as long
  std::vector<double> weights(StepInput const& in, int used, double h, double z, double size) const {
    std::vector<double> nodes{0};
    for (int back = 1; back < used; ++back) {
      const double node = (past(in, std::size_t(back)).step.from.lambda() - in.step.from.lambda()) / h;
      if (std::isinf(node)) break;  // it was predicted at pure noise
      nodes.push_back(node);
    }
    std::vector<double> w;
    if (nodes.size() == 1) {
      w = {std::expm1(z)};
    } else if (nodes.size() == 2 && solver_type == SolverType::midpoint) {
      w = detail::exponential_weights_of_two(z, nodes[1], std::expm1(z));
    } else {
      std::vector<double> moments = detail::exponential_moments(z, nodes.size());
      if (nodes.size() == 3 && published_third_order) moments[2] /= 2;  // what their D2 comes to
      w = detail::quadrature_weights(nodes, std::move(moments));
    }
    for (double& weight : w) weight *= -size;
    return w;
  }
};

/// The multistep DPM-Solver under a model schedule.
/// `DPMSolver{noise_schedule, Stitch{.ratio = 0.4}, {.steps = 20}, {.order = 2}}`
template <class Schedule>
class DPMSolver : public Sampler<DPMSolverUpdate, Schedule> {
 public:
  using Sampler<DPMSolverUpdate, Schedule>::Sampler;
};
template <class Schedule>
DPMSolver(NoiseSchedule, Schedule, SamplingOptions = {}, DPMSolverUpdate = {}) -> DPMSolver<Schedule>;
template <class Schedule, class... Wrong>
DPMSolver(NoiseSchedule, Schedule, Wrong...) -> DPMSolver<Schedule>;

}  // namespace tstitch

TSTITCH_USUAL_CONTRACTION
