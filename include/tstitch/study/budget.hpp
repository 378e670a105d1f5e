/// @file
/// What a picture may cost, and the best way to draw it for that. Includes no torch.
///
///     const tstitch::Budget budget = tstitch::budget_by_name("80ms");
///     const auto found = tstitch::best_within(budget, distances, cost);
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "../base/text.hpp"

namespace tstitch {

/// What drawing may cost.
struct Budget {
  enum class Of {
    seconds,            ///< of a batch, from noise to x_0: what somebody waits
    images_per_second,  ///< at least so many
    flop,               ///< floating-point operations of a picture, in matrix products and convolutions
  };
  Of of = Of::seconds;
  double amount = 0;  ///< above 0

  /// The same as what a batch may cost at most: seconds, or operations of an image.
  /// @param batch images
  double most(std::int64_t batch) const { return of == Of::images_per_second ? double(batch) / amount : amount; }
};

/// How budgets are written, for messages and help texts.
inline std::string budgets_text() {
  return "80ms or 1.5s for a batch, 20img/s, or 4TFLOP for a picture";
}

/// A budget as it is written: a number above 0, and ms, s, img/s, GFLOP or TFLOP.
/// @param place what messages begin with
/// @throws std::invalid_argument for anything else
inline Budget budget_by_name(std::string const& text, std::string const& place = "tstitch::budget_by_name") {
  struct Unit {
    char const* name;
    Budget::Of of;
    double factor;
  };
  // The longest first: "ms" ends with "s".
  static constexpr Unit units[]{{"img/s", Budget::Of::images_per_second, 1},
                                {"TFLOP", Budget::Of::flop, 1e12},
                                {"GFLOP", Budget::Of::flop, 1e9},
                                {"ms", Budget::Of::seconds, 1e-3},
                                {"s", Budget::Of::seconds, 1}};
  for (Unit const& unit : units) {
    if (!text.ends_with(unit.name)) continue;
    const std::string number = text.substr(0, text.size() - std::string_view(unit.name).size());
    const std::optional<double> amount = detail::number_of<double>(number);
    if (!amount || !std::isfinite(*amount * unit.factor) || !(*amount * unit.factor > 0)) break;
    return {unit.of, *amount * unit.factor};
  }
  throw std::invalid_argument(place + ": must be " + budgets_text() + ", got " + detail::in_quotes(text));
}

/// What was found for a budget.
struct BestWithin {
  std::optional<std::size_t> index = {};  ///< of the best that fits, if one does
  std::size_t cheapest = 0;               ///< where none fits
  double cost = 0;                        ///< of it
};

/// The one of least distance that costs at most so much; of those alike the first.
/// @param distances one for each way, one at least, finite; the smaller the better
/// @param cost of a way, by its index; asked in the order of distances, and no more than is needed
/// @throws std::invalid_argument for distances or costs that are not numbers
template <class Cost>
BestWithin best_within(std::span<const double> distances, double most, Cost cost) {
  constexpr auto where = "best_within";
  if (distances.empty()) detail::refuse(where, "distances must be one at least", "none");
  if (!(most > 0)) detail::refuse(where, "most must be above 0", most);
  for (const double distance : distances) {
    if (!std::isfinite(distance)) detail::refuse(where, "distances must be finite", distance);
  }
  std::vector<std::size_t> order(distances.size());
  std::iota(order.begin(), order.end(), std::size_t(0));
  std::ranges::stable_sort(order, {}, [&](std::size_t i) { return distances[i]; });
  BestWithin found;
  for (const std::size_t i : order) {
    const double now = cost(i);
    if (!(now >= 0)) detail::refuse(where, "costs must not be negative", now);
    if (now <= most) return {.index = i, .cheapest = i, .cost = now};
    if (i == order.front() || now < found.cost) found = {.cheapest = i, .cost = now};
  }
  return found;
}

/// How many steps each network takes where nothing is known of quality: the last as many as fit, then the one before
/// it, and so on; the first, which is the cheapest, the rest.
/// @param networks, steps at least 1
/// @param cost of a run with so many steps of each network
/// @returns none where even the first network alone costs more
/// @throws std::invalid_argument
template <class Cost>
std::optional<std::vector<int>> largest_networks_within(std::size_t networks, int steps, double most, Cost cost) {
  constexpr auto where = "largest_networks_within";
  if (networks < 1) detail::refuse(where, "networks must be at least 1", "0");
  if (steps < 1) detail::refuse(where, "steps must be at least 1", steps);
  std::vector<int> counts(networks, 0);
  counts[0] = steps;
  if (!(cost(std::as_const(counts)) <= most)) return std::nullopt;
  for (std::size_t k = networks - 1; k > 0; --k) {
    for (int moved = counts[0]; moved > 0; --moved) {
      std::vector<int> tried = counts;
      tried[k] += moved;
      tried[0] -= moved;
      if (!(cost(std::as_const(tried)) <= most)) continue;
      counts = tried;
      break;
    }
  }
  return counts;
}

}  // namespace tstitch
