/// @file
/// The noise schedule that a network was trained with. Host doubles only; includes no torch.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <string>
#include <utility>
#include <vector>

#include "../base/contraction.hpp"
#include "../base/error.hpp"

TSTITCH_NO_CONTRACTION

namespace tstitch {

/// How much picture and how much noise x_t holds: x_t = alpha x_0 + sigma eps. alpha^2 + sigma^2 = 1 for diffusion
/// schedules (variance preserving), alpha + sigma = 1 for flow matching.
struct NoiseLevel {
  double alpha;
  double sigma;

  /// log(alpha / sigma), half of the log signal-to-noise ratio; infinity for the clean picture, -infinity for pure
  /// noise.
  double lambda() const { return std::log(alpha / sigma); }

  /// The end of every trajectory: x_0 itself.
  static constexpr NoiseLevel clean() { return {1.0, 0.0}; }

  /// The variance-preserving level of this lambda; `NoiseSchedule::level` knows flow matching too.
  static NoiseLevel from_lambda(double lambda) {
    return {1.0 / std::sqrt(1.0 + std::exp(-2.0 * lambda)), 1.0 / std::sqrt(1.0 + std::exp(2.0 * lambda))};
  }

  bool operator==(NoiseLevel const&) const = default;
};

/// A place on the trajectory: what the network is told and how noisy x is. Spacings that choose noise levels (Karras,
/// uniform log-SNR) give a fractional `t`; networks with integer timesteps then see the nearest integer, ties to even.
struct Timestep {
  double t;          ///< in [0, NoiseSchedule::noisiest()]
  NoiseLevel level;  ///< of x there
};

/// alpha and sigma for every training timestep, from 0 (least noise) to `noisiest()`, and between them.
///
/// Diffusion schedules are tables of T timesteps, 0 to T - 1. Flow matching has sigma = t / T for t from 0 to T.
///
/// Names: `alphas_cumprod[t]` is the product of (1 - beta) up to t ("alpha bar" in Ho et al. 2020, arXiv 2006.11239,
/// Eq. 4); `alpha` and `sigma` are its square root and that of its complement. The alpha of Lu et al. 2022
/// (arXiv 2206.00927) is our `alpha`, the alpha of Ho et al. is 1 - beta.
class NoiseSchedule {
 public:
  /// beta rises linearly (Ho et al. 2020). The defaults are those of DDPM and DiT.
  static NoiseSchedule linear(int num_train_timesteps = 1000, double beta_start = 1e-4, double beta_end = 0.02) {
    auto betas = ramp("NoiseSchedule::linear", num_train_timesteps, beta_start, beta_end);
    NoiseSchedule schedule = from_betas(betas, label("linear", num_train_timesteps, beta_start, beta_end));
    schedule.ramp_ = {1, beta_start, beta_end};
    return schedule;
  }

  /// sqrt(beta) rises linearly (Rombach et al. 2022). The defaults are those of Stable Diffusion.
  static NoiseSchedule scaled_linear(int num_train_timesteps = 1000, double beta_start = 0.00085,
                                     double beta_end = 0.012) {
    if (!(beta_start > 0 && beta_end > 0)) {
      detail::refuse("NoiseSchedule::scaled_linear", "beta_start and beta_end must be above 0",
                     detail::text(beta_start) + " and " + detail::text(beta_end));
    }
    auto betas = ramp("NoiseSchedule::scaled_linear", num_train_timesteps, std::sqrt(beta_start), std::sqrt(beta_end));
    for (double& beta : betas) beta *= beta;
    NoiseSchedule schedule = from_betas(betas, label("scaled_linear", num_train_timesteps, beta_start, beta_end));
    schedule.ramp_ = {2, std::sqrt(beta_start), std::sqrt(beta_end)};
    return schedule;
  }

  /// alphas_cumprod follows a squared cosine, beta at most 0.999 (Nichol and Dhariwal 2021, arXiv 2102.09672, Eq. 17).
  static NoiseSchedule cosine(int num_train_timesteps = 1000) {
    require_timesteps("NoiseSchedule::cosine", num_train_timesteps);
    const auto alpha_bar = [](double u) {
      const double c = std::cos((u + 0.008) / 1.008 * std::numbers::pi / 2);
      return c * c;
    };
    std::vector<double> betas;
    for (int i = 0; i < num_train_timesteps; ++i) {
      const double from = alpha_bar(double(i) / num_train_timesteps);
      betas.push_back(std::min(1 - alpha_bar(double(i + 1) / num_train_timesteps) / from, 0.999));
    }
    return from_betas(betas, "cosine(" + std::to_string(num_train_timesteps) + ")");
  }

