/// @file
/// What the rules for timesteps share: their variations, and the beta distribution. Host doubles only; includes no
/// torch.
#pragma once

#include <array>
#include <cmath>
#include <optional>

#include "../base/contraction.hpp"
#include "noise_schedule.hpp"

TSTITCH_NO_CONTRACTION

namespace tstitch {

/// Variations of the rules that lay an even grid.
struct Grid {
  /// Whether the list ends on the rule's least noisy point. If not, the grid has one more point and its last is where
  /// the final step leads when the run ends at FinalSigma::sigma_min; diffusers' multistep DPM-Solver and the authors'
  /// dpm_solver do this.
  bool include_last = true;
  /// Whether t is rounded to integers, ties to even. Where a rule's points are closer than that (quadratic and beta, at
  /// their dense ends), they are moved apart, towards more noise.
  bool round = true;
};

/// Which t a network is told at a noise level that was chosen by its sigma.
enum class TimeOfSigma {
  exact,         ///< the t of that level, fractional: NoiseSchedule::timestep
  interpolated,  ///< fractional, log(sigma) linear between timesteps: k-diffusion
  nearest,       ///< that, rounded, ties to even: diffusers' Karras and lu_lambdas
  truncated,     ///< that, cut off: diffusers' exponential and beta
};

constexpr std::array<char const*, 4> names_of(TimeOfSigma) {
  return {"exact", "interpolated", "nearest", "truncated"};
}

/// The t of this lambda.
inline double time_of(NoiseSchedule const& noise, double lambda, TimeOfSigma time) {
  switch (time) {
    case TimeOfSigma::exact: break;
    case TimeOfSigma::interpolated: return noise.timestep_linear_in_lambda(lambda);
    case TimeOfSigma::nearest: return std::nearbyint(noise.timestep_linear_in_lambda(lambda));
    case TimeOfSigma::truncated: return std::trunc(noise.timestep_linear_in_lambda(lambda));
  }
  return noise.timestep(lambda);
}

/// Variations of the families that choose noise levels by sigma / alpha.
struct SigmaGrid {
  bool include_last = true;  ///< see Grid::include_last
  TimeOfSigma time = TimeOfSigma::exact;
  /// The levels at which the family begins and ends; not stated: those of the whole training schedule, t = noisiest()
  /// and t = 0. Schedulers that apply a family to an already spaced list begin and end where that list does.
  std::optional<NoiseLevel> begin = {};
  std::optional<NoiseLevel> end = {};
};

namespace detail {

/// The regularised incomplete beta function I_x(a, b), by Lentz's method on its continued fraction (DLMF 8.17.22).
inline double beta_distribution(double x, double a, double b) {
  if (x <= 0) return 0;
  if (x >= 1) return 1;
  // The fraction converges fast on this side of the mean only.
  if (x > (a + 1) / (a + b + 2)) return 1 - beta_distribution(1 - x, b, a);
  const double front =
      std::exp(std::lgamma(a + b) - std::lgamma(a) - std::lgamma(b) + a * std::log(x) + b * std::log1p(-x));
  const auto away_from_zero = [](double value) { return std::abs(value) < 1e-300 ? 1e-300 : value; };
  double c = 1, d = 1 / away_from_zero(1 - (a + b) * x / (a + 1)), product = d;
  for (int m = 1; m < 1000; ++m) {
    const double even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
    const double odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
    double change = 1;
    for (const double term : {even, odd}) {
      d = 1 / away_from_zero(1 + term * d);
      c = away_from_zero(1 + term / c);
      product *= change = c * d;
    }
    if (std::abs(change - 1) < 1e-16) break;
  }
  return front * product / a;
}

/// The x at which beta_distribution is p, by bisection: the spacing asks some hundred times in a run.
inline double beta_quantile(double p, double a, double b) {
  double low = 0, high = 1;
  while (true) {
    const double middle = (low + high) / 2;
    if (middle <= low || middle >= high) return middle;
    (beta_distribution(middle, a, b) < p ? low : high) = middle;
  }
}

}  // namespace detail

}  // namespace tstitch

TSTITCH_USUAL_CONTRACTION
