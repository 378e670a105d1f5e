/// @file
/// Timestep spacings: which training timesteps a run of N steps visits. Host doubles only; includes no torch.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../base/contraction.hpp"
#include "grid.hpp"
#include "noise_schedule.hpp"

TSTITCH_NO_CONTRACTION

namespace tstitch {

/// A rule that turns (noise schedule, N) into exactly N timesteps, noisiest first.
///
/// A value: choose one of the named rules or wrap a callable. Calling it checks what every rule promises, and throws
/// std::invalid_argument where a rule cannot keep it: exactly N entries, noise strictly decreasing, t with it. (t may
/// stand still only where TimeOfSigma rounds it.)
class Spacing {
 public:
  using Rule = std::function<std::vector<Timestep>(NoiseSchedule const&, int steps)>;

  /// @param name shown in plans and reports
  /// @throws std::invalid_argument for an empty rule
  Spacing(std::string name, Rule rule) : name_(std::move(name)), rule_(std::move(rule)) {
    detail::require_callable("Spacing", rule_);
  }

  /// Multiples of floor(T / N), plus `offset` (arXiv 2305.08891, Table 2; diffusers' steps_offset).
  static Spacing leading(int offset = 0, Grid grid = {}) {
    return {"leading", [offset, grid](NoiseSchedule const& noise, int steps) {
              require_steps("leading", noise, steps);
              const int first = grid.include_last ? 0 : 1;
              const int stride = noise.num_train_timesteps() / (steps + first);
              std::vector<double> list;
              for (int i = steps - 1 + first; i >= first; --i) list.push_back(double(i) * stride + offset);
              return at("leading", noise, list);
            }};
  }

  /// What is usual for a schedule: linspace, and shifted for flow matching, whose t = 0 is the clean picture.
  static Spacing usual(NoiseSchedule const& noise) { return noise.is_flow() ? shifted() : linspace(); }

  /// N points from noisiest() to 0, evenly spaced (arXiv 2305.08891, Table 2); DiT's own default. N = 1 is {T - 1}.
  static Spacing linspace(Grid grid = {}) {
    return {"linspace", [grid](NoiseSchedule const& noise, int steps) {
              require_steps("linspace", noise, steps);
              const int intervals = grid.include_last ? steps - 1 : steps;
              const double last = noise.noisiest();
              const double stride = intervals ? last / intervals : 0;
              std::vector<double> list{last};
              for (int i = 1; i < steps; ++i) {
                const double t = (intervals - i) * stride;
                list.push_back(grid.round ? std::nearbyint(t) : t);
              }
              return at("linspace", noise, list);
            }};
  }

  /// T, T - T/N, T - 2T/N ..., rounded, minus 1 (arXiv 2305.08891, Table 2).
  static Spacing trailing() {
    return {"trailing", [](NoiseSchedule const& noise, int steps) {
              require_steps("trailing", noise, steps);
              const double start = noise.num_train_timesteps();
              const double stride = (start - start / steps) - start;  // as numpy.arange fills its values
              std::vector<double> list;
              for (int i = 0; i < steps; ++i) list.push_back(std::nearbyint(start + i * stride) - 1);
              return at("trailing", noise, list);
            }};
  }

  /// guided-diffusion's and DiT's respacing: the trajectory is cut into `counts.size()` equal sections, section k gives
  /// counts[k] evenly spaced steps, the least noisy section first. Positions are running float sums rounded to even,
  /// because the lists of those projects are.
  static Spacing sections(std::vector<int> counts) {
    if (counts.empty()) detail::refuse("Spacing::sections", "at least one count is needed", "none");
    return in_sections(std::move(counts));
  }

  /// The same with one section, which has all steps.
  static Spacing sections() { return in_sections({}); }

