/// @file
/// DPM-Solver (Lu et al. 2022, arXiv 2206.00927) and DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095), singlestep, and
/// k-diffusion's two stochastic forms of order 2.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "../base/contraction.hpp"
#include "detail/exponential_integrator.hpp"
#include "dpm_solver.hpp"
#include "euler.hpp"

TSTITCH_NO_CONTRACTION

namespace tstitch {

/// How the evaluations of a run form groups. As many as fit have the full order, and one the rest; the patterns differ
/// at the end.
enum class SinglestepPattern {
  dpm_solver,       ///< of order 3, with no rest, 2, 1 instead of 3: the authors' DPM-Solver-fast, and k-diffusion's
  denoise_to_zero,  ///< that, and one evaluation more, from t = 0 to x_0: the authors' denoise_to_zero
  diffusers,        ///< with no rest, 2, 1 instead of 3 and 1, 1 instead of 2
  keeps_order,      ///< of order 3 with a rest of 1, 2, 2 instead of 3, 1; with no rest the authors' singlestep_fixed
};

constexpr std::array<char const*, 4> names_of(SinglestepPattern) {
  return {"dpm_solver", "denoise_to_zero", "diffusers", "keeps_order"};
}

/// The sizes of a run's groups, which are their orders; they add up to `evaluations`.
///
/// Order 3 that ends with a group of 1 comes to sigma_min with order 2 in all, so dpm_solver and diffusers reach order
/// 3 there only where N mod 3 is 2, and keeps_order always does. In a run to x_0 the last evaluation is of order 1
/// anyway.
/// @throws std::invalid_argument unless evaluations is at least 1 and order is 1, 2 or 3
inline std::vector<int> singlestep_orders(int evaluations, int order,
                                          SinglestepPattern pattern = SinglestepPattern::dpm_solver) {
  if (evaluations < 1) detail::refuse("singlestep_orders", "evaluations must be at least 1", evaluations);
  if (order < 1 || order > 3) detail::refuse("singlestep_orders", "order must be 1, 2 or 3", order);
  const int lone = pattern == SinglestepPattern::denoise_to_zero ? 1 : 0;
  const int rest = (evaluations - lone) % order;
  std::vector<int> orders(std::size_t((evaluations - lone) / order), order);
  if (rest > 0) orders.push_back(rest);
  const bool keeps_order = pattern == SinglestepPattern::keeps_order;
  const int split_from = pattern == SinglestepPattern::diffusers ? 2 : 3;
  if (keeps_order && order == 3 && rest == 1 && orders.size() > 1) {
    orders[orders.size() - 2] = orders.back() = 2;
  } else if (!keeps_order && rest == 0 && order >= split_from && !orders.empty()) {
    --orders.back();
    orders.push_back(1);
  }
  if (lone) orders.push_back(1);
  return orders;
}

/// Groups between the points of `outer`, with the evaluations of each group even in lambda: r_1 = 1/2, or r_1 = 1/3 and
/// r_2 = 2/3. `outer` gives where the groups begin, and for FinalSigma::sigma_min where the last one ends; so it is one
/// that includes its last point. With Spacing::uniform_logsnr() these are the points of dpm_solver's skip_type "logSNR"
/// and of k-diffusion's dpm_fast. The points of its other skip types, inner ones too, are plain grids:
/// Spacing::linspace({.include_last = false, .round = false}) and Spacing::quadratic().
/// @param order, pattern those of the rule
/// @throws std::invalid_argument when called, if a group of more than one begins at pure noise
inline Spacing singlestep_spacing(Spacing outer, int order, SinglestepPattern pattern = SinglestepPattern::dpm_solver) {
  std::string name = "singlestep " + outer.name();
  return {std::move(name), [outer, order, pattern](NoiseSchedule const& noise, int steps) {
            const std::vector<int> orders = singlestep_orders(steps, order, pattern);
            // With denoise_to_zero the last point is where a group begins, not only where one ends.
            const int beginnings = int(orders.size());
            const std::vector<Timestep> ends =
                outer(noise, pattern == SinglestepPattern::denoise_to_zero ? beginnings : beginnings + 1);
            std::vector<Timestep> list;
            for (std::size_t group = 0; group < orders.size(); ++group) {
              list.push_back(ends[group]);
              if (orders[group] == 1) continue;
              const double begin = ends[group].level.lambda(), end = ends[group + 1].level.lambda();
              if (!std::isfinite(begin)) {
                detail::refuse("singlestep_spacing", "no group of several evaluations may begin at pure noise", begin);
              }
              for (int i = 1; i < orders[group]; ++i) {
                list.push_back(noise.point(begin + (end - begin) * i / orders[group]));
              }
            }
            return list;
          }};
}

/// Routes groups as wholes: each goes where `plan` has its first evaluation.
///
/// A plan routes evaluation by evaluation: the small network has its r N exactly, but a change of network may fall
/// inside a group, whose slopes are then between two networks. This is what to use, since it keeps the promised cost
/// and the one mixed group does no harm that shows. With whole groups, as programs have it that route outer steps, the
/// small network has up to two evaluations more, and SwitchPolicy makes no difference.
/// `per_group(make_plan(noise_schedule, 20, spacing, FinalSigma::zero, Stitch{0.4}), singlestep_orders(20, 3))`
/// @throws std::invalid_argument unless orders add up to the steps of the plan
inline Table per_group(Plan const& plan, std::vector<int> const& orders) {
  const int count = std::accumulate(orders.begin(), orders.end(), 0);
  if (count != int(plan.steps.size())) {
    detail::refuse("per_group", "orders must add up to the " + std::to_string(plan.steps.size()) + " steps of the plan",
                   count);
  }
  Table table;
  for (const int size : orders) {
    table.networks.insert(table.networks.end(), std::size_t(size), plan.steps[table.networks.size()].network);
  }
  return table;
}

/// Singlestep DPM-Solver of order 1, 2 or 3, one network evaluation a planned step.
///
/// `singlestep_orders` says which steps form a group. Each step goes from x at the *beginning* of its group to step.to,
/// with all predictions of the group so far: to the paper's s_1 with order 1, to s_2 with order 2, and in the group's
/// last step with the group's order. arXiv 2206.00927, Algorithms 1 and 2, has eps, arXiv 2211.01095, Algorithm 1, has
/// x_0. r_1 and r_2, how far along in lambda s_1 and s_2 are, follow from the timesteps.
///
/// All formulas but the midpoint of order 2 integrate the polynomial in lambda through predictions exactly. In order 3
/// that is the line through the first and the last one, as in Algorithm 2, or the parabola through all three. Either is
/// of order 3 where r_2 is 2/3, or near it as on any smooth grid.
///
/// A step to x_0 is of order 1. A group that begins at pure noise, where lambda is infinite, or whose beginning is gone
/// (SwitchPolicy::reset, Request::strength) begins at its next evaluation instead and is of a lower order.
struct DPMSolverSinglestepUpdate {
  int order = 2;  ///< 1, 2 or 3
  AlgorithmType algorithm_type = AlgorithmType::dpmsolver_plus_plus;
  /// Of the last step of a group. In order 3 midpoint is the line above, heun the parabola; dpm_solver calls them
  /// "dpmsolver" and "taylor".
  SolverType solver_type = SolverType::midpoint;
  /// Of the step to s_2: heun in the paper and in dpm_solver, whatever solver_type is; diffusers has solver_type here.
  SolverType solver_type_inside = SolverType::heun;
  SinglestepPattern pattern = SinglestepPattern::dpm_solver;

