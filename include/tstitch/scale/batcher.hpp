/// @file
/// Many requests at once: evaluations of one network are made together, at whatever steps the requests are. Opt-in.
///
///     tstitch::Batcher batcher(networks);                       // threads may submit at any time
///     tstitch::BatcherTicket fox = batcher.submit(sampler, {.labels = {3}, .seed = 7});
///     const at::Tensor picture = fox.wait().images;
///
/// A service whose requests come one by one pays for each as for a batch of one. Here requests meet in the calls of the
/// networks, although each has a sampler of its own: steps, ratio, guidance, classes, prompts.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <c10/core/Event.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/Stream.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "../base/diagnostics.hpp"
#include "../base/error.hpp"
#include "../model/denoiser.hpp"
#include "../sampler/any_sampler.hpp"
#include "../sampler/request.hpp"
#include "../tensor/host_tensor.hpp"
#include "../tensor/torch_error.hpp"
#include "asked_step.hpp"

namespace tstitch {

struct BatcherOptions {
  /// Images of one call of a network, from 1 to 4096; guidance doubles the rows.
  std::int64_t batch_size = 32;
  /// Fills every call up to batch_size, rounded up to a multiple of 8: then an image has the bits that `sample` gives
  /// it with this batch_size and pad_batches, whatever is drawn beside it. Else calls are filled up to the next of 1,
  /// 2, 3, 4, 6, 8, 12, 16, 24, 32 ... images, which is faster where there are few, and the bits depend on how many
  /// there are.
  bool pad_batches = false;
  /// Requests that wait for their first step, at least 1; more are refused. Each has its x and its conditions on the
  /// networks' device.
  std::size_t most_waiting = 1024;
  /// Images that are being drawn at the same time; 0: batch_size for each network, so that one of them always has a
  /// full batch to do.
  std::int64_t most_images = 0;
  /// After how many calls that went to others a request goes first, whatever its priority, and while it waits, after
  /// how many later ones that began; at least 1.
  int most_passed_over = 16;
};

/// Why `submit` takes no request: too many wait.
class BatcherFull : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// How far a request is.
struct BatcherProgress {
  enum class State { waiting, drawing, finished, cancelled, failed };
  State state = State::waiting;
  int done = 0;   ///< steps
  int steps = 0;  ///< in all
};

struct BatcherRequestOptions {
  int priority = 0;  ///< of two requests the one with more goes first
  /// Is told by the batcher's thread after each step, and is to return at once, without waiting for a ticket; what it
  /// throws ends its request.
  std::function<void(BatcherProgress const&)> on_step = {};
};

/// What a Batcher has asked of a network.
struct BatcherCounters {
  std::uint64_t calls = 0;
  std::uint64_t images = 0;     ///< that requests asked for
  std::uint64_t filled_up = 0;  ///< images of the calls, with those that fill them up
};

namespace detail {

/// A request in a Batcher.
struct BatcherRun {
  std::uint64_t number = 0;  ///< in the order of submission
  BatcherRequestOptions options = {};
  std::optional<AskedSteps> steps = {};  ///< the batcher's thread alone looks into it
  std::int64_t images = 0;
  int passed_over = 0;
  at::Tensor before = {};  ///< x before the newest step
  std::atomic<bool> cancelled = false;

  std::mutex mutex = {};  ///< of what follows
  std::condition_variable changed = {};
  BatcherProgress progress = {};
  Samples samples = {};
  at::Tensor x_0 = {}, finite = {};
  std::optional<c10::Stream> stream = {};  ///< of a GPU
  std::optional<c10::Event> drawn = {};    ///< on it, when it has ended
  std::exception_ptr error = nullptr;

  bool ended() const {
    return progress.state != BatcherProgress::State::waiting && progress.state != BatcherProgress::State::drawing;
  }
};

}  // namespace detail

/// A request that was submitted. Copies mean the same one; it goes on when there is none left.
class BatcherTicket {
 public:
  explicit BatcherTicket(std::shared_ptr<detail::BatcherRun> run) : run_(std::move(run)) {}

