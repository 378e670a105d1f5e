/// @file
/// Many ratios from the same noise, whose first steps are taken once.
#pragma once

#include <tstitch/output/image.hpp>
#include <tstitch/output/progress.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../common/signals.hpp"
#include "grid.hpp"
#include "output.hpp"
#include "preview.hpp"

/// What is drawn at one ratio.
struct SweptRatio {
  double ratio;
  std::string name;                        ///< the ratio in names of folders and on the screen
  int small_steps;                         ///< of the first network
  std::vector<double> seconds;             ///< of each batch
  std::vector<tstitch::Picture> pictures;  ///< for the grid
  Flags finished;                          ///< of pictures, those that are where they are to be
  std::string folder;                      ///< empty until there is one

  std::int64_t images() const { return std::count(finished.begin(), finished.end(), true); }
  double total() const { return std::accumulate(seconds.begin(), seconds.end(), 0.0); }
};

inline std::vector<SweptRatio> swept_ratios(Job const& job, int steps) {
  const std::vector<double> ratios = sweep_ratios(job.arguments.sweep);
  const std::vector<std::string> names = ratio_names(ratios);
  std::vector<SweptRatio> swept;
  for (std::size_t r = 0; r < ratios.size(); ++r) {
    swept.push_back({.ratio = ratios[r],
                     .name = names[r],
                     .small_steps = tstitch::share_of_steps("Stitch", "ratio", ratios[r], steps),
                     .seconds = {},
                     .pictures = {},
                     .finished = Flags(std::size_t(job.images())),
                     .folder = {}});
  }
  return swept;
}

/// How far a sweep is, in steps of pictures.
class SweepProgress {
 public:
  SweepProgress(Job const& job, std::vector<SweptRatio> const& ratios, int steps) : job_(job) {
    std::int64_t shared = 0, unshared = 0;
    for (SweptRatio const& each : ratios) {
      shared = std::max<std::int64_t>(shared, each.small_steps);
      unshared += steps - each.small_steps;
    }
    all_ = job.images() * (shared + unshared);
    if (!job.arguments.quiet) line_.emplace();
  }

  /// A step is done.
  void show(double ratio, std::size_t network, tstitch::Trajectory const& run) {
    done_ += run.x.size(0);
    if (!line_) return;
    line_->show(done_, all_,
                {"ratio " + tstitch::words::text(ratio),
                 "step " + std::to_string(run.next) + "/" + std::to_string(run.count), job_.names[network]});
  }

  /// For a line that stays.
  void say_above(std::string const& line) {
    if (line_) line_->clear();
    say(job_, line);
  }

  void clear() {
    if (line_) line_->clear();
  }

  void finish() {
    if (line_) line_->finish();
  }

 private:
  Job const& job_;
  std::int64_t done_ = 0, all_ = 0;
  std::optional<tstitch::ProgressLine> line_ = {};
};

/// A sweep on its way. The steps of the small network are shared: its run is forked where each ratio switches to the
/// large one.
class Sweep {
 public:
  Sweep(Job const& job, std::vector<tstitch::Network> const& networks, std::optional<tstitch::Decoder> const& decoder,
        Preview& preview)
      : job_(job),
        networks_(networks),
        decoder_(decoder),
        preview_(preview),
        small_only_(sampler_of(job, tstitch::SingleNetwork{0})),
        steps_(small_only_.options().steps),
        ratios_(swept_ratios(job, steps_)),
        progress_(job, ratios_, steps_) {
    preview.above([this] { progress_.clear(); });
    // What is wrong with the large network is said before the small one's work. This fork has most of the large one's.
    sampler_of(job, tstitch::Stitch{ratios_.front().ratio}).begin(networks, job.request(0, 1));
  }

  /// Everything, until the program is to stop.
  std::vector<SweptRatio> const& draw(FirstFailure& failure) {
    failure.watch([&] {
      for (std::int64_t done = 0; done < job_.images() && !stopped_by;) {
        const std::int64_t count = std::min(job_.arguments.batch, job_.images() - done);
        draw_batch(done, count);
        if (!stopped_by) done += count;
      }
    });
    failure.watch([&] { writer_.wait(); });
    progress_.finish();
    for (SweptRatio& each : ratios_) {
      if (!each.folder.empty()) failure.watch([&] { forget_missing(job_, each.folder, each.finished); });
    }
    if (!job_.arguments.output.empty()) failure.watch([&] { tstitch::sync_disk(job_.arguments.output); });
    return ratios_;
  }

