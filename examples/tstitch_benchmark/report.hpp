/// @file
/// What was measured, as lines.
#pragma once

#include <cstdint>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>

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
