/// @file
/// Networks that know the answer: data whose best possible prediction has a closed form.
#pragma once

#include <tstitch/model/network.hpp>

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
                                                                         : eps;
        if (!learned) return out;
        at::Tensor both = out.new_zeros({out.size(0), 2 * out.size(1), out.size(2), out.size(3)});
        both.narrow(1, 0, out.size(1)).copy_(out);
        return both;
      },
      std::move(info));
}

/// x_0 at the end of the exact probability-flow ODE from x at noise level (alpha, sigma), for the same data.
inline double gaussian_ode_end(tstitch::NoiseLevel level, double mean, double deviation, double x) {
  return mean + deviation * (x - level.alpha * mean) /
                    std::sqrt(level.alpha * level.alpha * deviation * deviation + level.sigma * level.sigma);
}

}  // namespace oracle
