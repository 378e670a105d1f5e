/// @file
/// DPM-Solver-12 and DPM-Solver-23, the adaptive DPM-Solver: Lu et al. 2022, arXiv 2206.00927, Appendix C.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../base/contraction.hpp"
#include "../tensor/host_tensor.hpp"
#include "dpm_solver.hpp"

TSTITCH_NO_CONTRACTION

namespace tstitch {

/// Whose error decides on a step.
enum class ErrorNorm {
  per_image,  ///< each image's own: each has its own steps, and ends the same whichever images are beside it
  batch,      ///< the largest of the batch: all take the steps of the hardest. The authors' dpm_solver.
};

constexpr std::array<char const*, 2> names_of(ErrorNorm) {
  return {"per_image", "batch"};
}

/// What follows from the error of a trial.
struct StepControl {
  double factor;  ///< of the step size to try next to the one that was tried
  bool accepted;
};

/// k-diffusion's step size control. With e = 1 / (error + 1e-8) of this trial and e1, e2 of the last two accepted ones
/// the factor is 1 + atan(e^a e1^b e2^c - 1), a = (p + i + d) / order, b = -(p + 2 d) / order, c = d / order.
struct PIDController {
  double p = 0;  ///< proportional, integral and derivative gain
  double i = 1;
  double d = 0;
  double accept_from = 0.81;  ///< in (0, 1]: a trial is accepted if its factor is at least this

  /// e1 and e2 of one image; 0 before the first trial.
  using Memory = std::array<double, 2>;

  static void options(auto& self, auto const& see) {
    see("p", self.p);
    see("i", self.i);
    see("d", self.d);
    see("accept_from", self.accept_from);
  }

  void validate() const {
    for (const double gain : {p, i, d}) {
      if (!(std::abs(gain) <= 1e6)) detail::refuse("PIDController", "p, i and d must be in [-1e6, 1e6]", gain);
    }
    if (!(accept_from > 0 && accept_from <= 1)) {
      detail::refuse("PIDController", "accept_from must be in (0, 1]", accept_from);
    }
  }

  StepControl operator()(double error, int order, Memory& memory) const {
    const double e = 1 / (error + 1e-8);
    auto& [e1, e2] = memory;
    if (e1 == 0) e1 = e2 = e;
    const double product =
        std::pow(e, (p + i + d) / order) * std::pow(e1, -(p + 2 * d) / order) * std::pow(e2, d / order);
    const double factor = 1 + std::atan(product - 1);
    const bool accepted = factor >= accept_from;
    if (accepted) e2 = std::exchange(e1, e);
    return {factor, accepted};
  }
};

/// What one planned step took.
struct AdaptiveReport {
  Step const& step;
  int evaluations;            ///< network evaluations, of the whole batch each
  std::vector<int> trials;    ///< one an image: inner steps that it tried
  std::vector<int> accepted;  ///< one an image: inner steps that it took
};

/// Takes one planned step in as many inner steps as the tolerances ask for. A run of one network needs one planned
/// step, a run of two needs two.
///
/// An inner step in lambda is tried with two orders that share their evaluations: 1 and 2 (DPM-Solver-12, r_1 = 1/2),
/// or 2 and 3 (DPM-Solver-23, r_1 = 1/3, r_2 = 2/3); for x_0 with the forms of arXiv 2211.01095. The error E is what
/// they differ by, in units of max(atol, rtol |x|), root mean square over an image; |x| is the larger of the lower
/// order's x and the same of the last accepted trial. Where E is at most 1 the higher order is kept. The next trial is
/// theta E^(-1/order) times as long.
///
/// Lambda is infinite at pure noise and at x_0. A step from pure noise first goes to the next timestep, and one to x_0
/// goes to t = 0 (flow matching, where that is x_0: t = 1) and then to x_0. These two are of order 1 with one
/// evaluation each, without control.
///
/// The host must know E to go on: it waits for the device once a trial. Images that have arrived stay as they are but
/// are evaluated on with the others. Inner points lie between timesteps; a network with integer timesteps is told the
/// nearest.
///
/// Throws std::runtime_error where E is not a finite number or `max_trials` is not enough.
struct AdaptiveDPMSolverUpdate {
  int order = 3;  ///< 2 or 3, of the solution that is kept
  AlgorithmType algorithm_type = AlgorithmType::dpmsolver_plus_plus;
  double atol = 0.0078;   ///< above 0: the error that is tolerated in any value; this is 1 of 256 levels of a picture
  double rtol = 0.05;     ///< at least 0: and in proportion to it
  double theta = 0.9;     ///< in (0, 1]: how much of the step size that would just do
  double h_init = 0.05;   ///< above 0: the first trial of each planned step, in lambda; see carry_step_size
  int max_trials = 1000;  ///< in a planned step
  ErrorNorm error_norm = ErrorNorm::per_image;
  std::optional<PIDController> pid = {};  ///< takes the place of theta and of E at most 1
  bool error_of_ratio = false;            ///< measures the error of x / alpha, as k-diffusion does
  /// Whether a planned step goes on with the step size, and what the controller remembers, with which the one before
  /// ended, each image with its own, instead of beginning anew with h_init. Saves trials with pid, which lengthens
  /// steps by 2.6 times at most; without it the first trial from h_init finds the right size.
  bool carry_step_size = false;
  /// Sees each planned step when it is done; the observer of the run sees each evaluation. The plan counts the fewest
  /// evaluations, one trial; this is what it took.
  std::function<void(AdaptiveReport const&)> observer = {};

