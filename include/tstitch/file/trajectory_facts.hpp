/// @file
/// What two samplers must have in common for one to take on what the other has begun, as texts.
#pragma once

#include <cstddef>
#include <cstdio>
#include <string>
#include <vector>

#include "../plan/plan.hpp"
#include "../sampler/options.hpp"

namespace tstitch::detail {

/// Each double another text.
inline std::string exact(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.17g", value);
  return text;
}

/// What two things must have in common, by name; of steps one text each.
struct Fact {
  std::string name;
  std::vector<std::string> values;
};

inline std::vector<Fact> facts_of(Plan const& plan, SamplingOptions const& options) {
  constexpr char const* policies[] = {"keep", "reset", "re_evaluate"};
  std::vector<Fact> facts{{"number of steps", {std::to_string(plan.steps.size())}},
                          {"update rule", {plan.sampler}},
                          {"thresholding", {options.thresholding.name()}},
                          {"at_switch", {policies[std::size_t(options.at_switch)]}}};
  const auto each = [&](char const* name, auto text) {
    Fact fact{name, {}};
    for (PlannedStep const& planned : plan.steps) fact.values.push_back(text(planned));
    facts.push_back(std::move(fact));
  };
  const auto level = [](NoiseLevel const& of) { return exact(of.alpha) + " " + exact(of.sigma); };
  each("timestep", [](PlannedStep const& planned) { return exact(planned.step.t); });
  each("noise level", [&](PlannedStep const& planned) {
    return level(planned.step.from) + " to " + level(planned.step.to) + " at " + exact(planned.step.t_to);
  });
  each("network", [](PlannedStep const& planned) { return std::to_string(planned.network); });
  each("guidance", [](PlannedStep const& planned) {
    return exact(planned.guidance_scale) +
           (planned.guide_evaluations > 0 ? " by network " + std::to_string(planned.guide_network) : "");
  });
  each("number of evaluations", [](PlannedStep const& planned) { return std::to_string(planned.evaluations); });
  each("forecast", [](PlannedStep const& planned) {
    std::string text =
        std::string(planned.forecast.network ? "network" : "") + (planned.forecast.guidance ? " guidance" : "");
    auto const& forecast = planned.forecast;
    for (auto const& terms : {forecast.conditional, forecast.unconditional, forecast.difference}) {
      for (ForecastTerm const& term : terms) text += " " + std::to_string(term.step) + ":" + exact(term.weight);
      text += ";";
    }
    return text;
  });
  return facts;
}

/// A forecast schedule as numbers, or that it is a callable of the program's own.
inline std::string forecast_text(Forecast const& forecast) {
  if (!forecast) return "none";
  if (auto const* every = forecast.find<ForecastEvery>()) {
    return "every " + std::to_string(every->every) + " " + std::to_string(every->order) + " " +
           std::to_string(every->warm_up) + " " + std::to_string(int(every->last)) + " " +
           std::to_string(every->first_network);
  }
  if (auto const* table = forecast.find<ForecastTable>()) {
    std::string text = "table " + std::to_string(table->order) + " " + std::to_string(table->first_network) + " ";
    for (const bool each : table->forecast) text += each ? '1' : '0';
    return text;
  }
  return "own";
}

inline std::vector<Fact> facts_of(Guidance const& guidance) {
  std::vector<Fact> facts{{"guidance scale", {}}};
  for (const double each : guidance.scale.values()) facts[0].values.push_back(exact(each));
  auto const& projected = guidance.projected;
  facts.push_back({"guidance begin", {exact(guidance.begin)}});
  facts.push_back({"guidance end", {exact(guidance.end)}});
  facts.push_back({"guidance channels", {std::to_string(guidance.channels)}});
  facts.push_back({"guidance rescale", {exact(guidance.rescale)}});
  facts.push_back(
      {"projected guidance",
       {projected ? exact(projected->eta) + " " + exact(projected->norm_threshold) + " " + exact(projected->momentum)
                  : "none"}});
  facts.push_back(
      {"guide network", {guidance.guide_network ? std::to_string(*guidance.guide_network) : std::string("none")}});
  facts.push_back({"guidance forecast", {forecast_text(guidance.forecast)}});
  return facts;
}

}  // namespace tstitch::detail
