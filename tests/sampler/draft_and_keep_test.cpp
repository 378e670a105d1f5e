#include <tstitch/method/ddim.hpp>
#include <tstitch/method/ddpm.hpp>
#include <tstitch/method/dpm_solver.hpp>
#include <tstitch/method/dpm_solver_adaptive.hpp>
#include <tstitch/method/heun.hpp>
#include <tstitch/method/unipc.hpp>
#include <tstitch/sampler/draft_and_keep.hpp>

#include <algorithm>
#include <limits>
#include <memory>
#include <numeric>

#include "../catch.hpp"

using namespace tstitch;

namespace {

const NoiseSchedule linear = NoiseSchedule::linear();

/// Answers with what depends on all that it gets, and on the number of rows: a picture has the bits of another batch
/// only where that has as many. Counts the rows.
struct Counting {
  std::shared_ptr<std::int64_t> rows = std::make_shared<std::int64_t>(0);

  Network network(double gain, bool remembers = false) const {
    NetworkInfo info{.channels = 2, .height = 4, .width = 4, .num_classes = 5, .null_class = 4};
    info.noise_schedule = linear;
    return Network(
        [gain, remembers, rows = rows](at::Tensor const& x, at::Tensor const& t, Condition const& condition,
                                       Evaluation const& evaluation) {
          *rows += x.size(0);
          if (remembers && evaluation.memory) ++evaluation.memory->as<int>();
          const at::Tensor wave = condition.labels.to(x.scalar_type()).add(1).mul(0.1).add(t.to(at::kFloat).div(1000));
          return x.mul(gain).sub(x.sin().mul(0.1)).add(wave.view({-1, 1, 1, 1})).add(1e-3 * double(x.size(0)));
        },
        std::move(info));
  }
};

at::Tensor tensor_of(std::vector<double> const& values) {
  const at::Tensor tensor = detail::host_tensor({std::int64_t(values.size())}, at::kDouble);
  std::copy(values.begin(), values.end(), tensor.mutable_data_ptr<double>());
  return tensor;
}

at::Tensor means_of(at::Tensor const& images) {
  return images.flatten(1).mean(1);
}

/// The positions of the highest scores in a group, by another way than sorting.
std::vector<std::int64_t> best_of(std::vector<double> const& scores, std::vector<std::int64_t> group,
                                  std::size_t keep) {
  std::vector<std::int64_t> best;
  while (best.size() < keep) {
    std::size_t at = 0;
    for (std::size_t i = 1; i < group.size(); ++i) {
      if (scores[std::size_t(group[i])] > scores[std::size_t(group[at])]) at = i;
    }
    best.push_back(group[at]);
    group.erase(group.begin() + std::ptrdiff_t(at));
  }
  return best;
}

Request six_of(std::int64_t batch_size, bool pads, double scale) {
  return {.labels = {0, 1, 2, 0, 1, 3},
          .seeds = {11, 5, 7, 3, 2, 19},
          .guidance = {.scale = scale},
          .batch_size = batch_size,
          .pad_batches = pads};
}

struct Pair {
  AnySampler draft, full;
  bool shares;  ///< of 6 steps the first 3 where the shape of batches is the same
};

template <class Rule>
Pair pair_of(Rule rule, bool shares) {
  const SamplingOptions options{.steps = 6, .thresholding = Thresholding::none()};
  return {Sampler{linear, SingleNetwork{0}, options, rule}, Sampler{linear, Stitch{0.5}, options, rule}, shares};
}

std::vector<Pair> pairs() {
  return {pair_of(DDIMUpdate{}, true),
          pair_of(DDIMUpdate{.eta = 1}, true),
          pair_of(DDPMUpdate{}, true),
          pair_of(DPMSolverUpdate{.order = 3}, true),
          pair_of(UniPCUpdate{.order = 3}, true),
          pair_of(HeunUpdate{}, true),
          pair_of(AdaptiveDPMSolverUpdate{}, false)};
}

}  // namespace

