/// @file
/// Timestep spacings: which training timesteps a run of N steps visits. Host doubles only; includes no torch.
#pragma once

#include <cmath>
#include <functional>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "noise_schedule.hpp"

namespace tstitch {

/// A place on the trajectory. Spacings that choose noise levels (Karras, uniform log-SNR) give a fractional `t`;
/// networks with integer timesteps then see the nearest integer, ties to even.
struct Timestep {
  double t;          ///< in [0, T - 1]
  NoiseLevel level;  ///< of x there
};

/// Variations of the rules that lay an even grid.
struct Grid {
  /// Whether the list ends on the rule's least noisy point. If not, the grid has one more point and its last is where
  /// the final step leads when the run ends at FinalSigma::sigma_min; diffusers' multistep DPM-Solver and the authors'
  /// dpm_solver do this.
  bool include_last = true;
  /// Whether t is rounded to integers, ties to even (leading and linspace).
  bool round = true;
};

/// A rule that turns (noise schedule, N) into exactly N timesteps, noisiest first.
///
/// A value: choose one of the named rules or wrap a callable. Calling it checks what every rule promises, and throws
/// std::invalid_argument where a rule cannot keep it: exactly N entries, t and noise strictly decreasing.
class Spacing {
 public:
  using Rule = std::function<std::vector<Timestep>(NoiseSchedule const&, int steps)>;

  /// @param name shown in plans and reports
  Spacing(std::string name, Rule rule) : name_(std::move(name)), rule_(std::move(rule)) {}

  /// Multiples of floor(T / N), plus `offset` (arXiv 2305.08891, Table 2; diffusers' steps_offset).
  static Spacing leading(int offset = 0, Grid grid = {}) {
    return {"leading", [offset, grid](NoiseSchedule const& noise, int steps) {
              require_steps("leading", noise, steps);
              const int first = grid.include_last ? 0 : 1;
              const int stride = noise.num_train_timesteps() / (steps + first);
              std::vector<double> list;
              for (int i = steps - 1 + first; i >= first; --i) list.push_back(i * stride + offset);
              return at("leading", noise, list);
            }};
  }

  /// N points from T - 1 to 0, evenly spaced (arXiv 2305.08891, Table 2); DiT's own default. N = 1 is {T - 1}.
  static Spacing linspace(Grid grid = {}) {
    return {"linspace", [grid](NoiseSchedule const& noise, int steps) {
              require_steps("linspace", noise, steps);
              const int intervals = grid.include_last ? steps - 1 : steps;
              const double last = noise.num_train_timesteps() - 1;
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
  /// because the lists of those projects are. An empty list means one section with all steps.
  static Spacing sections(std::vector<int> counts = {}) {
    return {"sections", [counts](NoiseSchedule const& noise, int steps) {
              require_steps("sections", noise, steps);
              const std::vector<int> wanted = counts.empty() ? std::vector<int>{steps} : counts;
              const int total = std::accumulate(wanted.begin(), wanted.end(), 0);
              if (total != steps) {
                detail::refuse("Spacing::sections",
                               "the counts must add up to the number of steps (" + std::to_string(steps) + ")", total);
              }
              const int size = noise.num_train_timesteps() / int(wanted.size());
              const int longer = noise.num_train_timesteps() % int(wanted.size());
              std::vector<double> list;
              int start = 0;
              for (int k = 0; k < int(wanted.size()); ++k) {
                const int length = size + (k < longer ? 1 : 0);
                if (wanted[k] < 0 || wanted[k] > length) {
                  detail::refuse("Spacing::sections",
                                 "each count must be in [0, " + std::to_string(length) + "], its section's length",
                                 wanted[k]);
                }
                const double stride = wanted[k] > 1 ? double(length - 1) / (wanted[k] - 1) : 1;
                // One step in all must start from noise: peers take t = 0 here, and then fail.
                double position = steps == 1 ? length - 1 : 0;
                for (int i = 0; i < wanted[k]; ++i, position += stride)
                  list.push_back(start + std::nearbyint(position));
                start += length;
              }
              return at("sections", noise, {list.rbegin(), list.rend()});
            }};
  }

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

  /// Evenly spaced in lambda, from T - 1 to 0 (Lu et al. 2022, arXiv 2206.00927, section 3.3; diffusers'
  /// use_lu_lambdas).
  static Spacing uniform_logsnr(Grid grid = {}) {
    return {"uniform_logsnr", [grid](NoiseSchedule const& noise, int steps) {
              require_steps("uniform_logsnr", noise, steps);
              const double start = noise.lambda(noise.num_train_timesteps() - 1), end = noise.lambda(0);
              const int intervals = grid.include_last ? std::max(steps - 1, 1) : steps;
              std::vector<Timestep> list;
              for (int i = 0; i < steps; ++i) {
                const double lambda = start + (end - start) * i / intervals;
                list.push_back({noise.timestep(lambda), NoiseLevel::from_lambda(lambda)});
              }
              return list;
            }};
  }

  /// Karras et al. 2022 (arXiv 2206.00364, Eq. 5) over the whole training schedule: (sigma / alpha)^(1/rho) is evenly
  /// spaced. Larger rho takes shorter steps where there is little noise.
  static Spacing karras(double rho = 7, Grid grid = {}) {
    if (!(rho > 0 && std::isfinite(rho))) detail::refuse("Spacing::karras", "rho must be above 0", rho);
    return {"karras", [rho, grid](NoiseSchedule const& noise, int steps) {
              require_steps("karras", noise, steps);
              const double start = std::exp(-noise.lambda(noise.num_train_timesteps() - 1) / rho);
              const double end = std::exp(-noise.lambda(0) / rho);
              const int intervals = grid.include_last ? std::max(steps - 1, 1) : steps;
              std::vector<Timestep> list;
              for (int i = 0; i < steps; ++i) {
                const double lambda = -rho * std::log(start + (end - start) * i / intervals);
                list.push_back({noise.timestep(lambda), NoiseLevel::from_lambda(lambda)});
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
    std::vector<Timestep> list = rule_(noise, steps);
    if (list.size() != std::size_t(steps)) {
      detail::refuse(place, "the rule must give exactly " + std::to_string(steps) + " timesteps", double(list.size()));
    }
    for (std::size_t i = 1; i < list.size(); ++i) {
      if (!(list[i].t < list[i - 1].t && list[i].level.lambda() > list[i - 1].level.lambda())) {
        detail::refuse(place, "timesteps must be strictly decreasing",
                       detail::text(list[i].t) + " after " + detail::text(list[i - 1].t));
      }
    }
    return list;
  }

 private:
  static void require_steps(char const* name, NoiseSchedule const& noise, int steps) {
    if (steps > noise.num_train_timesteps()) {
      detail::refuse(std::string("Spacing::") + name,
                     "steps must be in [1, " + std::to_string(noise.num_train_timesteps()) + "]", steps);
    }
  }

  static std::vector<Timestep> at(char const* name, NoiseSchedule const& noise, std::vector<double> const& list) {
    std::vector<Timestep> timesteps;
    const int last = noise.num_train_timesteps() - 1;
    for (double t : list) {
      if (!(t >= 0 && t <= last)) {
        detail::refuse(std::string("Spacing::") + name, "timesteps must be in [0, " + std::to_string(last) + "]", t);
      }
      timesteps.push_back({t, noise.at(t)});
    }
    return timesteps;
  }

  std::string name_;
  Rule rule_;
};

}  // namespace tstitch