  static void options(auto& self, auto const& see) {
    see("order", self.order);
    see("algorithm_type", self.algorithm_type);
    see("solver_type", self.solver_type);
    see("solver_type_inside", self.solver_type_inside);
    see("pattern", self.pattern);
  }

  std::string name() const { return detail::name_with_options("DPMSolverSinglestep", *this); }

  int history() const { return order - 1; }

  void validate() const {
    if (order < 1 || order > 3) detail::refuse("DPMSolverSinglestep", "order must be 1, 2 or 3", order);
  }

  at::Tensor operator()(StepInput const& in) const {
    const at::Tensor x_0 = in.predict().x_0;
    const NoiseLevel to = in.step.to;
    if (to == NoiseLevel::clean()) return x_0;
    int phase = in.step.index;  // which step of its group this is, from 0
    const std::vector<int> orders = singlestep_orders(in.step.count, order, pattern);
    auto group = orders.begin();
    for (; phase >= *group; ++group) phase -= *group;

    std::size_t earlier = std::min(std::size_t(phase), in.history.size());  // predictions of the group
    while (earlier > 0 && past(in, earlier).step.from.alpha == 0) --earlier;
    const NoiseLevel from = earlier ? past(in, earlier).step.from : in.step.from;
    at::Tensor const& x = earlier ? past(in, earlier).x : in.x;
    const std::vector<double> w = weights(in, earlier, phase + 1 == *group);
    if (plus_plus(earlier)) return combine_x_0(with_step(in, in.step, x), x_0, to.sigma / from.sigma, w).value();
    return combine_epsilon(in, x_0, 0, w).add(to.alpha / from.alpha, x).value();
  }