TEST_CASE("what is kept has the bits that the full sampler alone gives it") {
  for (Pair const& pair : pairs()) {
    for (const double scale : {1.0, 2.0}) {
      for (const bool pads : {false, true}) {
        for (const std::int64_t batch_size : {0, 1, 4, 8}) {
          INFO(pair.full.plan().sampler << ", guidance " << scale << ", padded " << pads << ", batch " << batch_size);
          const Counting small, large;
          const std::vector<Network> networks{small.network(0.9), large.network(0.7)};
          const Request request = six_of(batch_size, pads, scale);
          const KeptDrafts kept = draft_and_keep(pair.draft, pair.full, networks, request, means_of, {.keep = 2});
          const std::int64_t small_rows = *small.rows, large_rows = *large.rows;

          const Samples drafts = pair.draft.sample(networks, request);
          CHECK(kept.drafts.images.equal(drafts.images));
          CHECK(kept.drafts.seeds == request.seeds);
          const at::Tensor means = means_of(drafts.images).to(at::kDouble);
          for (std::size_t i = 0; i < 6; ++i) CHECK(kept.scores.at(i) == means[std::int64_t(i)].item<double>());
          CHECK(kept.positions == best_of(kept.scores, {0, 1, 2, 3, 4, 5}, 2));

          Request alone = request;
          alone.labels = {}, alone.seeds = {};
          for (const std::int64_t i : kept.positions) {
            alone.labels.push_back(request.labels[std::size_t(i)]);
            alone.seeds.push_back(request.seeds[std::size_t(i)]);
          }
          const Samples samples = pair.full.sample(networks, alone);
          CHECK(kept.samples.images.equal(samples.images));
          CHECK(kept.samples.seeds == alone.seeds);
          CHECK(kept.samples.finished);
          CHECK(kept.samples.finished_images == 2);
          CHECK(kept.samples.batch_size == samples.batch_size);

          // Two and six are both filled up to 8.
          CHECK(kept.shared_steps == (pair.shares && pads ? 3 : 0));
          CHECK(kept.work.at(0).drafts + kept.work.at(0).kept == small_rows);
          CHECK(kept.work.at(1).kept == large_rows);
          CHECK(kept.work.at(1).drafts == 0);
          CHECK((kept.work.at(0).kept == 0) == (kept.shared_steps == 3));
        }
      }
    }
  }
}

TEST_CASE("a picture is unlike its draft, and unlike that of another number of rows") {
  const Counting small, large;
  const std::vector<Network> networks{small.network(0.9), large.network(0.7)};
  const Pair pair = pair_of(DDIMUpdate{}, true);
  const KeptDrafts kept = draft_and_keep(pair.draft, pair.full, networks, six_of(0, true, 1), means_of);
  const KeptDrafts plain = draft_and_keep(pair.draft, pair.full, networks, six_of(0, false, 1), means_of);
  CHECK(kept.shared_steps == 3);
  CHECK_FALSE(kept.samples.images[0].equal(kept.drafts.images[kept.positions.at(0)]));
  CHECK_FALSE(kept.samples.images.equal(plain.samples.images));
}

