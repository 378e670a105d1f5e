/// @file
/// --budget: the best way to draw for what drawing may cost.
#pragma once

#include <tstitch/file/quality_table.hpp>
#include <tstitch/study/budget.hpp>
#include <tstitch/study/run_times.hpp>

#include <ATen/Parallel.h>

#include <cstddef>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "../common/flops.hpp"
#include "../common/job.hpp"
#include "../common/machine.hpp"
#include "output.hpp"

/// The table to choose from: the given one, or that of the bundled pair.
/// @param why where there is none, the reason
inline std::optional<tstitch::QualityTable> quality_table(Job const& job, std::string& why) {
  Arguments const& arguments = job.arguments;
  const bool given = !arguments.quality.empty();
  std::error_code none;
  const std::string its_table = bundled("cifar10_quality.txt");
  const bool is_bundled = arguments.models == Arguments{}.models && std::filesystem::exists(its_table, none);
  if (!given && !is_bundled) return why = "there is no quality table", std::nullopt;
  if (!given && arguments.spacing_given) return why = "the quality table knows samplers by name alone", std::nullopt;
  const std::string path = given ? arguments.quality : its_table;
  tstitch::QualityTable table = tstitch::read_quality_table(path);
  std::vector<std::string> names;
  for (tstitch::NetworkInfo const& info : job.infos) names.push_back(info.name);
  if (table.networks != names) {
    throw std::invalid_argument("--quality: " + in_quotes(path) + " must be of these networks, got one of " +
                                joined(table.networks));
  }
  if (!arguments.guidance.empty() && arguments.guidance != std::vector{table.guidance_scale}) {
    const std::string scale = tstitch::words::text(table.guidance_scale);
    if (given) {
      throw std::invalid_argument("--guidance: must be that of the quality table, " + scale + ", got another");
    }
    return why = "the quality table is for guidance " + scale, std::nullopt;
  }
  // What is given stays as it is given.
  const std::string sampler = arguments.profile.empty() ? arguments.sampler : "profile:" + arguments.profile;
  std::erase_if(table.rows, [&](tstitch::QualityRow const& row) {
    return (arguments.sampling_given && row.sampler != sampler) ||
           (arguments.steps_given && row.steps != arguments.steps) ||
           (arguments.ratio_given && row.shares[0] != arguments.ratio) ||
           (arguments.forecast_given && row.forecast != arguments.forecast) ||
           (arguments.forecast_guidance_given && row.forecast_guidance != arguments.forecast_guidance);
  });
  if (!table.rows.empty()) return table;
  if (given) {
    throw std::invalid_argument("--quality: " + in_quotes(path) +
                                " must have rows with the options that are given, got none");
  }
  return why = "the quality table has no row with the options that are given", std::nullopt;
}

/// The arguments with a row's way to draw in them.
inline Arguments with_row(Arguments arguments, tstitch::QualityTable const& table, std::size_t i) {
  tstitch::QualityRow const& row = table.rows[i];
  arguments.guidance = {table.guidance_scale};
  const std::string prefix = "profile:";
  const bool profile = row.sampler.starts_with(prefix);
  arguments.profile = profile ? row.sampler.substr(prefix.size()) : "";
  if (!profile) arguments.sampler = row.sampler;
  arguments.order.reset(), arguments.eta.reset();
  arguments.spacing.clear();
  arguments.steps = row.steps;
  arguments.forecast = row.forecast;
  arguments.forecast_guidance = row.forecast_guidance;
  if (row.shares.size() == 2) {
    arguments.ratio = row.shares[0];
  } else {
    arguments.fractions = row.shares;
  }
  return arguments;
}

/// The same with so many steps of each network.
inline Arguments with_counts(Arguments arguments, std::vector<int> const& counts) {
  std::vector<double> shares;
  for (const int count : counts) shares.push_back(double(count) / arguments.steps);
  if (shares.size() == 2) {
    arguments.ratio = shares[0];
  } else {
    arguments.fractions = shares;
  }
  return arguments;
}

