/// @file
/// Many pictures drawn cheaply, scored, and the best of them drawn in full from the same noise.
///
///     const DDIM draft{noise, SingleNetwork{0}, {.steps = 20}}, full{noise, Stitch{.ratio = 0.4}, {.steps = 20}};
///     const KeptDrafts kept = draft_and_keep(draft, full, networks, {.count = 16}, scorer, {.keep = 2});
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "../model/denoiser.hpp"
#include "../tensor/host_tensor.hpp"
#include "any_sampler.hpp"
#include "batch.hpp"
#include "checks.hpp"
#include "observer.hpp"
#include "request.hpp"
#include "trajectory.hpp"

namespace tstitch {

/// What a scorer sees at a time: a batch of drafts, without padding.
struct DraftBatch {
  at::Tensor const& images;              ///< [n, C, ...], x_0 as `sample` returns it; to be left as it is
  std::int64_t first;                    ///< position of the first one in the request
  std::span<const std::uint64_t> seeds;  ///< n
  std::span<const std::int64_t> labels;  ///< n; empty for networks without classes
};

/// Says how good drafts are; made from any callable on a DraftBatch, or on its images alone, that returns their scores:
/// [n], of a floating type, the higher the better. Infinities are scores, nan is none. It is called without gradients,
/// which it may switch on.
class DraftScorer {
 public:
  template <class Callable>
  requires(!std::is_same_v<std::remove_cvref_t<Callable>, DraftScorer>)
      DraftScorer(Callable callable) {  // NOLINT: conversion is the purpose
    detail::require_callable("DraftScorer", callable);
    constexpr bool of_batch = std::is_invocable_r_v<at::Tensor, Callable&, DraftBatch const&>;
    constexpr bool of_images = std::is_invocable_r_v<at::Tensor, Callable&, at::Tensor const&>;
    static_assert(of_batch || of_images,
                  "tstitch::DraftScorer: must be callable as 'at::Tensor (tstitch::DraftBatch const&)' or 'at::Tensor "
                  "(at::Tensor const& images)'");
    if constexpr (of_batch) {
      score_ = std::move(callable);
    } else if constexpr (of_images) {
      score_ = [callable = std::move(callable)](DraftBatch const& batch) mutable { return callable(batch.images); };
    }
  }

  /// @returns one finite or infinite number a draft
  /// @throws std::runtime_error for scores that are none
  std::vector<double> operator()(DraftBatch const& batch) const {
    const std::uint64_t changes = detail::changes_in_place(batch.images);
    const at::Tensor scores = score_(batch);
    const std::int64_t count = batch.images.size(0);
    const auto fail = [](std::string const& rule, std::string const& got) {
      throw std::runtime_error("tstitch::DraftScorer: " + rule + ", got " + got);
    };
    if (detail::changes_in_place(batch.images) != changes)
      fail("must leave the drafts as they are", "a change in place");
    if (!scores.defined() || scores.dim() != 1 || scores.size(0) != count || !scores.is_floating_point()) {
      fail("must return " + detail::shape_text({count}) + " of a floating type",
           scores.defined() ? std::string(at::toString(scores.scalar_type())) + " " + detail::shape_text(scores.sizes())
                            : "an undefined tensor");
    }
    const at::Tensor host = scores.detach().to(at::kCPU, at::kDouble).contiguous();
    double const* const values = detail::values_of<double>(host);
    for (std::int64_t i = 0; i < count; ++i) {
      if (!std::isnan(values[i])) continue;
      fail("scores must be numbers", "nan for draft " + std::to_string(batch.first + i) + " of seed " +
                                         std::to_string(batch.seeds[std::size_t(i)]));
    }
    return {values, values + count};
  }

