/// @file
/// Networks that know the answer: data whose best possible prediction has a closed form.
#pragma once

#include <tstitch/model/network.hpp>

#include <cmath>
#include <utility>

namespace oracle {

/// The exact network for data N(mean, deviation^2), each element by itself:
/// E[x_0 | x] = (alpha deviation^2 x + sigma^2 mean) / (alpha^2 deviation^2 + sigma^2), from x = alpha x_0 + sigma eps.
/// Predicts what `info.prediction_type` says; reads t from the tensor that the library gives it.
inline tstitch::Network gaussian(tstitch::NoiseSchedule const& noise, double mean, double deviation,
                                 tstitch::NetworkInfo info = {}) {
  info.noise_schedule = noise;
  if (info.name.empty()) info.name = "gaussian";
  const auto type = info.prediction_type;
  const bool learned = info.learned_variance;
  return tstitch::Network(
      [noise, mean, deviation, type, learned](at::Tensor const& x, at::Tensor const& t) {
        const auto [alpha, sigma] = noise.at(t.select(0, 0).item<double>());
        const double variance = alpha * alpha * deviation * deviation + sigma * sigma;
        const at::Tensor x_0 = x.mul(alpha * deviation * deviation / variance).add(sigma * sigma * mean / variance);
        const at::Tensor eps = x.sub(x_0, alpha).div(sigma);
        at::Tensor out = type == tstitch::PredictionType::sample         ? x_0
                         : type == tstitch::PredictionType::v_prediction ? eps.mul(alpha).sub(x_0, sigma)
                         : type == tstitch::PredictionType::flow         ? eps.sub(x_0)
                                                                         : eps;
        if (!learned) return out;
        at::Tensor both = out.new_zeros({out.size(0), 2 * out.size(1), out.size(2), out.size(3)});
        both.narrow(1, 0, out.size(1)).copy_(out);
        return both;
      },
      std::move(info));
}

/// E[x_0 | x] for data 0.3 N(-0.9, 0.2^2) + 0.7 N(0.6, 0.3^2).
inline double mixture_x_0(double x, tstitch::NoiseLevel level) {
  const auto [alpha, sigma] = level;
  const double weights[] = {0.3, 0.7}, means[] = {-0.9, 0.6}, deviations[] = {0.2, 0.3};
  double log_density[2], x_0[2];
  for (int k = 0; k < 2; ++k) {
    const double spread = deviations[k] * deviations[k], variance = alpha * alpha * spread + sigma * sigma;
    const double away = x - alpha * means[k];
    log_density[k] = std::log(weights[k]) - 0.5 * std::log(variance) - 0.5 * away * away / variance;
    x_0[k] = (alpha * spread * x + sigma * sigma * means[k]) / variance;
  }
  const double second = 1 / (1 + std::exp(log_density[0] - log_density[1]));
  return (1 - second) * x_0[0] + second * x_0[1];
}

/// The network for that data, each element by itself, which predicts x_0 at any t in float64.
/// @param gain what it multiplies the right answer by; another than 1 makes a network that is wrong
inline tstitch::Network mixture(tstitch::NoiseSchedule const& noise, double gain = 1) {
  return tstitch::Network(
      [noise, gain](at::Tensor const& x, at::Tensor const& t) {
        const tstitch::NoiseLevel level = noise.at(t.select(0, 0).item<double>());
        const at::Tensor x_0 = x.contiguous().clone();
        double* const values = x_0.mutable_data_ptr<double>();
        for (std::int64_t i = 0; i < x_0.numel(); ++i) values[i] = gain * mixture_x_0(values[i], level);
        return x_0;
      },
      {.name = "mixture",
       .prediction_type = tstitch::PredictionType::sample,
       .timestep_type = tstitch::TimestepType::float32,
       .noise_schedule = noise});
}

/// x_0 at the end of the exact probability-flow ODE from x at noise level (alpha, sigma), for the same data.
inline double gaussian_ode_end(tstitch::NoiseLevel level, double mean, double deviation, double x) {
  return mean + deviation * (x - level.alpha * mean) /
                    std::sqrt(level.alpha * level.alpha * deviation * deviation + level.sigma * level.sigma);
}

}  // namespace oracle