 private:
  /// In order 1 both forms are one, and this one can begin at pure noise.
  bool plus_plus(std::size_t earlier) const {
    return earlier == 0 || algorithm_type == AlgorithmType::dpmsolver_plus_plus;
  }

  /// Of the predictions of the group, x_0 or eps, the newest first.
  std::vector<double> weights(StepInput const& in, std::size_t earlier, bool last) const {
    const auto lambda = [&](std::size_t back) { return (back ? past(in, back).step : in.step).from.lambda(); };
    const double h = in.step.to.lambda() - lambda(earlier), z = plus_plus(earlier) ? -h : h;
    const double size = plus_plus(earlier) ? in.step.to.alpha : in.step.to.sigma;
    const bool midpoint = (last ? solver_type : solver_type_inside) == SolverType::midpoint;
    std::vector<double> w;
    if (earlier == 0) {
      w = {std::expm1(z)};
    } else if (earlier == 1 && midpoint) {
      w = detail::exponential_weights_of_two(z, (lambda(0) - lambda(1)) / h, std::expm1(z));
      std::swap(w[0], w[1]);
    } else {
      std::vector<double> nodes{(lambda(0) - lambda(earlier)) / h, 0};
      if (earlier == 2 && !midpoint) nodes.insert(nodes.begin() + 1, (lambda(1) - lambda(2)) / h);
      w = detail::exponential_weights(z, nodes);
      if (earlier == 2 && midpoint) w.insert(w.begin() + 1, 0);
    }
    for (double& weight : w) weight *= -size;
    return w;
  }
};

namespace detail {

/// DPM-Solver++ of order 1: x at `to`, if x_0 holds all along.
inline at::Tensor first_order(at::Tensor const& x, at::Tensor const& x_0, NoiseLevel from, NoiseLevel to) {
  const double ratio = to.sigma / from.sigma;
  return weighted_sum(ratio, x, to.alpha - ratio * from.alpha, x_0);
}

inline Timestep middle_of(NoiseSchedule const& noise, NoiseLevel a, NoiseLevel b) {
  return noise.point((a.lambda() + b.lambda()) / 2);
}

}  // namespace detail

/// DPM-Solver++(2S) with ancestral steps (k-diffusion's sample_dpmpp_2s_ancestral): arXiv 2211.01095, Algorithm 1 with
/// r = 1/2 down to Ancestral::down, two evaluations, and noise back up. With eta 0 this is singlestep DPM-Solver++ of
/// order 2 in half as many planned steps.
///
/// A step that goes down to x_0, and one that begins at pure noise, is of order 1 with one evaluation.
struct DPMSolver2SAncestralUpdate {
  double eta = 1;  ///< in [0, 1]

  static void options(auto& self, auto const& see) { see("eta", self.eta); }

  std::string name() const { return detail::name_with_options("DPMSolver2SAncestral", *this); }

  int evaluations(Step const& step) const {
    return step.from.alpha == 0 || step.to.sigma == 0 || Ancestral::renewed(step.from, step.to, eta) == 1 ? 1 : 2;
  }

  void validate() const {
    if (!(eta >= 0 && eta <= 1)) detail::refuse("DPMSolver2SAncestral", "eta must be in [0, 1]", eta);
  }