  static constexpr bool long_steps = true;

  /// One an image, with carry_step_size: the step size to try next, and what the controller remembers.
  struct State {
    std::vector<double> h;
    std::vector<PIDController::Memory> memory;

    static void members(auto& self, auto const& see) {
      see("h", self.h);
      see("memory", self.memory);
    }
  };

  static void options(auto& self, auto const& see) {
    see("order", self.order);
    see("algorithm_type", self.algorithm_type);
    see("atol", self.atol);
    see("rtol", self.rtol);
    see("theta", self.theta);
    see("h_init", self.h_init);
    see("max_trials", self.max_trials);
    see("error_norm", self.error_norm);
    see("pid", self.pid);
    see("error_of_ratio", self.error_of_ratio);
    see("carry_step_size", self.carry_step_size);
  }

  std::string name() const { return detail::name_with_options("AdaptiveDPMSolver", *this); }

  void validate() const {
    constexpr auto place = "AdaptiveDPMSolver";
    if (order != 2 && order != 3) detail::refuse(place, "order must be 2 or 3", order);
    if (!(atol > 0 && std::isfinite(atol))) detail::refuse(place, "atol must be above 0", atol);
    if (!(rtol >= 0 && std::isfinite(rtol))) detail::refuse(place, "rtol must be at least 0", rtol);
    if (!(theta > 0 && theta <= 1)) detail::refuse(place, "theta must be in (0, 1]", theta);
    if (!(h_init > 0 && std::isfinite(h_init))) detail::refuse(place, "h_init must be above 0", h_init);
    if (max_trials < 1) detail::refuse(place, "max_trials must be at least 1", max_trials);
    if (pid) pid->validate();
  }

  int evaluations(Step const& step) const {
    if (step.t == 0 && step.to.sigma == 0) return 1;
    return order + (step.from.alpha == 0 ? 1 : 0) + (step.to.sigma == 0 ? 1 : 0);
  }

  at::Tensor operator()(StepInput const& in, State& state) const {
    NoiseSchedule const& noise = in.noise_schedule;
    const NoiseLevel to = in.step.to;
    const std::size_t n = std::size_t(in.x.size(0));
    AdaptiveReport report{in.step, 0, std::vector<int>(n), std::vector<int>(n)};
    at::Tensor x = in.x;
    NoiseLevel from = in.step.from;
    if (from.alpha == 0) {
      NoiseLevel next = noise.at(noise.noisiest() - 1);
      if (to.lambda() < next.lambda()) next = to;
      x = weighted_sum(next.sigma / from.sigma, x, next.alpha, in.predict().x_0);
      ++report.evaluations;
      from = next;
    }
    const double begin = from.lambda();
    const double end = to.sigma > 0 ? to.lambda() : std::max(begin, noise.lambda(noise.is_flow() ? 1 : 0));
    State fresh;
    x = Integration(*this, in, std::move(x), begin, end, report).run(carry_step_size ? state : fresh);
    if (to.sigma == 0) {
      x = in.denoise(x, noise.point(end)).x_0;
      ++report.evaluations;
    }
    if (observer) observer(report);
    return x;
  }

 private:
  /// The coefficients of one image from lambda a to lambda b, as in DPMSolverUpdate: z = -h for x_0, h for eps.
  struct Stage {
    double scale, size, z;

    Stage(AlgorithmType type, NoiseSchedule const& noise, double a, double b) {
      const NoiseLevel from = noise.level(a), to = noise.level(b);
      const bool plus_plus = type == AlgorithmType::dpmsolver_plus_plus;
      scale = plus_plus ? to.sigma / from.sigma : to.alpha / from.alpha;
      size = plus_plus ? to.alpha : to.sigma;
      z = plus_plus ? a - b : b - a;
    }

    /// Of the prediction, where it holds all along.
    double constant() const { return -size * std::expm1(z); }

