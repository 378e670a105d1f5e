/// @file
/// One run: batch after batch, decoded and written behind the sampling.
#pragma once

#include <tstitch/output/decode_queue.hpp>
#include <tstitch/output/image.hpp>
#include <tstitch/output/progress.hpp>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../common/signals.hpp"
#include "grid.hpp"
#include "network_clock.hpp"
#include "output.hpp"
#include "preview.hpp"
#include "saved_run.hpp"

/// Pictures on their way from what is sampled to files and the grid. Latents are decoded, and their pictures written,
/// behind the sampling of the next batch.
class Pictures {
 public:
  Pictures(Job const& job, std::optional<tstitch::Decoder> const& decoder, Preview const& preview)
      : job_(job), preview_(preview), done_(std::size_t(job.images())) {
    if (decoder) queue_.emplace(*decoder, tstitch::Tiling{.rows = 1, .tile = job.arguments.tile});
  }

  /// Whether there are to be any, and not latents alone.
  bool wanted() const { return files() || gathers() || preview_; }
  /// Whether they are to be in one file.
  bool gathers() const { return !job_.arguments.grid.empty() || !job_.arguments.animation.empty(); }
  /// Whether each is to be a file.
  bool files() const { return !job_.arguments.output.empty(); }

  /// Begins behind so many pictures, which an earlier run has written.
  /// @throws std::runtime_error where one of them is gone
  void begin_behind(std::int64_t written) {
    std::fill_n(done_.begin(), written, true);
    forget_missing(job_, job_.arguments.output, done_);
    sampled_ = drawn_ = written_ = written;
  }

  /// How many of the first are on the disk.
  std::int64_t written() const { return written_; }

  /// The next batch of the job.
  void push(at::Tensor const& sampled) {
    const std::int64_t first = sampled_;
    sampled_ += sampled.size(0);
    if (!wanted()) {
      std::fill_n(done_.begin() + first, sampled.size(0), true);
    } else if (job_.draws_videos()) {
      for (std::int64_t i = 0; i < sampled.size(0); ++i) {  // one by one, for they are large
        queue_->push(sampled.narrow(0, i, 1));
        if (queue_->size() > 1) draw_video();
      }
    } else if (queue_) {
      queue_->push(sampled);
      if (queue_->size() > 1) draw([&] { return queue_->pop(); });
    } else {
      draw([&] { return tstitch::to_pictures(sampled); });
    }
  }

  /// What is still on its way.
  void finish(FirstFailure& failure) {
    while (queue_ && queue_->size() > 0) {
      failure.watch([&] {
        if (job_.draws_videos()) {
          draw_video();
        } else {
          draw([&] { return queue_->pop(); });
        }
      });
    }
    failure.watch([&] { writer_.wait(); });
    if (files()) failure.watch([&] { forget_missing(job_, job_.arguments.output, done_); });
  }

  /// Whether the picture is where it is to be.
  bool done(std::int64_t image) const { return done_[std::size_t(image)]; }
  std::int64_t count() const { return std::count(done_.begin(), done_.end(), true); }
  std::vector<tstitch::Picture> const& gathered() const { return gathered_; }

 private:
  void draw_video() {
    const std::int64_t index = drawn_++;
    writer_([this, index, videos = queue_->pop_videos()] {
      write_video(job_, parameters(job_), videos.front(), index, done_);
      written_ = index + 1;
    });
  }

  /// @param next makes the pictures of the next batch
  template <class Next>
  void draw(Next next) {
    const std::int64_t first = drawn_, count = std::min(job_.arguments.batch, sampled_ - drawn_);
    drawn_ += count;
    std::vector<tstitch::Picture> pictures = next();
    preview_(pictures);
    if (gathers()) gathered_.insert(gathered_.end(), pictures.begin(), pictures.end());
    if (files()) {
      writer_([this, first, pictures = std::move(pictures)] {
        write_pictures(job_, parameters(job_), job_.arguments.output, pictures, first, done_);
        written_ = first + std::int64_t(pictures.size());
      });
    } else {
      std::fill_n(done_.begin() + first, count, true);
    }
  }