 private:
  std::function<at::Tensor(DraftBatch const&)> score_;
};

/// What becomes of drafts.
struct DraftOptions {
  std::int64_t keep = 1;  ///< the best so many are kept, of each group; at least 1
  /// One number a draft, any: those that have the same are a group, as Request::labels or the number of its prompt.
  /// Empty: all are one.
  std::vector<std::int64_t> groups = {};
  std::optional<Guidance> guidance = {};  ///< of the drafts, where it is another than the request's
  Observer draft_observer = {};           ///< sees the drafts being drawn, and may cancel
  Observer observer = {};                 ///< sees those that are kept being drawn, and may cancel
};

/// What was asked of a network: rows of its computed evaluations, padding too.
struct DraftWork {
  std::int64_t drafts = 0;  ///< for the drafts
  std::int64_t kept = 0;    ///< for those that were kept, from where their steps are other ones
};

/// What `draft_and_keep` returns.
struct KeptDrafts {
  /// Those that were kept, drawn in full: the groups in the order in which the request begins them, the best of each
  /// first, of those alike the first in the request. Without images where the drafts were cancelled.
  Samples samples;
  std::vector<std::int64_t> positions;  ///< where they are in the request; more than samples has after a cancel
  Samples drafts;                       ///< all of the request, as the draft sampler draws them
  std::vector<double> scores;           ///< one a draft; empty where the drafts were cancelled
  int shared_steps = 0;                 ///< so many first steps were taken once, for the draft and for the picture
  std::vector<DraftWork> work;          ///< one a network
};

namespace detail {

/// The images at these positions of a request whose counts and labels are filled in.
inline Request images_of(Request const& whole, std::vector<std::int64_t> const& positions) {
  Request part = whole;
  part.count = std::int64_t(positions.size());
  const auto pick = [&](auto& list) {
    if (list.empty()) return;
    const auto all = std::exchange(list, {});
    for (const std::int64_t position : positions) list.push_back(all[std::size_t(position)]);
  };
  pick(part.labels);
  pick(part.seeds);
  const auto pick_rows = [&](at::Tensor& tensor) {
    if (!tensor.defined() || (tensor.size(0) == 1 && whole.count > 1)) return;
    tensor = tensor.index_select(0, to_device(positions, tensor.device()));
  };
  if (part.initial_image.defined()) {
    std::vector<std::int64_t> sizes = part.initial_image.sizes().vec();
    sizes[0] = whole.count;
    part.initial_image = part.initial_image.expand(sizes);
  }
  for (at::Tensor* tensor : {&part.initial_noise, &part.initial_image, &part.mask}) pick_rows(*tensor);
  for (NamedCondition& each : part.conditions) {
    pick_rows(each.value);
    pick_rows(each.null);
  }
  return part;
}

/// Runs as they are behind a step, batch after batch, by the position of their images.
class StatesBehind {
 public:
  /// @param step index of the step to come
  StatesBehind(int step, std::int64_t count) : step_(step), count_(count) {}

  int step() const { return step_; }

  /// Whether all was seen of all runs, and nothing else lives in them.
  bool complete() const { return seen_ == count_; }

  void see(Trajectory const& run, std::int64_t first, std::int64_t images) {
    if (run.next != step_) return;
    const auto is_empty = [](Memory const& memory) { return memory.empty(); };
    // What networks keep is theirs, and nobody knows which rows of it are whose.
    if (!run.rule_state.empty() || !std::all_of(run.memories.begin(), run.memories.end(), is_empty)) return;
    const auto copy = [&](at::Tensor& all, at::Tensor const& rows) {
      if (!rows.defined()) return;
      if (!all.defined()) {
        std::vector<std::int64_t> sizes = rows.sizes().vec();
        sizes[0] = count_;
        all = rows.new_empty(sizes);
      }
      all.narrow(0, first, images).copy_(rows.narrow(0, 0, images));
    };
    level_ = run.level;
    copy(x_, run.x);
    copy(x_0_, run.x_0);
    copy(momentum_, run.momentum);
    history_.resize(run.history.size(), Past{run.history.empty() ? Step{} : run.history[0].step, 0, {}, {}});
    for (std::size_t i = 0; i < history_.size(); ++i) {
      history_[i].step = run.history[i].step;
      history_[i].network = run.history[i].network;
      copy(history_[i].x, run.history[i].x);
      copy(history_[i].x_0, run.history[i].x_0);
    }
    seen_ += images;
  }