  /// guided-diffusion's "ddimN": the smallest integer stride that visits exactly N of the T timesteps, if there is one.
  static Spacing ddim_stride() {
    return {"ddim_stride", [](NoiseSchedule const& noise, int steps) {
              require_steps("ddim_stride", noise, steps);
              const int count = noise.num_train_timesteps();
              for (int stride = 1; stride < count; ++stride) {
                if ((count + stride - 1) / stride != steps) continue;
                std::vector<double> list;
                for (int i = steps - 1; i >= 0; --i) list.push_back(i * stride);
                return at("ddim_stride", noise, list);
              }
              detail::refuse("Spacing::ddim_stride",
                             "no integer stride visits exactly N of " + std::to_string(count) + " timesteps", steps);
            }};
  }

  /// Evenly spaced in sqrt(t + 1): more steps where there is little noise. dpm_solver's time_quadratic, whose t begins
  /// at 1 / T.
  static Spacing quadratic(Grid grid = {.include_last = false, .round = false}) {
    return {"quadratic", [grid](NoiseSchedule const& noise, int steps) {
              require_steps("quadratic", noise, steps);
              const double start = std::sqrt(noise.noisiest() + 1.0), end = 1;
              const int intervals = grid.include_last ? std::max(steps - 1, 1) : steps;
              std::vector<double> list;
              for (int i = 0; i < steps; ++i) {
                const double root = start + (end - start) * i / intervals;
                list.push_back(i ? root * root - 1 : noise.noisiest());
              }
              if (grid.round) round_apart(list);
              return at("quadratic", noise, list);
            }};
  }

  /// The same spacing of the training schedule without the timesteps whose lambda is below `lambda_min`. For cosine
  /// schedules, whose noisiest timesteps are next to pure noise, the authors' dpm_solver (clipped_lambda) and diffusers
  /// (lambda_min_clipped) have -5.1. For tables.
  static Spacing clipped(Spacing spacing, double lambda_min) {
    if (std::isnan(lambda_min)) detail::refuse("Spacing::clipped", "lambda_min must be a number", lambda_min);
    std::string name = "clipped " + spacing.name();
    return {std::move(name), [spacing = std::move(spacing), lambda_min](NoiseSchedule const& noise, int steps) {
              if (noise.is_flow()) detail::refuse("Spacing::clipped", "needs a table", noise.name());
              int last = noise.noisiest();
              while (last > 0 && !(noise.lambda(last) >= lambda_min)) --last;
              if (!(noise.lambda(last) >= lambda_min)) {
                detail::refuse("Spacing::clipped", "lambda_min must be at most " + detail::text(noise.lambda(0)),
                               lambda_min);
              }
              auto const& table = noise.alphas_cumprod();
              return spacing(NoiseSchedule::from_alphas_cumprod({table.begin(), table.begin() + last + 1}), steps);
            }};
  }

  /// Evenly spaced in lambda (Lu et al. 2022, arXiv 2206.00927, section 3.3); the field also calls these sigmas
  /// exponential, and with TimeOfSigma::nearest lu_lambdas.
  static Spacing uniform_logsnr(SigmaGrid grid = {}) {
    return {"uniform_logsnr", [grid](NoiseSchedule const& noise, int steps) {
              return by_sigma("uniform_logsnr", noise, steps, grid, [](double start, double end, double u) {
                return std::exp(std::log(start) + (std::log(end) - std::log(start)) * u);
              });
            }};
  }

  /// Karras et al. 2022 (arXiv 2206.00364, Eq. 5): (sigma / alpha)^(1/rho) is evenly spaced. Larger rho takes shorter
  /// steps where there is little noise.
  static Spacing karras(double rho = 7, SigmaGrid grid = {}) {
    if (!(rho > 0 && std::isfinite(rho))) detail::refuse("Spacing::karras", "rho must be above 0", rho);
    return {"karras", [rho, grid](NoiseSchedule const& noise, int steps) {
              return by_sigma("karras", noise, steps, grid, [rho](double start, double end, double u) {
                const double first = std::pow(start, 1 / rho), last = std::pow(end, 1 / rho);
                return std::pow(first + (last - first) * u, rho);
              });
            }};
  }