  Job const& job_;
  Preview const& preview_;
  Flags done_;
  std::vector<tstitch::Picture> gathered_ = {};
  std::int64_t sampled_ = 0, drawn_ = 0;
  std::atomic<std::int64_t> written_ = 0;  // by the writer, batch after batch
  BackgroundWriter writer_ = {};
  std::optional<tstitch::DecodeQueue> queue_ = {};
};

/// Sees steps, and keeps the run behind them and before each batch.
struct Watch {
  std::function<void(tstitch::StepReport const&)> see;
  std::function<tstitch::Control(tstitch::Trajectory const& run, bool begins)> keep;

  tstitch::Control before(tstitch::StepBegin const& step) const {
    tstitch::Trajectory const& run = *step.trajectory;
    return run.next == run.first ? keep(run, true) : tstitch::Control::proceed;
  }
  tstitch::Control operator()(tstitch::StepReport const& report) const {
    see(report);
    return keep(*report.trajectory, false);
  }
};

/// Batch after batch, until all are sampled or the program is to stop.
/// @param latents x_0 of each batch on the host, where they are to be written
/// @returns whether all are sampled
inline bool sample_batches(Job const& job, std::vector<tstitch::Network> const& networks,
                           tstitch::AnySampler const& sampler, NetworkClock& clock,
                           std::optional<tstitch::ProgressBar>& progress, Pictures& pictures, SavedRun& saved,
                           std::vector<at::Tensor>& latents, std::vector<double>& batch_seconds) {
  const auto take = [&](at::Tensor const& images) {
    if (!job.arguments.latents.empty()) latents.push_back(images.cpu());
    pictures.push(images);
  };
  std::int64_t sampled = 0;
  std::optional<tstitch::Trajectory> begun;
  if (saved.resumes()) {
    begun = saved.trajectory(sampler, networks);
    sampled = saved.first();
    pictures.begin_behind(saved.written());
    for (at::Tensor const& images : saved.kept()) take(images);
  }
  // What is to go on later stops at the beginning of a batch, which is then in its file.
  while (sampled < job.images() && (!stopped_by || saved.wanted())) {
    const std::int64_t first = sampled, count = std::min(job.arguments.batch, job.images() - first);
    clock.start();
    const Clock::time_point start = Clock::now();
    const auto see = [&](tstitch::StepReport report) {
      clock(report);
      report.first += first;
      report.images = count;
      if (progress) (*progress)(report);
    };
    const auto keep = [&](tstitch::Trajectory const& run, bool begins) {
      if (saved.is_due(run, begins)) saved.save(sampler, run, first, count, pictures.written());
      return stopped_by ? tstitch::Control::cancel : tstitch::Control::proceed;
    };
    const Watch watch{see, keep};
    tstitch::Samples samples = begun ? sampler.finish(networks, *std::exchange(begun, {}), watch)
                                     : sampler.sample(networks, job.request(first, count), watch);
    if (!samples.finished) break;
    samples.images = samples.images.narrow(0, 0, count);
    if (job.predicted_seconds > 0) {  // which is compared with what it takes
      wait(job.device);
      if (count == job.arguments.batch) batch_seconds.push_back(seconds_since(start));
    }
    sampled += count;
    saved.sampled(samples.images, first, pictures.written());
    take(samples.images);
  }
  return sampled == job.images();
}

/// For the report: every picture that is there.
inline Json list_pictures(Job const& job, Pictures const& pictures) {
  Json list = Json::array();
  for (std::int64_t i = 0; pictures.wanted() && i < job.images(); ++i) {
    if (!pictures.done(i)) continue;
    Json entry{{"seed", job.seed(i)}};
    job.describe(i, entry);
    if (pictures.files()) entry["file"] = job.file_name(i);
    list.push_back(entry);
  }
  return list;
}

/// "0.52", for people.
inline std::string hundredths(double value) {
  return tstitch::words::text(std::round(value * 100) / 100);
}

