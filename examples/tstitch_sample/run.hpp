/// @file
/// One run: batch after batch, decoded and written behind the sampling.
#pragma once

#include <tstitch/output/decode_queue.hpp>
#include <tstitch/output/image.hpp>
#include <tstitch/output/progress.hpp>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../common/signals.hpp"
#include "network_clock.hpp"
#include "output.hpp"
#include "places.hpp"

inline int run(Job const& job, std::vector<tstitch::Network> const& networks,
               std::optional<tstitch::Decoder> const& decoder) {
  const tstitch::AnySampler sampler = sampler_of(job, routing(job, job.arguments.routing));
  const tstitch::Plan plan = sampler.plan(job.guidance);
  NetworkClock clock(plan, job.device, networks.size());
  const std::vector<int> calls = plan.calls(networks.size());
  std::optional<tstitch::ProgressBar> progress;
  if (!job.arguments.quiet) progress.emplace(job.images(), job.names).begin();
  std::vector<tstitch::Picture> for_grid;
  const Clock::time_point start = Clock::now();
  std::vector<at::Tensor> latents;
  std::int64_t sampled = 0, drawn = 0;
  const bool files = !job.arguments.output.empty(), pictured = files || !job.arguments.grid.empty();
  Flags done(std::size_t(job.images()));  // what is where it is to be
  BackgroundWriter writer;
  const auto finish = [&](auto draw) {  // the next batch
    const std::int64_t first = drawn, count = std::min(job.arguments.batch, sampled - drawn);
    drawn += count;
    std::vector<tstitch::Picture> pictures = draw();
    if (!job.arguments.grid.empty()) for_grid.insert(for_grid.end(), pictures.begin(), pictures.end());
    if (files) {
      writer([&job, &done, first, pictures = std::move(pictures)] {
        write_pictures(job, parameters(job), job.arguments.output, pictures, first, done);
      });
    } else {
      std::fill_n(done.begin() + first, count, true);
    }
  };
  // Latents are decoded, and their pictures written, behind the sampling of the next batch.
  std::optional<tstitch::DecodeQueue> queue;
  if (decoder) queue.emplace(*decoder, tstitch::Tiling{.rows = 1, .tile = job.arguments.tile});
  FirstFailure failure;  // what is finished by then is still written
  failure.watch([&] {
    while (sampled < job.images() && !stopped_by) {
      const std::int64_t first = sampled, count = std::min(job.arguments.batch, job.images() - first);
      clock.start();
      const tstitch::Samples samples =
          sampler.sample(networks, job.request(first, count), [&](tstitch::StepReport report) {
            clock(report);
            report.first += first;
            if (progress) (*progress)(report);
            return stopped_by ? tstitch::Control::cancel : tstitch::Control::proceed;
          });
      if (!samples.finished) break;
      sampled += count;
      if (!job.arguments.latents.empty()) latents.push_back(samples.images.cpu());
      if (!pictured) {
        std::fill_n(done.begin() + first, count, true);
      } else if (queue) {
        queue->push(samples.images);
        if (queue->size() > 1) finish([&] { return queue->pop(); });
      } else {
        finish([&] { return tstitch::to_pictures(samples.images); });
      }
    }
  });
  while (queue && queue->size() > 0) failure.watch([&] { finish([&] { return queue->pop(); }); });
  failure.watch([&] { writer.wait(); });
  if (files) failure.watch([&] { forget_missing(job, job.arguments.output, done); });
  const std::int64_t finished = std::count(done.begin(), done.end(), true);
  if (finished == 0 && latents.empty()) failure.rethrow();
  const double seconds = seconds_since(start);
  if (progress) progress->finish();
  if (files) failure.watch([&] { tstitch::sync_disk(job.arguments.output); });

  Json json = parameters(job);
  list_texts(job, json);
  const tstitch::PngText text = png_text(json);
  std::vector<std::string> left;  // what there is now
  if (!latents.empty()) {
    failure.watch([&] {
      write_latents(job, latents);
      left.push_back("latents: " + location(job.arguments.latents));
    });
  }
  json["calls"] = calls;
  json["seconds_by_network"] = clock.seconds();
  json["seconds"] = seconds;
  json["images_per_second"] = double(finished) / seconds;
  json["finished_images"] = finished;
  json["pictures"] = Json::array();
  for (std::int64_t i = 0; pictured && i < job.images(); ++i) {
    if (!done[std::size_t(i)]) continue;
    Json entry{{"seed", job.seed(i)}};
    job.describe(i, entry);
    if (!job.arguments.output.empty()) entry["file"] = job.file_name(i);
    json["pictures"].push_back(entry);
  }
  failure.watch([&] { write_report(job, json); });
  if (!for_grid.empty()) {  // last, for it may be too large
    failure.watch([&] {
      for (tstitch::Picture& picture : for_grid) picture = tstitch::enlarge(picture, job.arguments.scale);
      tstitch::write_png(job.arguments.grid, tstitch::make_grid(for_grid, int(grid_columns(job)), grid_gap), text);
      left.push_back("grid: " + location(job.arguments.grid));
    });
  }

  say(job, counted(finished, "picture"), " in ", tstitch::words::text(std::round(seconds * 100) / 100), " s, ",
      tstitch::words::text(std::round(double(finished) / seconds * 100) / 100), " images/s on ", job.device.str());
  for (std::size_t k = 0; k < job.names.size(); ++k) {
    say(job, "  ", job.names[k], ": ", counted(calls[k], "step"), ", ",
        tstitch::words::text(std::round(clock.seconds()[k] * 100) / 100), " s");
  }
  if (files && finished) say(job, "pictures: ", location(job.arguments.output));
  for (std::string const& each : left) say(job, each);
  failure.rethrow();
  return stopped_by ? 128 + stopped_by : 0;
}
