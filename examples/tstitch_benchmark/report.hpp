/// @file
/// What was measured, as lines and as curves.
#pragma once

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "../common/plot.hpp"

using Json = nlohmann::ordered_json;

inline std::string gibibytes(Json const& cell) {
  if (!cell.contains("peak_memory_bytes")) return "-";
  char text[32];
  std::snprintf(text, sizeof text, "%.2f", cell["peak_memory_bytes"].get<double>() / double(1 << 30));
  return text;
}

inline void print_forward(Json const& forward) {
  std::printf("forward  %-12s %-9s %-24s %4lld rows %10.3f ms", forward["backend"].get<std::string>().c_str(),
              forward["dtype"].get<std::string>().c_str(), forward["network"].get<std::string>().c_str(),
              static_cast<long long>(forward["rows"].get<std::int64_t>()), forward["milliseconds"].get<double>());
  if (forward.contains("forecast_milliseconds")) {
    std::printf(", %.3f ms forecast", forward["forecast_milliseconds"].get<double>());
  }
  if (forward.contains("error")) std::printf(", %.1e from float32", forward["error"].get<double>());
  std::printf("\n");
}

inline void print_cell_header() {
  std::printf("%-12s %-9s %5s %6s %9s %9s %9s %9s %8s %10s %8s\n", "backend", "dtype", "batch", "ratio", "calls",
              "seconds", "images/s", "speed-up", "line", "sampler", "GiB");
}

inline void print_cell(Json const& cell) {
  const auto number = [&](char const* key, char const* format, double factor) {
    if (!cell.contains(key)) return std::string("-");
    char text[32];
    std::snprintf(text, sizeof text, format, factor * cell[key].get<double>());
    return std::string(text);
  };
  const std::string calls =
      std::to_string(cell["calls"][0].get<int>()) + "+" + std::to_string(cell["calls"][1].get<int>());
  std::printf("%-12s %-9s %5lld %6.3g %9s %9.4f %9.2f %9s %8s %10s %8s\n", cell["backend"].get<std::string>().c_str(),
              cell["dtype"].get<std::string>().c_str(), static_cast<long long>(cell["batch"].get<std::int64_t>()),
              cell["ratio"].get<double>(), calls.c_str(), cell["seconds"].get<double>(),
              cell["images_per_second"].get<double>(), number("speed_up", "%.3f", 1).c_str(),
              number("line_deviation", "%+.1f%%", 100).c_str(), number("sampler_share", "%.2f%%", 100).c_str(),
              gibibytes(cell).c_str());
}

inline void print_first_picture(Json const& first) {
  std::printf(
      "first picture  %s %s, batch %lld, ratio %.3g: %.2f s = %.2f starting + %.2f loading + %.2f warming + %.2f "
      "sampling, %s GiB\n",
      first["backend"].get<std::string>().c_str(), first["dtype"].get<std::string>().c_str(),
      static_cast<long long>(first["batch"].get<std::int64_t>()), first["ratio"].get<double>(),
      first["seconds"].get<double>(), first["starting"].get<double>(), first["loading"].get<double>(),
      first["warming"].get<double>(), first["sampling"].get<double>(), gibibytes(first).c_str());
}

/// Cells by what they share, in the order in which they were measured, with the names of their curves. With more curves
/// than can be told apart, ratios or batch sizes between the first and the last are left out, of all backends and
/// number formats the same; where these are too many by themselves, some of them.
/// @param shared "ratio" or "batch"
inline std::vector<std::pair<std::string, std::vector<Json>>> grouped(Json const& report, char const* shared) {
  constexpr std::size_t most = 8;
  std::set<double> values;
  std::set<std::pair<std::string, std::string>> kinds;
  for (Json const& cell : report["cells"]) {
    values.insert(cell[shared].get<double>());
    kinds.emplace(cell["backend"].get<std::string>(), cell["dtype"].get<std::string>());
  }
  while (kinds.size() * values.size() > most && values.size() > 2) {
    values.erase(std::next(values.begin(), std::ptrdiff_t(std::min((values.size() + 1) / 2, values.size() - 2))));
  }
  std::vector<std::pair<std::string, std::vector<Json>>> groups;
  for (Json const& cell : report["cells"]) {
    if (!values.contains(cell[shared].get<double>())) continue;
    std::string name = cell["backend"].get<std::string>() + " " + cell["dtype"].get<std::string>() + ", " + shared;
    char text[32];
    std::snprintf(text, sizeof text, " %.4g", cell[shared].get<double>());
    name += text;
    const auto same = [&](auto const& group) { return group.first == name; };
    const auto found = std::find_if(groups.begin(), groups.end(), same);
    (found == groups.end() ? groups.emplace_back(name, std::vector<Json>()) : *found).second.push_back(cell);
  }
  while (groups.size() > most) groups.erase(groups.begin() + std::ptrdiff_t(groups.size() / 2));
  return groups;
}

/// "ddim, 10 steps".
inline std::string setting(Json const& report) {
  return report["sampler"].get<std::string>() + ", " + std::to_string(report["steps"].get<int>()) + " steps";
}

/// Seconds a picture, with the straight lines between the ends.
inline Plot plot_over_ratio(Json const& report) {
  Plot plot{.title = "seconds a picture, " + setting(report), .x_label = "share of the steps for the small network"};
  double largest = 0;
  const auto by_batch = grouped(report, "batch");
  for (std::size_t i = 0; i < by_batch.size(); ++i) {
    Curve measured{.color = curve_color(i), .label = by_batch[i].first, .dots = true};
    Curve line{.color = curve_color(i), .dashed = true};
    if (i == 0) line.label = "straight lines";
    for (Json const& cell : by_batch[i].second) {
      const double batch = cell["batch"].get<double>();
      measured.x.push_back(cell["ratio"].get<double>());
      measured.y.push_back(cell["seconds"].get<double>() / batch);
      largest = std::max(largest, measured.y.back());
      if (!cell.contains("line_seconds")) continue;
      line.x.push_back(measured.x.back());
      line.y.push_back(cell["line_seconds"].get<double>() / batch);
    }
    plot.curves.push_back(line);
    plot.curves.push_back(measured);
  }
  plot.y_end = axis_end(largest);
  return plot;
}

/// Images a second.
inline Plot plot_over_batch(Json const& report) {
  Plot plot{.title = "images/s, " + setting(report), .x_label = "batch size", .x_logarithmic = true};
  double largest = 0;
  const auto by_ratio = grouped(report, "ratio");
  for (std::size_t i = 0; i < by_ratio.size(); ++i) {
    Curve measured{.color = curve_color(i), .label = by_ratio[i].first, .dots = true};
    for (Json const& cell : by_ratio[i].second) {
      const double batch = cell["batch"].get<double>();
      measured.x.push_back(batch);
      measured.y.push_back(cell["images_per_second"].get<double>());
      largest = std::max(largest, measured.y.back());
      std::vector<double>& ticks = plot.x_ticks;
      if (std::find(ticks.begin(), ticks.end(), batch) == ticks.end()) ticks.push_back(batch);
    }
    plot.curves.push_back(measured);
  }
  plot.x_begin = plot.x_ticks.front();
  plot.x_end = std::max(plot.x_ticks.back(), 2 * plot.x_begin);
  plot.y_end = axis_end(largest);
  return plot;
}

/// Seconds a picture over ratio, and images a second over batch size.
inline tstitch::Picture draw_report(Json const& report) {
  return beside(plot_over_ratio(report).draw(), plot_over_batch(report).draw());
}