  /// Takes a run of these images to where they are.
  void bring(Trajectory& run, std::vector<std::int64_t> const& positions) const {
    const at::Tensor index = to_device(positions, x_.device());
    const auto rows_of = [&](at::Tensor const& all) { return all.defined() ? all.index_select(0, index) : all; };
    run.next = step_;
    run.level = level_;
    run.x = rows_of(x_);
    run.x_0 = rows_of(x_0_);
    run.momentum = rows_of(momentum_);
    run.history = history_;
    for (Past& past : run.history) {
      past.x = rows_of(past.x);
      past.x_0 = rows_of(past.x_0);
    }
  }

 private:
  int step_;
  std::int64_t count_, seen_ = 0;
  NoiseLevel level_{};
  at::Tensor x_, x_0_, momentum_;
  std::vector<Past> history_;
};

/// Counts what a run asks of its networks, and shows the run to another observer.
class DraftWatch {
 public:
  /// @param plan of the request
  /// @param observer lives longer than this
  /// @param count is told of rows that a network computes
  DraftWatch(Plan plan, Observer const& observer, std::function<void(std::size_t network, std::int64_t rows)> count)
      : plan_(std::move(plan)), observer_(observer), count_(std::move(count)) {}

  /// Called behind each step.
  std::function<void(StepReport const& report)> see = {};
  /// Where the run is a batch that does not know its place: position of its first image, and how many are no padding.
  std::optional<std::pair<std::int64_t, std::int64_t>> place = {};

  Control before(StepBegin const& begin) {
    next_ = begin.trajectory->next;
    counted_ = false;
    StepBegin placed = begin;
    if (place) std::tie(placed.first, placed.images) = *place;
    return observer_.before(placed);
  }

  Control operator()(StepReport const& report) {
    Trajectory const& run = *report.trajectory;
    PlannedStep const& planned = plan_.steps[std::size_t(next_ - run.first)];
    const std::int64_t rows = report.x.size(0);
    const bool inside = run.next == next_;  // of a long step, whose plan does not know how often it asks
    if (inside || !counted_) {
      count_(planned.network, rows * (!inside ? planned.rows : planned.both_halves() ? 2 : 1));
      if (planned.guide_evaluations > 0) count_(planned.guide_network, rows * (inside ? 1 : planned.guide_evaluations));
    }
    counted_ = inside;
    if (see && !inside) see(report);
    StepReport placed = report;
    if (place) std::tie(placed.first, placed.images) = *place;
    return observer_ ? observer_(placed) : Control::proceed;
  }

