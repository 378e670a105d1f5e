/// @file
/// A worker: takes ranges of pictures, draws them, and goes on until the data set is there.
#pragma once

#include <tstitch/output/progress.hpp>
#include <tstitch/scale/generate.hpp>
#include <tstitch/scale/heartbeat.hpp>
#include <tstitch/scale/within.hpp>
#include <tstitch/scale/world.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <functional>
#include <iostream>
#include <memory>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "../common/moment.hpp"
#include "../common/signals.hpp"
#include "data_set.hpp"

/// Loaded where there is something to draw.
struct Networks {
  std::vector<tstitch::Network> networks = {};
  std::optional<tstitch::Decoder> decoder = {};
};

/// How far all workers are together.
template <class Store>
class Progress {
 public:
  Progress(DataSet const& set, std::shared_ptr<tstitch::Worker<Store>> worker, bool shown)
      : set_(set), worker_(std::move(worker)) {
    if (shown) line_.emplace();
  }

  /// A range is finished.
  /// @param drawn else it was there already
  void add(std::int64_t pictures, bool drawn) { worker_->store().add(drawn ? "drawn" : "kept", pictures); }

  std::int64_t drawn() const { return worker_->store().add("drawn", 0); }

  void show(bool now = false) {
    if (!line_ || (!now && seconds_since(shown_) < 1)) return;
    shown_ = Clock::now();
    const std::int64_t drawn = this->drawn(), kept = worker_->store().add("kept", 0), workers = worker_->count();
    char rate[32];
    std::snprintf(rate, sizeof rate, "%.3g images/s", double(drawn) / line_->seconds());
    std::vector<std::string> about{std::to_string(drawn + kept) + "/" + std::to_string(set_.images()), rate};
    if (workers > 1) about.push_back(std::to_string(workers) + " workers");
    line_->show(drawn, std::max<std::int64_t>(set_.images() - kept, 1), about, now);
  }

  double seconds() const { return seconds_since(start_); }

  void finish() {
    if (line_) line_->finish();
  }

 private:
  DataSet const& set_;
  std::shared_ptr<tstitch::Worker<Store>> worker_;
  Clock::time_point start_ = Clock::now(), shown_ = {};
  std::optional<tstitch::ProgressLine> line_ = {};
};

/// The part a worker has in a run.
template <class Store>
class Run {
 public:
  /// @param load loads the networks, at the first range that is not there
  Run(DataSet const& set, tstitch::World const& world, std::shared_ptr<Store> store, tstitch::AnySampler const& sampler,
      std::function<Networks()> load)
      : set_(set),
        world_(world),
        store_(std::move(store)),
        sampler_(sampler),
        load_(std::move(load)),
        worker_(
            std::make_shared<tstitch::Worker<Store>>(*store_, tstitch::LeaseOptions{.seconds = set.arguments.lease})),
        folder_(std::make_shared<Folder>(set.job.arguments.output)),
        progress_(set, worker_, world.rank == 0 && !set.job.arguments.quiet),
        ranges_(*worker_, "ranges", set.images(), set.job.arguments.batch),
        assembly_(*worker_, "assembly", 1, 1) {}

  /// @returns whether the data set is there, and this worker was not told to stop
  /// @throws what went wrong here, or that something went wrong at another worker
  bool operator()() {
    const tstitch::Heartbeat heartbeat(beat(), std::min(set_.arguments.lease / 4, 2.0), 25);
    heartbeat_ = &heartbeat;
    try {
      const bool finished = work();
      progress_.finish();
      leave(*worker_, world_, set_.arguments.lease + 5);
      return finished;
    } catch (std::exception const& error) {
      progress_.finish();
      report(error.what());
      throw;
    }
  }

 private:
  /// What the heartbeat says and looks at. It may outlive this object where the store does not answer.
  std::function<void()> beat() const {
    return [worker = worker_, store = store_, folder = folder_, begun = begun_] {
      worker->beat();
      if (const std::string failure = store->get("failure"); !failure.empty()) {
        throw std::runtime_error("stopped, for another worker failed: " + failure);
      }
      if (*begun) folder->require_there();
    };
  }

  bool work() {
    if (!begin()) return false;
    if (is_there(folder_->file("finished.json"))) {
      require_finished(*folder_);
      say("finished before: ", folder_->path());
      return true;
    }
    progress_.show(true);
    const auto counted = [&](tstitch::IndexRange const& range, bool drawn) {
      progress_.add(range.count, drawn);
      progress_.show();
    };
    const auto wait = [&] { return this->wait(); };
    if (!tstitch::generate(
            ranges_, [&](tstitch::IndexRange const& range) { return draw(range); }, counted, wait)) {
      return false;
    }
    progress_.show(true);
    const auto assembled = [](tstitch::IndexRange const&, bool) {};
    if (!tstitch::generate(
            assembly_, [&](tstitch::IndexRange const&) { return assemble(); }, assembled, wait)) {
      return false;
    }
    progress_.finish();
    const std::int64_t drawn = progress_.drawn();
    char rate[64];
    std::snprintf(rate, sizeof rate, "%.4g s, %.4g images/s", progress_.seconds(), double(drawn) / progress_.seconds());
    say(counted_pictures(), ", ", drawn, " of them drawn now in ", rate);
    say("data set: ", std::filesystem::absolute(folder_->path()).lexically_normal().string());
    return true;
  }

