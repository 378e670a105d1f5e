// x is [n, C, ...]: signals, pictures and videos are the same numbers in other shapes.

#include <ATen/ops/cat.h>
#include <tstitch/tstitch.hpp>

#include <cmath>
#include <string>
#include <vector>

#include "../catch.hpp"
#include "../oracle.hpp"

using namespace tstitch;

namespace {

const NoiseSchedule schedule = NoiseSchedule::linear();

const std::vector<std::vector<std::int64_t>> shapes{{2, 24}, {2, 4, 6}, {2, 2, 3, 4}, {2, 2, 3, 2, 2}};

/// All of one kind of network, with a class to guide by: the mean of the data depends on the label.
Network labelled(double deviation, NoiseSchedule const& noise = schedule,
                 PredictionType type = PredictionType::epsilon) {
  return Network(
      [=](at::Tensor const& x, at::Tensor const& t, Condition const& condition) {
        const auto [alpha, sigma] = noise.at(t.select(0, 0).item<double>());
        const at::Tensor mean =
            tstitch::detail::one_an_image(condition.labels.to(x.scalar_type()).mul(0.25), x).sub(0.5);
        const double variance = alpha * alpha * deviation * deviation + sigma * sigma;
        const at::Tensor x_0 = x.mul(alpha * deviation * deviation / variance).add(mean, sigma * sigma / variance);
        const at::Tensor eps = x.sub(x_0, alpha).div(sigma);
        return type == PredictionType::flow ? eps.sub(x_0) : eps;
      },
      {.prediction_type = type,
       .num_classes = 4,
       .null_class = 4,
       .timestep_type = TimestepType::float32,
       .noise_schedule = noise});
}

/// For each sampler, with what it needs.
void for_every_sampler(auto const& action) {
  const Stitch stitch{.ratio = 0.4};
  SamplingOptions options{.steps = 6, .thresholding = Thresholding::dynamic(0.9)};
  options.at_switch = SwitchPolicy::re_evaluate;
  SamplingOptions to_sigma_min = options;
  to_sigma_min.spacing = Spacing::linspace({.include_last = false});
  to_sigma_min.final_sigma = FinalSigma::sigma_min;
  action("DDIM", DDIM{schedule, stitch, options, {.eta = 0.5}});
  action("DDPM", DDPM{schedule, stitch, options});
  action("DPMSolver", DPMSolver{schedule, stitch, options, {.order = 3}});
  action("DPMSolver SDE", DPMSolver{schedule, stitch, options, {.eta = 1}});
  action("DPMSolverSinglestep", DPMSolverSinglestep{schedule, stitch, options, {.order = 3}});
  action("DPMSolverSDE", DPMSolverSDE{schedule, stitch, options});
  action("DPMSolver2SAncestral", DPMSolver2SAncestral{schedule, stitch, options});
  action("AdaptiveDPMSolver", AdaptiveDPMSolver{schedule, stitch, {.steps = 2}});
  action("DEIS", DEIS{schedule, stitch, to_sigma_min, {.order = 3}});
  action("Euler", Euler{schedule, stitch, options, {{.s_churn = 2}}});
  action("EulerAncestral", EulerAncestral{schedule, stitch, options});
  action("Heun", Heun{schedule, stitch, options});
  action("DPM2", DPM2{schedule, stitch, options});
  action("LCM", LCM{schedule, stitch, options});
  action("LMS", LMS{schedule, stitch, options});
  action("PNDM", PNDM{schedule, stitch, options, {PNDMStart::runge_kutta}});
  action("UniPC", UniPC{schedule, stitch, options});
}

}  // namespace

TEST_CASE("every sampler draws the same numbers in any shape") {
  const std::vector<Network> networks{labelled(0.4), labelled(0.5)};
  for (Guidance const& guidance :
       {Guidance{}, Guidance{.scale = 2, .rescale = 0.5},
        Guidance{.scale = 2, .channels = 1, .projected = ProjectedGuidance{.norm_threshold = 2, .momentum = -0.5}},
        Guidance{.scale = 2, .guide_network = 0}}) {
    for_every_sampler([&](std::string const& name, auto const& sampler) {
      INFO(name << ", guidance " << guidance.scale.values()[0]);
      at::Tensor flat;
      for (auto const& shape : shapes) {
        INFO(shape.size() + 1 << " dimensions");
        const Samples drawn = sampler.sample(networks, {.labels = {0, 1, 3},
                                                        .seed = 5,
                                                        .guidance = guidance,
                                                        .batch_size = 2,
                                                        .pad_batches = true,
                                                        .shape = shape});
        std::vector<std::int64_t> expected = shape;
        expected.insert(expected.begin(), 3);
        REQUIRE(drawn.images.sizes() == at::IntArrayRef(expected));
        if (!flat.defined()) flat = drawn.images.flatten(1);
        // Sums over an image may be taken in another order.
        const double tolerance = guidance.rescale > 0 || guidance.projected ? 1e-4 : 0;
        CHECK(drawn.images.flatten(1).sub(flat).abs().max().item<double>() <= tolerance);
      }
    });
  }
}