TEST_CASE("steps are taken once only where both samplers take them alike, to the bits of the full one") {
  const Counting small, large;
  const std::vector<Network> networks{small.network(0.9), large.network(0.7)};
  const SamplingOptions options{.steps = 6, .thresholding = Thresholding::none()};
  SamplingOptions clipped = options, trailing = options, reset = options;
  clipped.thresholding = Thresholding::clip();
  trailing.spacing = Spacing::trailing();
  reset.at_switch = SwitchPolicy::reset;
  const AnySampler full = DDIM{linear, Stitch{0.5}, options};
  const auto shared = [&](AnySampler const& draft, Request const& request, DraftOptions const& how = {.keep = 3},
                          std::vector<Network> const* other = nullptr) {
    std::vector<Network> const& asked = other ? *other : networks;
    const KeptDrafts kept = draft_and_keep(draft, full, asked, request, means_of, how);
    Request alone = request;
    alone.labels = {}, alone.seeds = kept.samples.seeds;
    for (const std::int64_t i : kept.positions) alone.labels.push_back(request.labels[std::size_t(i)]);
    CHECK(kept.samples.images.equal(full.sample(asked, alone).images));
    return kept.shared_steps;
  };
  const Request request = six_of(4, true, 1);
  CHECK(shared(DDIM{linear, SingleNetwork{0}, options}, request) == 3);
  CHECK(shared(DDIM{linear, Stitch{0.2}, options}, request) == 1);
  CHECK(shared(DDIM{linear, Stitch{0.5}, options}, request) == 6);  // which is to draw nothing twice
  CHECK(shared(DDIM{linear, SingleNetwork{1}, options}, request) == 0);
  CHECK(shared(DDIM{linear, SingleNetwork{0}, clipped}, request) == 0);
  CHECK(shared(DDIM{linear, SingleNetwork{0}, trailing}, request) == 0);
  CHECK(shared(DDIM{linear, SingleNetwork{0}, reset}, request) == 0);
  CHECK(shared(DDIM{linear, SingleNetwork{0}, options, {.eta = 0.5}}, request) == 0);
  CHECK(shared(DDIM{linear, SingleNetwork{0}, {.steps = 3}}, request) == 0);
  // Guidance of the drafts alone, and of one network alone.
  CHECK(shared(DDIM{linear, SingleNetwork{0}, options}, six_of(4, true, 2)) == 3);
  CHECK(shared(DDIM{linear, SingleNetwork{0}, options}, six_of(4, true, 2),
               DraftOptions{.keep = 3, .guidance = Guidance{}}) == 0);
  // Batches of another shape, and a network that keeps what nobody can take apart.
  CHECK(shared(DDIM{linear, SingleNetwork{0}, options}, six_of(4, false, 1)) == 0);
  Request twelve = six_of(0, true, 1);
  twelve.labels.insert(twelve.labels.end(), {1, 2, 3, 0, 1, 2});
  twelve.seeds.insert(twelve.seeds.end(), {21, 22, 23, 24, 25, 26});
  CHECK(shared(DDIM{linear, SingleNetwork{0}, options}, twelve) == 0);
  const std::vector<Network> remembering{small.network(0.9, true), large.network(0.7)};
  CHECK(shared(DDIM{linear, SingleNetwork{0}, options}, request, {.keep = 3}, &remembering) == 0);
}

TEST_CASE("of each group the best are kept, those alike by their position") {
  const Counting small, large;
  const std::vector<Network> networks{small.network(0.9), large.network(0.7)};
  const Pair pair = pair_of(DDIMUpdate{}, true);
  const Request request{.labels = {2, 0, 2, 1, 0, 2, 1, 0}, .seed = 4, .batch_size = 3};
  constexpr double infinite = std::numeric_limits<double>::infinity();
  const std::vector<double> given{1, -infinite, 3, 2, 0, 3, 2, infinite};
  const auto scorer = [&](DraftBatch const& batch) {
    const std::size_t first = std::size_t(batch.first), count = std::min<std::size_t>(3, 8 - first);
    CHECK(first % 3 == 0);
    CHECK(std::size_t(batch.images.size(0)) == count);
    CHECK(std::ranges::equal(batch.labels, std::span(request.labels).subspan(first, count)));
    for (std::size_t i = 0; i < count; ++i) CHECK(batch.seeds[i] == 4 + first + i);
    return tensor_of({given.begin() + batch.first, given.begin() + batch.first + std::ptrdiff_t(count)});
  };
  const auto positions = [&](DraftOptions const& options) {
    const KeptDrafts kept = draft_and_keep(pair.draft, pair.full, networks, request, scorer, options);
    CHECK(kept.scores == given);
    for (std::size_t i = 0; i < kept.positions.size(); ++i) {
      CHECK(kept.samples.seeds.at(i) == std::uint64_t(4 + kept.positions[i]));
    }
    return kept.positions;
  };
  using Positions = std::vector<std::int64_t>;
  CHECK(positions({.keep = 1, .groups = request.labels}) == Positions{2, 7, 3});
  CHECK(positions({.keep = 2, .groups = request.labels}) == Positions{2, 5, 7, 4, 3, 6});
  CHECK(positions({.keep = 1, .groups = {-7, 0, 0, 0, 0, 0, 0, 0}}) == Positions{0, 7});
  CHECK(positions({.keep = 3}) == Positions{7, 2, 5});
  CHECK(positions({.keep = 8}) == Positions{7, 2, 5, 3, 6, 0, 4, 1});
}

