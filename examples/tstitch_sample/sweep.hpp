/// @file
/// Many ratios from the same noise, whose first steps are taken once.
#pragma once

#include <tstitch/output/image.hpp>
#include <tstitch/output/progress.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../common/signals.hpp"
#include "output.hpp"
#include "places.hpp"

/// Many ratios from the same noise. The steps of the small network are shared: its run is forked where each ratio
/// switches to the large one.
inline int run_sweep(Job const& job, std::vector<tstitch::Network> const& networks,
                     std::optional<tstitch::Decoder> const& decoder) {
  const std::vector<double> ratios = sweep_ratios(job.arguments.sweep);
  const std::vector<std::string> ratio_texts = ratio_names(ratios);
  // What is wrong with the large network is said before the small one's work. This fork has most of the large one's.
  sampler_of(job, tstitch::Stitch{ratios.front()}).begin(networks, job.request(0, 1));
  std::vector<std::vector<double>> seconds(ratios.size());  // of each batch
  std::vector<std::vector<tstitch::Picture>> rows(ratios.size());
  std::int64_t done = 0;
  std::vector<Flags> finished(ratios.size(), Flags(std::size_t(job.images())));
  std::vector<std::string> folders(ratios.size());  // of those that have one
  std::optional<tstitch::ProgressLine> progress;
  if (!job.arguments.quiet) progress.emplace();
  const tstitch::AnySampler small_only = sampler_of(job, tstitch::SingleNetwork{0});
  const int steps = small_only.options().steps;
  std::int64_t most_shared = 0, unshared = 0;
  for (const double ratio : ratios) {
    const int shared = tstitch::share_of_steps("Stitch", "ratio", ratio, steps);
    most_shared = std::max<std::int64_t>(most_shared, shared);
    unshared += steps - shared;
  }
  const std::int64_t steps_a_picture = most_shared + unshared;
  std::int64_t picture_steps = 0;
  const auto show = [&](double ratio, std::size_t network, tstitch::Trajectory const& run) {
    picture_steps += run.x.size(0);
    if (!progress) return;
    progress->show(picture_steps, job.images() * steps_a_picture,
                   {"ratio " + tstitch::words::text(ratio),
                    "step " + std::to_string(run.next) + "/" + std::to_string(run.count), job.names[network]});
  };
  BackgroundWriter writer;
  FirstFailure failure;  // what is finished by then is still written
  failure.watch([&] {
    while (done < job.images() && !stopped_by) {
      const std::int64_t count = std::min(job.arguments.batch, job.images() - done);
      const tstitch::Request request = job.request(done, count);
      tstitch::Trajectory shared = small_only.begin(networks, request);
      double shared_seconds = 0;
      for (std::size_t r = 0; r < ratios.size() && !stopped_by; ++r) {
        const tstitch::AnySampler stitched = sampler_of(job, tstitch::Stitch{ratios[r]});
        const int small_steps = tstitch::share_of_steps("Stitch", "ratio", ratios[r], steps);
        Clock::time_point start = Clock::now();
        while (shared.next < small_steps && !stopped_by) {
          small_only.advance(networks, shared);
          show(ratios[r], 0, shared);
        }
        wait(job.device);
        shared_seconds += seconds_since(start);
        start = Clock::now();
        tstitch::Trajectory fork = shared;
        while (!fork.finished() && !stopped_by) {
          stitched.advance(networks, fork);
          show(ratios[r], 1, fork);
        }
        wait(job.device);
        if (stopped_by) break;
        const double fork_seconds = seconds_since(start);
        // sample() says which step made values that are not numbers.
        if (!fork.x.isfinite().all().item<bool>()) stitched.sample(networks, request);
        std::vector<tstitch::Picture> pictures =
            tstitch::to_pictures(decoder ? (*decoder)(fork.x, {.rows = 1, .tile = job.arguments.tile}) : fork.x);
        if (!job.arguments.grid.empty()) rows[r].insert(rows[r].end(), pictures.begin(), pictures.end());
        writer([&, r, count, first = done, elapsed = shared_seconds + fork_seconds,
                folder = job.arguments.output + "/ratio-" + ratio_texts[r], pictures = std::move(pictures)] {
          seconds[r].push_back(elapsed);
          if (job.arguments.output.empty()) {
            std::fill_n(finished[r].begin() + first, count, true);
          } else {
            Json made_with = parameters(job);
            folders[r] = folder;
            make_folder_in_folder(folder);
            made_with["ratio"] = ratios[r];
            write_pictures(job, made_with, folder, pictures, first, finished[r]);
          }
        });
        char line[256];
        std::snprintf(line, sizeof line, "ratio %-5s  %s %3d steps, %s %3d steps  %8.3f s  %8.3g images/s",
                      ratio_texts[r].c_str(), job.names[0].c_str(), small_steps, job.names[1].c_str(),
                      steps - small_steps, shared_seconds + fork_seconds,
                      double(count) / (shared_seconds + fork_seconds));
        if (progress) progress->clear();
        say(job, line);
      }
      if (!stopped_by) done += count;
    }
  });
  failure.watch([&] { writer.wait(); });
  if (progress) progress->finish();
  for (std::size_t r = 0; r < ratios.size(); ++r) {
    if (!folders[r].empty()) failure.watch([&] { forget_missing(job, folders[r], finished[r]); });
  }
  if (!job.arguments.output.empty()) failure.watch([&] { tstitch::sync_disk(job.arguments.output); });
  std::vector<std::int64_t> images;
  for (Flags const& each : finished) images.push_back(std::count(each.begin(), each.end(), true));
  if (std::all_of(images.begin(), images.end(), [](std::int64_t count) { return count == 0; })) failure.rethrow();
  Json json = parameters(job);
  list_texts(job, json);
  Json by_ratio = Json::array();
  std::vector<tstitch::Picture> all;
  std::vector<std::string> captions;
  for (std::size_t r = 0; r < ratios.size(); ++r) {
    if (images[r] == 0) continue;
    const double total = std::accumulate(seconds[r].begin(), seconds[r].end(), 0.0);
    by_ratio.push_back({{"ratio", ratios[r]},
                        {"finished_images", images[r]},
                        {"seconds", total},
                        {"seconds_by_batch", seconds[r]},
                        {"images_per_second", double(images[r]) / total}});
    if (images[r] < job.images()) continue;  // the grid shows whole rows
    char caption[64];
    std::snprintf(caption, sizeof caption, "r = %s\n%.3g s", ratio_texts[r].c_str(), total);
    captions.push_back(caption);
    all.insert(all.end(), rows[r].begin(), rows[r].end());
  }
  const tstitch::PngText text = png_text(json);
  json["ratios"] = by_ratio;
  failure.watch([&] { write_report(job, json); });
  if (!all.empty()) {
    failure.watch([&] {
      for (tstitch::Picture& picture : all) picture = tstitch::enlarge(picture, job.arguments.scale);
      tstitch::write_png(job.arguments.grid,
                         with_captions(tstitch::make_grid(all, int(grid_columns(job)), grid_gap), captions), text);
      say(job, "grid: ", location(job.arguments.grid));
    });
  }
  if (!job.arguments.output.empty() && !by_ratio.empty()) say(job, "pictures: ", location(job.arguments.output));
  failure.rethrow();
  return stopped_by ? 128 + stopped_by : 0;
}