  /// @param betas one a training timestep, each inside (0, 1).
  static NoiseSchedule from_betas(std::vector<double> const& betas, std::string name = "from_betas") {
    std::vector<double> alphas_cumprod;
    double product = 1;
    for (double beta : betas) {
      if (!(beta > 0 && beta < 1)) detail::refuse("NoiseSchedule::from_betas", "each beta must be inside (0, 1)", beta);
      alphas_cumprod.push_back(product *= 1 - beta);
      if (product == 0) {
        detail::refuse("NoiseSchedule::from_betas", "betas must leave the product of 1 - beta above 0",
                       "0 at t = " + std::to_string(alphas_cumprod.size() - 1));
      }
    }
    return from_alphas_cumprod(std::move(alphas_cumprod), std::move(name));
  }

  /// Flow matching (Lipman et al. 2023, arXiv 2210.02747) on the straight line that SiT, Stable Diffusion 3 and FLUX
  /// use: alpha = 1 - t / T, sigma = t / T. t = T is pure noise.
  /// @param shift above 0, of the timesteps that the network's makers visit. It changes no noise level: it is what
  /// `Spacing::shifted` takes where nothing else is said. Stable Diffusion 3 has 3.
  static NoiseSchedule flow(int num_train_timesteps = 1000, double shift = 1) {
    require_timesteps("NoiseSchedule::flow", num_train_timesteps);
    if (!(shift > 0 && std::isfinite(shift))) detail::refuse("NoiseSchedule::flow", "shift must be above 0", shift);
    NoiseSchedule flow({}, "flow(" + std::to_string(num_train_timesteps) +
                               (shift == 1 ? ")" : ", shift " + detail::text(shift) + ")"));
    flow.flow_timesteps_ = num_train_timesteps;
    flow.shift_ = shift;
    return flow;
  }

  /// @param alphas_cumprod one a training timestep, inside (0, 1), strictly decreasing; the last may be 0
  static NoiseSchedule from_alphas_cumprod(std::vector<double> alphas_cumprod,
                                           std::string name = "from_alphas_cumprod") {
    constexpr auto place = "NoiseSchedule::from_alphas_cumprod";
    if (alphas_cumprod.empty()) detail::refuse(place, "at least one timestep is needed", 0);
    double before = 1;
    for (std::size_t i = 0; i < alphas_cumprod.size(); ++i) {
      const double value = alphas_cumprod[i];
      const bool pure_noise = value == 0 && i > 0 && i + 1 == alphas_cumprod.size();
      if (!((value > 0 || pure_noise) && value < before)) {
        detail::refuse(place, "values must be inside (0, 1) and strictly decreasing; only the last may be 0",
                       detail::text(value) + " after " + detail::text(before));
      }
      before = value;
    }
    return NoiseSchedule(std::move(alphas_cumprod), std::move(name));
  }

  /// The same schedule with its last timestep moved to pure noise (Lin et al. 2024, arXiv 2305.08891, Algorithm 1):
  /// sqrt(alphas_cumprod) is shifted so that its last value is 0, and stretched so that its first is as before.
  /// @throws std::invalid_argument for flow matching, which ends in pure noise already, and for a single timestep
  NoiseSchedule with_zero_terminal_snr() const {
    if (alphas_cumprod_.size() < 2) {
      detail::refuse("NoiseSchedule::with_zero_terminal_snr", "needs a table of at least 2 timesteps", name_);
    }
    const double first = std::sqrt(alphas_cumprod_.front()), last = std::sqrt(alphas_cumprod_.back());
    std::vector<double> values;
    for (double value : alphas_cumprod_) {
      const double root = (std::sqrt(value) - last) * first / (first - last);
      values.push_back(root * root);
    }
    return from_alphas_cumprod(std::move(values), name_ + " to zero SNR");
  }

