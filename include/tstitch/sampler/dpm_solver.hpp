/// @file
/// DPM-Solver (Lu et al. 2022, arXiv 2206.00927) and DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095), multistep.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include "multistep.hpp"

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
    // x' = scale x + w[0] m0 + w[1] m1 + w[2] m2; the noise form is the same with h -> -h and sigma <-> alpha.
    // From pure noise h is infinite.
    const double decay = eta > 0 ? std::exp(-eta * h) : 1;
    const double scale = plus_plus ? to.sigma / from.sigma * decay : to.alpha / from.alpha;
    const std::array<double, 3> w =
        weights(used, plus_plus ? -(1 + eta) * h : h, plus_plus ? to.alpha : to.sigma, in, h);
    const std::span<const double> weights_used(w.data(), std::size_t(used));
    at::Tensor x =
        plus_plus ? combine_x_0(in, x_0, scale, weights_used) : combine_epsilon(in, x_0, scale, weights_used);
    return eta > 0 ? x.add_(in.noise(0), to.sigma * std::sqrt(-std::expm1(-2 * eta * h))) : x;
  }

 private:
  /// @param z -(1 + eta) h for DPM-Solver++, h for DPM-Solver
  /// @param size alpha(to) for DPM-Solver++, sigma(to) for DPM-Solver
  std::array<double, 3> weights(int used, double z, double size, StepInput const& in, double h) const {
    const double phi_1 = std::expm1(z);
    if (used == 1) return {-size * phi_1, 0, 0};
    // phi_2 = phi_1 / z - 1 and phi_3 = phi_2 / z - 1/2, which cancel for small z.
    const double phi_3 =
        std::abs(z) < 1e-2 ? z / 6 * (1 + z / 4 * (1 + z / 5 * (1 + z / 6 * (1 + z / 7)))) : (phi_1 / z - 1) / z - 0.5;
    const double phi_2 = z * (phi_3 + 0.5);
    const auto lambda = [&](std::size_t back) { return past(in, back).step.from.lambda(); };
    const double r0 = (in.step.from.lambda() - lambda(1)) / h;
    if (used == 2) {
      const double slope = (solver_type == SolverType::midpoint ? -size * phi_1 / 2 : -size * phi_2) / r0;
      return {-size * phi_1 + slope, -slope, 0};  // slope (m0 - m1) is the coefficient of D1 times D1
    }
    const double r1 = (lambda(1) - lambda(2)) / h;
    // D1 = h m' and D2 = h^2 m'' of the parabola through m0, m1, m2:
    // D1 = D10 + r0 / (r0 + r1) (D10 - D11), D2 = 2 (D10 - D11) / (r0 + r1), D10 = (m0 - m1) / r0, D11 = (m1 - m2) / r1
    const double first = -size * phi_2, second = -size * phi_3 * (published_third_order ? 1 : 2);
    const double d10 = first * (1 + r0 / (r0 + r1)) + second / (r0 + r1);
    const double d11 = -first * r0 / (r0 + r1) - second / (r0 + r1);
    return {-size * phi_1 + d10 / r0, -d10 / r0 + d11 / r1, -d11 / r1};
  }
};

/// The multistep DPM-Solver under a model schedule.
/// `DPMSolver{noise_schedule, Stitch{.ratio = 0.4}, {.steps = 20}, {.order = 2}}`
template <class Schedule>
class DPMSolver : public Sampler<DPMSolverUpdate, Schedule> {
 public:
  DPMSolver(NoiseSchedule noise_schedule, Schedule model_schedule, SamplingOptions options = {},
            DPMSolverUpdate rule = {})
      : Sampler<DPMSolverUpdate, Schedule>(std::move(noise_schedule), std::move(model_schedule), std::move(options),
                                           rule) {}
};

}  // namespace tstitch