 private:
  /// Pictures [first, first + count) at all ratios.
  void draw_batch(std::int64_t first, std::int64_t count) {
    const tstitch::Request request = job_.request(first, count);
    tstitch::Trajectory shared = small_only_.begin(networks_, request);
    double shared_seconds = 0;
    for (SweptRatio& each : ratios_) {
      if (stopped_by) return;
      const tstitch::AnySampler stitched = sampler_of(job_, tstitch::Stitch{each.ratio});
      Clock::time_point start = Clock::now();
      while (shared.next < each.small_steps && !stopped_by) advance(small_only_, shared, each.ratio, 0);
      wait(job_.device);
      shared_seconds += seconds_since(start);
      start = Clock::now();
      tstitch::Trajectory fork = shared;
      while (!fork.finished() && !stopped_by) advance(stitched, fork, each.ratio, 1);
      wait(job_.device);
      if (stopped_by) return;
      const double seconds = shared_seconds + seconds_since(start);
      // sample() says which step made values that are not numbers.
      if (!fork.x.isfinite().all().item<bool>()) stitched.sample(networks_, request);
      keep(each, first,
           tstitch::to_pictures(decoder_ ? (*decoder_)(fork.x, {.rows = 1, .tile = job_.arguments.tile}) : fork.x),
           seconds);
      char line[256];
      std::snprintf(line, sizeof line, "ratio %-5s  %s %3d steps, %s %3d steps  %8.3f s  %8.3g images/s",
                    each.name.c_str(), job_.names[0].c_str(), each.small_steps, job_.names[1].c_str(),
                    steps_ - each.small_steps, seconds, double(count) / seconds);
      progress_.say_above(line);
    }
  }

  /// By one step of this network.
  void advance(tstitch::AnySampler const& sampler, tstitch::Trajectory& run, double ratio, std::size_t network) {
    sampler.advance(networks_, run);
    progress_.show(ratio, network, run);
  }

  /// Takes the pictures of a batch, and writes them behind the next ratio.
  void keep(SweptRatio& of, std::int64_t first, std::vector<tstitch::Picture> pictures, double seconds) {
    preview_(pictures);
    if (!job_.arguments.grid.empty()) of.pictures.insert(of.pictures.end(), pictures.begin(), pictures.end());
    writer_([this, &of, first, seconds, pictures = std::move(pictures)] {
      of.seconds.push_back(seconds);
      if (job_.arguments.output.empty()) {
        std::fill_n(of.finished.begin() + first, pictures.size(), true);
        return;
      }
      Json made_with = parameters(job_);
      of.folder = job_.arguments.output + "/ratio-" + of.name;
      make_folder_in_folder(of.folder);
      made_with["ratio"] = of.ratio;
      write_pictures(job_, made_with, of.folder, pictures, first, of.finished);
    });
  }

  Job const& job_;
  std::vector<tstitch::Network> const& networks_;
  std::optional<tstitch::Decoder> const& decoder_;
  Preview const& preview_;
  tstitch::AnySampler small_only_;
  int steps_;
  std::vector<SweptRatio> ratios_;
  SweepProgress progress_;
  BackgroundWriter writer_ = {};
};

inline int run_sweep(Job const& job, std::vector<tstitch::Network> const& networks,
                     std::optional<tstitch::Decoder> const& decoder, Preview& preview) {
  FirstFailure failure;  // what is finished by then is still written
  Sweep sweep(job, networks, decoder, preview);
  std::vector<SweptRatio> const& ratios = sweep.draw(failure);
  if (std::ranges::all_of(ratios, [](SweptRatio const& each) { return each.images() == 0; })) failure.rethrow();
  Json json = parameters(job);
  list_texts(job, json);
  const tstitch::PngText text = png_text(json);
  Json by_ratio = Json::array();
  std::vector<tstitch::Picture> all;
  std::vector<std::string> captions;
  for (SweptRatio const& each : ratios) {
    const std::int64_t images = each.images();
    if (images == 0) continue;
    by_ratio.push_back({{"ratio", each.ratio},
                        {"finished_images", images},
                        {"seconds", each.total()},
                        {"seconds_by_batch", each.seconds},
                        {"images_per_second", double(images) / each.total()}});
    list_work(sampler_of(job, tstitch::Stitch{each.ratio}).plan(job.guidance), networks.size(), by_ratio.back());
    if (images < job.images()) continue;  // the grid shows whole rows
    char caption[64];
    std::snprintf(caption, sizeof caption, "r = %s\n%.3g s", each.name.c_str(), each.total());
    captions.push_back(caption);
    all.insert(all.end(), each.pictures.begin(), each.pictures.end());
  }
  json["ratios"] = by_ratio;
  failure.watch([&] { write_report(job, json); });
  if (!all.empty()) {
    failure.watch([&] {
      write_grid(job, all, text, captions);
      say(job, "grid: ", location(job.arguments.grid));
    });
  }
  if (!job.arguments.output.empty() && !by_ratio.empty()) say(job, "pictures: ", location(job.arguments.output));
  failure.rethrow();
  return stopped_by ? 128 + stopped_by : 0;
}