TEST_CASE("guided channels, masks and noise in any shape") {
  const std::vector<Network> networks{labelled(0.4), labelled(0.5)};
  const DPMSolver sampler{schedule, Stitch{.ratio = 0.5}, {.steps = 8}};
  at::Tensor flat;
  for (auto const& shape : shapes) {
    std::vector<std::int64_t> one = shape, mask_shape = shape;
    one.insert(one.begin(), 1);
    mask_shape.insert(mask_shape.begin(), 1);
    mask_shape[1] = 1;
    const at::Tensor image = noise({7}, NoiseAddress::initial(), shape, at::kFloat);
    at::Tensor mask = noise({8}, NoiseAddress::initial(), {24}, at::kFloat).gt(0).to(at::kFloat);
    mask = mask.expand({2, 24}).reshape(one).narrow(1, 0, 1).contiguous();
    const Samples drawn = sampler.sample(
        networks, {.labels = {0, 3},
                   .guidance = {.scale = 3, .channels = 1, .projected = ProjectedGuidance{.momentum = -0.5}},
                   .initial_image = image,
                   .strength = 0.75,
                   .mask = mask});
    const at::Tensor kept = drawn.images.sub(image).mul(at::Tensor(mask).sub(1));
    CHECK(kept.abs().max().item<double>() == 0);
    if (!flat.defined()) flat = drawn.images.flatten(1);
    CHECK(drawn.images.flatten(1).sub(flat).abs().max().item<double>() < 1e-5);
  }
}

TEST_CASE("a signal and a video end where the closed form says") {
  for (std::vector<std::int64_t> const& shape :
       {std::vector<std::int64_t>{1, 16000}, std::vector<std::int64_t>{4, 8, 16, 16}}) {
    const std::vector<Network> networks{oracle::gaussian(schedule, 0.25, 0.5), oracle::gaussian(schedule, 0.25, 0.5)};
    const at::Tensor begin = noise({3}, NoiseAddress::initial(), shape, at::kDouble);
    const DPMSolver sampler{schedule, Stitch{.ratio = 0.5}, {.steps = 200}};
    const at::Tensor end = sampler.sample(networks, {.initial_noise = begin}).images;
    const NoiseLevel level = sampler.plan().steps[0].step.from;
    const at::Tensor expected = begin.sub(level.alpha * 0.25)
                                    .mul(0.5 / std::sqrt(level.alpha * level.alpha * 0.25 + level.sigma * level.sigma))
                                    .add(0.25);
    CHECK(end.sub(expected).abs().max().item<double>() < 1e-2);  // of order 2 in 200 steps
  }
}

TEST_CASE("shapes that the networks or the rest of the request contradict are refused") {
  const std::vector<Network> open{labelled(0.4)};
  NetworkInfo info = open[0].info();
  info.channels = 4;
  info.height = info.width = 16;
  const std::vector<Network> pictures{Network([](at::Tensor const& x, at::Tensor const&) { return x; }, info)};
  const DDIM sampler{schedule, SingleNetwork{}, {.steps = 2}};
  const auto message = [&](std::vector<Network> const& networks, Request request) {
    request.labels = {1};
    return message_of<std::invalid_argument>([&] { sampler.sample(networks, request); });
  };
  CHECK(message(open, {}) ==
        "tstitch::Request: shape or initial_noise must say the sizes that the networks leave open, got none");
  const std::string rule =
      "tstitch::Request: shape must be [C, ...] of what the networks state, with 1 to 2^34 elements";
  CHECK(message(open, {.shape = {3, 0}}) == rule + ", got [3, 0]");
  CHECK(message(open, {.shape = {3, -2, 2}}) == rule + ", got [3, -2, 2]");
  CHECK(message(open, {.shape = {std::int64_t(1) << 40, std::int64_t(1) << 40}}) ==
        rule + ", got [1099511627776, 1099511627776]");
  CHECK(message(pictures, {.shape = {3, 16, 16}}) == rule + ", got [3, 16, 16]");
  CHECK(message(pictures, {.shape = {4, 8, 16}}) == rule + ", got [4, 8, 16]");
  CHECK(message(pictures, {.shape = {4, 16}}) == rule + ", got [4, 16]");
  CHECK(message(pictures, {.shape = {4, 8, 16, 16}}) == "nothing was thrown");
  const at::Tensor other = noise({1}, NoiseAddress::initial(), {4, 2, 16, 16}, at::kFloat);
  CHECK(message(pictures, {.shape = {4, 16, 16}, .initial_noise = other}) ==
        "tstitch::Request: initial_noise must be [n, C, ...] with the shape of the networks and one row an image, got "
        "[1, 4, 2, 16, 16]");
}