  /// The same schedule as programs have it that compute betas and alphas_cumprod in float32, as diffusers does: at t =
  /// 0 1 - alphas_cumprod is off by up to 2e-4 of itself.
  /// @throws std::invalid_argument for flow matching
  NoiseSchedule in_float32() const {
    if (is_flow()) detail::refuse("NoiseSchedule::in_float32", "needs a table", name_);
    const int count = num_train_timesteps();
    // torch.linspace counts from both ends, with fused multiply-adds.
    const float start = float(ramp_.start), end = float(ramp_.end),
                step = (end - start) / float(std::max(count - 1, 1));
    std::vector<double> values;
    double product = 1;
    for (int t = 0; t < count; ++t) {
      const float even = t < count / 2 ? std::fma(step, float(t), start) : std::fma(-step, float(count - 1 - t), end);
      const float beta =
          ramp_.power == 1 ? even
          : ramp_.power == 2
              ? even * even
              : float(1 - alphas_cumprod_[std::size_t(t)] / (t ? alphas_cumprod_[std::size_t(t - 1)] : 1.0));
      product *= double(1.0f - beta);  // torch.cumprod multiplies in double and rounds each value
      values.push_back(double(float(product)));
      require_positive("NoiseSchedule::in_float32", t, values.back());
    }
    return from_alphas_cumprod(std::move(values), name_ + " in float32");
  }

  /// The same schedule with alphas_cumprod rounded to float32, as programs have it that keep only the table so.
  /// @throws std::invalid_argument for flow matching
  NoiseSchedule rounded_to_float32() const {
    if (is_flow()) detail::refuse("NoiseSchedule::rounded_to_float32", "needs a table", name_);
    std::vector<double> values;
    for (double value : alphas_cumprod_) {
      values.push_back(double(float(value)));
      require_positive("NoiseSchedule::rounded_to_float32", int(values.size()) - 1, values.back());
    }
    return from_alphas_cumprod(std::move(values), name_ + " in float32");
  }

  /// Of a schedule and of a run.
  static constexpr int most_timesteps = 1'000'000;

  /// T, the number of timesteps that the network was trained with.
  int num_train_timesteps() const { return is_flow() ? flow_timesteps_ : int(alphas_cumprod_.size()); }

  bool is_flow() const { return flow_timesteps_ > 0; }

  /// Of `flow`; 1 for tables.
  double shift() const { return shift_; }

  /// The t of most noise: T - 1 for tables, T for flow matching.
  int noisiest() const { return is_flow() ? flow_timesteps_ : num_train_timesteps() - 1; }

  /// The table; empty for flow matching.
  std::vector<double> const& alphas_cumprod() const { return alphas_cumprod_; }

  /// What made it and with which numbers, for plans and reports: "linear(1000, 0.0001, 0.02)".
  std::string const& name() const { return name_; }

  /// The level at any t in [0, noisiest()]; between the timesteps of a table log(alpha) is linear in t, as in
  /// Lu et al. 2022, appendix D.4.
  /// @throws std::invalid_argument outside, and between the last two timesteps of a table that ends in pure noise
  NoiseLevel at(double t) const {
    const int last = noisiest();
    if (!(t >= 0 && t <= last)) {
      detail::refuse("NoiseSchedule::at", "t must be in [0, " + std::to_string(last) + "]", t);
    }
    if (is_flow()) return {1 - t / last, t / last};
    const int below = int(t);
    const double known = alphas_cumprod_[std::size_t(below)];
    if (t == below) return {std::sqrt(known), std::sqrt(1 - known)};
    if (alphas_cumprod_[std::size_t(below + 1)] == 0) {
      detail::refuse("NoiseSchedule::at", "with zero terminal SNR t must not be between the last two timesteps", t);
    }
    // Not std::lerp, whose code is compiled as the compiler was told.
    const double from = log_alpha_at(below), log_alpha = from + (t - below) * (log_alpha_at(below + 1) - from);
    return {std::exp(log_alpha), std::sqrt(-std::expm1(2 * log_alpha))};
  }

  double alpha(double t) const { return at(t).alpha; }
  double sigma(double t) const { return at(t).sigma; }
  double lambda(double t) const { return at(t).lambda(); }

  /// The level of this lambda, whichever t that is.
  NoiseLevel level(double lambda) const {
    if (!is_flow()) return NoiseLevel::from_lambda(lambda);
    return {1 / (1 + std::exp(-lambda)), 1 / (1 + std::exp(lambda))};
  }

  /// The t at which `lambda(t)` is this; the inverse of lambda().
  double timestep(double lambda) const {
    if (is_flow()) {
      if (std::isnan(lambda)) detail::refuse("NoiseSchedule::timestep", "lambda must be a number", lambda);
      return noisiest() / (1 + std::exp(lambda));
    }
    const double log_alpha = -0.5 * std::log1p(std::exp(-2 * lambda));
    return find(lambda, log_alpha, [this](int t) { return log_alpha_at(t); });
  }

