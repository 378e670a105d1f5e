#include <tstitch/tstitch.hpp>

#include <memory>

#include "../catch.hpp"
#include "../oracle.hpp"

using namespace tstitch;

namespace {

const NoiseSchedule schedule = NoiseSchedule::linear();

double largest(at::Tensor const& x) {
  return x.abs().max().item<double>();
}

/// Works on each element by itself; notes the timesteps that it was given.
Network elementwise(double strength, std::shared_ptr<std::vector<std::int64_t>> seen = {}) {
  return Network(
      [=](at::Tensor const& x, at::Tensor const& t) {
        if (seen) seen->push_back(t.select(0, 0).item<std::int64_t>());
        return x.mul(0.9).add(x.sin(), strength);
      },
      {.channels = 3, .height = 4, .width = 4});
}

at::Tensor normal(std::vector<std::uint64_t> const& seeds, at::ScalarType type = at::kDouble) {
  return noise(seeds, NoiseAddress::initial(), {3, 4, 4}, type);
}

/// Different from the noise of the same seeds.
at::Tensor pictures(std::int64_t n, at::ScalarType type = at::kDouble) {
  std::vector<std::uint64_t> seeds;
  for (std::int64_t i = 0; i < n; ++i) seeds.push_back(std::uint64_t(1000 + i));
  return normal(seeds, type).mul(0.4);
}

/// 0 in the upper half, 1 in the lower.
at::Tensor lower_half(at::IntArrayRef shape) {
  at::Tensor mask = tstitch::detail::host_tensor(shape, at::kDouble).zero_();
  mask.narrow(2, 2, 2).fill_(1);
  return mask;
}

}  // namespace

TEST_CASE("a run may begin from a picture, at the noise that the strength leaves") {
  const std::vector<Network> networks{elementwise(0.1)};
  const auto check = [&](auto const& sampler, auto const& rest, double strength, int first) {
    const at::Tensor image = pictures(2), drawn = normal({5, 6});
    const Request request{.seed = 5, .initial_image = image, .strength = strength};
    const Trajectory begun = sampler.begin(networks, request);
    const auto [alpha, sigma] = sampler.plan().steps[std::size_t(first)].step.from;
    CHECK(begun.next == first);
    CHECK(begun.count == sampler.options().steps);
    CHECK(begun.x.equal(weighted_sum(alpha, image, sigma, drawn)));
    Request given = request;
    given.initial_noise = drawn;
    CHECK(sampler.begin(networks, given).x.equal(begun.x));
    // Those steps and no others.
    CHECK(sampler.sample(networks, request).images.equal(rest.sample(networks, {.initial_noise = begun.x}).images));
  };
  const Spacing whole = Spacing::list({900, 700, 500, 300, 100}), last_three = Spacing::list({500, 300, 100});
  check(DDIM{schedule, SingleNetwork{}, {.steps = 5, .spacing = whole}},
        DDIM{schedule, SingleNetwork{}, {.steps = 3, .spacing = last_three}}, 0.6, 2);
  check(DPMSolver{schedule, SingleNetwork{}, {.steps = 5, .spacing = whole}},
        DPMSolver{schedule, SingleNetwork{}, {.steps = 3, .spacing = last_three}}, 0.55, 2);
  check(DDIM{schedule, SingleNetwork{}, {.steps = 5, .spacing = whole}},
        DDIM{schedule, SingleNetwork{}, {.steps = 5, .spacing = whole}}, 1, 0);
  check(DDIM{schedule, SingleNetwork{}, {.steps = 5, .spacing = whole}},
        DDIM{schedule, SingleNetwork{}, {.steps = 1, .spacing = Spacing::list({100})}}, 0.2, 4);
}

TEST_CASE("the steps that are left go to the networks that they have in the whole plan") {
  const auto small = std::make_shared<std::vector<std::int64_t>>(),
             large = std::make_shared<std::vector<std::int64_t>>();
  const std::vector<Network> networks{elementwise(0.1, small), elementwise(0.3, large)};
  const auto calls = [&](auto const& schedule_of_networks, double strength) {
    small->clear();
    large->clear();
    const DDIM sampler{schedule, schedule_of_networks, {.steps = 10}};
    sampler.sample(networks, {.initial_image = pictures(1), .strength = strength});
    const std::vector<int> planned = sampler.plan({}, strength).calls(), called{int(small->size()), int(large->size())};
    CHECK(planned == called);
    return called;
  };
  CHECK(calls(Stitch{0.4}, 0.8) == std::vector<int>{2, 6});
  CHECK(calls(Stitch{0.4}, 0.5) == std::vector<int>{0, 5});
  CHECK(calls(ByTimestep{{600}}, 0.8) == std::vector<int>{2, 6});
  const std::vector<std::int64_t> of_rest = *large;
  CHECK(calls(ByTimestep{{600}}, 1) == std::vector<int>{4, 6});
  CHECK(*large == of_rest);
  // A share of those that are left: 0.25 of 8.
  CHECK(calls(Stitch{1 - 0.8 * (1 - 0.25)}, 0.8) == std::vector<int>{2, 6});
  CHECK(calls(Stitch{1 - 0.5 * (1 - 0.4)}, 0.5) == std::vector<int>{2, 3});
}