  BatcherProgress progress() const {
    const std::lock_guard lock(run_->mutex);
    return run_->progress;
  }

  /// The newest prediction of x_0, [n, C, ...]; undefined before the first step.
  at::Tensor preview() const {
    at::Tensor x_0;
    {
      const std::lock_guard lock(run_->mutex);
      x_0 = run_->x_0;
    }
    if (run_->stream) {
      c10::Event given_out(run_->stream->device_type());
      given_out.record(*run_->stream);
      given_out.synchronize();
    }
    return x_0;
  }

  /// Leaves the request where it is; its place is free before the next step.
  void cancel() const { run_->cancelled = true; }

  /// Whether all its steps are given out before this time is over; a GPU may still be drawing.
  template <class Rep, class Period>
  bool wait_for(std::chrono::duration<Rep, Period> const& time) const {
    std::unique_lock lock(run_->mutex);
    return run_->changed.wait_for(lock, time, [&] { return run_->ended(); });
  }

  /// Waits for its end.
  /// @returns what `sample` would; of one that was cancelled the newest prediction, if there was one, and not finished
  /// @throws what stopped it: std::runtime_error for values that are not finite, what networks and rules throw
  Samples wait() const {
    {
      std::unique_lock lock(run_->mutex);
      run_->changed.wait(lock, [&] { return run_->ended(); });
    }
    // Nothing of it changes any more.
    if (run_->error) std::rethrow_exception(run_->error);
    if (run_->drawn) run_->drawn->synchronize();
    if (run_->stream) {
      const at::Device device = run_->samples.images.device();
      run_->samples.images.record_stream(c10::impl::VirtualGuardImpl(device.type()).getStream(device));
    }
    if (run_->finite.defined()) {
      const at::Device device = run_->finite.device();
      // On a stream of its own this waits for nothing else.
      c10::OptionalStreamGuard apart;
      if (!device.is_cpu()) {
        apart.reset_stream(c10::impl::VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device));
      }
      if (!run_->finite.item<bool>()) {
        throw std::runtime_error("tstitch::Batcher: values must be finite numbers, got nan or infinity in request " +
                                 std::to_string(run_->number) + "; Sampler::sample says where");
      }
    }
    return run_->samples;
  }

 private:
  std::shared_ptr<detail::BatcherRun> run_;
};

/// Draws requests of many threads together, in a thread of its own.
///
/// In each turn one network is asked once, for as many images as wait for it, and each run then goes on by its own
/// plan. Rules that evaluate more than once in a step are asked more than once. Not for forecasts of steps and for
/// guidance by gradients, whose evaluations are no calls of the network alone, and for AdaptiveDPMSolver, which looks
/// at values. Networks are asked as outside of a run: Evaluation::step and memory are null.
class Batcher {
 public:
  /// @param networks as for `sample`, in the order of use
  /// @throws std::invalid_argument for no networks and options that make no sense; std::runtime_error for networks that
  ///         do not fit together
  explicit Batcher(std::vector<Network> networks, BatcherOptions options = {})
      : networks_(std::move(networks)), options_(options) {
    if (networks_.empty()) detail::refuse("Batcher", "networks must be at least one", 0);
    require_compatible(networks_);
    const auto require = [](char const* name, std::int64_t value, std::int64_t least, std::int64_t most) {
      if (value >= least && value <= most) return;
      detail::refuse("Batcher",
                     std::string(name) + " must be in [" + std::to_string(least) + ", " + std::to_string(most) + "]",
                     std::to_string(value));
    };
    require("batch_size", options_.batch_size, 1, 4096);
    require("most_waiting", std::int64_t(std::min<std::size_t>(options_.most_waiting, 1u << 30)), 1, 1 << 24);
    require("most_images", options_.most_images, 0, 1 << 24);
    require("most_passed_over", options_.most_passed_over, 1, 1 << 24);
    counters_.resize(networks_.size());
    if (options_.pad_batches) options_.batch_size = (options_.batch_size + 7) / 8 * 8;
    if (options_.most_images == 0) options_.most_images = options_.batch_size * std::int64_t(networks_.size());
    options_.most_images = std::max(options_.most_images, options_.batch_size);
    if (device().is_cuda()) {
      stream_ = c10::impl::VirtualGuardImpl(device().type()).getStream(device());
      for (auto& pace : paces_) pace.emplace(stream_->device_type());
    }
    thread_ = std::thread([this] { work(); });
  }

