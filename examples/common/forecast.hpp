/// @file
/// Forecasts as they are written on the command line.
#pragma once

#include <tstitch/file/forecast_file.hpp>
#include <tstitch/plan/by_name.hpp>

#include <cstddef>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>

#include "text.hpp"

/// --forecast: of the last network, the large one; by name, with "all:" before it of all networks; or the file of a
/// table.
/// @throws std::invalid_argument
/// @throws std::runtime_error for a file that is no table
inline tstitch::Forecast forecast_of_steps(std::string const& text, std::size_t networks) {
  std::error_code none;
  if (std::filesystem::exists(text, none)) return tstitch::read_forecast_table(text);
  constexpr std::string_view of_all = "all:";
  const bool all = text.starts_with(of_all);
  const std::string name = all ? text.substr(of_all.size()) : text;
  if ((name != "none" || all) && !name.starts_with("every:")) {
    throw std::invalid_argument("--forecast: must be " + tstitch::forecasts_text() +
                                ", with all: before it of all networks, or the file of a table, got " +
                                in_quotes(text));
  }
  return tstitch::forecast_by_name(name, {.first_network = all ? 0 : networks - 1}, "--forecast");
}

/// --forecast-guidance: of all networks.
/// @throws std::invalid_argument
inline tstitch::Forecast forecast_of_guidance(std::string const& text) {
  return tstitch::forecast_by_name(text, {.warm_up = 2}, "--forecast-guidance");
}