  /// The same where the field's code has lambda, not log(alpha), linear between timesteps: k-diffusion and the sigma
  /// families of diffusers. Between two timesteps it differs a little from `timestep`.
  double timestep_linear_in_lambda(double lambda) const {
    if (is_flow()) return timestep(lambda);
    return find(lambda, lambda, [this](int t) { return this->lambda(t); });
  }

  /// The place of this lambda.
  Timestep point(double lambda) const { return {timestep(lambda), level(lambda)}; }

  /// The largest difference of alphas_cumprod; infinite when the kind or the number of timesteps differs.
  double distance(NoiseSchedule const& other) const {
    if (num_train_timesteps() != other.num_train_timesteps() || is_flow() != other.is_flow()) {
      return std::numeric_limits<double>::infinity();
    }
    double most = 0;
    for (std::size_t i = 0; i < alphas_cumprod_.size(); ++i) {
      most = std::max(most, std::abs(alphas_cumprod_[i] - other.alphas_cumprod_[i]));
    }
    return most;
  }

 private:
  NoiseSchedule(std::vector<double> alphas_cumprod, std::string name)
      : alphas_cumprod_(std::move(alphas_cumprod)), name_(std::move(name)) {}

  double log_alpha_at(int t) const { return 0.5 * std::log(alphas_cumprod_[std::size_t(t)]); }

  /// The t of this lambda, where `value_at` is linear between timesteps and is `value` there.
  template <class ValueAt>
  double find(double lambda, double value, ValueAt value_at) const {
    const int last = noisiest();
    const bool pure_noise = alphas_cumprod_[std::size_t(last)] == 0;
    if (pure_noise && lambda == this->lambda(last)) return last;
    int above = pure_noise ? last - 1 : last;
    const double lowest = this->lambda(above), highest = this->lambda(0);
    // Spacings compute the ends themselves, so a few units in the last place must not be outside.
    const double slack = std::isfinite(lambda) ? 1e-9 * (1 + std::abs(lambda)) : 0;
    if (!(lambda >= lowest - slack && lambda <= highest + slack)) {
      detail::refuse("NoiseSchedule::timestep",
                     "lambda must be in [" + detail::text(lowest) + ", " + detail::text(highest) + "]", lambda);
    }
    if (lambda >= highest) return 0;
    if (lambda <= lowest) return above;
    int below = 0;
    while (above - below > 1) {
      const int middle = (below + above) / 2;
      (value_at(middle) >= value ? below : above) = middle;
    }
    return below + std::clamp((value - value_at(below)) / (value_at(above) - value_at(below)), 0.0, 1.0);
  }

  static void require_timesteps(char const* place, int num_train_timesteps) {
    if (num_train_timesteps < 1 || num_train_timesteps > most_timesteps) {
      detail::refuse(place,
                     num_train_timesteps < 1 ? "num_train_timesteps must be at least 1"
                                             : "num_train_timesteps must be at most " + std::to_string(most_timesteps),
                     num_train_timesteps);
    }
  }

  /// A table ends before float32 does, unless its end is pure noise.
  void require_positive(char const* place, int t, double alpha_cumprod) const {
    const double stated = alphas_cumprod_[std::size_t(t)];
    if (alpha_cumprod > 0 || stated == 0) return;
    detail::refuse(place, "alphas_cumprod must be above 0 in float32",
                   detail::text(stated) + " at t = " + std::to_string(t));
  }

  static std::string label(char const* kind, int num_train_timesteps, double start, double end) {
    return std::string(kind) + "(" + std::to_string(num_train_timesteps) + ", " + detail::text(start) + ", " +
           detail::text(end) + ")";
  }

  /// numpy.linspace: index times step, so that tables agree with the peers' to the last bit.
  static std::vector<double> ramp(char const* place, int count, double start, double end) {
    require_timesteps(place, count);
    std::vector<double> values;
    const double step = count > 1 ? (end - start) / (count - 1) : 0;
    for (int i = 0; i < count; ++i) values.push_back(i * step + start);
    if (count > 1) values.back() = end;
    return values;
  }

  std::vector<double> alphas_cumprod_;
  std::string name_;
  int flow_timesteps_ = 0;  // T of flow matching; 0 for a table
  double shift_ = 1;
  struct {
    int power = 0;  // beta is an even ramp to this power; 0: it is not
    double start = 0, end = 0;
  } ramp_;
};

}  // namespace tstitch

TSTITCH_USUAL_CONTRACTION