  Batcher(Batcher const&) = delete;
  Batcher& operator=(Batcher const&) = delete;

  /// Cancels what has not ended.
  ~Batcher() {
    {
      const std::lock_guard lock(mutex_);
      stops_ = true;
    }
    woken_.notify_all();
    thread_.join();
  }

  std::vector<Network> const& networks() const { return networks_; }

  /// Takes a request. Any thread may, at any time.
  /// @param request of at most batch_size images; its own batch_size and pad_batches mean nothing here
  /// @throws BatcherFull where most_waiting requests wait
  /// @throws std::invalid_argument for what `begin` refuses, for more images, forecasts of steps, gradients, and update
  /// rules that do not say how often they evaluate; std::runtime_error for what else `begin` throws
  BatcherTicket submit(AnySampler const& sampler, Request const& request, BatcherRequestOptions options = {}) {
    if (sampler.options().forecast) {
      detail::refuse("Batcher", "samplers must forecast no steps", detail::in_quotes(sampler.plan().sampler));
    }
    if (sampler.rule().view().long_steps) {
      detail::refuse("Batcher", "update rules must say how often they evaluate in a step",
                     detail::in_quotes(sampler.plan().sampler));
    }
    if (request.gradient) detail::refuse("Batcher", "requests must have no gradient guidance", "one with");
    require_few(std::max<std::int64_t>(
        {request.count, std::int64_t(request.labels.size()), std::int64_t(request.seeds.size())}));
    require_room();
    const auto run = std::make_shared<detail::BatcherRun>();
    {
      const c10::InferenceMode as_usual(false);  // as the batcher's thread is
      const c10::AutoGradMode no_gradients(false);
      wait_for_caller(request);
      const c10::OptionalStreamGuard on_stream(stream_);
      // What networks would compute ahead for a run is of no use to a call of many.
      Trajectory const& begun = run->steps.emplace(sampler, request, networks_).trajectory();
      run->images = begun.x.size(0);
      if (run->images > options_.batch_size) {
        detail::refuse("Batcher", "requests must be of at most " + std::to_string(options_.batch_size) + " images",
                       std::to_string(run->images));
      }
      run->stream = stream_;
      run->samples.seeds = begun.seeds;
      run->progress.steps = begun.count - begun.next;
    }
    run->options = std::move(options);
    {
      const std::lock_guard lock(mutex_);
      require_room_locked();
      run->number = submitted_++;
      waiting_.push_back(run);
    }
    woken_.notify_all();
    return BatcherTicket(run);
  }

  /// Images of the calls that it makes, of as many shapes as graphs are captured of. Who draws so many by `sample` with
  /// each before the first request comes, spares requests the wait for that.
  std::vector<std::int64_t> call_sizes() const {
    std::vector<std::int64_t> sizes;
    for (std::int64_t images = 1; images <= options_.batch_size; images = sizes.back() + 1) {
      sizes.push_back(filled_up(images));
    }
    return sizes;
  }

  /// One for each network.
  std::vector<BatcherCounters> counters() const {
    const std::lock_guard lock(mutex_);
    return counters_;
  }

  /// Requests that wait for their first step.
  std::size_t waiting() const {
    const std::lock_guard lock(mutex_);
    return waiting_.size();
  }

 private:
  using Run = std::shared_ptr<detail::BatcherRun>;
  using State = BatcherProgress::State;

  /// What can be asked in one call: evaluations of one network, all with both halves of guidance or none, of x and
  /// conditions of the same shapes.
  struct Kind {
    std::size_t network;
    bool guided;
    std::vector<std::vector<std::int64_t>> shapes;
    std::vector<std::string> names;
    at::ScalarType type;

    auto operator<=>(Kind const&) const = default;
  };

