/// @file
/// Forecasts as they are written on the command line.
#pragma once

#include <tstitch/plan/by_name.hpp>

#include <cstddef>
#include <string>

/// --forecast: of the last network, the large one.
/// @throws std::invalid_argument
inline tstitch::Forecast forecast_of_steps(std::string const& text, std::size_t networks) {
  return tstitch::forecast_by_name(text, {.first_network = networks - 1}, "--forecast");
}

/// --forecast-guidance: of all networks.
/// @throws std::invalid_argument
inline tstitch::Forecast forecast_of_guidance(std::string const& text) {
  return tstitch::forecast_by_name(text, {.warm_up = 2}, "--forecast-guidance");
}
