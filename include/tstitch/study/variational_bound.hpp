/// @file
/// The variational bound on a picture's negative log-likelihood, in bits per dimension: which network describes
/// pictures better, and at which timesteps.
///
/// Sohl-Dickstein et al. 2015 (arXiv 1503.03585); Ho et al. 2020 (arXiv 2006.11239), Eq. 5; with a learned variance
/// Nichol and Dhariwal 2021 (arXiv 2102.09672), Eq. 4 to 7. Each term belongs to one step alone, so that the bound of
/// networks that share the steps is the sum of what each adds in its own.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <numbers>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "../base/contraction.hpp"
#include "../method/ddpm.hpp"
#include "../tensor/host_tensor.hpp"

TSTITCH_NO_CONTRACTION

namespace tstitch {

/// How the last step, which ends at x_0 itself, is counted.
enum class BoundDecoder {
  /// Pictures of 256 levels in [-1, 1]: the probability of the interval around the level, the outer two unbounded
  /// (Ho et al. 2020, Eq. 13).
  pixels,
  /// The same through tanh, which guided-diffusion, improved-diffusion and DiT take for the normal distribution,
  /// with no probability below 1e-12. Only for comparing numbers with theirs: an outlier counts 40 bits at most, so
  /// that it is no bound.
  pixels_tanh,
  /// Latents and other continuous data: the density at x_0. The bound is then on the density's negative logarithm and
  /// may be negative.
  density,
};

struct VariationalBoundOptions {
  Variance variance = Variance::automatic;
  BoundDecoder decoder = BoundDecoder::pixels;
  Thresholding thresholding = Thresholding::automatic();
  std::vector<std::int64_t> labels = {};  ///< one an image; empty for networks without classes
  std::uint64_t seed = 0;                 ///< image i is made noisy with seed `seed + i`
  std::int64_t batch_size = 0;            ///< images that a network sees at once; 0 means all
  NoiseSource noise_source = noise;
};

/// The bound of each image, taken apart: what every network of a run would add at every step.
struct VariationalBound {
  Plan plan;
  at::Tensor terms;  ///< [networks, steps, n] bits per dimension, float64 on the host
  at::Tensor prior;  ///< [n] likewise: what pure noise does not tell of x at the noisiest level, whichever the network

  /// The bound when one network takes all steps.
  /// @returns [n] bits per dimension
  at::Tensor of_network(std::size_t network) const { return terms.select(0, std::int64_t(network)).sum(0).add_(prior); }

  /// The bound when each step goes to the network that the plan gives it to.
  /// @returns [n] bits per dimension
  at::Tensor of_plan() const {
    at::Tensor sum = prior.clone();
    for (PlannedStep const& planned : plan.steps) {
      sum.add_(terms.select(0, std::int64_t(planned.network)).select(0, planned.step.index));
    }
    return sum;
  }

  /// Entry r is the mean bound when the first network takes the first r steps and the last network the others.
  /// @returns steps + 1 values, bits per dimension
  std::vector<double> by_switch() const {
    const at::Tensor first = terms.select(0, 0).mean(1), last = terms.select(0, terms.size(0) - 1).mean(1);
    std::vector<double> bounds{last.sum().add_(prior.mean()).item<double>()};
    for (std::int64_t i = 0; i < first.numel(); ++i) {
      bounds.push_back(bounds.back() + detail::values_of<double>(first)[i] - detail::values_of<double>(last)[i]);
    }
    return bounds;
  }

