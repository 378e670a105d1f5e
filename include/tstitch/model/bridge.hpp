/// @file
/// Networks of other latents, another noise schedule or other condition names on one trajectory.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../base/contraction.hpp"
#include "../base/error.hpp"
#include "../plan/noise_schedule.hpp"
#include "denoiser.hpp"
#include "network_wrapper.hpp"
#include "per_channel.hpp"

TSTITCH_NO_CONTRACTION

namespace tstitch {
namespace detail {

/// x_0 of one network in that of another: gain x_0 + offset.
struct LatentMap {
  PerChannel gain = 1;
  PerChannel offset = 0;

  /// How much larger the noise is there, which must be the same for all channels.
  double magnitude() const { return std::abs(gain.of(0)); }
};

/// From the latents of `from` to those of `to`: both are scale (latent - shift) of the same latent.
/// @throws std::invalid_argument where the gain is not of one magnitude: then no timestep has the noise of all channels
inline LatentMap latent_map(NetworkInfo const& from, NetworkInfo const& to) {
  if (from.latent_scale == 0 || to.latent_scale == 0) return {};
  const LatentMap map{
      each_channel(to.latent_scale, from.latent_scale, std::divides()),
      each_channel(to.latent_scale, each_channel(from.latent_shift, to.latent_shift, std::minus()), std::multiplies())};
  for (double const gain : map.gain.values()) {
    if (std::abs(std::abs(gain) / map.magnitude() - 1) <= 1e-9) continue;
    refuse("bridged",
           "the latents of '" + printable(to.name) + "' must be one factor larger than those of '" +
               printable(from.name) + "', the same in every channel",
           words::text(map.gain));
  }
  return map;
}

/// A network asked about x of another's latents and noise schedule.
///
/// Of the trajectory's x = alpha x_0 + sigma eps it sees x' = alpha' (gain x_0 + offset) + sigma' sign(gain) eps, where
/// alpha' and sigma' are of its own schedule and sigma' / alpha' = |gain| sigma / alpha: the same picture and the same
/// noise at the same signal-to-noise ratio. What it says of x' becomes an x_0 of the trajectory.
class Bridge : public NetworkWrapper<Bridge> {
 public:
  Bridge(Network network, NoiseSchedule trajectory, LatentMap map)
      : NetworkWrapper(std::move(network)), trajectory_(std::move(trajectory)), map_(map) {
    knows_timestep = true;  // computes t itself, from the timestep
  }

  void prepare(std::span<const double> timesteps, Condition const& condition) const {
    std::vector<double> own;
    for (const double t : timesteps) own.push_back(network_timestep(inner(), place(t).t));
    inner().prepare(own, condition);
  }

  at::Tensor operator()(at::Tensor const& x, at::Tensor const&, Condition const& condition,
                        Evaluation const& evaluation) const {
    if (!evaluation.timestep) {
      throw std::invalid_argument("tstitch::bridged: all images must be at one timestep, got one each for '" +
                                  printable(inner().info().name) + "'");
    }
    const NoiseLevel level = trajectory_.at(*evaluation.timestep);
    const Timestep own = place(*evaluation.timestep);
    // alpha' gain / alpha is also sign(gain) sigma' / sigma; the larger divisor is never 0.
    const PerChannel of_x = each_channel(map_.gain, [&](double gain) {
      return level.alpha > level.sigma ? own.level.alpha * gain / level.alpha
                                       : std::copysign(own.level.sigma / level.sigma, gain);
    });
    at::Tensor seen = times(x, of_x);
    if (map_.offset != 0) add_to(seen, each_channel(map_.offset, [&](double each) { return own.level.alpha * each; }));

    Evaluation asked = evaluation;
    asked.timestep = network_timestep(inner(), own.t);
    at::Tensor t;
    // Of networks that repeat x the condition has the rows.
    const std::int64_t rows = condition.labels.defined()   ? condition.labels.size(0)
                              : !condition.tensors.empty() ? condition.tensors[0].second.size(0)
                                                           : x.size(0);
    if (!inner().knows_timestep()) t = timestep_rows(inner(), seen, own.t, rows);
    at::Tensor output = inner()(seen, t, condition, asked).narrow(1, 0, x.size(1)).to(x.scalar_type());
    if (seen.size(0) != output.size(0)) {
      std::vector<std::int64_t> twice(std::size_t(seen.dim()), 1);
      twice[0] = 2;
      seen = seen.repeat(twice);
    }
    const ToX0 to = to_x_0(inner().info().prediction_type, own.level);
    const at::Tensor x_0 = seen.mul(to.of_x).add_(output, to.of_output);
    add_to(x_0, negative(map_.offset));
    divide_by(x_0, map_.gain);
    return x_0;
  }

  /// As a network of these latents.
  /// @param like what the trajectory is of
  Network network(NetworkInfo const& like) const {
    NetworkInfo info = inner().info();
    info.prediction_type = PredictionType::sample;
    info.learned_variance = false;  // it is a share of betas that the trajectory does not have
    info.timestep_type = TimestepType::float32;
    info.noise_schedule = trajectory_;
    info.latent_scale = like.latent_scale;
    info.latent_shift = like.latent_shift;
    return Network(*this, std::move(info), inner().device());
  }