TEST_CASE("networks of skipped steps are not asked for anything") {
  // The one that would begin at pure noise predicts epsilon, and guidance is on in skipped steps only.
  const DDIM sampler{schedule.with_zero_terminal_snr(), SingleNetwork{}, {.steps = 10}};
  const Request request{.guidance = {.scale = 3, .end = 0.2}, .initial_image = pictures(1), .strength = 0.8};
  CHECK(sampler.sample({elementwise(0.1)}, request).finished);
}

TEST_CASE("what a mask keeps is the picture at every step's noise, and in the end the picture") {
  const std::vector<Network> networks{elementwise(0.1), elementwise(0.3)};
  const at::Tensor image = pictures(2), drawn = normal({5, 6});
  const auto check = [&](auto const& sampler, double strength, at::Tensor const& mask) {
    const Request request{.seed = 5, .initial_image = image, .strength = strength, .mask = mask};
    Request open = request;
    open.mask = at::Tensor();
    if (strength == 1) {  // then the open part begins as a run without a picture does
      open.initial_noise = drawn;
      open.initial_image = at::Tensor();
    }
    Trajectory run = sampler.begin(networks, request), whole = sampler.begin(networks, open);
    const at::Tensor kept = mask.eq(0).expand_as(image);
    while (!run.finished()) {
      const at::Tensor level = weighted_sum(run.level.alpha, image, run.level.sigma, drawn);
      CHECK(run.x.masked_select(kept).equal(level.masked_select(kept)));
      sampler.advance(networks, run);
      sampler.advance(networks, whole);
      // The network works on each element by itself, so that what is kept changes nothing of the rest.
      CHECK(run.x.masked_select(kept.logical_not()).equal(whole.x.masked_select(kept.logical_not())));
    }
    CHECK(run.x.masked_select(kept).equal(image.masked_select(kept)));
    CHECK(run.x.equal(sampler.sample(networks, request).images));
  };
  const SamplingOptions options{.steps = 6};
  const at::Tensor half = lower_half({1, 1, 4, 4});
  check(DDIM{schedule, Stitch{0.5}, options}, 1, half);
  check(DDIM{schedule, Stitch{0.5}, options, {.eta = 1}}, 0.5, half.to(at::kBool));
  check(DDPM{schedule, Stitch{0.5}, options}, 1, lower_half({2, 1, 4, 4}));
  check(DPMSolver{schedule, Stitch{0.5}, options, {.order = 3}}, 0.8, lower_half({1, 3, 4, 4}));
  check(DDIM{schedule, Stitch{0.5}, {.steps = 6, .spacing = Spacing::trailing(), .final_sigma = FinalSigma::sigma_min}},
        1, half.to(at::kFloat));
  // In between it is a mixture of both.
  const DDIM sampler{schedule, Stitch{0.5}, options};
  Trajectory soft =
      sampler.begin(networks, {.seed = 5, .initial_image = image, .strength = 0.5, .mask = half.mul(0).add(0.25)});
  Trajectory open = sampler.begin(networks, {.seed = 5, .initial_image = image, .strength = 0.5});
  sampler.advance(networks, soft);
  sampler.advance(networks, open);
  const at::Tensor level = weighted_sum(soft.level.alpha, image, soft.level.sigma, drawn);
  CHECK(largest(soft.x.sub(level.mul(0.75).add(open.x, 0.25))) < 1e-15);
}