    /// Of what the prediction changes by from beginning to end.
    double slope(SolverType type) const {
      if (type == SolverType::midpoint) return constant() / 2;
      return -size * detail::exponential_moments(z, 2)[1];
    }
  };

  /// The inner steps of a planned one, of all images at once.
  class Integration {
   public:
    /// @param x at lambda `begin`
    Integration(AdaptiveDPMSolverUpdate const& rule, StepInput const& in, at::Tensor x, double begin, double end,
                AdaptiveReport& report)
        : rule_(rule),
          in_(in),
          report_(report),
          n_(std::size_t(x.size(0))),
          end_(end),
          x_(std::move(x)),
          here_(n_, begin),
          there_(n_) {}

    /// @param state what to begin with, where it has as many images; afterwards what it ended with
    /// @returns x at lambda `end`
    at::Tensor run(State& state) {
      if (state.h.size() != n_) state = {std::vector<double>(n_, rule_.h_init), std::vector<PIDController::Memory>(n_)};
      at::Tensor previous = measured(x_, here_);  // the lower order's x of the last accepted trial
      for (int trial = 0; set_out(state.h, trial); ++trial) {
        if (!m_0_.defined()) m_0_ = predict(x_, 0);
        const auto [low, high] = try_both();
        const at::Tensor measured_low = measured(low, there_);
        const std::vector<double> accepted = judge(rule_.errors(measured_low, measured(high, there_), previous), state);
        if (std::find(accepted.begin(), accepted.end(), 1) == accepted.end()) continue;  // m_0 still holds
        const at::Tensor mask = detail::one_an_image(detail::one_each(accepted, x_.device(), at::kBool), x_);
        x_ = high.where(mask, x_);
        previous = measured_low.where(mask, previous);
        m_0_.reset();
      }
      return x_;
    }

   private:
    at::Tensor column(std::vector<double> const& values) const {
      return detail::one_an_image(detail::one_each(values, x_.device(), x_.scalar_type()), x_);
    }

    double lambda(std::size_t i, double share) const { return here_[i] + share * (there_[i] - here_[i]); }

    /// Says where the trial leads.
    /// @returns whether any image is still on its way
    bool set_out(std::vector<double> const& h, int trial) {
      std::size_t hindmost = 0;
      for (std::size_t i = 0; i < n_; ++i) {
        // A remainder that is rounding is no step.
        there_[i] = here_[i] + h[i] < end_ - 1e-9 ? here_[i] + h[i] : end_;
        if (here_[i] < here_[hindmost]) hindmost = i;
      }
      if (!(here_[hindmost] < end_)) return false;
      if (trial == rule_.max_trials) {
        fail<std::runtime_error>(in_.step, hindmost,
                                 "max_trials = " + std::to_string(rule_.max_trials) +
                                     " must be enough to reach lambda = " + detail::text(end_),
                                 here_[hindmost]);
      }
      return true;
    }

    /// What is integrated, x_0 or eps, at a share of the way; y is x there.
    at::Tensor predict(at::Tensor const& y, double share) {
      std::vector<Timestep> points;
      std::vector<double> of_y, of_x_0;
      for (std::size_t i = 0; i < n_; ++i) {
        points.push_back(in_.noise_schedule.point(lambda(i, share)));
        const auto [alpha, sigma] = points.back().level;
        of_y.push_back(1 / sigma);
        of_x_0.push_back(-alpha / sigma);
      }
      ++report_.evaluations;
      const at::Tensor x_0 = in_.denoise_each(y, points).x_0;
      if (rule_.algorithm_type == AlgorithmType::dpmsolver_plus_plus) return x_0;
      return y.mul(column(of_y)).addcmul_(x_0, column(of_x_0));
    }

    /// x at a share of the way, of order 1; or of order 2 with m, the prediction at share `node` of *this* way.
    at::Tensor move(double share, at::Tensor const& m = {}, double node = 1,
                    SolverType solver_type = SolverType::midpoint) const {
      std::vector<double> of_x, of_m_0, of_m;
      for (std::size_t i = 0; i < n_; ++i) {
        const Stage stage(rule_.algorithm_type, in_.noise_schedule, here_[i], lambda(i, share));
        const double slope = m.defined() ? stage.slope(solver_type) / node : 0;
        of_x.push_back(stage.scale);
        of_m_0.push_back(stage.constant() - slope);
        of_m.push_back(slope);
      }
      at::Tensor y = x_.mul(column(of_x)).addcmul_(m_0_, column(of_m_0));
      return m.defined() ? y.addcmul_(m, column(of_m)) : y;
    }