 private:
  /// Where the network is asked for the trajectory's t.
  /// @throws std::invalid_argument where its schedule has no such place, or what it predicts says nothing of x_0 there
  Timestep place(double t) const {
    NoiseSchedule const& own = inner().noise_schedule();
    const double lambda = trajectory_.lambda(t) - std::log(map_.magnitude());
    const double noisiest = own.lambda(own.noisiest()), cleanest = own.lambda(0);
    const double slack = std::isfinite(lambda) ? 1e-9 * (1 + std::abs(lambda)) : 0;
    const bool blind =
        inner().info().prediction_type == PredictionType::epsilon && lambda == noisiest && std::isinf(lambda);
    if (!(lambda >= noisiest - slack && lambda <= cleanest + slack) || blind) {
      refuse("bridged",
             "the steps of '" + printable(inner().info().name) + "' must be at log(alpha / sigma) in [" +
                 text(noisiest) + ", " + text(cleanest) + "] of its noise schedule " + own.name() +
                 (blind ? ", and not at pure noise, where epsilon says nothing of x_0" : ""),
             text(lambda) + " at t = " + text(t) + " of " + trajectory_.name());
    }
    return own.point(lambda);
  }

  NoiseSchedule trajectory_;
  LatentMap map_;
};

/// Takes conditions by other names than the network does.
class RenamedConditions : public NetworkWrapper<RenamedConditions> {
 public:
  /// @param names the network's own, by those of the request
  RenamedConditions(Network network, std::map<std::string, std::string> names)
      : NetworkWrapper(std::move(network)), names_(std::move(names)) {}

  void prepare(std::span<const double> timesteps, Condition const& condition) const {
    inner().prepare(timesteps, own(condition));
  }

  at::Tensor operator()(at::Tensor const& x, at::Tensor const& t, Condition const& condition,
                        Evaluation const& evaluation) const {
    return inner()(x, t, own(condition), evaluation);
  }

  Network network() const {
    NetworkInfo info = inner().info();
    for (ConditionInfo& each : info.conditions) {
      for (auto const& [given, name] : names_) {
        if (each.name == name) {
          each.name = given;
          break;
        }
      }
    }
    return Network(*this, std::move(info), inner().device());
  }

 private:
  Condition own(Condition const& given) const {
    Condition found{.labels = given.labels, .host_labels = given.host_labels};
    for (auto const& [name, tensor] : given.tensors) {
      const auto known = names_.find(name);
      if (known != names_.end()) found.tensors.emplace_back(known->second, tensor);
    }
    for (auto const& each : given.tensors) {
      const auto same = [&](auto const& other) { return other.first == each.first; };
      const bool taken = std::any_of(found.tensors.begin(), found.tensors.end(), same);
      if (!taken && !names_.contains(each.first)) found.tensors.push_back(each);
    }
    return found;
  }

  std::map<std::string, std::string> names_;
};

}  // namespace detail

/// The network as one of the latents and the noise schedule that `like` states, so that both can share a trajectory:
/// latents may differ by shift and by one factor, or its sign in each channel, noise schedules in any way. It is asked
/// at the timestep of its own schedule with the same signal-to-noise ratio of the picture, about x in its own latents,
/// and says x_0 of the other's.
///
/// What else must agree (mismatches) still must. A learned variance is left out. Steps at which its schedule has no
/// such ratio are refused before the run; a `Spacing` that begins later avoids them. Samplers that give each image a
/// timestep of its own cannot ask it.
/// @param like of the network with which the trajectory is planned
/// @returns the network itself where nothing differs
/// @throws std::invalid_argument where one of the two states no noise schedule, and where their latents differ by
/// factors
///         that are not of one magnitude, for no timestep has the noise of all channels
inline Network bridged(Network network, NetworkInfo const& like) {
  NoiseSchedule const& own = network.noise_schedule();
  if (!like.noise_schedule) {
    detail::refuse("bridged", "the network of the trajectory must state its noise schedule",
                   "none for '" + detail::printable(like.name) + "'");
  }
  const detail::LatentMap map = detail::latent_map(like, network.info());
  if (own.distance(*like.noise_schedule) <= 1e-6 && map.gain == 1 && map.offset == 0) return network;
  return detail::Bridge(std::move(network), *like.noise_schedule, map).network(like);
}

/// The network with other names for its conditions, so that networks which mean different tensors by one name can have
/// a tensor each.
/// @param names of the request, and for each the network's own: {{"refiner_text", "text_embedding"}}
/// @throws std::invalid_argument for names that the network does not have, or that would then be there twice
inline Network with_condition_names(Network network, std::map<std::string, std::string> const& names) {
  std::vector<std::string> left;
  for (ConditionInfo const& each : network.info().conditions) left.push_back(each.name);
  for (auto const& [given, own] : names) {
    const auto found = std::find(left.begin(), left.end(), own);
    if (found == left.end()) {
      detail::refuse("with_condition_names", "each name must be one of the network's, once",
                     "'" + own + "' for '" + detail::printable(network.info().name) + "'");
    }
    left.erase(found);
  }
  for (std::string const& name : left) {
    if (!names.contains(name)) continue;
    detail::refuse("with_condition_names", "names must differ from those that stay",
                   "'" + name + "' for '" + detail::printable(network.info().name) + "'");
  }
  return detail::RenamedConditions(std::move(network), names).network();
}

}  // namespace tstitch

TSTITCH_USUAL_CONTRACTION