  struct Group {
    Kind kind;
    std::vector<Run> runs = {};  // the next to be asked first
    std::int64_t images = 0;
    int passed_over = 0;
  };

  at::Device device() const { return networks_[0].device(); }

  void require_few(std::int64_t images) const {
    if (images <= options_.batch_size) return;
    detail::refuse("Batcher", "requests must be of at most " + std::to_string(options_.batch_size) + " images",
                   std::to_string(images));
  }

  /// A caller's stream may still be writing what the request holds, and free it before it is read.
  void wait_for_caller(Request const& request) const {
    if (!stream_) return;
    const c10::Stream own = c10::impl::VirtualGuardImpl(stream_->device_type()).getStream(device());
    if (own == *stream_) return;
    c10::Event written(stream_->device_type());
    written.record(own);
    written.block(*stream_);
    std::vector<at::Tensor> all{request.initial_noise, request.initial_image, request.mask};
    for (NamedCondition const& each : request.conditions) all.insert(all.end(), {each.value, each.null});
    for (at::Tensor const& each : all) {
      if (each.defined() && each.is_cuda()) each.record_stream(*stream_);
    }
  }

  void require_room() const {
    const std::lock_guard lock(mutex_);
    require_room_locked();
  }

  void require_room_locked() const {
    if (waiting_.size() < options_.most_waiting) return;
    throw BatcherFull("tstitch::Batcher: at most " + std::to_string(options_.most_waiting) +
                      " requests may wait, got another one");
  }

  // ---- the batcher's thread
  // ------------------------------------------------------------------------------------------

  void work() {
    const c10::AutoGradMode no_gradients(false);
    const c10::OptionalStreamGuard on_stream(stream_);
    while (true) {
      std::vector<Run> begun;
      {
        std::unique_lock lock(mutex_);
        woken_.wait(lock, [&] { return stops_ || !waiting_.empty() || !active_.empty(); });
        if (stops_) {
          for (Run const& run : waiting_) end(run, State::cancelled);
          for (Run const& run : active_) end(run, State::cancelled);
          return;
        }
        begun = admit();
      }
      try {
        for (Run const& run : begun) go_on(run);
        drop_cancelled();
        if (!active_.empty()) turn();
      } catch (...) {  // of no one's evaluation, such as a GPU that is gone
        while (!active_.empty()) fail(Run(active_.front()), std::current_exception());
      }
    }
  }

  /// Whether a goes before b.
  bool before(Run const& a, Run const& b) const {
    const bool a_first = a->passed_over >= options_.most_passed_over,
               b_first = b->passed_over >= options_.most_passed_over;
    if (a_first != b_first) return a_first;
    if (!a_first && a->options.priority != b->options.priority) return a->options.priority > b->options.priority;
    return a->number < b->number;
  }

  /// Those that begin, because there is room for them. With the lock.
  std::vector<Run> admit() {
    std::vector<Run> begun;
    std::erase_if(waiting_, [&](Run const& run) {
      if (!run->cancelled) return false;
      end(run, State::cancelled);
      return true;
    });
    std::stable_sort(waiting_.begin(), waiting_.end(), [&](Run const& a, Run const& b) { return before(a, b); });
    while (!waiting_.empty()) {
      const Run run = waiting_.front();
      if (images_ + run->images > options_.most_images) break;
      waiting_.pop_front();
      for (Run const& other : waiting_) other->passed_over += other->number < run->number;
      run->passed_over = 0;
      images_ += run->images;
      active_.push_back(run);
      begun.push_back(run);
      const std::lock_guard own(run->mutex);
      run->progress.state = State::drawing;
    }
    return begun;
  }

  void drop_cancelled() {
    for (auto each = active_.begin(); each != active_.end();) {
      const Run run = *each;
      ++each;
      if (run->cancelled && !run->ended()) leave(run, State::cancelled);
    }
  }

