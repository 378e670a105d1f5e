/// @file
/// Forecast tables as files: what tstitch_inspect writes and tstitch_sample reads.
///
/// Text of five lines, the steps counted from 0:
///
///     tstitch forecast table 1
///     order 1
///     first network 1
///     steps 50
///     forecast 23,25,27
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "../base/text.hpp"
#include "../base/write_file.hpp"
#include "../plan/forecast.hpp"
#include "text_file.hpp"

namespace tstitch {
namespace detail {

inline constexpr FileKind forecast_file{"read_forecast_table", "a forecast table"};
inline constexpr auto forecast_magic = "tstitch forecast table 1";

/// What is behind a key at the beginning of a line.
inline std::string forecast_line(std::string const& path, std::string const& line, std::string const& key) {
  if (!line.starts_with(key + " ")) {
    refuse_file(forecast_file, quoted(path), in_quotes(line) + " where a line must begin with '" + key + " '");
  }
  return line.substr(key.size() + 1);
}

/// A number in [0, most].
inline std::size_t forecast_number(std::string const& path, std::string const& key, std::string const& text,
                                   std::size_t most) {
  const std::optional<int> number = number_of<int>(text);
  if (!number || *number < 0 || std::size_t(*number) > most) {
    refuse_file(forecast_file, quoted(path),
                key + " " + in_quotes(text) + ", which must be in [0, " + std::to_string(most) + "]");
  }
  return std::size_t(*number);
}

}  // namespace detail

/// @throws std::runtime_error naming the file and what is wrong with it
inline ForecastTable read_forecast_table(std::string const& path) {
  using namespace detail;
  std::vector<std::string> lines = split(read_text(forecast_file, path, 1 << 24), '\n');
  if (!lines.empty() && lines.back().empty()) lines.pop_back();
  if (lines.empty() || lines[0] != forecast_magic) {
    refuse_file(forecast_file, quoted(path), "another first line than '" + std::string(forecast_magic) + "'");
  }
  if (lines.size() != 5) refuse_file(forecast_file, quoted(path), std::to_string(lines.size()) + " lines, not 5");
  const auto number = [&](std::size_t line, std::string const& key, std::size_t most) {
    return forecast_number(path, key, forecast_line(path, lines[line], key), most);
  };
  ForecastTable table{
      .forecast = {}, .order = int(number(1, "order", 8)), .first_network = number(2, "first network", 65535)};
  const std::size_t steps = number(3, "steps", 1'000'000);
  table.forecast.resize(steps);
  const std::string forecast = forecast_line(path, lines[4] + (lines[4] == "forecast" ? " " : ""), "forecast");
  if (forecast.empty()) return table;
  std::size_t before = 0;
  for (std::string const& each : split(forecast, ',')) {
    if (steps == 0) refuse_file(forecast_file, quoted(path), "forecasts of no steps");
    const std::size_t step = forecast_number(path, "forecast", each, steps - 1);
    if (step < before) refuse_file(forecast_file, quoted(path), "step " + std::to_string(step) + " behind a later one");
    before = step + 1;
    table.forecast[step] = true;
  }
  return table;
}

/// Writes it whole, or not at all.
/// @throws std::runtime_error where it cannot be written
inline void write_forecast_table(std::string const& path, ForecastTable const& table) {
  std::string forecast;
  for (std::size_t step = 0; step < table.forecast.size(); ++step) {
    if (table.forecast[step]) forecast += (forecast.empty() ? "" : ",") + std::to_string(step);
  }
  write_file(path, std::string(detail::forecast_magic) + "\norder " + std::to_string(table.order) + "\nfirst network " +
                       std::to_string(table.first_network) + "\nsteps " + std::to_string(table.forecast.size()) +
                       "\nforecast " + forecast + "\n");
}

}  // namespace tstitch