TEST_CASE("what a request says of each image goes with it") {
  NetworkInfo info{.channels = 2, .height = 4, .width = 4, .conditions = {{.name = "style", .shape = {2}}}};
  info.noise_schedule = linear;
  const auto network = [&](double gain) {
    return Network(
        [gain](at::Tensor const& x, at::Tensor const&, Condition const& condition) {
          return x.mul(gain).add(condition.at("style").view({-1, 2, 1, 1}));
        },
        info);
  };
  const std::vector<Network> networks{network(0.9), network(0.7)};
  const auto normal = [](std::uint64_t seed, std::vector<std::int64_t> const& shape) {
    return noise({seed, seed + 1, seed + 2, seed + 3}, NoiseAddress::initial(), shape, at::kFloat);
  };
  const at::Tensor style = normal(1, {2}), null = normal(5, {2}), image = normal(9, {2, 4, 4}),
                   begin = normal(13, {2, 4, 4}), mask = normal(17, {1, 4, 4}).gt(0);
  const Pair pair = pair_of(DPMSolverUpdate{}, true);
  for (const bool pads : {false, true}) {
    Request request{.conditions = {{"style", style, null.narrow(0, 0, 1)}},
                    .guidance = {.scale = 2},
                    .batch_size = 2,
                    .pad_batches = pads};
    const auto check = [&](auto const& row_of) {
      const KeptDrafts kept = draft_and_keep(pair.draft, pair.full, networks, request, means_of, {.keep = 3});
      CHECK(kept.shared_steps == (pads ? request.strength == 1 ? 3 : 1 : 0));
      for (std::size_t i = 0; i < 3; ++i) {
        const std::int64_t at = kept.positions.at(i);
        Request one = request;
        one.count = 1, one.batch_size = pads ? 2 : 0, one.seeds = {std::uint64_t(at)};
        one.conditions[0].value = style.narrow(0, at, 1);
        row_of(one, at);
        CHECK(kept.samples.images[std::int64_t(i)].equal(pair.full.sample(networks, one).images[0]));
      }
    };
    check([](Request&, std::int64_t) {});
    request.conditions[0].null = null;
    request.initial_noise = begin;
    check([&](Request& one, std::int64_t at) {
      one.conditions[0].null = null.narrow(0, at, 1);
      one.initial_noise = begin.narrow(0, at, 1);
    });
    request.initial_image = image;
    request.mask = mask;
    check([&](Request& one, std::int64_t at) {
      one.conditions[0].null = null.narrow(0, at, 1);
      one.initial_noise = begin.narrow(0, at, 1);
      one.initial_image = image.narrow(0, at, 1);
      one.mask = mask.narrow(0, at, 1);
    });
    request.initial_image = image.narrow(0, 2, 1);
    request.mask = mask.narrow(0, 3, 1);
    request.strength = 0.67;  // the last four steps, of which the first is the small network's
    check([&](Request& one, std::int64_t at) {
      one.conditions[0].null = null.narrow(0, at, 1);
      one.initial_noise = begin.narrow(0, at, 1);
    });
  }
}