/// The job drawn by other arguments.
inline Job drawn_by(Job job, Arguments arguments) {
  if (!arguments.guidance.empty()) job.guidance.scale = tstitch::GuidanceScale(arguments.guidance);
  job.guidance.forecast = forecast_of_guidance(arguments.forecast_guidance);
  take_way(job, arguments);
  job.arguments = std::move(arguments);
  return job;
}

/// What a job costs, in the budget's measure.
class Cost {
 public:
  Cost(Job& job, tstitch::Budget budget, std::vector<tstitch::Network> const& networks)
      : budget_(budget), times_(networks, job.request(0, job.arguments.batch), kept_times(job)) {
    if (budget.of != tstitch::Budget::Of::flop) return;
    for (std::size_t k = 0; k < networks.size(); ++k) {
      if (tstitch::is_aot_inductor(job.arguments.models[k])) {
        throw std::invalid_argument(
            "--budget: must be in seconds for packages, whose operations cannot be counted, got " +
            in_quotes(job.arguments.budget));
      }
      tstitch::NoiseSchedule const& noise = networks[k].noise_schedule();
      const tstitch::DDIM sampler{
          noise, tstitch::SingleNetwork{k}, {.steps = 2, .spacing = tstitch::Spacing::usual(noise)}};
      const tstitch::Trajectory run = sampler.begin(networks, job.request(0, 1));
      const double middle = noise.noisiest() / 2;
      flop_.push_back(flop_of(tstitch::load_torchscript_module(job.arguments.models[k]), networks[k].info(), run.x,
                              tstitch::timestep_rows(networks[k], run.x, middle, 1), run.condition.conditional));
      if (flop_[k] > 0) continue;
      throw std::runtime_error("--budget: operations of " + in_quotes(job.names[k]) + " must be countable, got none");
    }
  }

  double operator()(Job const& job) {
    const tstitch::AnySampler sampler = sampler_of(job, routing(job, "stitch"));
    if (flop_.empty()) return times_.predict(sampler, job.guidance);
    double sum = 0;
    const std::vector<tstitch::NetworkWork> work = sampler.plan(job.guidance).work(flop_.size());
    for (std::size_t k = 0; k < work.size(); ++k) sum += work[k].rows * flop_[k];
    return sum;
  }

  /// Whether it is of time, which is measured, or of operations, which are counted.
  bool is_time() const { return flop_.empty(); }

  /// Whether the seconds of a job are measured, and no sum of parts.
  bool is_measured(Job const& job) const {
    return times_.is_measured(sampler_of(job, routing(job, "stitch")), job.guidance);
  }

  /// Seconds of a batch, whatever the budget is of, by drawing some.
  double measure(Job const& job) { return times_.measure(sampler_of(job, routing(job, "stitch")), job.guidance); }

  /// "73.1 ms", "3.2 TFLOP", "21.4 img/s".
  std::string text(double cost, std::int64_t batch) const {
    char text[64];
    if (budget_.of == tstitch::Budget::Of::flop) {
      std::snprintf(text, sizeof text, "%.4g GFLOP a picture", cost / 1e9);
    } else if (budget_.of == tstitch::Budget::Of::images_per_second) {
      std::snprintf(text, sizeof text, "%.4g img/s", double(batch) / cost);
    } else {
      std::snprintf(text, sizeof text, cost < 10 ? "%.4g ms" : "%.4g s", cost < 10 ? cost * 1e3 : cost);
    }
    return text;
  }

