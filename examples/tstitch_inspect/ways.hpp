/// @file
/// Which order suits a pair, and where guidance is needed: ways to draw, measured against one another.
#pragma once

#include <tstitch/peer/by_name.hpp>
#include <tstitch/plan/by_name.hpp>
#include <tstitch/study/comparison.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../common/request.hpp"
#include "../common/shape.hpp"
#include "arguments.hpp"

/// The sampler of the forecast run, without its networks and forecasts.
inline tstitch::AnyProfile way_of(Arguments const& arguments, tstitch::NoiseSchedule const& noise) {
  if (!arguments.profile.empty()) return tstitch::profile_by_name(arguments.profile, noise, arguments.steps);
  return {noise,
          {.steps = arguments.steps, .spacing = tstitch::Spacing::usual(noise)},
          tstitch::update_rule_by_name(arguments.sampler)};
}

/// What is drawn where ways are compared: guided as the last network recommends.
inline tstitch::Request compared_request(std::vector<tstitch::Network> const& networks, Arguments const& arguments,
                                         std::vector<tstitch::NamedCondition> const& conditions,
                                         tstitch::AnyProfile const& way) {
  std::vector<tstitch::NetworkInfo> infos;
  for (tstitch::Network const& network : networks) infos.push_back(network.info());
  tstitch::Request request = request_for(networks, conditions, arguments.count, shape_for(infos, arguments.shape));
  request.guidance.scale = infos.back().null_class ? infos.back().guidance_scale : 1;
  return tstitch::apply(way, std::move(request));
}

/// Small first, large first and small at both ends, at equal cost, by how far their pictures are from those that the
/// large network draws alone.
inline nlohmann::ordered_json compare_orders(std::vector<tstitch::Network> const& networks, Arguments const& arguments,
                                             std::vector<tstitch::NamedCondition> const& conditions) {
  const tstitch::AnyProfile way = way_of(arguments, networks[1].noise_schedule());
  const tstitch::Request request = compared_request(networks, arguments, conditions, way);
  const std::vector<std::string> names{"stitch", "large-first", "both-ends"};
  std::vector<tstitch::ComparedWay> ways;
  for (std::string const& name : names) {
    const tstitch::AnyModelSchedule schedule = tstitch::model_schedule_by_name(name, {.ratio = arguments.ratio});
    ways.push_back({tstitch::make_sampler(way, schedule), request.guidance});
  }
  const std::vector<double> distances = tstitch::distances_from(
      {tstitch::make_sampler(way, tstitch::SingleNetwork{1}), request.guidance}, ways, networks, request);
  std::printf("orders, each with %d of %d steps by the small network: distance from the large network's own pictures\n",
              ways[0].sampler.plan().calls(2)[0], way.options.steps);
  static constexpr char const* words[]{"small first", "large first", "small at both ends"};
  nlohmann::ordered_json json;
  for (std::size_t i = 0; i < names.size(); ++i) {
    std::printf("  %-20s %.4f   --routing %s\n", words[i], distances[i], names[i].c_str());
    json.push_back({{"routing", names[i]}, {"distance", distances[i]}});
  }
  const std::size_t best = std::size_t(std::ranges::min_element(distances) - distances.begin());
  std::printf(
      "nearest: %s. How good pictures are as a whole may rank them otherwise: of the bundled pair small first is\n"
      "by far the best, whichever is nearest\n",
      words[best]);
  return json;
}

/// Guidance on a part of the steps, beside guidance that is forecast: rows, and how far pictures are from those with
/// guidance everywhere. Suggests the nearest interval that has no more rows than the forecast.
inline nlohmann::ordered_json compare_intervals(std::vector<tstitch::Network> const& networks,
                                                Arguments const& arguments,
                                                std::vector<tstitch::NamedCondition> const& conditions) {
  const std::size_t last = networks.size() - 1;
  const tstitch::AnyProfile way = way_of(arguments, networks[last].noise_schedule());
  const tstitch::Request request = compared_request(networks, arguments, conditions, way);
  if (request.guidance.scale.values() == std::vector{1.0}) {
    throw std::invalid_argument("--intervals: is for networks with a null class, which are guided, got none");
  }
  const tstitch::AnySampler sampler = tstitch::make_sampler(
      way, last == 0 ? tstitch::AnyModelSchedule(tstitch::SingleNetwork{}) : tstitch::Stitch{arguments.ratio});
  struct Compared {
    std::string name;
    tstitch::Guidance guidance;
    int rows;
  };
  std::vector<Compared> all;
  const auto add = [&](std::string const& name, tstitch::Guidance guidance) {
    int rows = 0;
    for (tstitch::NetworkWork const& each : sampler.plan(guidance).work()) rows += each.rows;
    all.push_back({name, std::move(guidance), rows});
  };
  tstitch::Guidance forecast = request.guidance;
  forecast.forecast = tstitch::forecast_by_name("every:2", {.warm_up = 2});
  add("--forecast-guidance every:2", forecast);
  for (const double begin : {0.0, 0.2, 0.4}) {
    for (const double end : {1.0, 0.8, 0.6}) {
      tstitch::Guidance part = request.guidance;
      part.begin = begin, part.end = end;
      char name[64];
      std::snprintf(name, sizeof name, "--guidance-interval %g:%g", begin, end);
      if (begin > 0 || end < 1) add(name, part);
    }
  }
  std::vector<tstitch::ComparedWay> ways;
  for (Compared const& each : all) ways.push_back({sampler, each.guidance});
  const std::vector<double> distances = tstitch::distances_from({sampler, request.guidance}, ways, networks, request);
  std::printf("guidance on fewer steps: rows of both halves, and distance from pictures with guidance everywhere\n");
  nlohmann::ordered_json json;
  std::size_t best = 0;
  for (std::size_t i = 0; i < all.size(); ++i) {
    std::printf("  %-28s %4d rows  %.4f\n", all[i].name.c_str(), all[i].rows, distances[i]);
    json.push_back({{"option", all[i].name}, {"rows", all[i].rows}, {"distance", distances[i]}});
    if (i > 0 && all[i].rows <= all[0].rows && (best == 0 || distances[i] < distances[best])) best = i;
  }
  if (best > 0) {
    std::printf("suggested: %s%s\n", all[distances[best] < distances[0] ? best : 0].name.c_str(),
                distances[best] < distances[0] ? "" : ", nearer than any interval of as few rows");
  }
  return json;
}
