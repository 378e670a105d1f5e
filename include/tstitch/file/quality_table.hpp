/// @file
/// How good a pair's pictures are by the way they are drawn: what measure_quality.py writes and a budget chooses from.
///
/// Text, the values of a line apart by tabs. Behind the head one line a way, in the order of these columns:
///
///     tstitch quality table 1
///     networks	cifar10-dit-small	cifar10-dit-large
///     guidance	1.5
///     distance	sampler	steps	shares	forecast	forecast guidance
///     2.031	profile:recommended	30	0.4,0.6	every:2,2	none
#pragma once

#include <cmath>
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "../base/text.hpp"
#include "../base/write_file.hpp"
#include "text_file.hpp"

namespace tstitch {

/// A way to draw, and how good its pictures are.
struct QualityRow {
  double distance;             ///< finite; the smaller the better, such as a Frechet distance
  std::string sampler;         ///< a name of update_rules(), or "profile:" and one of profiles()
  int steps;                   ///< at least 1
  std::vector<double> shares;  ///< of the steps, one a network, adding up to 1
  std::string forecast = "none", forecast_guidance = "none";  ///< as forecast_by_name reads them

  bool operator==(QualityRow const&) const = default;
};

struct QualityTable {
  std::vector<std::string> networks;  ///< their names, small first
  double guidance_scale = 1;          ///< that all rows were drawn with
  std::vector<QualityRow> rows;       ///< one at least

  bool operator==(QualityTable const&) const = default;
};

namespace detail {

inline constexpr FileKind quality_file{"read_quality_table", "a quality table"};
inline constexpr auto quality_magic = "tstitch quality table 1";
inline constexpr auto quality_columns = "distance\tsampler\tsteps\tshares\tforecast\tforecast guidance";

/// One line of the table; none for what it cannot be.
inline std::optional<QualityRow> quality_row(std::string const& line, std::size_t networks) {
  const std::vector<std::string> values = split(line, '\t');
  if (values.size() != 6) return {};
  const std::optional<double> distance = number_of<double>(values[0]);
  const std::optional<int> steps = number_of<int>(values[2]);
  if (!distance || !std::isfinite(*distance) || !steps || *steps < 1 || values[1].empty()) return {};
  QualityRow row{*distance, values[1], *steps, {}, values[4], values[5]};
  double sum = 0;
  for (std::string const& each : split(values[3], ',')) {
    const std::optional<double> share = number_of<double>(each);
    if (!share || !(*share >= 0 && *share <= 1)) return {};
    row.shares.push_back(*share);
    sum += *share;
  }
  if (row.shares.size() != networks || std::abs(sum - 1) > 1e-6) return {};
  return row;
}

}  // namespace detail

/// @throws std::runtime_error naming the file and what is wrong with it
inline QualityTable read_quality_table(std::string const& path) {
  using namespace detail;
  std::vector<std::string> lines = split(read_text(quality_file, path, 1 << 24), '\n');
  const auto fail = [&](std::string const& got) { refuse_file(quality_file, quoted(path), got); };
  if (lines[0] != quality_magic) fail("another first line than '" + std::string(quality_magic) + "'");
  if (!lines.back().empty()) fail("a last line that is cut off");
  lines.pop_back();
  if (lines.size() < 5) fail("no row");
  QualityTable table{.networks = split(lines[1], '\t'), .guidance_scale = 1, .rows = {}};
  if (table.networks.size() < 2 || table.networks[0] != "networks")
    fail(in_quotes(lines[1]) + " where networks must be named");
  table.networks.erase(table.networks.begin());
  const std::vector<std::string> guidance = split(lines[2], '\t');
  const std::optional<double> scale = guidance.size() == 2 ? number_of<double>(guidance[1]) : std::nullopt;
  if (guidance[0] != "guidance" || !scale || !std::isfinite(*scale)) {
    fail(in_quotes(lines[2]) + " where the guidance scale must be");
  }
  table.guidance_scale = *scale;
  if (lines[3] != quality_columns) fail("other columns than " + in_quotes(quality_columns));
  for (std::size_t i = 4; i < lines.size(); ++i) {
    const std::optional<QualityRow> row = quality_row(lines[i], table.networks.size());
    if (!row) {
      fail(in_quotes(lines[i]) + " in line " + std::to_string(i + 1) + " where values of the six columns must be");
    }
    table.rows.push_back(*row);
  }
  return table;
}

/// Writes it whole, or not at all.
/// @throws std::runtime_error where it cannot be written
inline void write_quality_table(std::string const& path, QualityTable const& table) {
  std::string text = std::string(detail::quality_magic) + "\nnetworks";
  for (std::string const& name : table.networks) text += "\t" + name;
  text += "\nguidance\t" + detail::text(table.guidance_scale) + "\n" + detail::quality_columns + "\n";
  for (QualityRow const& row : table.rows) {
    std::string shares;
    for (const double share : row.shares) shares += (shares.empty() ? "" : ",") + detail::text(share);
    text += detail::text(row.distance) + "\t" + row.sampler + "\t" + std::to_string(row.steps) + "\t" + shares + "\t" +
            row.forecast + "\t" + row.forecast_guidance + "\n";
  }
  write_file(path, text);
}

}  // namespace tstitch