  /// sigma / alpha at the quantiles of a beta distribution, as diffusers applies "Beta Sampling is All You Need" (Lee
  /// et al. 2024, arXiv 2407.12173). The paper applies it to t: `beta`.
  static Spacing beta_on_sigma(double a = 0.6, double b = 0.6, SigmaGrid grid = {}) {
    require_beta("beta_on_sigma", a, b);
    return {"beta_on_sigma", [a, b, grid](NoiseSchedule const& noise, int steps) {
              return by_sigma("beta_on_sigma", noise, steps, grid, [a, b](double start, double end, double u) {
                return end + detail::beta_quantile(1 - u, a, b) * (start - end);
              });
            }};
  }

  /// t at the quantiles of a beta distribution (Lee et al. 2024, arXiv 2407.12173): with a, b below 1 more steps at
  /// both ends.
  static Spacing beta(double a = 0.6, double b = 0.6, Grid grid = {.include_last = false, .round = false}) {
    require_beta("beta", a, b);
    return {"beta", [a, b, grid](NoiseSchedule const& noise, int steps) {
              require_steps("beta", noise, steps);
              const int intervals = grid.include_last ? std::max(steps - 1, 1) : steps;
              std::vector<double> list;
              for (int i = 0; i < steps; ++i) {
                list.push_back(noise.noisiest() * detail::beta_quantile(1 - double(i) / intervals, a, b));
              }
              if (grid.round) round_apart(list);
              return at("beta", noise, list);
            }};
  }

  /// For flow matching: sigma = 1, 1 - 1/N, 1 - 2/N ..., each moved to shift sigma / (1 + (shift - 1) sigma), which
  /// takes more steps where there is much noise (Esser et al. 2024, arXiv 2403.03206, Eq. 23). Larger pictures want
  /// larger shifts; Stable Diffusion 3 uses 3.
  /// @param shift above 0; none: the noise schedule's own
  static Spacing shifted(std::optional<double> shift = {}) {
    if (shift) require_shift("Spacing::shifted", *shift);
    return {"shifted", [shift](NoiseSchedule const& noise, int steps) {
              return shifted_sigmas("shifted", noise, steps, shift,
                                    [&](double, int i) { return 1 - double(i) / steps; });
            }};
  }

  /// The timesteps of diffusers' FlowMatchEulerDiscreteScheduler, which begin their last step nearer to the picture:
  /// sigma goes in even steps from 1 to what 1 / T is shifted to, and all of it is shifted (once more).
  /// @param shift above 0; none: the noise schedule's own
  static Spacing flow_match_euler(std::optional<double> shift = {}) {
    if (shift) require_shift("Spacing::flow_match_euler", *shift);
    return {"flow_match_euler", [shift](NoiseSchedule const& noise, int steps) {
              return shifted_sigmas("flow_match_euler", noise, steps, shift, [&](double by, int i) {
                const double last = shifted_sigma(by, 1.0 / noise.num_train_timesteps());
                return steps == 1 ? 1 : 1 + (last - 1) * i / (steps - 1);
              });
            }};
  }

  /// The timesteps of diffusers' UniPCMultistepScheduler with use_flow_sigmas: sigma goes in even steps from 1 towards
  /// 1 / T, is shifted and rounded to float32, and is 1e-6 less where it is 1. The network is told the whole part of t.
  /// @param shift above 0; none: the noise schedule's own (diffusers' flow_shift)
  static Spacing flow_unipc(std::optional<double> shift = {}) {
    if (shift) require_shift("Spacing::flow_unipc", *shift);
    return {"flow_unipc", [shift](NoiseSchedule const& noise, int steps) {
              return in_float32("flow_unipc", noise, steps, shift, 1e-6,
                                [](double least, int i, int n) { return 1 + i * ((least - 1) / n); });
            }};
  }