 private:
  Plan plan_;
  Observer const& observer_;
  std::function<void(std::size_t, std::int64_t)> count_;
  int next_ = 0;          // the step that is taken
  bool counted_ = false;  // in it, evaluation by evaluation
};

/// Whether a step asks the same of the same network.
inline bool are_alike(PlannedStep const& a, PlannedStep const& b) {
  return a.step.index == b.step.index && a.network == b.network && a.guidance_scale == b.guidance_scale &&
         a.evaluations == b.evaluations && a.guided == b.guided && a.guide_evaluations == b.guide_evaluations &&
         (a.guide_evaluations == 0 || a.guide_network == b.guide_network);
}

/// How many first steps two samplers take alike, as far as plans and options say; rules are told apart by their names.
/// 0 where their runs cannot be taken over row by row: with forecasts, which keep what rows have in common.
inline int steps_alike(AnySampler const& a, AnySampler const& b, Request const& request) {
  const Plan of_a = a.plan(request.guidance, request.strength), of_b = b.plan(request.guidance, request.strength);
  const RuleView rule = a.rule().view();
  if (rule.keeps_state || rule.long_steps || rule.direction == Direction::to_noise) return 0;
  if (of_a.sampler.empty() || of_a.sampler != of_b.sampler || rule.history != b.rule().view().history ||
      timesteps_fingerprint(a.plan()) != timesteps_fingerprint(b.plan()) ||
      a.noise_schedule().distance(b.noise_schedule()) != 0 ||
      a.options().thresholding.name() != b.options().thresholding.name() ||
      a.options().at_switch != b.options().at_switch || of_a.has_forecasts() || of_b.has_forecasts()) {
    return 0;
  }
  std::size_t alike = 0;
  while (alike < of_a.steps.size() && are_alike(of_a.steps[alike], of_b.steps[alike])) ++alike;
  return int(alike);
}

/// Rows of a batch that is filled up.
inline std::int64_t padded_rows(Request const& request, std::int64_t count) {
  return ((request.batch_size ? request.batch_size : count) + 7) / 8 * 8;
}

/// Positions by group, in the order in which the groups begin.
inline std::vector<std::vector<std::int64_t>> groups_of(DraftOptions const& options, std::int64_t count) {
  std::vector<std::vector<std::int64_t>> groups;
  std::map<std::int64_t, std::size_t> places;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t group = options.groups.empty() ? 0 : options.groups[std::size_t(i)];
    const auto [place, is_new] = places.try_emplace(group, groups.size());
    if (is_new) groups.emplace_back();
    groups[place->second].push_back(i);
  }
  for (auto const& [group, place] : places) {
    const std::int64_t size = std::int64_t(groups[place].size());
    if (options.keep <= size) continue;
    refuse("draft_and_keep",
           "keep must be at most " + std::to_string(size) + ", the number of drafts" +
               (options.groups.empty() ? "" : " of group " + std::to_string(group)),
           std::to_string(options.keep));
  }
  return groups;
}

/// Draws what is kept from where its drafts are.
/// @param watch of the batch at this place
template <class Watch>
Samples finish_drafts(AnySampler const& sampler, std::vector<Network> const& networks, Request const& kept,
                      StatesBehind const& states, std::vector<std::int64_t> const& positions, Watch const& watch) {
  Samples samples;
  samples.seeds = kept.seeds;
  samples.batch_size = kept.batch_size;
  for (std::int64_t first = 0; first < kept.count; first += kept.batch_size) {
    const std::int64_t images = std::min(kept.batch_size, kept.count - first);
    const Request part = batch_of(kept, first, images);
    Trajectory run = sampler.begin(networks, part);
    std::vector<std::int64_t> rows(positions.begin() + first, positions.begin() + first + images);
    rows.resize(std::size_t(part.count), rows.back());
    states.bring(run, rows);
    const Samples batch = sampler.finish(networks, std::move(run), watch(first, images));
    const std::int64_t exist = std::min(images, batch.images.size(0));
    if (!samples.images.defined()) {
      std::vector<std::int64_t> shape = batch.images.sizes().vec();
      shape[0] = kept.count;
      samples.images = batch.images.new_empty(shape);
    }
    samples.images.narrow(0, first, exist).copy_(batch.images.narrow(0, 0, exist));
    if (batch.finished) {
      samples.finished_images = first + images;
      continue;
    }
    samples.finished = false;
    samples.images = samples.images.narrow(0, 0, first + exist);
    samples.seeds.resize(std::size_t(first + exist));
    break;
  }
  return samples;
}

}  // namespace detail