TEST_CASE("pictures and masks are cut into batches and padded as noise is") {
  const std::vector<Network> networks{elementwise(0.1), elementwise(0.3)};
  const DDIM sampler{schedule, Stitch{0.5}, {.steps = 6}};
  at::Tensor masks = lower_half({7, 1, 4, 4});
  masks.select(0, 4).fill_(1);
  masks.select(0, 6).fill_(0);
  for (at::Tensor const& mask : {at::Tensor(), lower_half({1, 1, 4, 4}), masks}) {
    const Request request{.seed = 3, .initial_image = pictures(7), .strength = 0.7, .mask = mask};
    const at::Tensor whole = sampler.sample(networks, request).images;
    CHECK(whole.size(0) == 7);
    for (const bool pad : {false, true}) {
      Request cut = request;
      cut.batch_size = 3;
      cut.pad_batches = pad;
      CHECK(sampler.sample(networks, cut).images.equal(whole));
    }
    for (std::int64_t i : {0, 4, 6}) {
      const at::Tensor own = mask.defined() && mask.size(0) > 1 ? mask.narrow(0, i, 1) : mask;
      const Request alone{
          .seed = 3 + std::uint64_t(i), .initial_image = pictures(7).narrow(0, i, 1), .strength = 0.7, .mask = own};
      CHECK(sampler.sample(networks, alone).images.equal(whole.narrow(0, i, 1)));
    }
  }
}

TEST_CASE("a run from a picture has the picture's type, or the noise's where that is given") {
  const DDIM sampler{schedule, SingleNetwork{}, {.steps = 4}};
  const Network network([](at::Tensor const& x, at::Tensor const&) { return x.mul(0.5); });
  const at::Tensor mask = lower_half({1, 1, 4, 4}).to(at::kBool);
  const auto type = [&](at::Tensor const& drawn, at::Tensor const& image) {
    return sampler.sample({network}, {.initial_noise = drawn, .initial_image = image, .mask = mask})
        .images.scalar_type();
  };
  CHECK(type({}, pictures(1, at::kFloat)) == at::kFloat);
  CHECK(type({}, pictures(1)) == at::kDouble);
  CHECK(type(normal({1}, at::kFloat), pictures(1)) == at::kFloat);
  CHECK(type(normal({1}), pictures(1, at::kFloat)) == at::kDouble);
}

TEST_CASE("editing leaves the caller's tensors as they are, and a copied run forks") {
  const std::vector<Network> networks{elementwise(0.1)};
  const DDIM sampler{schedule, SingleNetwork{}, {.steps = 6}};
  const at::Tensor image = pictures(2), drawn = normal({1, 2}), mask = lower_half({1, 1, 4, 4});
  const at::Tensor image_copy = image.clone(), drawn_copy = drawn.clone(), mask_copy = mask.clone();
  Trajectory run = sampler.begin(networks, {.initial_noise = drawn, .initial_image = image, .mask = mask});
  sampler.advance(networks, run);
  Trajectory fork = run;
  while (!fork.finished()) sampler.advance(networks, fork);
  while (!run.finished()) sampler.advance(networks, run);
  CHECK(run.x.equal(fork.x));
  CHECK(image.equal(image_copy));
  CHECK(drawn.equal(drawn_copy));
  CHECK(mask.equal(mask_copy));
}

TEST_CASE("a mask between 0 and 1 draws x back to the picture after every step") {
  // On Gaussian data a step of DDIM is affine, so that the whole run is arithmetic.
  constexpr double mean = 0.3, deviation = 0.5;
  const Network network = oracle::gaussian(schedule, mean, deviation);
  const DDIM sampler{schedule, SingleNetwork{}, {.steps = 5}};
  const auto one = [](double value) { return tstitch::detail::host_tensor({1, 1, 1, 1}, at::kDouble).fill_(value); };
  const double image = -0.7, drawn = 0.9;
  for (const double mask : {0.0, 0.2, 0.5, 0.9, 1.0}) {
    for (const double strength : {1.0, 0.6}) {
      const auto& steps = sampler.plan().steps;
      std::size_t next = strength == 1 ? 0 : 2;
      const auto kept = [&](NoiseLevel level) { return level.alpha * image + level.sigma * drawn; };
      double x = kept(steps[next].step.from);
      if (strength == 1) x = mask * drawn + (1 - mask) * x;
      for (; next < steps.size(); ++next) {
        const auto [from, to] = std::pair{steps[next].step.from, steps[next].step.to};
        const double variance = std::pow(from.alpha * deviation, 2) + from.sigma * from.sigma;
        const double x_0 = (from.alpha * deviation * deviation * x + from.sigma * from.sigma * mean) / variance;
        x = to.alpha * x_0 + to.sigma * (x - from.alpha * x_0) / from.sigma;
        x = mask * x + (1 - mask) * kept(to);
      }
      const Samples samples = sampler.sample(
          {network},
          {.initial_noise = one(drawn), .initial_image = one(image), .strength = strength, .mask = one(mask)});
      CHECK(std::abs(samples.images.item<double>() - x) < 1e-12);
    }
  }
}

