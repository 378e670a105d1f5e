/// @file
/// PNDM: Liu, Ren, Lin and Zhao 2022, "Pseudo Numerical Methods for Diffusion Models on Manifolds", arXiv 2202.09778.
#pragma once

#include <array>
#include <cmath>
#include <span>
#include <utility>

#include "../base/contraction.hpp"
#include "ddim.hpp"
#include "detail/probability_flow.hpp"

TSTITCH_NO_CONTRACTION

namespace tstitch {

/// How the first steps make up for the history that they lack.
enum class PNDMStart {
  improved_euler,  ///< one step with 2 evaluations, then lower orders: latent-diffusion's PLMS and diffusers'
                   ///< skip_prk_steps
  runge_kutta,     ///< three steps with 4 evaluations, the paper's F-PNDM
};

constexpr std::array<char const*, 2> names_of(PNDMStart) {
  return {"improved_euler", "runge_kutta"};
}

/// Pseudo linear multistep (section 3.3 there): the noise predictions of four steps, combined with the weights of the
/// Adams-Bashforth method for even steps, take the place of eps in DDIM's step, their phi. Of order 2 whatever the
/// weights, because they take no account of how s goes with t.
///
/// Written with the slope of ProbabilityFlow, which is eps for diffusion: then phi is y + (s' - s) slope, and flow
/// matching combines velocities. A first step to x_0, and one from the pure noise of a diffusion schedule (zero
/// terminal SNR), is DDIM's.
struct PNDMUpdate {
  PNDMStart start = PNDMStart::improved_euler;

  static void options(auto& self, auto const& see) { see("start", self.start); }

  std::string name() const { return detail::name_with_options("PNDM", *this); }

  int history() const { return 3; }

  int evaluations(Step const& step) const {
    if (step.index >= start_steps() || single_evaluation(step)) return 1;
    return start == PNDMStart::runge_kutta ? 4 : 2;
  }

  at::Tensor operator()(StepInput const& in) const {
    const ProbabilityFlow ode{in.noise_schedule};
    const NoiseLevel from = in.step.from, to = in.step.to;  // clang 14's lambdas capture no structured bindings
    const bool starting = in.step.index < start_steps();
    if (single_evaluation(in.step) && (starting || to.sigma > 0)) return DDIMUpdate{}(in);
    const at::Tensor x_0 = in.predict().x_0;
    const double h = ode.s(to) - ode.s(from);
    if (!starting) {
      // Fewer after a history that was dropped at a switch of networks.
      constexpr std::array<std::array<double, 4>, 4> adams_bashforth{{
          {1, 0, 0, 0},
          {3. / 2, -1. / 2, 0, 0},
          {23. / 12, -16. / 12, 5. / 12, 0},
          {55. / 24, -59. / 24, 37. / 24, -9. / 24},
      }};
      std::array<double, 4> weights = adams_bashforth[in.history.size()];
      for (double& weight : weights) weight *= h;
      return ode.combine(in, x_0, std::span(weights).first(in.history.size() + 1));
    }
    const auto slope_along = [&](Slope const& direction, Timestep const& point) {
      const at::Tensor x = ode.follow(in.x, from, point.level, {{1, direction}});
      return Slope{x, in.denoise(x, point).x_0, point.level};
    };
    const Slope first{in.x, x_0, from};
    const Timestep end{in.step.t_to, to};
    if (start == PNDMStart::improved_euler) {
      return ode.follow(in.x, from, to, {{0.5, first}, {0.5, slope_along(first, end)}});
    }
    // The pseudo Runge-Kutta method of section 3.3; their phi is `follow`.
    const double t = middle(in.step.t, in.step.t_to);
    const Timestep halfway{t, in.noise_schedule.at(t)};
    const Slope second = slope_along(first, halfway), third = slope_along(second, halfway);
    const Slope fourth = slope_along(third, end);
    return ode.follow(in.x, from, to, {{1. / 6, first}, {1. / 3, second}, {1. / 3, third}, {1. / 6, fourth}});
  }

 private:
  int start_steps() const { return start == PNDMStart::runge_kutta ? 3 : 1; }

  /// Halfway in t. Between whole timesteps it is a whole one, the noisier of two, as in diffusers: networks with
  /// integer timesteps then see the timestep that x has.
  static double middle(double from, double to) {
    const bool whole = from == std::trunc(from) && to == std::trunc(to);
    return whole ? std::ceil((from + to) / 2) : (from + to) / 2;
  }
};

/// PNDM under a model schedule.
/// `PNDM{noise_schedule, Stitch{.ratio = 0.4}, {.steps = 50}, {PNDMStart::runge_kutta}}`
template <class Schedule>
class PNDM : public Sampler<PNDMUpdate, Schedule> {
 public:
  using Sampler<PNDMUpdate, Schedule>::Sampler;
};
template <class Schedule>
PNDM(NoiseSchedule, Schedule, SamplingOptions = {}, PNDMUpdate = {}) -> PNDM<Schedule>;
template <class Schedule, class... Wrong>
PNDM(NoiseSchedule, Schedule, Wrong...) -> PNDM<Schedule>;

}  // namespace tstitch

TSTITCH_USUAL_CONTRACTION