/// Draws all of a request with one sampler, scores these drafts, and draws the best of them with another sampler.
///
/// A picture that is kept has the bits that `full.sample` gives it in a request for those kept, in the order of
/// KeptDrafts::positions, with the batch size and the padding of this one. Steps that both samplers take alike are
/// taken once where that leaves those bits as they are: with Request::pad_batches and batches that are filled up to the
/// same number (state batch_size), of update rules that keep nothing but their history, and of networks that keep
/// nothing from step to step. The first steps of the small network alone are such steps, where the draft is its alone
/// with the steps of the stitched run. Waits for the device to see the scores.
/// @param request noise_source must give the same noise for the same seeds again, as noise by address does
/// @throws std::invalid_argument for what either sampler refuses of the request, and for groups and numbers that do not
/// suit it, before anything is drawn
/// @throws std::runtime_error for scores that are none; as sampling does; what the scorer throws
inline KeptDrafts draft_and_keep(AnySampler const& draft, AnySampler const& full, std::vector<Network> const& networks,
                                 Request const& request, DraftScorer const& scorer, DraftOptions const& options = {}) {
  constexpr auto where = "draft_and_keep";
  const c10::AutoGradMode no_gradients(false);
  Request drafts = request;
  if (options.guidance) drafts.guidance = *options.guidance;
  draft.check(networks, drafts);
  full.check(networks, request);
  Request whole = request;
  detail::fill_in_counts(whole);
  if (whole.labels.size() == 1) whole.labels.assign(std::size_t(whole.count), whole.labels[0]);
  if (options.keep < 1) detail::refuse(where, "keep must be at least 1", std::to_string(options.keep));
  if (!options.groups.empty() && std::int64_t(options.groups.size()) != whole.count) {
    detail::refuse(where, "groups: one for each of the " + std::to_string(whole.count) + " drafts is needed",
                   std::to_string(options.groups.size()));
  }
  std::vector<std::vector<std::int64_t>> groups = detail::groups_of(options, whole.count);
  const std::int64_t kept_count = options.keep * std::int64_t(groups.size());

  KeptDrafts result;
  result.work.resize(networks.size());
  const bool same_shape =
      request.pad_batches && detail::padded_rows(request, whole.count) == detail::padded_rows(request, kept_count);
  if (same_shape && !options.guidance) result.shared_steps = detail::steps_alike(draft, full, request);
  detail::DraftWatch of_drafts(draft.plan(drafts.guidance, drafts.strength), options.draft_observer,
                               [&](std::size_t network, std::int64_t rows) { result.work[network].drafts += rows; });
  const int skipped = full.options().steps - int(full.plan(request.guidance, request.strength).steps.size());
  detail::StatesBehind states(skipped + result.shared_steps, whole.count);
  if (result.shared_steps > 0) {
    of_drafts.see = [&](StepReport const& report) { states.see(*report.trajectory, report.first, report.images); };
  }
  result.drafts = draft.sample(networks, drafts, of_drafts);
  if (!result.drafts.finished) {
    result.samples.finished = false;
    result.shared_steps = 0;
    return result;
  }
  for (std::int64_t first = 0; first < whole.count; first += whole.batch_size) {
    const std::int64_t images = std::min(whole.batch_size, whole.count - first);
    const auto part = [&](auto const& all) {
      return all.empty() ? std::span(all) : std::span(all).subspan(std::size_t(first), std::size_t(images));
    };
    const at::Tensor pictures = result.drafts.images.narrow(0, first, images);
    const std::vector<double> scores = scorer({pictures, first, part(whole.seeds), part(whole.labels)});
    result.scores.insert(result.scores.end(), scores.begin(), scores.end());
  }
  for (std::vector<std::int64_t>& group : groups) {
    std::ranges::stable_sort(group, std::greater(), [&](std::int64_t i) { return result.scores[std::size_t(i)]; });
    result.positions.insert(result.positions.end(), group.begin(), group.begin() + options.keep);
  }
  Request kept = detail::images_of(whole, result.positions);
  kept.batch_size = request.batch_size ? request.batch_size : kept_count;
  const auto watch = [&] {
    return detail::DraftWatch(full.plan(kept.guidance, kept.strength), options.observer,
                              [&](std::size_t network, std::int64_t rows) { result.work[network].kept += rows; });
  };
  if (!states.complete()) result.shared_steps = 0;
  if (result.shared_steps == 0) {
    result.samples = full.sample(networks, kept, watch());
    return result;
  }
  const auto watch_at = [&](std::int64_t first, std::int64_t images) {
    detail::DraftWatch placed = watch();
    placed.place = {first, images};
    return placed;
  };
  result.samples = detail::finish_drafts(full, networks, kept, states, result.positions, watch_at);
  return result;
}

}  // namespace tstitch
