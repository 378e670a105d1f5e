/// @file
/// The steps in which a network is best forecast.
#pragma once

#include <tstitch/file/forecast_file.hpp>
#include <tstitch/method/by_name.hpp>
#include <tstitch/study/forecast_calibration.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "../common/request.hpp"
#include "../common/shape.hpp"
#include "arguments.hpp"

/// Measures what forecasts would cost, writes the best table, and says what it came to.
/// @throws std::invalid_argument for a network that cannot forecast, and a number of steps that cannot be computed
inline nlohmann::ordered_json calibrate_forecast(std::vector<tstitch::Network> const& networks,
                                                 Arguments const& arguments,
                                                 std::vector<tstitch::NamedCondition> const& conditions) {
  const std::size_t last = networks.size() - 1;
  tstitch::NoiseSchedule const& noise = networks[last].noise_schedule();
  const tstitch::AnyProfile way =
      !arguments.profile.empty()
          ? tstitch::profile_by_name(arguments.profile, noise, arguments.steps)
          : tstitch::AnyProfile{
                noise,
                {.steps = arguments.steps,
                 .spacing = noise.is_flow() ? tstitch::Spacing::shifted() : tstitch::Spacing::linspace()},
                tstitch::update_rule_by_name(arguments.sampler)};
  const auto sampler_with = [&](tstitch::Forecast const& forecast) {
    tstitch::AnyProfile with = way;
    with.options.forecast = forecast;
    return tstitch::make_sampler(
        with, last == 0 ? tstitch::AnyModelSchedule(tstitch::SingleNetwork{}) : tstitch::Stitch{arguments.ratio});
  };
  std::vector<tstitch::NetworkInfo> infos;
  for (tstitch::Network const& network : networks) infos.push_back(network.info());
  tstitch::Request request = request_for(networks, conditions, arguments.count, shape_for(infos, arguments.shape));
  request.guidance.scale = infos[last].null_class ? infos[last].guidance_scale : 1;
  request = tstitch::apply(way, std::move(request));
  const tstitch::ForecastErrors errors =
      tstitch::measure_forecasts(sampler_with({}), networks, request, last, arguments.order);
  const int steps = int(errors.steps.size());
  const tstitch::ForecastTable table = errors.best(arguments.computed ? arguments.computed : (steps + 1) / 2);
  tstitch::write_forecast_table(arguments.forecast, table);

  const auto draw = [&](tstitch::Forecast const& forecast) {
    return sampler_with(forecast).sample(networks, request).images;
  };
  const at::Tensor exact = draw({});
  const auto change = [&](tstitch::Forecast const& forecast) {
    const at::Tensor squares = draw(forecast).sub(exact).square().mean();
    return std::sqrt(squares.item<double>() / exact.square().mean().item<double>());
  };
  const int computed = sampler_with(table).plan().calls(networks.size())[last];
  nlohmann::ordered_json json{{"steps", arguments.steps},
                              {"sampler", arguments.profile.empty() ? arguments.sampler : arguments.profile},
                              {"order", arguments.order},
                              {"computed", computed},
                              {"of", steps},
                              {"sum", errors.sum(table)},
                              {"change", change(table)}};
  std::printf("forecast: %d of %d steps of the last network are computed; pictures change by %.3g of their rms\n",
              computed, steps, json["change"].get<double>());
  // Beside the rule that needs no measuring, where it computes as many.
  for (int every = 2; every <= 4; ++every) {
    const tstitch::ForecastEvery rule{.every = every, .order = arguments.order, .first_network = last};
    if (sampler_with(rule).plan().calls(networks.size())[last] != computed) continue;
    json["change_of_every"] = change(rule);
    std::printf("          by every:%d, with as many, by %.3g\n", every, json["change_of_every"].get<double>());
  }
  std::printf("table: %s\n", arguments.forecast.c_str());
  return json;
}
