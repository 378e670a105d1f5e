/// @file
/// DPM-Solver (Lu et al. 2022, arXiv 2206.00927) and DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095), singlestep.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>
#include <vector>

#include "dpm_solver.hpp"

namespace tstitch {

/// Which evaluations form a group when their number is not a multiple of the order.
enum class SinglestepPattern {
  dpm_solver,  ///< the authors': ends of 2, 1 or 1 or 2 for order 3, of 1 for odd numbers and order 2
  diffusers,   ///< the same for order 3; for order 2 even numbers end with 1, 1 too
};

/// The sizes of the groups, which are their orders, in the order of the run; they add up to `evaluations`.
/// @param evaluations at least 1
/// @param order 1, 2 or 3
/// @throws std::invalid_argument
inline std::vector<int> singlestep_orders(int evaluations, int order,
                                          SinglestepPattern pattern = SinglestepPattern::dpm_solver) {
  if (evaluations < 1) detail::refuse("singlestep_orders", "evaluations must be at least 1", evaluations);
  if (order < 1 || order > 3) detail::refuse("singlestep_orders", "order must be 1, 2 or 3", order);
  // A last group of the full order is avoided where the end is x_0, or by the authors' order 3.
  int left = evaluations % order;
  int full = evaluations / order;
  std::vector<int> ends;
  if (left == 0 && order == 3) {
    --full;
    ends = {2, 1};
  } else if (left == 0 && order == 2 && pattern == SinglestepPattern::diffusers) {
    --full;
    ends = {1, 1};
  } else if (left > 0) {
    ends = {left};
  }
  std::vector<int> orders(std::size_t(full), order);
  orders.insert(orders.end(), ends.begin(), ends.end());
  return orders;
}

/// Singlestep DPM-Solver of order 1, 2 or 3.
///
/// The plan holds every network evaluation as a step. Steps form groups as `singlestep_orders` says; each step of a
/// group goes from where the group began, with all that was predicted in it so far: to the points between first with
/// order 1, then 2, and the last step of a group with the group's order (arXiv 2206.00927, Algorithms 1 and 2 and
/// appendix D; arXiv 2211.01095, Algorithm 1). r_1 and r_2 are what the timesteps make them.
///
/// A model schedule is asked for each evaluation, so that a change of network may fall inside a group, whose last step
/// then mixes two networks; `PerGroup` keeps groups whole. A group that has lost its beginning (SwitchPolicy::reset),
/// or begins at pure noise, is taken in steps of order 1, and so is a step that ends at x_0.
struct DPMSolverSinglestepUpdate {
  int order = 2;  ///< 1, 2 or 3
  AlgorithmType algorithm_type = AlgorithmType::dpmsolver_plus_plus;
  /// How the slopes are used; see SolverType. In order 3 `midpoint` uses the newest slope alone, which is of order 3
  /// only for r_2 = 2/3, and `heun` the parabola (dpm_solver's "taylor").
  SolverType solver_type = SolverType::midpoint;
  SinglestepPattern pattern = SinglestepPattern::dpm_solver;
  /// Whether the second step of a group of three integrates its slope exactly whatever solver_type is, as the paper and
  /// the authors' code do; diffusers goes by solver_type.
  bool exact_inside = true;

  int history() const { return order - 1; }

  void validate() const {
    if (order < 1 || order > 3) detail::refuse("DPMSolverSinglestep", "order must be 1, 2 or 3", order);
  }

  at::Tensor operator()(StepInput const& in) const {
    const at::Tensor x_0 = in.predict().x_0;
    const NoiseLevel to = in.step.to;
    if (to == NoiseLevel::clean()) return x_0;
    const auto [phase, size] = place(in.step);
    // Predictions of the group, its first at 0, and x where it began.
    std::size_t done = std::size_t(phase);
    if (done > in.history.size() || (done > 0 && past(in, done).step.from.alpha == 0)) done = 0;
    const NoiseLevel from = done ? past(in, done).step.from : in.step.from;
    const bool plus_plus = done == 0 || algorithm_type == AlgorithmType::dpmsolver_plus_plus;
    const double scale = plus_plus ? to.sigma / from.sigma : to.alpha / from.alpha;
    const std::array<double, 3> w = weights(in, done, size, plus_plus);

    at::Tensor next = (done ? past(in, done).x : in.x).mul(scale);
    for (std::size_t k = 0; k <= done; ++k) {
      const bool newest = k == done;
      const at::Tensor& predicted = newest ? x_0 : past(in, done - k).x_0;
      if (plus_plus) {
        next.add_(predicted, w[k]);
        continue;
      }
      // eps = (x - alpha x_0) / sigma, put in without being formed.
      const auto [alpha, sigma] = newest ? in.step.from : past(in, done - k).step.from;
      next.add_(newest ? in.x : past(in, done - k).x, w[k] / sigma).add_(predicted, -w[k] * alpha / sigma);
    }
    return next;
  }