TEST_CASE("scores that are none are refused by name") {
  const Counting small, large;
  const std::vector<Network> networks{small.network(0.9), large.network(0.7)};
  const Pair pair = pair_of(DDIMUpdate{}, true);
  const auto said = [&](DraftScorer const& scorer) {
    *large.rows = 0;
    const std::string message = message_of<std::runtime_error>(
        [&] { draft_and_keep(pair.draft, pair.full, networks, six_of(4, false, 1), scorer); });
    CHECK(*large.rows == 0);
    return message;
  };
  const auto of = [&](auto make) {
    return said([make](at::Tensor const& images) { return make(images.flatten(1).mean(1)); });
  };
  const std::string place = "tstitch::DraftScorer: ";
  CHECK(of([](at::Tensor const& m) { return m.unsqueeze(1); }) ==
        place + "must return [4] of a floating type, got Float [4, 1]");
  CHECK(of([](at::Tensor const& m) { return m.narrow(0, 0, 1); }) ==
        place + "must return [4] of a floating type, got Float [1]");
  CHECK(of([](at::Tensor const& m) { return m.mean(); }) == place + "must return [4] of a floating type, got Float []");
  CHECK(of([](at::Tensor const& m) { return m.to(at::kLong); }) ==
        place + "must return [4] of a floating type, got Long [4]");
  CHECK(of([](at::Tensor const& m) { return m.gt(0); }) == place + "must return [4] of a floating type, got Bool [4]");
  CHECK(of([](at::Tensor const& m) { return m.to(at::kComplexFloat); }) ==
        place + "must return [4] of a floating type, got ComplexFloat [4]");
  CHECK(of([](at::Tensor const&) { return at::Tensor(); }) ==
        place + "must return [4] of a floating type, got an undefined tensor");
  CHECK(of([](at::Tensor const& m) {
          const at::Tensor scores = m.clone();
          if (m.size(0) == 2) scores[1] = std::numeric_limits<float>::quiet_NaN();
          return scores;
        }) == place + "scores must be numbers, got nan for draft 5 of seed 19");
  CHECK(said([](at::Tensor const& images) { return means_of(images.mul_(2)); }) ==
        place + "must leave the drafts as they are, got a change in place");
  CHECK(said([](at::Tensor const&) -> at::Tensor { throw std::runtime_error("out of ideas"); }) == "out of ideas");
  CHECK(message_of<std::invalid_argument>([] { DraftScorer(std::function<at::Tensor(at::Tensor const&)>()); }) ==
        "tstitch::DraftScorer: must be given something to call, got an empty function");
  // Half precision and gradients are no obstacle.
  const KeptDrafts kept =
      draft_and_keep(pair.draft, pair.full, networks, six_of(4, false, 1),
                     [](at::Tensor const& images) { return means_of(images).requires_grad_().mul(2).to(at::kHalf); });
  CHECK(kept.positions.size() == 1);
}

TEST_CASE("what either sampler or the numbers refuse is refused before anything is drawn") {
  const Counting small, large;
  const std::vector<Network> networks{small.network(0.9), large.network(0.7)};
  const Pair pair = pair_of(DDIMUpdate{}, true);
  const auto said = [&](Request const& request, DraftOptions const& options,
                        std::vector<Network> const* other = nullptr) {
    const std::string message = message_of<std::invalid_argument>([&] {
      draft_and_keep(
          pair.draft, pair.full, other ? *other : networks, request,
          [](at::Tensor const&) -> at::Tensor { throw std::logic_error("must not be asked"); }, options);
    });
    CHECK(*small.rows + *large.rows == 0);
    return message;
  };
  const Request request = six_of(4, false, 1);
  const std::string place = "tstitch::draft_and_keep: ";
  CHECK(said(request, {.keep = 0}) == place + "keep must be at least 1, got 0");
  CHECK(said(request, {.keep = -1}) == place + "keep must be at least 1, got -1");
  CHECK(said(request, {.keep = 7}) == place + "keep must be at most 6, the number of drafts, got 7");
  CHECK(said(request, {.keep = 2, .groups = request.labels}) ==
        place + "keep must be at most 1, the number of drafts of group 2, got 2");
  CHECK(said(request, {.groups = {1, 2}}) == place + "groups: one for each of the 6 drafts is needed, got 2");
  // The draft alone could be drawn with one network, and so could the request without its guidance.
  const std::vector<Network> one{networks[0]};
  CHECK_THAT(said(request, {}, &one), ContainsSubstring("at least 2 networks are needed"));
  Request wrong = request;
  wrong.guidance.scale = {1, 2, 3};
  CHECK_THAT(said(wrong, {.guidance = Guidance{}}), ContainsSubstring("Guidance"));
  wrong = request;
  wrong.labels.pop_back();
  CHECK_THAT(said(wrong, {}), ContainsSubstring("labels"));
}