  /// Takes a run to the next evaluation that it asks for, or to its end.
  void go_on(Run const& run) {
    try {
      while (!run->steps->trajectory().finished()) {
        const at::Tensor x = run->steps->trajectory().x;
        if (!run->steps->go_on()) return;
        run->before = x;
        BatcherProgress progress;
        {
          const std::lock_guard own(run->mutex);
          ++run->progress.done;
          run->x_0 = run->steps->trajectory().x_0;
          progress = run->progress;
        }
        if (run->options.on_step) run->options.on_step(progress);
      }
      leave(run, State::finished);
    } catch (...) {
      fail(run, std::current_exception());
    }
  }

  /// Ends a run that is being drawn.
  void leave(Run const& run, State state) {
    images_ -= run->images;
    active_.remove(run);
    end(run, state);
  }

  void fail(Run const& run, std::exception_ptr error) {
    {
      const std::lock_guard own(run->mutex);
      run->error = std::move(error);
    }
    leave(run, State::failed);
  }

  void end(Run const& run, State state) {
    std::optional<detail::AskedSteps> steps;  // what is a program's own in them ends without the lock
    std::function<void(BatcherProgress const&)> on_step;
    {
      const std::lock_guard own(run->mutex);
      try {
        hand_over(*run, state == State::finished);
      } catch (...) {
        if (!run->error) run->error = std::current_exception();
        state = State::failed;
      }
      run->progress.state = state;
      run->before.reset();
      steps.swap(run->steps);
      on_step.swap(run->options.on_step);
    }
    run->changed.notify_all();
  }

  /// What there is of a run when it ends.
  void hand_over(detail::BatcherRun& run, bool finished) const {
    Trajectory const& trajectory = run.steps->trajectory();
    run.samples.finished = finished;
    run.samples.finished_images = finished ? run.images : 0;
    run.samples.images = finished ? trajectory.x : trajectory.x_0;
    if (!run.samples.images.defined()) run.samples.images = trajectory.x.narrow(0, 0, 0);
    run.samples.seeds.resize(std::size_t(run.samples.images.size(0)));
    if (finished) {
      run.finite = trajectory.x.isfinite().all();
      if (run.before.defined()) run.finite = run.finite.logical_and(run.before.isfinite().all());
    }
    if (stream_) {
      run.drawn.emplace(stream_->device_type());
      run.drawn->record(*stream_);
    }
  }

  Kind kind_of(detail::BatcherRun const& run) const {
    detail::AskedEvaluation const& asked = run.steps->asked();
    Condition const& condition = condition_of(run);
    Kind kind{asked.network, asked.guided, {asked.x.sizes().slice(1).vec()}, {}, asked.x.scalar_type()};
    kind.names.push_back(condition.labels.defined() ? "labels" : "");
    for (auto const& [name, tensor] : condition.tensors) {
      kind.names.push_back(name);
      kind.shapes.push_back(tensor.sizes().slice(1).vec());
    }
    return kind;
  }

  static Condition const& condition_of(detail::BatcherRun const& run) {
    BatchCondition const& both = run.steps->trajectory().condition;
    return run.steps->asked().guided ? both.guided : both.conditional;
  }

  /// Asks one network once, for those who wait for it.
  void turn() {
    std::vector<Group> groups;
    for (Run const& run : active_) {
      Kind kind = kind_of(*run);
      const auto same = [&](Group const& group) { return group.kind == kind; };
      auto found = std::find_if(groups.begin(), groups.end(), same);
      if (found == groups.end()) found = groups.insert(groups.end(), Group{std::move(kind)});
      found->runs.push_back(run);
      found->images += run->images;
      found->passed_over = std::max(found->passed_over, run->passed_over);
    }
    Group& group = next_of(groups);
    std::stable_sort(group.runs.begin(), group.runs.end(), [&](Run const& a, Run const& b) { return before(a, b); });
    std::vector<Run> taken;
    std::int64_t images = 0;
    for (Run const& run : group.runs) {
      if (images + run->images > options_.batch_size) continue;
      images += run->images;
      taken.push_back(run);
    }
    for (Run const& run : active_) ++run->passed_over;
    for (Run const& run : taken) run->passed_over = 0;
    evaluate(group.kind, taken);
    for (Run const& run : taken) {
      if (!run->ended()) go_on(run);
    }
    keep_pace();
  }