  at::Tensor operator()(StepInput const& in) const {
    const auto [from, to] = std::pair{in.step.from, in.step.to};
    const Ancestral ancestral(in.noise_schedule, from, to, eta);
    at::Tensor x_0 = in.predict().x_0;
    if (evaluations(in.step) == 2) {
      const Timestep middle = detail::middle_of(in.noise_schedule, from, ancestral.down);
      x_0 = in.denoise(detail::first_order(in.x, x_0, from, middle.level), middle).x_0;
    }
    if (to == NoiseLevel::clean()) return x_0;
    return ancestral(in, in.x, x_0, from, to);
  }
};

/// Stochastic DPM-Solver++ (k-diffusion's sample_dpmpp_sde with r = 1/2): an ancestral step to the middle in lambda,
/// and then one over the whole step with what is predicted there. Its two draws of noise are independent.
///
/// A step to x_0, and one that begins at pure noise, is of order 1 with one evaluation.
struct DPMSolverSDEUpdate {
  double eta = 1;  ///< in [0, 1]

  static void options(auto& self, auto const& see) { see("eta", self.eta); }

  std::string name() const { return detail::name_with_options("DPMSolverSDE", *this); }

  int evaluations(Step const& step) const { return step.from.alpha == 0 || step.to.sigma == 0 ? 1 : 2; }

  void validate() const {
    if (!(eta >= 0 && eta <= 1)) detail::refuse("DPMSolverSDE", "eta must be in [0, 1]", eta);
  }

  at::Tensor operator()(StepInput const& in) const {
    at::Tensor x_0 = in.predict().x_0;
    if (in.step.to == NoiseLevel::clean()) return x_0;
    const auto ancestral_step = [&](NoiseLevel to, int draw) {
      const NoiseLevel from = in.step.from;
      return Ancestral(in.noise_schedule, from, to, eta)(in, in.x, x_0, from, to, draw);
    };
    if (evaluations(in.step) == 2) {
      const Timestep middle = detail::middle_of(in.noise_schedule, in.step.from, in.step.to);
      x_0 = in.denoise(ancestral_step(middle.level, 0), middle).x_0;
    }
    return ancestral_step(in.step.to, 1);
  }
};

/// The singlestep DPM-Solver under a model schedule.
/// `DPMSolverSinglestep{noise_schedule, Stitch{.ratio = 0.4}, {.steps = 20}, {.order = 3}}`
template <class Schedule>
class DPMSolverSinglestep : public Sampler<DPMSolverSinglestepUpdate, Schedule> {
 public:
  using Sampler<DPMSolverSinglestepUpdate, Schedule>::Sampler;
};
template <class Schedule>
DPMSolverSinglestep(NoiseSchedule, Schedule, SamplingOptions = {}, DPMSolverSinglestepUpdate = {})
    -> DPMSolverSinglestep<Schedule>;
template <class Schedule, class... Wrong>
DPMSolverSinglestep(NoiseSchedule, Schedule, Wrong...) -> DPMSolverSinglestep<Schedule>;

/// DPM-Solver++(2S) with ancestral steps under a model schedule.
/// `DPMSolver2SAncestral{noise_schedule, Stitch{.ratio = 0.4}, {.steps = 20, .spacing = Spacing::karras()}}`
template <class Schedule>
class DPMSolver2SAncestral : public Sampler<DPMSolver2SAncestralUpdate, Schedule> {
 public:
  using Sampler<DPMSolver2SAncestralUpdate, Schedule>::Sampler;
};
template <class Schedule>
DPMSolver2SAncestral(NoiseSchedule, Schedule, SamplingOptions = {}, DPMSolver2SAncestralUpdate = {})
    -> DPMSolver2SAncestral<Schedule>;
template <class Schedule, class... Wrong>
DPMSolver2SAncestral(NoiseSchedule, Schedule, Wrong...) -> DPMSolver2SAncestral<Schedule>;

/// The stochastic DPM-Solver++ under a model schedule.
/// `DPMSolverSDE{noise_schedule, Stitch{.ratio = 0.4}, {.steps = 20, .spacing = Spacing::karras()}}`
template <class Schedule>
class DPMSolverSDE : public Sampler<DPMSolverSDEUpdate, Schedule> {
 public:
  using Sampler<DPMSolverSDEUpdate, Schedule>::Sampler;
};
template <class Schedule>
DPMSolverSDE(NoiseSchedule, Schedule, SamplingOptions = {}, DPMSolverSDEUpdate = {}) -> DPMSolverSDE<Schedule>;
template <class Schedule, class... Wrong>
DPMSolverSDE(NoiseSchedule, Schedule, Wrong...) -> DPMSolverSDE<Schedule>;

}  // namespace tstitch

TSTITCH_USUAL_CONTRACTION
