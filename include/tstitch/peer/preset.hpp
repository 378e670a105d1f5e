/// @file
/// Presets: how a pair is run, in one word. Values to use, read and edit.
///
///     const auto preset = tstitch::preset::fast(networks.back().noise_schedule());
///     const auto sampler = tstitch::make_sampler(preset);
///     const auto samples = sampler.sample(networks, tstitch::apply(preset, request));
///
/// They lie on the front of time against quality of the bundled pair (examples/docs/forecasting.md has it). `fast` and
/// `fastest` are for networks that can forecast (Network::forecasts).
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "../base/text.hpp"
#include "profile.hpp"

namespace tstitch {

/// Everything about a run but the networks and what is drawn.
struct Preset {
  Profile<UniPCUpdate> profile;  ///< with its steps, and which of them are forecast
  double ratio;                  ///< share of the steps for the first of two networks
  Forecast guidance = {};        ///< see Guidance::forecast
};

/// @param trained the schedule that the networks were trained with
namespace preset {

/// Nothing is forecast.
inline Preset exact(NoiseSchedule const& trained) {
  return {profile::recommended(trained, 30), 0.4};
}

/// Every second step of the large network is forecast, and guidance in every second one that is computed. Takes 0.55 of
/// the time of `exact`, for 2 % of Frechet distance; at equal time it is better than fewer steps without forecasts.
inline Preset fast(NoiseSchedule const& trained) {
  Preset preset = exact(trained);
  preset.profile.options.forecast = ForecastEvery{.every = 2, .order = 2, .first_network = 1};
  preset.guidance = ForecastEvery{.every = 2, .warm_up = 2};
  return preset;
}

/// 10 steps, every second one of the large network forecast: 0.28 of the time of `exact`.
inline Preset fastest(NoiseSchedule const& trained) {
  Preset preset = fast(trained);
  preset.profile.options.steps = 10;
  preset.guidance = {};
  return preset;
}

}  // namespace preset

/// A preset as programs list it.
struct NamedPreset {
  std::string name;
  std::string help;
  Preset (*make)(NoiseSchedule const& trained);
};

/// All presets, the slowest first.
inline std::vector<NamedPreset> const& presets() {
  static const std::vector<NamedPreset> list{
      {"exact", "30 steps, nothing forecast", preset::exact},
      {"fast", "30 steps, half of the large network's and half of its guidance forecast", preset::fast},
      {"fastest", "10 steps, half of the large network's forecast", preset::fastest},
  };
  return list;
}

/// @param trained the schedule that the networks were trained with
/// @throws std::invalid_argument for a name that there is not, with those that there are
inline Preset preset_by_name(std::string const& name, NoiseSchedule const& trained) {
  return detail::find_named("preset_by_name", presets(), name).make(trained);
}

/// A sampler that does what the preset says.
inline Sampler<UniPCUpdate, AnyModelSchedule> make_sampler(Preset const& preset) {
  return make_sampler(preset.profile, preset.ratio);
}

/// The request with the preset's part of it: which guidance is forecast.
inline Request apply(Preset const& preset, Request request) {
  request.guidance.forecast = preset.guidance;
  return apply(preset.profile, std::move(request));
}

}  // namespace tstitch