  /// The group whose turn it is: the fullest, unless one has waited for long.
  Group& next_of(std::vector<Group>& groups) const {
    const auto less = [&](Group const& a, Group const& b) {
      const bool a_late = a.passed_over >= options_.most_passed_over,
                 b_late = b.passed_over >= options_.most_passed_over;
      if (a_late != b_late) return b_late;
      if (a_late && a.passed_over != b.passed_over) return a.passed_over < b.passed_over;
      const std::int64_t of_a = std::min(a.images, options_.batch_size), of_b = std::min(b.images, options_.batch_size);
      return of_a != of_b ? of_a < of_b : a.passed_over < b.passed_over;
    };
    return *std::max_element(groups.begin(), groups.end(), less);
  }

  /// How many images a call is of.
  std::int64_t filled_up(std::int64_t images) const {
    if (options_.pad_batches) return options_.batch_size;
    std::int64_t size = 1;
    while (size < images) size = (size & (size - 1)) == 0 && size >= 2 ? size * 3 / 2 : size == 1 ? 2 : size / 3 * 4;
    return std::min(size, options_.batch_size);
  }

  /// Answers what the runs ask. What fails for all together is tried for each by itself, so that one request does not
  /// end others.
  void evaluate(Kind const& kind, std::vector<Run> const& runs) {
    try {
      answer(kind, runs);
    } catch (...) {
      if (runs.size() == 1) return fail(runs[0], std::current_exception());
      std::string why = "an exception of no known type";
      try {
        throw;
      } catch (std::exception const& error) {
        why = detail::reason(error);
      } catch (...) {}
      detail::diagnose("Batcher", "asks '" + detail::printable(networks_[kind.network].info().name) + "' for each of " +
                                      std::to_string(runs.size()) +
                                      " requests by itself, because it failed for all: " + why);
      for (Run const& run : runs) evaluate(kind, {run});
    }
  }

  void answer(Kind const& kind, std::vector<Run> const& runs) {
    Network const& network = networks_[kind.network];
    std::int64_t images = 0;
    for (Run const& run : runs) images += run->images;
    const std::int64_t all = filled_up(images), halves = kind.guided ? 2 : 1;
    const at::Tensor x = stacked(runs, all, 1, [](detail::BatcherRun const& run) { return run.steps->asked().x; });
    Condition condition;
    std::vector<double> times;
    bool known = true;
    for (Run const& run : runs) known = known && run->steps->asked().timestep.has_value();
    for (std::int64_t half = 0; half < halves; ++half) {
      for (Run const& run : runs) {
        std::vector<std::int64_t> const& labels = condition_of(*run).host_labels;
        if (!labels.empty()) {
          condition.host_labels.insert(condition.host_labels.end(), labels.begin() + half * run->images,
                                       labels.begin() + (half + 1) * run->images);
        }
        if (known) times.insert(times.end(), std::size_t(run->images), *run->steps->asked().timestep);
      }
      if (!condition.host_labels.empty()) {
        condition.host_labels.resize(std::size_t((half + 1) * all), condition.host_labels.back());
      }
      if (known) times.resize(std::size_t((half + 1) * all), times.back());
    }
    if (!condition.host_labels.empty()) {
      condition.labels = detail::to_device(condition.host_labels, x.device());
    } else if (kind.names[0] == "labels") {
      condition.labels =
          stacked(runs, all, halves, [](detail::BatcherRun const& run) { return condition_of(run).labels; });
    }
    for (std::size_t k = 1; k < kind.names.size(); ++k) {
      condition.tensors.emplace_back(kind.names[k], stacked(runs, all, halves, [&](detail::BatcherRun const& run) {
                                       return condition_of(run).tensors[k - 1].second;
                                     }));
    }
    Evaluation told{.both_halves = kind.guided};
    const bool same = known && std::all_of(times.begin(), times.end(), [&](double t) { return t == times[0]; });
    if (same) told.timestep = times[0];
    at::Tensor t;
    if (!same || !network.knows_timestep()) {
      const bool integer = network.info().timestep_type == TimestepType::int64;
      const at::ScalarType type = integer ? at::kLong : x.scalar_type();
      t = known
              ? detail::one_each(times, x.device(), type)
              : stacked(runs, all, halves, [&](detail::BatcherRun const& run) { return times_of(run, halves, type); });
    }
    const bool repeats = halves == 1 || network.repeats_x();
    const at::Tensor output = network(repeats ? x : at::cat({x, x}), t, condition, told);
    if (!output.defined() || output.dim() < 1 || output.size(0) != halves * all) {
      throw std::runtime_error("tstitch::Network '" + network.info().name + "': the output must have " +
                               std::to_string(halves * all) + " rows, got " +
                               (output.defined() ? detail::shape_text(output.sizes()) : "an undefined tensor"));
    }
    std::vector<at::Tensor> answers;  // all, before any run has one
    std::int64_t first = 0;
    for (Run const& run : runs) {
      const std::int64_t n = run->images;
      if (halves == 1) {
        answers.push_back(output.narrow(0, first, n));
      } else if (n == 1) {  // without a copy
        answers.push_back(output.unflatten(0, {2, all}).select(1, first));
      } else {
        answers.push_back(at::cat({output.narrow(0, first, n), output.narrow(0, all + first, n)}));
      }
      first += n;
    }
    for (std::size_t i = 0; i < runs.size(); ++i) runs[i]->steps->answer(std::move(answers[i]));
    const std::lock_guard lock(mutex_);
    BatcherCounters& counters = counters_[kind.network];
    ++counters.calls;
    counters.images += std::uint64_t(images);
    counters.filled_up += std::uint64_t(all);
  }