    /// The whole way, with the lower and the higher order.
    std::pair<at::Tensor, at::Tensor> try_both() {
      at::Tensor low, high;
      if (rule_.order == 2) {
        low = move(1);
        high = move(1, predict(move(1. / 2), 1. / 2), 1. / 2);
      } else {
        const at::Tensor m_1 = predict(move(1. / 3), 1. / 3);
        low = move(1, m_1, 1. / 3);
        const at::Tensor m_2 = predict(move(2. / 3, m_1, 1. / 2, SolverType::heun), 2. / 3);
        high = move(1, m_2, 2. / 3, SolverType::heun);
      }
      return {low, high};
    }

    /// In the units in which the error is measured.
    at::Tensor measured(at::Tensor const& y, std::vector<double> const& lambdas) const {
      if (!rule_.error_of_ratio) return y;
      std::vector<double> of_y;
      for (const double l : lambdas) of_y.push_back(1 / in_.noise_schedule.level(l).alpha);
      return y.mul(column(of_y));
    }

    /// Takes the images on whose trials are accepted, and says what to try next.
    /// @returns 1 for these images, 0 for the others
    std::vector<double> judge(std::vector<double> errors, State& state) {
      for (std::size_t i = 0; i < n_; ++i) {
        if (here_[i] < end_ && !std::isfinite(errors[i])) {
          fail<detail::NotFinite>(
              in_.step, i, "the error at lambda = " + detail::text(here_[i]) + " must be a finite number", errors[i]);
        }
      }
      if (rule_.error_norm == ErrorNorm::batch) errors.assign(n_, *std::max_element(errors.begin(), errors.end()));
      std::vector<double> accepted(n_);
      for (std::size_t i = 0; i < n_; ++i) {
        if (!(here_[i] < end_)) continue;
        const StepControl control =
            rule_.pid ? (*rule_.pid)(errors[i], rule_.order, state.memory[i])
                      : StepControl{rule_.theta * std::pow(errors[i], -1.0 / rule_.order), errors[i] <= 1};
        const double next = control.factor * (there_[i] - here_[i]);
        // The end of the planned step cuts its last trial off, which then says nothing against the size it had.
        const bool cut = there_[i] == end_ && control.accepted;
        state.h[i] = cut ? std::max(next, state.h[i]) : next;
        if (control.accepted) here_[i] = there_[i];
        accepted[i] = control.accepted;
        ++report_.trials[i];
        report_.accepted[i] += control.accepted;
      }
      return accepted;
    }

    AdaptiveDPMSolverUpdate const& rule_;
    StepInput const& in_;
    AdaptiveReport& report_;
    std::size_t n_;
    double end_;
    at::Tensor x_, m_0_;
    std::vector<double> here_, there_;  ///< one an image: where it is, where the trial leads
  };

  /// E of each image, on the host.
  std::vector<double> errors(at::Tensor const& low, at::Tensor const& high, at::Tensor const& previous) const {
    const at::Tensor tolerated = low.abs().maximum(previous.abs()).mul_(rtol).clamp_min_(atol);
    const at::Tensor squares = high.sub(low).div_(tolerated).square_();
    // Image by image: the order in which a sum is taken must not depend on how many there are.
    const at::Tensor means = squares.new_empty({squares.size(0)});
    for (std::int64_t i = 0; i < squares.size(0); ++i) means.select(0, i).copy_(squares.select(0, i).mean());
    const at::Tensor host = means.to(at::kCPU, at::kDouble).sqrt_();
    double const* const values = detail::values_of<double>(host);
    return {values, values + host.numel()};
  }

  template <class Exception>
  [[noreturn]] static void fail(Step const& step, std::size_t image, std::string const& rule, double value) {
    throw Exception("tstitch::AdaptiveDPMSolver: " + rule + " (step " + std::to_string(step.index) + ", image " +
                    std::to_string(image) + " of the batch), got " + detail::text(value));
  }
};

/// The adaptive DPM-Solver under a model schedule.
/// `AdaptiveDPMSolver{noise_schedule, Stitch{.ratio = 0.5}, {.steps = 2}, {.order = 2}}`
template <class Schedule>
class AdaptiveDPMSolver : public Sampler<AdaptiveDPMSolverUpdate, Schedule> {
 public:
  AdaptiveDPMSolver(NoiseSchedule noise_schedule, Schedule model_schedule, SamplingOptions options = {.steps = 1},
                    AdaptiveDPMSolverUpdate rule = {})
      : Sampler<AdaptiveDPMSolverUpdate, Schedule>(std::move(noise_schedule), std::move(model_schedule),
                                                   std::move(options), std::move(rule)) {}
};

}  // namespace tstitch

TSTITCH_USUAL_CONTRACTION