  /// The same of its DPMSolverMultistepScheduler, where sigma goes from 1 - 1 / T towards 0.
  /// @param shift above 0; none: the noise schedule's own (diffusers' flow_shift)
  static Spacing flow_dpm_solver(std::optional<double> shift = {}) {
    if (shift) require_shift("Spacing::flow_dpm_solver", *shift);
    return {"flow_dpm_solver", [shift](NoiseSchedule const& noise, int steps) {
              return in_float32("flow_dpm_solver", noise, steps, shift, 0, [](double least, int i, int n) {
                return 1 - (i == 0 ? least : 1 + (n - i) * ((least - 1) / n));
              });
            }};
  }

  /// Exactly these noise levels, given as sigma / alpha, noisiest first; k-diffusion's sigmas without the final 0.
  /// Published lists are rounded: the first and the last may be outside of the noise schedule by a hundredth of
  /// themselves, and are then its ends.
  static Spacing sigmas(std::vector<double> sigmas, TimeOfSigma time = TimeOfSigma::exact) {
    return {"sigmas", [sigmas, time](NoiseSchedule const& noise, int) {
              constexpr auto place = "Spacing::sigmas";
              const bool ends_in_noise = !noise.is_flow() && noise.alpha(noise.noisiest()) == 0;
              const double most = std::exp(-noise.lambda(noise.noisiest() - (ends_in_noise ? 1 : 0)));
              const double least = std::exp(-noise.lambda(0));
              std::vector<Timestep> list;
              for (std::size_t i = 0; i < sigmas.size(); ++i) {
                double sigma = sigmas[i];
                if (!(sigma > 0)) detail::refuse(place, "each sigma must be above 0", sigma);
                if (i > 0 && !(sigma < sigmas[i - 1])) {
                  detail::refuse(place, "sigmas must be strictly decreasing",
                                 detail::text(sigma) + " after " + detail::text(sigmas[i - 1]));
                }
                if (i == 0 && sigma > most && sigma <= 1.01 * most) sigma = most;
                if (i + 1 == sigmas.size() && sigma < least && sigma >= 0.99 * least) sigma = least;
                const bool pure_noise = ends_in_noise && std::isinf(sigma);
                if (!(sigma >= least * (1 - 1e-9) && sigma <= most * (1 + 1e-9)) && !pure_noise) {
                  detail::refuse(place,
                                 "each sigma must be in [" + detail::text(least) + ", " + detail::text(most) +
                                     "], the range of the noise schedule",
                                 sigma);
                }
                list.push_back({time_of(noise, -std::log(sigma), time), noise.level(-std::log(sigma))});
              }
              return list;
            }};
  }

  /// Exactly these timesteps, noisiest first; fractions are allowed.
  static Spacing list(std::vector<double> timesteps) {
    return {"list", [timesteps](NoiseSchedule const& noise, int) { return at("list", noise, timesteps); }};
  }

  std::string const& name() const { return name_; }

  std::vector<Timestep> operator()(NoiseSchedule const& noise, int steps) const {
    const std::string place = "Spacing::" + name_;
    if (steps < 1) detail::refuse(place, "steps must be at least 1", steps);
    if (steps > NoiseSchedule::most_timesteps) {
      detail::refuse(place, "steps must be at most " + std::to_string(NoiseSchedule::most_timesteps), steps);
    }
    std::vector<Timestep> list = rule_(noise, steps);
    if (list.size() != std::size_t(steps)) {
      detail::refuse(place, "the rule must give exactly " + std::to_string(steps) + " timesteps", double(list.size()));
    }
    for (auto const& [t, level] : list) {
      if (!(t >= 0 && t <= noise.noisiest() && level.alpha >= 0 && std::isfinite(level.alpha) && level.sigma >= 0 &&
            std::isfinite(level.sigma))) {
        detail::refuse(
            place, "each t must be in [0, " + std::to_string(noise.noisiest()) + "], alpha and sigma finite numbers",
            detail::text(t) + ", " + detail::text(level.alpha) + " and " + detail::text(level.sigma));
      }
    }
    for (std::size_t i = 1; i < list.size(); ++i) {
      if (!(list[i].t <= list[i - 1].t && list[i].level.lambda() > list[i - 1].level.lambda())) {
        detail::refuse(place, "timesteps must be strictly decreasing",
                       detail::text(list[i].t) + " after " + detail::text(list[i - 1].t));
      }
    }
    return list;
  }