 private:
  /// Where times are kept, and what tells the networks from others.
  static tstitch::KeptTimes kept_times(Job& job) {
    tstitch::KeptTimes kept{.file = job.arguments.times};
    if (kept.file == "none") return {};
    if (kept.file.empty()) {
      char const* const cache = std::getenv("XDG_CACHE_HOME");
      char const* const home = std::getenv("HOME");
      if (!(cache && *cache) && !(home && *home)) {
        note(job, "--times: what the networks take is not kept, for neither XDG_CACHE_HOME nor HOME is set");
        return {};
      }
      const std::filesystem::path folder =
          (cache && *cache ? std::filesystem::path(cache) : std::filesystem::path(home) / ".cache") / "tstitch";
      kept.file = (folder / "times.txt").string();
      try {
        std::filesystem::create_directories(folder);
        tstitch::require_writable(kept.file);
      } catch (std::exception const& error) {  // which is no reason not to draw
        note(job, "--times: what the networks take is not kept, for " + std::string(error.what()));
        return {};
      }
    }
    const std::string machine = job.device.is_cuda()
                                    ? gpu_name(job.device)
                                    : processor_name() + " by " + std::to_string(at::get_num_threads()) + " threads";
    for (std::size_t k = 0; k < job.infos.size(); ++k) {
      std::vector<std::string> const& backends = job.arguments.backends;
      kept.names.push_back(job.names[k] + " " + job.fingerprints[k] + ", " + backends[backends.size() > 1 ? k : 0] +
                           " " + job.arguments.dtype + " on " + machine +
                           ", torch " TORCH_VERSION ", tstitch " TSTITCH_VERSION);
    }
    return kept;
  }

  tstitch::Budget budget_;
  tstitch::RunTimes<> times_;
  std::vector<double> flop_;  // of a row of each network
};

/// Draws in the best way that the budget allows, and says which that is.
/// @throws std::invalid_argument for a budget that nothing fits into
inline void take_budget(Job& job, std::vector<tstitch::Network> const& networks) {
  Arguments const& arguments = job.arguments;
  const std::int64_t batch = arguments.batch;
  const tstitch::Budget budget = tstitch::budget_by_name(arguments.budget, "--budget");
  const double most = budget.most(batch);
  std::string why;
  const std::optional<tstitch::QualityTable> table = quality_table(job, why);
  if (!table && (networks.size() < 2 || arguments.ratio_given)) {
    throw std::invalid_argument("--budget: must have something to choose, got " +
                                std::string(networks.size() < 2 ? "one network" : "a ratio") + ", and " + why);
  }
  Cost cost(job, budget, networks);
  /// The best that fits by what is known, or the cheapest where nothing does.
  struct Choice {
    Job job;
    bool fits;
    std::string by;
  };
  const auto choose = [&]() -> Choice {
    if (table) {
      std::vector<double> distances;
      for (tstitch::QualityRow const& row : table->rows) distances.push_back(row.distance);
      const auto job_of = [&](std::size_t i) { return drawn_by(job, with_row(arguments, *table, i)); };
      const tstitch::BestWithin found =
          tstitch::best_within(distances, most, [&](std::size_t i) { return cost(job_of(i)); });
      const std::size_t i = found.index.value_or(found.cheapest);
      return {job_of(i), found.index.has_value(),
              "the best of " + counted(distances.size(), "row") + " of the quality table for guidance " +
                  tstitch::words::text(table->guidance_scale) + ", at distance " + tstitch::words::text(distances[i])};
    }
    const auto job_of = [&](std::vector<int> const& counts) { return drawn_by(job, with_counts(arguments, counts)); };
    const int steps = job.way->options.steps;
    const std::optional<std::vector<int>> counts = tstitch::largest_networks_within(
        networks.size(), steps, most, [&](std::vector<int> const& tried) { return cost(job_of(tried)); });
    std::vector<int> first(networks.size(), 0);
    first[0] = steps;
    return {job_of(counts.value_or(first)), counts.has_value(),
            "as many steps of the large network as fit, for " + why};
  };
  // What is chosen is drawn, which corrects what is predicted of the others, until it has been drawn and fits.
  Choice choice = choose();
  while (cost.is_time() && !cost.is_measured(choice.job)) {
    cost.measure(choice.job);
    choice = choose();
  }
  if (!choice.fits) {
    throw std::invalid_argument("--budget: must be at least what the cheapest way costs, " +
                                cost.text(cost(choice.job), batch) + ", got " + in_quotes(arguments.budget));
  }
  choice.job.predicted_seconds = cost.measure(choice.job);
  const std::string costs = cost.text(cost(choice.job), batch);
  job = std::move(choice.job);
  say(job, "budget ", job.arguments.budget, ": ", choice.by, ", predicted ", costs, ": ",
      job.arguments.profile.empty() ? job.arguments.sampler : "profile " + job.arguments.profile);
}