TEST_CASE("observers see both, and cancel either") {
  const Counting small, large;
  const std::vector<Network> networks{small.network(0.9), large.network(0.7)};
  const Pair pair = pair_of(DDIMUpdate{}, true);
  for (const bool pads : {false, true}) {
    const Request request = six_of(2, pads, 1);
    std::vector<std::int64_t> drafts, kept_firsts;
    int begun = 0;
    struct Seen {
      int& begun;
      std::vector<std::int64_t>& firsts;
      void before(StepBegin const& begin) const { begun += begin.images == 1; }
      void operator()(StepReport const& report) const {
        firsts.push_back(report.first);
        CHECK(report.images == (report.first == 2 ? 1 : 2));
        CHECK(report.steps == 6);
      }
    };
    const KeptDrafts all =
        draft_and_keep(pair.draft, pair.full, networks, request, means_of,
                       {.keep = 3,
                        .draft_observer = [&](StepReport const& report) { drafts.push_back(report.first); },
                        .observer = Seen{begun, kept_firsts}});
    CHECK(drafts.size() == 18);
    CHECK(drafts.back() == 4);
    const std::size_t left = pads ? 3 : 6;
    CHECK(all.shared_steps == (pads ? 3 : 0));
    CHECK(kept_firsts.size() == 2 * left);
    CHECK(kept_firsts.back() == 2);
    CHECK(begun == int(left));

    const auto cancel = [](StepReport const& report) {
      return report.first == 2 && report.done == 4 ? Control::cancel : Control::proceed;
    };
    const KeptDrafts none =
        draft_and_keep(pair.draft, pair.full, networks, request, means_of, {.keep = 3, .draft_observer = cancel});
    CHECK_FALSE(none.drafts.finished);
    CHECK_FALSE(none.samples.finished);
    CHECK_FALSE(none.samples.images.defined());
    CHECK(none.scores.empty());
    CHECK(none.positions.empty());
    const KeptDrafts some =
        draft_and_keep(pair.draft, pair.full, networks, request, means_of, {.keep = 3, .observer = cancel});
    CHECK(some.drafts.finished);
    CHECK_FALSE(some.samples.finished);
    CHECK(some.samples.finished_images == 2);
    CHECK(some.samples.images.size(0) == 3);
    CHECK(some.samples.images.narrow(0, 0, 2).equal(all.samples.images.narrow(0, 0, 2)));
    CHECK(some.positions == all.positions);
  }
}

TEST_CASE("labels may be one for all, and classes none") {
  const Counting small, large;
  const std::vector<Network> networks{small.network(0.9), large.network(0.7)};
  const Pair pair = pair_of(DDIMUpdate{}, true);
  const KeptDrafts kept = draft_and_keep(pair.draft, pair.full, networks, {.labels = {3}, .count = 5}, means_of);
  CHECK(kept.samples.images.equal(pair.full.sample(networks, {.labels = {3}, .seeds = kept.samples.seeds}).images));
  const Network plain([](at::Tensor const& x, at::Tensor const&) { return x.mul(0.5); },
                      {.channels = 1, .height = 2, .width = 2});
  const auto scorer = [](DraftBatch const& batch) {
    CHECK(batch.labels.empty());
    return means_of(batch.images);
  };
  const KeptDrafts without =
      draft_and_keep(pair.draft, pair.full, {plain, plain}, {.count = 5, .batch_size = 2}, scorer, {.keep = 2});
  CHECK(without.positions == best_of(without.scores, {0, 1, 2, 3, 4}, 2));
}