 private:
  /// @param counts none: one section
  static Spacing in_sections(std::vector<int> counts) {
    return {"sections", [counts](NoiseSchedule const& noise, int steps) {
              require_steps("sections", noise, steps);
              const std::vector<int> wanted = counts.empty() ? std::vector<int>{steps} : counts;
              const long long total = std::accumulate(wanted.begin(), wanted.end(), 0LL);
              if (total != steps) {
                detail::refuse("Spacing::sections",
                               "the counts must add up to the number of steps (" + std::to_string(steps) + ")",
                               std::to_string(total));
              }
              const int size = noise.num_train_timesteps() / int(wanted.size());
              const int longer = noise.num_train_timesteps() % int(wanted.size());
              std::vector<double> list;
              int start = 0;
              for (int k = 0; k < int(wanted.size()); ++k) {
                const int count = wanted[std::size_t(k)], length = size + (k < longer ? 1 : 0);
                if (count < 0 || count > length) {
                  detail::refuse("Spacing::sections",
                                 "each count must be in [0, " + std::to_string(length) + "], its section's length",
                                 count);
                }
                const double stride = count > 1 ? double(length - 1) / (count - 1) : 1;
                // One step in all must start from noise: peers take t = 0 here, and then fail.
                double position = steps == 1 ? length - 1 : 0;
                for (int i = 0; i < count; ++i, position += stride) list.push_back(start + std::nearbyint(position));
                start += length;
              }
              return at("sections", noise, {list.rbegin(), list.rend()});
            }};
  }

  static void require_shift(char const* place, double shift) {
    if (!(shift > 0 && std::isfinite(shift))) detail::refuse(place, "shift must be above 0", shift);
  }

  /// Esser et al. 2024, Eq. 23.
  static double shifted_sigma(double shift, double sigma) { return shift * sigma / (1 + (shift - 1) * sigma); }

  /// @param sigma of (shift, index), before it is shifted
  static std::vector<Timestep> shifted_sigmas(char const* name, NoiseSchedule const& noise, int steps,
                                              std::optional<double> shift, auto const& sigma) {
    if (!noise.is_flow()) detail::refuse(std::string("Spacing::") + name, "is for flow matching", noise.name());
    require_steps(name, noise, steps);
    const double by = shift.value_or(noise.shift());
    std::vector<double> list;
    for (int i = 0; i < steps; ++i) list.push_back(noise.noisiest() * shifted_sigma(by, sigma(by, i)));
    return at(name, noise, list);
  }

  /// @param less what is taken from a sigma that is as near to 1, so that lambda is finite
  /// @param sigma of (1 / T, index, steps), before it is shifted
  static std::vector<Timestep> in_float32(char const* name, NoiseSchedule const& noise, int steps,
                                          std::optional<double> shift, double less, auto const& sigma) {
    if (!noise.is_flow()) detail::refuse(std::string("Spacing::") + name, "is for flow matching", noise.name());
    require_steps(name, noise, steps);
    const double by = shift.value_or(noise.shift()), count = noise.num_train_timesteps();
    std::vector<Timestep> list;
    for (int i = 0; i < steps; ++i) {
      double shifted = shifted_sigma(by, sigma(1 / count, i, steps));
      if (std::abs(shifted - 1) < less) shifted -= less;
      const double rounded = double(float(shifted));
      list.push_back({std::trunc(shifted * count), {1 - rounded, rounded}});
    }
    return list;
  }

