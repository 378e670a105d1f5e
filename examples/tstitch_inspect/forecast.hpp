/// @file
/// The steps in which a network is best forecast.
#pragma once

#include <tstitch/file/forecast_file.hpp>
#include <tstitch/study/forecast_calibration.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "arguments.hpp"
#include "ways.hpp"

/// Measures what forecasts would cost, writes the best table, and says what it came to.
/// @throws std::invalid_argument for a network that cannot forecast, and a number of steps that cannot be computed
inline nlohmann::ordered_json calibrate_forecast(std::vector<tstitch::Network> const& networks,
                                                 Arguments const& arguments,
                                                 std::vector<tstitch::NamedCondition> const& conditions) {
  const std::size_t last = networks.size() - 1;
  tstitch::NoiseSchedule const& noise = networks[last].noise_schedule();
  const tstitch::AnyProfile way = way_of(arguments, noise);
  const auto sampler_with = [&](tstitch::Forecast const& forecast) {
    tstitch::AnyProfile with = way;
    with.options.forecast = forecast;
    return tstitch::make_sampler(
        with, last == 0 ? tstitch::AnyModelSchedule(tstitch::SingleNetwork{}) : tstitch::Stitch{arguments.ratio});
  };
  const tstitch::Request request = compared_request(networks, arguments, conditions, way);
  const tstitch::ForecastErrors errors =
      tstitch::measure_forecasts(sampler_with({}), networks, request, last, arguments.order);
  const int steps = int(errors.steps.size());
  tstitch::ForecastTable table = errors.best(arguments.computed ? arguments.computed : (steps + 1) / 2);

  const auto draw = [&](tstitch::Forecast const& forecast) {
    return sampler_with(forecast).sample(networks, request).images;
  };
  const at::Tensor exact = draw({});
  const auto change = [&](tstitch::Forecast const& forecast) {
    const at::Tensor squares = draw(forecast).sub(exact).square().mean();
    return std::sqrt(squares.item<double>() / exact.square().mean().item<double>());
  };
  const int computed = sampler_with(table).plan().calls(networks.size())[last];
  double least = change(table);
  nlohmann::ordered_json json{{"steps", arguments.steps},
                              {"sampler", arguments.profile.empty() ? arguments.sampler : arguments.profile},
                              {"order", arguments.order},
                              {"computed", computed},
                              {"of", steps},
                              {"sum", errors.sum(table)},
                              {"change", least}};
  std::printf("forecast: %d of %d steps of the last network are computed; pictures change by %.3g of their rms\n",
              computed, steps, least);
  // Beside the rules that need no measuring, where they compute as many. The sum is a heuristic: where a rule's
  // pictures are nearer, its steps are the table.
  for (int every = 2; every <= 4; ++every) {
    const tstitch::ForecastEvery rule{.every = every, .order = arguments.order, .first_network = last};
    const tstitch::Plan plan = sampler_with(rule).plan();
    if (plan.calls(networks.size())[last] != computed) continue;
    const double by_rule = change(rule);
    json["change_of_every"] = by_rule;
    std::printf("          by every:%d, with as many, by %.3g\n", every, by_rule);
    if (!(by_rule < least)) continue;
    least = by_rule;
    for (tstitch::PlannedStep const& each : plan.steps) {
      table.forecast[std::size_t(each.step.index)] = each.forecast.network;
    }
    std::printf("          which is nearer, and the table\n");
    json["change"] = least;
    json["sum"] = errors.sum(table);
    json["rule"] = "every:" + std::to_string(every);
  }
  tstitch::write_forecast_table(arguments.forecast, table);
  std::printf("table: %s\n", arguments.forecast.c_str());
  return json;
}
