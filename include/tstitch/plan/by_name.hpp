/// @file
/// Spacings and model schedules by name, for programs, configuration files and help texts. Host only; includes no
/// torch.
#pragma once

#include <cctype>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../base/text.hpp"
#include "baseline_schedules.hpp"
#include "forecast.hpp"
#include "model_schedule.hpp"
#include "timesteps.hpp"

namespace tstitch {

/// A spacing as programs list it.
struct NamedSpacing {
  std::string name;
  std::string help;  ///< what it is, in a line
  /// How its numbers are written behind the name and a colon: "S", "N,N,..."; empty where it takes none.
  std::string numbers = {};
  Spacing (*make)() = nullptr;  ///< without numbers; null where it must have some
  Spacing (*make_with)(std::string const& place, std::string const& numbers) = nullptr;  ///< null where it takes none
};

/// Which network takes which step, with what all routings may ask for.
struct RoutingOptions {
  double ratio = 0.4;                   ///< in [0, 1], share of the steps for the first of two networks
  std::vector<double> fractions = {};   ///< where it is not empty instead: one share a network
  std::vector<double> boundaries = {};  ///< of timestep and logsnr, as read_routing finds them behind the colon
  int num_train_timesteps = 1000;
  std::uint32_t seed = 0;  ///< of falling
};

/// A model schedule as programs list it.
struct NamedRouting {
  std::string name;
  std::string help;              ///< what it is, in a line
  std::string boundaries = {};   ///< how they are written behind the name and a colon: "T,..."; empty: it has none
  bool whole = false;            ///< whether they are whole numbers
  bool between = true;           ///< between networks, so one fewer than these; else any numbers, for two networks
  bool takes_fractions = false;  ///< shares for any number of networks; else one, for two
  AnyModelSchedule (*make)(RoutingOptions const&) = nullptr;
};

namespace detail {

inline constexpr auto spacing_place = "tstitch::spacing_by_name";
inline constexpr auto routing_place = "tstitch::model_schedule_by_name";

/// "shifted, shifted:S or sections:N,N,...": how the entries of a table are written, those with numbers last.
template <class Entry>
std::string written(std::vector<Entry> const& table, std::string Entry::*numbers) {
  std::vector<std::string> all, with_numbers;
  for (Entry const& entry : table) {
    bool alone = (entry.*numbers).empty();
    if constexpr (requires { entry.make_with; }) alone = entry.make;
    if (alone) all.push_back(entry.name);
    if (!(entry.*numbers).empty()) with_numbers.push_back(entry.name + ":" + entry.*numbers);
  }
  all.insert(all.end(), with_numbers.begin(), with_numbers.end());
  const std::string last = all.back();
  all.pop_back();
  return joined(all) + " or " + last;
}

inline Spacing sections_of(std::string const& place, std::string const& text) {
  const std::vector<int> counts = numbers_of<int>(place + ": sections", text);
  for (const int count : counts) {
    if (count >= 0 && count <= 1'000'000) continue;
    throw std::invalid_argument(place + ": sections: must be in [0, 1000000], got " + in_quotes("sections:" + text));
  }
  return Spacing::sections(counts);
}

}  // namespace detail

/// All spacings that have a name.
inline std::vector<NamedSpacing> const& spacings() {
  static const std::vector<NamedSpacing> list{
      {.name = "leading", .help = "multiples of floor(T / N)", .make = [] { return Spacing::leading(); }},
      {.name = "linspace", .help = "even from the noisiest timestep to 0", .make = [] { return Spacing::linspace(); }},
      {.name = "trailing", .help = "T - 1, T - T/N - 1, ...", .make = [] { return Spacing::trailing(); }},
      {.name = "ddim", .help = "guided-diffusion's ddimN", .make = [] { return Spacing::ddim_stride(); }},
      {.name = "logsnr",
       .help = "even in the log signal-to-noise ratio",
       .make = [] { return Spacing::uniform_logsnr(); }},
      {.name = "karras", .help = "of Karras et al., rho 7", .make = [] { return Spacing::karras(); }},
      {.name = "quadratic",
       .help = "even in the root of t, whole timesteps",
       .make = [] { return Spacing::quadratic({.include_last = false, .round = true}); }},
      {.name = "beta",
       .help = "denser at both ends, whole timesteps",
       .make = [] { return Spacing::beta(0.6, 0.8, {.include_last = false, .round = true}); }},
      {.name = "sections",
       .help = "guided-diffusion's respacing, the least noisy section first",
       .numbers = "N,N,...",
       .make = nullptr,
       .make_with = detail::sections_of},
      {.name = "shifted",
       .help = "for flow matching, denser where there is much noise by the shift S (the network's own)",
       .numbers = "S",
       .make = [] { return Spacing::shifted(); },
       .make_with =
           [](std::string const& place, std::string const& text) {
             return Spacing::shifted(detail::numbers_of(place, text, ':', 1)[0]);
           }},
      {.name = "flow-match-euler",
       .help = "diffusers' for flow matching, with the network's own shift",
       .make = [] { return Spacing::flow_match_euler(); }},
  };
  return list;
}

/// How all spacings are written, for messages and help texts.
inline std::string spacings_text() {
  return detail::written(spacings(), &NamedSpacing::numbers);
}

/// A spacing by name, with numbers as "shifted:3", or a list of timesteps "999,750,500".
/// @param place what messages begin with
/// @throws std::invalid_argument for a name that there is not, with those that there are, and for wrong numbers
inline Spacing spacing_by_name(std::string const& text, std::string const& place = detail::spacing_place) {
  if (!text.empty() && (std::isdigit(static_cast<unsigned char>(text[0])) || text[0] == '-')) {
    return Spacing::list(detail::numbers_of(place, text));
  }
  const std::size_t colon = text.find(':');
  for (NamedSpacing const& each : spacings()) {
    if (each.name != text.substr(0, colon)) continue;
    if (colon == std::string::npos && each.make) return each.make();
    if (colon != std::string::npos && each.make_with) return each.make_with(place, text.substr(colon + 1));
  }
  throw std::invalid_argument(place + ": must be " + spacings_text() + ", or a list of timesteps, got " +
                              detail::in_quotes(text));
}

/// The model schedules of plan/ that have a name. Those of T-Stitch's own code are in peer/reference_routing.hpp.
inline std::vector<NamedRouting> const& routings() {
  using Options = RoutingOptions;
  static const std::vector<NamedRouting> list{
      {.name = "stitch",
       .help = "the nearest whole number of steps",
       .takes_fractions = true,
       .make = [](Options const& options) -> AnyModelSchedule {
         if (!options.fractions.empty()) return Fractions{options.fractions};
         return Stitch{options.ratio};
       }},
      {.name = "large-first",
       .help = "the second network first, for as many steps as stitch gives it",
       .make = [](Options const& options) -> AnyModelSchedule { return LargeFirst{options.ratio}; }},
      {.name = "both-ends",
       .help = "the first network's steps in two halves, which begin and end the run",
       .make = [](Options const& options) -> AnyModelSchedule { return BothEnds{options.ratio}; }},
      {.name = "interleaved",
       .help = "the first network's steps spread over the run",
       .make = [](Options const& options) -> AnyModelSchedule { return Interleaved{options.ratio}; }},
      {.name = "falling",
       .help = "by a falling probability",
       .make = [](Options const& options) -> AnyModelSchedule {
         return FallingProbability{options.ratio, options.seed};
       }},
      {.name = "timestep",
       .help = "by training timestep",
       .boundaries = "T,...",
       .whole = true,
       .make = [](Options const& options) -> AnyModelSchedule {
         ByTimestep schedule;
         for (const double t : options.boundaries) {
           if (!(std::trunc(t) == t && std::abs(t) <= 1e9)) {
             detail::refuse("ByTimestep", "boundaries must be whole numbers up to 1e9", t);
           }
           schedule.boundaries.push_back(int(t));
         }
         return schedule;
       }},
      {.name = "logsnr",
       .help = "by log signal-to-noise ratio",
       .boundaries = "L,...",
       .make = [](Options const& options) -> AnyModelSchedule { return ByLogSnr{options.boundaries}; }},
  };
  return list;
}

/// How the model schedules of a table are written, for messages and help texts: those with boundaries last.
inline std::string routings_text(std::vector<NamedRouting> const& table = routings()) {
  return detail::written(table, &NamedRouting::boundaries);
}

/// A routing as it is written, "stitch" or "timestep:600,200": the table's entry, and what is behind the colon.
/// @param place what messages begin with
/// @throws std::invalid_argument for a name that there is not, with those that there are, and for wrong boundaries
inline std::pair<NamedRouting, std::vector<double>> read_routing(std::string const& text,
                                                                 std::vector<NamedRouting> const& table = routings(),
                                                                 std::string const& place = detail::routing_place) {
  const std::size_t colon = text.find(':');
  for (NamedRouting const& each : table) {
    if (each.name != text.substr(0, colon) || each.boundaries.empty() != (colon == std::string::npos)) continue;
    if (each.boundaries.empty()) return {each, {}};
    const std::string numbers = text.substr(colon + 1), where = place + ": " + each.name;
    if (!each.whole) return {each, detail::numbers_of(where, numbers)};
    const std::vector<int> timesteps = detail::numbers_of<int>(where, numbers);
    return {each, {timesteps.begin(), timesteps.end()}};
  }
  throw std::invalid_argument(place + ": must be one of " + routings_text(table) + ", got " + detail::in_quotes(text));
}

/// A model schedule by name: `model_schedule_by_name("interleaved", {.ratio = 0.3})`,
/// `model_schedule_by_name("timestep:600")`.
/// @param options boundaries in the text take the place of those in here
/// @throws std::invalid_argument for a name that there is not, with those that there are, for wrong boundaries, and for
/// fractions where the schedule takes none; what a schedule refuses it refuses when a plan is made
inline AnyModelSchedule model_schedule_by_name(std::string const& text, RoutingOptions options = {},
                                               std::vector<NamedRouting> const& table = routings()) {
  // A name alone is enough where the options have the boundaries.
  for (NamedRouting const& each : table) {
    if (each.name == text && !each.boundaries.empty() && !options.boundaries.empty()) return each.make(options);
  }
  auto [routing, boundaries] = read_routing(text, table);
  if (boundaries.empty() && !options.boundaries.empty()) {
    detail::refuse("model_schedule_by_name", "boundaries are for schedules that take them", routing.name);
  }
  if (!options.fractions.empty() && !routing.takes_fractions) {
    detail::refuse("model_schedule_by_name", "fractions are for schedules that take them", routing.name);
  }
  if (!boundaries.empty()) options.boundaries = std::move(boundaries);
  return routing.make(options);
}

namespace detail {

inline constexpr auto forecast_place = "tstitch::forecast_by_name";

}  // namespace detail

/// How forecast schedules are written, for messages and help texts.
inline std::string forecasts_text() {
  return "none or every:N[,ORDER[,WARM_UP]]";
}

/// A forecast schedule as it is written: "none", "every:2", "every:3,2" with an order, "every:2,1,3" with a warm-up.
/// @param preset what is not written
/// @param place what messages begin with
/// @throws std::invalid_argument for a name that there is not, with those that there are, and for wrong numbers
inline Forecast forecast_by_name(std::string const& text, ForecastEvery preset = {},
                                 std::string const& place = detail::forecast_place) {
  if (text == "none") return {};
  const std::string every = "every:";
  if (!text.starts_with(every)) {
    throw std::invalid_argument(place + ": must be " + forecasts_text() + ", got " + detail::in_quotes(text));
  }
  const std::vector<int> numbers = detail::numbers_of<int>(place + ": every", text.substr(every.size()));
  if (numbers.size() > 3) {
    throw std::invalid_argument(place + ": every: must be 1 to 3 numbers, got " + detail::in_quotes(text));
  }
  preset.every = numbers[0];
  if (numbers.size() > 1) preset.order = numbers[1];
  if (numbers.size() > 2) preset.warm_up = numbers[2];
  preset.validate();
  return preset;
}

}  // namespace tstitch