  /// How many steps the first network may take: the largest r whose bound is above that of the last network alone by no
  /// more than the tolerance.
  /// @param tolerance bits per dimension; papers report bounds to 0.01
  int switch_after(double tolerance = 0.01) const {
    if (!(tolerance >= 0))
      detail::refuse("VariationalBound::switch_after", "tolerance must not be negative", tolerance);
    const std::vector<double> bounds = by_switch();
    int r = int(bounds.size()) - 1;
    while (r > 0 && !(bounds[std::size_t(r)] <= bounds[0] + tolerance)) --r;
    return r;
  }
};

namespace detail {

/// Phi(x) of the standard normal distribution, to full relative precision below 0 too.
inline at::Tensor normal_cdf(at::Tensor const& x, BoundDecoder decoder) {
  if (decoder == BoundDecoder::pixels) return x.mul(-1 / std::numbers::sqrt2).erfc_().mul_(0.5);
  const double root = std::sqrt(2 / std::numbers::pi);
  return x.mul(x).mul_(root * 0.044715).add_(root).mul_(x).tanh_().add_(1).mul_(0.5);
}

/// -log p(x_0) under a normal distribution with mean x_0 - error.
inline at::Tensor decoder_nats(at::Tensor const& x_0, at::Tensor const& error, at::Tensor const& log_variance,
                               BoundDecoder decoder) {
  // In float64 for the tails, whatever the type of the images is: it is one step.
  const at::Tensor away = error.to(at::kDouble), log_deviation = log_variance.to(at::kDouble).mul_(0.5);
  const at::Tensor precision = log_deviation.neg().exp_();
  if (decoder == BoundDecoder::density) {
    return away.mul(precision).square_().mul_(0.5).add_(log_deviation).add_(std::log(2 * std::numbers::pi) / 2);
  }
  // Phi(upper) - Phi(lower), mirrored where the interval is above the mean, so that both are small in both tails.
  constexpr double half = 1.0 / 255;  // of the distance between levels
  const at::Tensor darkest = x_0.lt(-1 + half), brightest = x_0.gt(1 - half), distance = away.abs();
  const at::Tensor to_inner_end = away.neg().where(darkest, away.where(brightest, distance)).neg_().add_(half);
  const at::Tensor beyond =
      normal_cdf(distance.add(half).neg_().mul_(precision), decoder).masked_fill_(darkest.logical_or(brightest), 0);
  const double least = decoder == BoundDecoder::pixels ? std::numeric_limits<double>::min() : 1e-12;
  return normal_cdf(to_inner_end.mul_(precision), decoder).sub_(beyond).clamp_min_(least).log_().neg_();
}

/// What a step adds for each element: KL(q(x_to | x_from, x_0) || p(x_to | x_from)), and in the last step -log p(x_0).
/// @param log_posterior log of the variance of q; in the last step, which has none, of the step before it
inline at::Tensor bound_nats(Step const& step, double log_posterior, at::Tensor const& x_0,
                             Prediction const& prediction, VariationalBoundOptions const& options) {
  const Posterior posterior(step.from, step.to);
  const bool last = step.to == NoiseLevel::clean();
  // log(variance of p / variance of q) is between 0 and this.
  const double range = std::log(posterior.beta) - log_posterior;
  const bool large = options.variance == Variance::fixed_large && !last;
  const at::Tensor above = is_learned(options.variance, prediction.variance_fraction.defined())
                               ? in_learned_range(prediction.variance_fraction, x_0.scalar_type(), 0, range)
                               : x_0.new_full({1, 1, 1, 1}, large ? range : 0);
  const at::Tensor error = x_0.sub(prediction.x_0);
  if (last) return decoder_nats(x_0, error, above.add(log_posterior), options.decoder);
  // The means of q and p differ by of_x_0 error.
  const at::Tensor less = above.neg();
  return error.square_()
      .mul_(posterior.of_x_0 * posterior.of_x_0 / posterior.variance)
      .mul(less.exp())
      .add_(less.expm1())
      .add_(above)
      .mul_(0.5);
}

/// Nats of each element to bits per dimension, [n] float64.
inline at::Tensor bits_per_dimension(at::Tensor const& nats) {
  return nats.flatten(1).mean(1, false, at::kDouble).mul_(1 / std::numbers::ln2);
}

/// @throws std::invalid_argument for what has no bound
inline void check_bound(Plan const& plan, std::vector<Network> const& networks, at::Tensor const& images,
                        VariationalBoundOptions const& options) {
  constexpr auto place = "variational_bound";
  const std::size_t steps = plan.steps.size();
  if (steps < 2) detail::refuse(place, "at least 2 steps are needed", double(steps));
  for (std::size_t i = 0; i < steps; ++i) {
    Step const& step = plan.steps[i].step;
    if (step.to != (i + 1 < steps ? plan.steps[i + 1].step.from : NoiseLevel::clean())) {
      detail::refuse(place, "each step must end where the next begins, and the last at the clean picture",
                     "sigma = " + detail::text(step.to.sigma) + " after step " + std::to_string(i));
    }
    if (plan.steps[i].network >= networks.size()) {
      detail::refuse(place,
                     "step " + std::to_string(i) + " goes to network " + std::to_string(plan.steps[i].network) +
                         ", so at least " + std::to_string(plan.steps[i].network + 1) + " networks are needed",
                     double(networks.size()));
    }
  }
  require_compatible(networks);
  for (std::size_t k = 0; k < networks.size(); ++k) {
    NetworkInfo const& info = networks[k].info();
    DDPMUpdate{.variance = options.variance}.validate(info);
    for (PlannedStep const& planned : plan.steps) {
      // A table or a t that was rounded is no other schedule.
      Step const& step = planned.step;
      if (!info.noise_schedule || (step.t >= 0 && step.t <= info.noise_schedule->noisiest() &&
                                   std::abs(info.noise_schedule->alpha(step.t) - step.from.alpha) < 0.01)) {
        continue;
      }
      detail::refuse(place,
                     "the plan must be of the noise schedule that the networks were trained with (" +
                         info.noise_schedule->name() + " for " + detail::name_of(networks[k], k) + ")",
                     "alpha = " + detail::text(step.from.alpha) + " at t = " + detail::text(step.t));
    }
    if (!info.conditions.empty()) {
      detail::refuse(place, "networks must be conditioned on class labels alone",
                     "'" + info.conditions[0].name + "' for " + detail::name_of(networks[k], k));
    }
    if (plan.steps[0].step.from.alpha == 0 && info.prediction_type == PredictionType::epsilon) {
      detail::refuse(place,
                     "a plan that begins at pure noise (alpha = 0) needs networks that predict x_0 or a velocity",
                     detail::name_of(networks[k], k) + ", which predicts epsilon");
    }
  }
  if (images.dim() != 4 || images.numel() == 0) {
    detail::refuse(place, "images must be [n, C, H, W]", detail::shape_text(images.sizes()));
  }
  if (images.scalar_type() != at::kFloat && images.scalar_type() != at::kDouble) {
    detail::refuse(place, "images must be float32 or float64", at::toString(images.scalar_type()));
  }
  if (options.decoder != BoundDecoder::density) {
    const at::Tensor levels = images.add(1).mul_(127.5);
    const double outside = levels.sub(levels.round().clamp_(0, 255)).abs_().max().item<double>();
    if (!(outside < 0.01)) {
      detail::refuse(place, "images must hold the 256 levels k / 127.5 - 1; other data needs BoundDecoder::density",
                     detail::text(outside) + " levels beside them");
    }
  }
  if (options.batch_size < 0) detail::refuse(place, "batch_size must not be negative", double(options.batch_size));
  if (!options.noise_source) detail::refuse(place, "noise_source must be callable", "none");
  NetworkInfo const& info = networks[0].info();
  const std::int64_t wanted = info.num_classes > 0 ? images.size(0) : 0;
  if (std::int64_t(options.labels.size()) != wanted) {
    detail::refuse(place, "labels: these networks need " + std::to_string(wanted), double(options.labels.size()));
  }
  for (std::int64_t label : options.labels) {
    if ((label < 0 || label >= info.num_classes) && label != info.null_class) {
      detail::refuse(place, "labels must be in [0, " + std::to_string(info.num_classes - 1) + "]", double(label));
    }
  }
}

}  // namespace detail

/// The variational bound of images under every network of a plan, at every step of it, without guidance. Each step sees
/// x_t = alpha x_0 + sigma noise, with the same noise for every network, so that differences between networks are much
/// surer than the terms are. Costs networks x steps evaluations of each image.
///
///     std::cout << variational_bound(sampler.plan(), {small, large}, images);
///
/// In the last step, where the posterior's variance is 0, both fixed variances and the low end of the learned range are
/// the posterior's variance of the step before, as in guided-diffusion.
/// @param plan of any model schedule, of the noise schedule that the networks were trained with; the guidance in it is
///        not used
/// @param images [n, C, H, W], float32 or float64. Waits for their device before the first step and after the last.
/// @throws std::invalid_argument for a plan whose steps are not a chain from its noisiest level to x_0
///         (FinalSigma::sigma_min, PreviousTimestep::by_stride), and for images or labels that do not suit
/// @throws std::runtime_error for networks that do not fit together
inline VariationalBound variational_bound(Plan const& plan, std::vector<Network> const& networks,
                                          at::Tensor const& images, VariationalBoundOptions const& options = {}) {
  detail::check_bound(plan, networks, images, options);
  const c10::AutoGradMode no_gradients(false);
  const at::Device device = networks[0].device();
  const at::Tensor all = images.to(device);
  const std::int64_t n = all.size(0), steps = std::int64_t(plan.steps.size());
  const at::Tensor terms = all.new_empty({std::int64_t(networks.size()), steps, n}, all.options().dtype(at::kDouble));
  for (std::int64_t first = 0, rows = options.batch_size ? options.batch_size : n; first < n; first += rows) {
    rows = std::min(rows, n - first);
    const at::Tensor x_0 = all.narrow(0, first, rows);
    std::vector<std::uint64_t> seeds;
    for (std::int64_t i = first; i < first + rows; ++i) seeds.push_back(options.seed + std::uint64_t(i));
    BatchCondition condition;
    if (!options.labels.empty()) {
      const auto begin = options.labels.begin() + first;
      condition.conditional.labels = detail::to_device({begin, begin + rows}, device);
    }
    for (std::int64_t i = 0; i < steps; ++i) {
      Step const& step = plan.steps[std::size_t(i)].step;
      Step const& with_variance = plan.steps[std::size_t(std::min(i, steps - 2))].step;
      const double log_posterior = std::log(detail::Posterior(with_variance.from, with_variance.to).variance);
      const at::Tensor noise =
          options.noise_source(seeds, NoiseAddress::of_step(step.index), x_0.sizes().slice(1), x_0.options());
      const at::Tensor x = weighted_sum(step.from.alpha, x_0, step.from.sigma, noise);
      for (std::size_t k = 0; k < networks.size(); ++k) {
        const Prediction prediction = denoise(networks[k], x, Timestep{step.t, step.from}, condition, 1, 0,
                                              options.thresholding.resolve(networks[k].info()));
        const at::Tensor nats = detail::bound_nats(step, log_posterior, x_0, prediction, options);
        terms.select(0, std::int64_t(k)).select(0, i).narrow(0, first, rows).copy_(detail::bits_per_dimension(nats));
      }
    }
  }
  // KL(N(alpha x_0, sigma^2) || N(0, 1))
  const auto [alpha, sigma] = plan.steps[0].step.from;
  const at::Tensor prior = all.square().mul_(alpha * alpha).add_(sigma * sigma - 1 - 2 * std::log(sigma)).mul_(0.5);
  return {plan, terms.to(at::kCPU), detail::bits_per_dimension(prior).to(at::kCPU)};
}

/// The mean bound as a table, one line a step, and what switch it suggests. A star marks the network of the plan;
/// the last column is the bound when the first network takes the steps up to this line and the last network the others.
inline std::string to_string(VariationalBound const& bound) {
  const std::int64_t networks = bound.terms.size(0), steps = bound.terms.size(1);
  const at::Tensor means = bound.terms.mean(2);
  const std::vector<double> by_switch = bound.by_switch();
  char text[96];
  std::string table = "variational bound in bits per dimension, mean of " + std::to_string(bound.terms.size(2)) +
                      " images\nnoise schedule " + bound.plan.noise_schedule + ", spacing " + bound.plan.spacing +
                      ", " + std::to_string(steps) + " steps\n step         t    lambda";
  for (std::int64_t k = 0; k < networks; ++k) {
    std::snprintf(text, sizeof text, "  %11s ", ("network " + std::to_string(k)).c_str());
    table += text;
  }
  table += "  switch after\n";
  for (std::int64_t i = 0; i < steps; ++i) {
    auto const& planned = bound.plan.steps[std::size_t(i)];
    std::snprintf(text, sizeof text, "%5lld  %8.3f  %8.4f", static_cast<long long>(i), planned.step.t,
                  planned.step.from.lambda());
    table += text;
    for (std::int64_t k = 0; k < networks; ++k) {
      std::snprintf(text, sizeof text, "  %11.6f%c", detail::values_of<double>(means)[k * steps + i],
                    planned.network == std::size_t(k) ? '*' : ' ');
      table += text;
    }
    std::snprintf(text, sizeof text, " %12.4f\n", by_switch[std::size_t(i + 1)]);
    table += text;
  }
  const auto add = [&](std::string const& what, at::Tensor const& each) {
    std::snprintf(text, sizeof text, " %.4f", each.mean().item<double>());
    table += what + text;
  };
  add("prior", bound.prior);
  for (std::int64_t k = 0; k < networks; ++k) {
    add(", network " + std::to_string(k) + " alone", bound.of_network(std::size_t(k)));
  }
  add(", as planned", bound.of_plan());
  if (networks > 1) {
    constexpr double tolerance = 0.01;
    table += "\nnetwork 0 may take the first " + std::to_string(bound.switch_after(tolerance)) + " steps: within " +
             detail::text(tolerance) + " of network " + std::to_string(networks - 1) + " alone";
  }
  return table + "\n";
}

inline std::ostream& operator<<(std::ostream& stream, VariationalBound const& bound) {
  return stream << to_string(bound);
}

}  // namespace tstitch

TSTITCH_USUAL_CONTRACTION