TEST_CASE("one picture serves all images") {
  const std::vector<Network> networks{elementwise(0.1), elementwise(0.3)};
  const DDIM sampler{schedule, Stitch{0.5}, {.steps = 6}};
  const at::Tensor image = pictures(1), mask = lower_half({1, 1, 4, 4});
  for (const double strength : {0.5, 1.0}) {
    const Request one{.count = 5, .seed = 3, .initial_image = image, .strength = strength, .mask = mask};
    Request each = one;
    each.initial_image = image.repeat({5, 1, 1, 1});
    const at::Tensor expected = sampler.sample(networks, each).images;
    CHECK(sampler.sample(networks, one).images.equal(expected));
    Request cut = one;
    cut.batch_size = 2;
    CHECK(sampler.sample(networks, cut).images.equal(expected));
    cut.pad_batches = true;
    CHECK(sampler.sample(networks, cut).images.equal(expected));
  }
}

TEST_CASE("tensors of every rank are refused by name") {
  const DDIM sampler{schedule, SingleNetwork{}, {.steps = 4}};
  const auto message = [&](Request const& request) {
    return message_of<std::invalid_argument>([&] { sampler.sample({elementwise(0.1)}, request); });
  };
  for (int rank = 0; rank <= 6; ++rank) {
    if (rank == 4) continue;
    const at::Tensor x = tstitch::detail::host_tensor(std::vector<std::int64_t>(std::size_t(rank), 1), at::kFloat);
    CHECK_THAT(message({.initial_noise = x}), ContainsSubstring("tstitch::Request: initial_noise must be"));
    CHECK_THAT(message({.initial_image = x}), ContainsSubstring("tstitch::Request: initial_image must be"));
    CHECK_THAT(message({.initial_image = pictures(1), .mask = x}), ContainsSubstring("tstitch::Request: mask must be"));
  }
}

TEST_CASE("editing refuses what makes no sense") {
  const DDIM sampler{schedule, SingleNetwork{}, {.steps = 4}};
  const auto message = [&](Request const& request) {
    return message_of<std::invalid_argument>([&] { sampler.sample({elementwise(0.1)}, request); });
  };
  const at::Tensor image = pictures(2);
  for (const double strength : {0.0, -0.5, 1.5, double(NAN)}) {
    CHECK(message({.initial_image = image, .strength = strength}) ==
          "tstitch::Request: strength must be in (0, 1], got " + tstitch::detail::text(strength));
  }
  CHECK(message({.initial_image = image, .strength = 0.1}) ==
        "tstitch::Request: strength must leave at least 1 of 4 steps, got 0.1");
  CHECK(message({.strength = 0.5}) == "tstitch::Request: strength needs an initial_image, got 0.5");
  CHECK(message({.mask = image}) == "tstitch::Request: mask needs an initial_image, got none");
  CHECK(message({.count = 3, .initial_image = image}) ==
        "tstitch::Request: initial_image must be [n, C, ...] with the shape of the networks and one row an image or "
        "one for all, got [2, 3, 4, 4]");
  CHECK(message({.initial_image = image.to(at::kLong)}) ==
        "tstitch::Request: initial_image must be float32 or float64, got Long");
  const Network any([](at::Tensor const& x, at::Tensor const&) { return x; });
  CHECK(message_of<std::invalid_argument>([&] {
          sampler.sample({any}, {.initial_noise = normal({1, 2}).narrow(1, 0, 2), .initial_image = image});
        }) == "tstitch::Request: initial_noise must have the shape of initial_image, got [2, 2, 4, 4]");
  const std::string mask_rule =
      "tstitch::Request: mask must be [1 or n, 1 or C, ...] with the size of initial_image, got ";
  CHECK(message({.initial_image = image, .mask = lower_half({3, 1, 4, 4})}) == mask_rule + "[3, 1, 4, 4]");
  CHECK(message({.initial_image = image, .mask = lower_half({1, 2, 4, 4})}) == mask_rule + "[1, 2, 4, 4]");
  CHECK(message({.initial_image = image, .mask = lower_half({1, 1, 5, 4})}) == mask_rule + "[1, 1, 5, 4]");
  CHECK(message({.initial_image = image, .mask = lower_half({1, 1, 4, 4}).select(0, 0)}) == mask_rule + "[1, 4, 4]");
  for (const double value : {-0.1, 1.1, double(NAN)}) {
    CHECK(message({.initial_image = image, .mask = lower_half({1, 1, 4, 4}).add(value)}) ==
          "tstitch::Request: mask must be in [0, 1], got values outside");
  }
}