 private:
  /// Which step of its group a step is, from 0, and the size of the group.
  std::pair<int, int> place(Step const& step) const {
    int first = 0;
    for (const int size : singlestep_orders(step.count, order, pattern)) {
      if (step.index < first + size) return {step.index - first, size};
      first += size;
    }
    return {0, 1};  // not reached: the sizes add up to the count
  }

  /// Of the group's predictions, the first of them at 0.
  std::array<double, 3> weights(StepInput const& in, std::size_t done, int size, bool plus_plus) const {
    const NoiseLevel to = in.step.to;
    const double first = done ? past(in, done).step.from.lambda() : in.step.from.lambda();
    const double h = to.lambda() - first;
    // As in DPMSolverUpdate: the noise form is the other with h -> -h and sigma <-> alpha.
    const double z = plus_plus ? -h : h, magnitude = plus_plus ? to.alpha : to.sigma;
    const double phi_1 = std::expm1(z);
    if (done == 0) return {-magnitude * phi_1, 0, 0};
    const double phi_3 =
        std::abs(z) < 1e-2 ? z / 6 * (1 + z / 4 * (1 + z / 5 * (1 + z / 6 * (1 + z / 7)))) : (phi_1 / z - 1) / z - 0.5;
    const double phi_2 = z * (phi_3 + 0.5);
    const double newest = (in.step.from.lambda() - first) / h;  // r_1, or r_2 in the last of three steps
    if (done == 1) {
      const bool exact = solver_type == SolverType::heun || (exact_inside && size == 3);
      const double slope = (exact ? -magnitude * phi_2 : -magnitude * phi_1 / 2) / newest;
      return {-magnitude * phi_1 - slope, slope, 0};
    }
    if (solver_type == SolverType::midpoint) {
      const double slope = -magnitude * phi_2 / newest;
      return {-magnitude * phi_1 - slope, 0, slope};
    }
    // D1 = h m' and D2 = h^2 m'' of the parabola through the three, with slopes D10 = (m1 - m0) / r_1 and
    // D11 = (m2 - m0) / r_2: D1 = (r_2 D10 - r_1 D11) / (r_2 - r_1), D2 = 2 (D11 - D10) / (r_2 - r_1).
    const double r_1 = (past(in, 1).step.from.lambda() - first) / h, r_2 = newest;
    const double of_d1 = -magnitude * phi_2 / (r_2 - r_1), of_d2 = -2 * magnitude * phi_3 / (r_2 - r_1);
    const double d10 = (of_d1 * r_2 - of_d2) / r_1, d11 = (of_d2 - of_d1 * r_1) / r_2;
    return {-magnitude * phi_1 - d10 - d11, d10, d11};
  }
};

/// dpm_solver's grid for singlestep with skip_type "logSNR": the groups are even in lambda, and so are the points in
/// each. (For the other skip types it is the plain grid of N + 1 points.) Ends where FinalSigma::sigma_min leads.
/// @param order, pattern those of the rule
inline Spacing singlestep_logsnr(int order, SinglestepPattern pattern = SinglestepPattern::dpm_solver) {
  return {"singlestep_logsnr", [order, pattern](NoiseSchedule const& noise, int steps) {
            const std::vector<int> orders = singlestep_orders(steps, order, pattern);
            const double start = noise.lambda(noise.noisiest()), end = noise.lambda(0);
            std::vector<Timestep> list;
            for (std::size_t group = 0; group < orders.size(); ++group) {
              for (int i = 0; i < orders[group]; ++i) {
                const double u = (double(group) + double(i) / orders[group]) / double(orders.size());
                list.push_back(u == 0 ? Timestep{double(noise.noisiest()), noise.at(noise.noisiest())}
                                      : noise.point(start + (end - start) * u));
              }
            }
            return list;
          }};
}

/// Routes the groups of a singlestep rule as wholes: asks `schedule` with the index of the group's first step. For
/// schedules that go by index, such as Stitch, Fractions and Table.
template <class Schedule>
struct PerGroup {
  Schedule schedule;
  int order = 2;
  SinglestepPattern pattern = SinglestepPattern::dpm_solver;

  std::size_t operator()(Step step) const {
    int first = 0;
    for (const int size : singlestep_orders(step.count, order, pattern)) {
      if (step.index < first + size) break;
      first += size;
    }
    step.index = first;
    return schedule(step);
  }
};
template <class Schedule, class... Options>
PerGroup(Schedule, Options...) -> PerGroup<Schedule>;

/// The singlestep DPM-Solver under a model schedule.
/// `DPMSolverSinglestep{noise_schedule, PerGroup{Stitch{.ratio = 0.4}, 3}, {.steps = 20}, {.order = 3}}`
template <class Schedule>
class DPMSolverSinglestep : public Sampler<DPMSolverSinglestepUpdate, Schedule> {
 public:
  DPMSolverSinglestep(NoiseSchedule noise_schedule, Schedule model_schedule, SamplingOptions options = {},
                      DPMSolverSinglestepUpdate rule = {})
      : Sampler<DPMSolverSinglestepUpdate, Schedule>(std::move(noise_schedule), std::move(model_schedule),
                                                     std::move(options), rule) {}
};

}  // namespace tstitch