inline int run(Job const& job, std::vector<tstitch::Network> const& networks,
               std::optional<tstitch::Decoder> const& decoder, Preview& preview, SavedRun& saved) {
  const tstitch::AnySampler sampler = sampler_of(job, routing(job, job.arguments.routing));
  const tstitch::Plan plan = sampler.plan(job.guidance, job.arguments.strength);
  NetworkClock clock(plan, job.device, networks.size());
  const std::vector<tstitch::NetworkWork> work = plan.work(networks.size());
  std::optional<tstitch::ProgressBar> progress;
  if (!job.arguments.quiet) progress.emplace(job.images(), job.names).begin();
  const Clock::time_point start = Clock::now();
  std::vector<at::Tensor> latents;
  std::vector<double> batch_seconds;
  Pictures pictures(job, decoder, preview);
  preview.above([&] {
    if (progress) progress->clear();
  });
  FirstFailure failure;  // what is finished by then is still written
  bool all = false;
  failure.watch(
      [&] { all = sample_batches(job, networks, sampler, clock, progress, pictures, saved, latents, batch_seconds); });
  pictures.finish(failure);
  const std::int64_t finished = pictures.count();
  if (finished == 0 && latents.empty()) failure.rethrow();
  const double seconds = seconds_since(start);
  if (progress) progress->finish();
  if (pictures.files()) failure.watch([&] { tstitch::sync_disk(job.arguments.output); });

  Json json = parameters(job);
  list_texts(job, json);
  const tstitch::PngText text = png_text(json);
  std::vector<std::string> left;  // what there is now
  const auto leave = [&](std::string const& what, std::string const& path, auto write) {
    failure.watch([&] {
      write();
      left.push_back(what + ": " + location(path));
    });
  };
  if (!latents.empty()) leave("latents", job.arguments.latents, [&] { write_latents(job, latents); });
  list_work(plan, networks.size(), json);
  if (!batch_seconds.empty()) {
    std::sort(batch_seconds.begin(), batch_seconds.end());
    json["budget"] = {{"asked", job.arguments.budget},
                      {"predicted_seconds", job.predicted_seconds},
                      {"measured_seconds", batch_seconds[batch_seconds.size() / 2]}};
  }
  json["seconds_by_network"] = clock.seconds();
  json["seconds"] = seconds;
  const double rate = double(std::max<std::int64_t>(finished - saved.first(), 0)) / seconds;  // without earlier ones
  json["images_per_second"] = rate;
  json["finished_images"] = finished;
  json["pictures"] = list_pictures(job, pictures);
  failure.watch([&] { write_report(job, json); });
  // Last, for it may be too large.
  if (!pictures.gathered().empty()) {
    if (!job.arguments.grid.empty()) {
      leave("grid", job.arguments.grid, [&] { write_grid(job, pictures.gathered(), text); });
    }
    if (!job.arguments.animation.empty()) {
      leave("animation", job.arguments.animation, [&] { write_animation(job, pictures.gathered(), text); });
    }
  }

  say(job, counted(finished, job.noun()), " in ", hundredths(seconds), " s, ", hundredths(rate), " images/s on ",
      job.device.str());
  for (std::size_t k = 0; k < job.names.size(); ++k) {
    say(job, "  ", job.names[k], ": ", counted(work[k].computed, "step"),
        work[k].forecast > 0 ? " and " + std::to_string(work[k].forecast) + " forecast" : "", ", ",
        hundredths(clock.seconds()[k]), " s");
  }
  if (json.contains("budget")) {
    const double measured = json["budget"]["measured_seconds"];
    say(job, "a batch took ", hundredths(1e3 * measured), " ms where ", hundredths(1e3 * job.predicted_seconds),
        " were predicted");
  }
  if (pictures.files() && finished) say(job, "pictures: ", location(job.arguments.output));
  for (std::string const& each : left) say(job, each);
  failure.rethrow();
  if (all) {
    saved.remove();
  } else if (!saved.place().empty()) {
    say(job, "run: ", saved.place());
  }
  return stopped_by ? 128 + stopped_by : 0;
}