  /// Of a run whose images are at points of their own, or that knows its timestep among others that do not.
  at::Tensor times_of(detail::BatcherRun const& run, std::int64_t halves, at::ScalarType type) const {
    detail::AskedEvaluation const& asked = run.steps->asked();
    const std::int64_t rows = halves * run.images;
    if (asked.t.defined()) return asked.t.to(type);
    return detail::one_each(std::vector<double>(std::size_t(rows), *asked.timestep), asked.x.device(), type);
  }

  /// Rows of runs below one another, the last one again until there are `all` in each half.
  /// @param of a run's tensor, [halves n, ...]
  template <class Of>
  static at::Tensor stacked(std::vector<Run> const& runs, std::int64_t all, std::int64_t halves, Of const& of) {
    std::vector<at::Tensor> parts;
    for (std::int64_t half = 0; half < halves; ++half) {
      std::int64_t rows = 0;
      for (Run const& run : runs) {
        parts.push_back(of(*run).narrow(0, half * run->images, run->images));
        rows += run->images;
      }
      if (rows == all) continue;
      std::vector<std::int64_t> sizes = parts.back().sizes().vec();
      sizes[0] = all - rows;
      parts.push_back(parts.back().narrow(0, parts.back().size(0) - 1, 1).expand(sizes));
    }
    return at::cat(parts);
  }

  /// Does not run far ahead of a GPU: who comes next would have to wait for all that was given out.
  void keep_pace() {
    if (!stream_) return;
    c10::Event& pace = *paces_[turns_++ % paces_.size()];
    pace.synchronize();
    pace.record(*stream_);
  }

  std::vector<Network> networks_;
  BatcherOptions options_;
  std::optional<c10::Stream> stream_ = {};  // of a GPU

  mutable std::mutex mutex_ = {};  // of what follows
  std::condition_variable woken_ = {};
  bool stops_ = false;
  std::uint64_t submitted_ = 0;
  std::deque<Run> waiting_ = {};
  std::vector<BatcherCounters> counters_ = {};

  // Of the batcher's thread alone.
  std::list<Run> active_ = {};
  std::int64_t images_ = 0;
  std::size_t turns_ = 0;
  std::array<std::optional<c10::Event>, 2> paces_ = {};

  std::thread thread_;  // the last, for it uses all of them
};

}  // namespace tstitch