  static void require_steps(char const* name, NoiseSchedule const& noise, int steps) {
    if (steps > noise.num_train_timesteps()) {
      detail::refuse(std::string("Spacing::") + name,
                     "steps must be in [1, " + std::to_string(noise.num_train_timesteps()) + "]", steps);
    }
  }

  static std::vector<Timestep> at(char const* name, NoiseSchedule const& noise, std::vector<double> const& list) {
    std::vector<Timestep> timesteps;
    const int last = noise.noisiest();
    for (double t : list) {
      if (!(t >= 0 && t <= last)) {
        detail::refuse(std::string("Spacing::") + name, "timesteps must be in [0, " + std::to_string(last) + "]", t);
      }
      timesteps.push_back({t, noise.at(t)});
    }
    return timesteps;
  }

  /// Rounds a decreasing list to integers, each at least 1 above the next; the last stays.
  static void round_apart(std::vector<double>& list) {
    for (double& t : list) t = std::nearbyint(t);
    // Dense at the noisy end (beta) they would leave the schedule upwards, so those are first moved down.
    for (std::size_t i = 1; i < list.size(); ++i) list[i] = std::min(list[i], list[i - 1] - 1);
    list.back() = std::max(list.back(), 0.0);
    for (std::size_t i = list.size() - 1; i > 0; --i) list[i - 1] = std::max(list[i - 1], list[i] + 1);
  }

  static void require_beta(char const* name, double a, double b) {
    if (!(a > 0 && b > 0 && std::isfinite(a) && std::isfinite(b))) {
      detail::refuse(std::string("Spacing::") + name, "a and b must be above 0",
                     detail::text(a) + " and " + detail::text(b));
    }
  }

  /// N levels whose sigma / alpha is family(first, last, u), with u evenly spaced in [0, 1].
  template <class Family>
  static std::vector<Timestep> by_sigma(char const* name, NoiseSchedule const& noise, int steps, SigmaGrid const& grid,
                                        Family family) {
    require_steps(name, noise, steps);
    const NoiseLevel first = grid.begin.value_or(noise.at(noise.noisiest())), last = grid.end.value_or(noise.at(0));
    if (!(first.alpha > 0 && last.sigma > 0)) {
      detail::refuse(std::string("Spacing::") + name, "must begin and end where there is both picture and noise",
                     noise.name() + "; state SigmaGrid::begin and end");
    }
    for (auto const& [end, level] : {std::pair{"begin", first}, std::pair{"end", last}}) {
      const double lambda = level.lambda(), slack = 1e-9 * (1 + std::abs(lambda));
      const double lowest = noise.lambda(noise.noisiest()), highest = noise.lambda(0);
      if (!(std::isfinite(lambda) && lambda >= lowest - slack && lambda <= highest + slack)) {
        detail::refuse(std::string("Spacing::") + name,
                       std::string("SigmaGrid::") + end + " must be a level of the noise schedule " + noise.name(),
                       "sigma / alpha = " + detail::text(level.sigma / level.alpha));
      }
    }
    const int intervals = grid.include_last ? std::max(steps - 1, 1) : steps;
    std::vector<Timestep> list;
    for (int i = 0; i < steps; ++i) {
      // The ends are what they are, not what is left of them after a power and a root.
      const bool at_first = i == 0, at_last = i == intervals;
      const NoiseLevel exact = at_first ? first : last;
      const double lambda =
          at_first || at_last
              ? exact.lambda()
              : -std::log(family(first.sigma / first.alpha, last.sigma / last.alpha, double(i) / intervals));
      if (!std::isfinite(lambda)) {
        detail::refuse(std::string("Spacing::") + name, "its parameters must give finite sigmas",
                       detail::text(std::exp(-lambda)) + " at position " + std::to_string(i));
      }
      list.push_back({time_of(noise, lambda, grid.time), at_first || at_last ? exact : noise.level(lambda)});
    }
    return list;
  }

  std::string name_;
  Rule rule_;
};

}  // namespace tstitch

TSTITCH_USUAL_CONTRACTION