  std::string counted_pictures() const { return ::counted(set_.images(), "picture"); }

  template <class... Words>
  void say(Words const&... words) const {
    if (world_.rank == 0 && !set_.job.arguments.quiet) (std::cout << ... << words) << std::endl;
  }

  /// The first worker looks at the folder, and the others come when it has.
  bool begin() {
    std::random_device random;
    const std::string own = tstitch::detail::hexadecimal(std::uint64_t(random()) << 32 | random());
    const std::string run = store_->compare_set("run", "", own);
    tstitch::Ranges<Store> first(*worker_, "begin", 1, 1);
    const auto begin = [&](tstitch::IndexRange const&) {
      folder_->begin(run, set_.description, room());
      return std::optional<bool>(true);
    };
    const auto wait = [&] { return this->wait(0.05); };
    if (!tstitch::generate(
            first, begin, [](tstitch::IndexRange const&, bool) {}, wait))
      return false;
    folder_->join(run, set_.description);
    *begun_ = true;
    has_begun = true;
    return true;
  }

  /// Bytes that parts and archive will take, where their size is known.
  std::uint64_t room() const { return set_.is_npz() ? 2 * std::uint64_t(set_.images()) * set_.picture_bytes() : 0; }

  bool wait(double seconds = 0.2) {
    heartbeat_->check();
    progress_.show();
    if (stopped_by) return false;
    std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
    return true;
  }

  /// @returns whether it was drawn, and not there already; nothing where the program is to stop
  std::optional<bool> draw(tstitch::IndexRange const& range) {
    heartbeat_->check();
    if (stopped_by) return {};
    if (is_there(folder_->part(range.number, ".json"))) {
      read_part(set_, *folder_, range);
      return false;
    }
    if (!networks_) networks_ = load_();
    const tstitch::Samples samples = sampler_.sample(
        networks_->networks, set_.job.request(range.first, range.count), [&](tstitch::StepReport const&) {
          heartbeat_->check();
          progress_.show();
          return stopped_by ? tstitch::Control::cancel : tstitch::Control::proceed;
        });
    if (!samples.finished) return {};
    std::vector<tstitch::Picture> const pictures = tstitch::to_pictures(
        networks_->decoder ? (*networks_->decoder)(samples.images, {.rows = 1, .tile = set_.job.arguments.tile})
                           : samples.images);
    write_part(set_, *folder_, range, pictures);
    return true;
  }

  std::optional<bool> assemble() {
    Assembly assembly(set_, *folder_);
    for (std::int64_t number = 0; number < ranges_.count(); ++number) {
      heartbeat_->check();
      if (stopped_by) return {};
      const tstitch::IndexRange range = ranges_.range(number);
      assembly.add(range, read_part(set_, *folder_, range));
    }
    const Json files = assembly.finish();
    write_sealed(folder_->file("finished.json"), {{"data_set", set_.fingerprint}, {"files", files}});
    folder_->remove_leftovers();  // of one who died where this one has succeeded
    folder_->remove_parts();
    return true;
  }

  /// Goes; who hosts the store goes last.
  static void leave(tstitch::Worker<Store>& worker, tstitch::World const& world, double patience) {
    if (world.hosts()) return worker.leave_last(world.size, patience);
    worker.leave();
  }

  /// Tells the others what went wrong, where they can still be told.
  void report(std::string const& what) {
    const std::string text =
        "worker " + std::to_string(worker_->number()) + ", rank " + std::to_string(world_.rank) + ": " + what;
    try {
      tstitch::detail::within(8, [store = store_, worker = worker_, text, world = world_] {
        store->compare_set("failure", "", text);
        leave(*worker, world, 6);
      });
    } catch (std::exception const&) {  // the store is gone, which they see
    }
  }

  DataSet const& set_;
  tstitch::World const& world_;
  std::shared_ptr<Store> store_;
  tstitch::AnySampler const& sampler_;
  std::function<Networks()> load_;
  std::shared_ptr<tstitch::Worker<Store>> worker_;
  std::shared_ptr<Folder> folder_;
  std::shared_ptr<std::atomic<bool>> begun_ = std::make_shared<std::atomic<bool>>(false);
  Progress<Store> progress_;
  tstitch::Ranges<Store> ranges_, assembly_;
  tstitch::Heartbeat const* heartbeat_ = nullptr;
  std::optional<Networks> networks_ = {};
};
