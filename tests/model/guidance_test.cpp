#include <tstitch/file/torchscript.hpp>
#include <tstitch/method/heun.hpp>
#include <tstitch/tstitch.hpp>

#include <cmath>
#include <filesystem>
#include <memory>

#include "../catch.hpp"
#include "../oracle.hpp"

using namespace tstitch;

namespace {

const NoiseSchedule schedule = NoiseSchedule::linear();

double largest(at::Tensor const& x) {
  return x.abs().max().item<double>();
}

at::Tensor tensor(at::IntArrayRef shape, auto const& value_of) {
  const at::Tensor x = tstitch::detail::host_tensor(shape, at::kDouble);
  for (std::int64_t i = 0; i < x.numel(); ++i) x.mutable_data_ptr<double>()[i] = value_of(double(i));
  return x;
}

at::Tensor values(std::vector<double> const& numbers) {
  return tensor({2, 2, 2, 1}, [&](double i) { return numbers[std::size_t(i)]; });
}

/// Predicts x_0 as these: the first with labels, the second without.
Network answers(at::Tensor const& with, at::Tensor const& without) {
  return Network(
      [=](at::Tensor const& x, at::Tensor const&) {
        at::Tensor both = with.repeat({2, 1, 1, 1});
        both.narrow(0, with.size(0), with.size(0)).copy_(without);
        return x.size(0) == with.size(0) ? with : both;
      },
      {.prediction_type = PredictionType::sample, .num_classes = 2, .null_class = 2});
}

const at::Tensor conditional = tensor({2, 2, 2, 1}, [](double i) { return std::sin(i + 1); });
const at::Tensor unconditional = tensor({2, 2, 2, 1}, [](double i) { return std::cos(2 * i); });
const Timestep point{500, schedule.at(500)};

BatchCondition labels() {
  return {{tstitch::detail::to_device({0, 1}, at::kCPU)}, {tstitch::detail::to_device({0, 1, 2, 2}, at::kCPU)}};
}

Prediction guided(EvaluationGuidance const& guidance, at::Tensor const& with = conditional,
                  Thresholding const& thresholding = Thresholding::none()) {
  const Network network = answers(with, unconditional);
  const at::Tensor x = conditional.mul(0.1);
  const Prediction shared = denoise(network, x, point, labels(), guidance, thresholding);
  const std::vector<Timestep> points{point, point};
  const Prediction each = denoise(network, x, points, labels(), guidance, thresholding);
  CHECK(largest(shared.x_0.sub(each.x_0)) < 1e-14);
  return shared;
}

/// Outputs depend on x, t, the label and the network; counts rows.
Network labelled(double strength, std::shared_ptr<std::vector<std::int64_t>> rows = {},
                 PredictionType type = PredictionType::epsilon) {
  return Network(
      [=](at::Tensor const& x, at::Tensor const& t, Condition const& condition) {
        if (rows) rows->push_back(x.size(0));
        const at::Tensor wave = condition.labels.to(at::kDouble).add(1).div(4).add(t.to(at::kDouble).div(1000));
        return x.mul(0.9).add(wave.view({-1, 1, 1, 1}).mul(strength).mul(x.sin()));
      },
      {.prediction_type = type, .channels = 3, .height = 4, .width = 4, .num_classes = 4, .null_class = 4});
}

at::Tensor normal(std::vector<std::uint64_t> const& seeds) {
  return noise(seeds, NoiseAddress::initial(), {3, 4, 4}, at::kDouble);
}

}  // namespace

TEST_CASE("rescaled guidance is that of diffusers") {
  // rescale_noise_cfg(u + 3 (c - u), c, 0.7), which also works on a network's output.
  const at::Tensor expected = values({0.243386068765, 1.65232314725, 0.803213251913, -1.94497425495, -1.51068779547,
                                      0.490693346851, 0.165484439856, 1.57426818813});
  CHECK(largest(guided({.scale = 3, .rescale = 0.7}).x_0.sub(expected)) < 1e-11);
  const at::Tensor whole = guided({.scale = 3, .rescale = 1}).x_0;
  const auto deviation = [](at::Tensor const& x) { return x.flatten(1).std(at::IntArrayRef{1}, true); };
  CHECK(largest(deviation(whole).sub(deviation(conditional))) < 1e-14);
  // The same everywhere: nothing to rescale, and no 0 / 0.
  const at::Tensor flat = tensor({2, 2, 2, 1}, [](double) { return 1.0; });
  const Network network = answers(flat, flat);
  CHECK(denoise(network, flat, point, labels(), {.scale = 3, .rescale = 1}, Thresholding::none()).x_0.equal(flat));
  // The first channel alone, by its own deviation.
  const at::Tensor first = guided({.scale = 3, .channels = 1, .rescale = 1}).x_0;
  CHECK(largest(deviation(first.narrow(1, 0, 1)).sub(deviation(conditional.narrow(1, 0, 1)))) < 1e-14);
  CHECK(first.narrow(1, 1, 1).equal(conditional.narrow(1, 1, 1)));
}

TEST_CASE("adaptive projected guidance is that of diffusers and, without its parts, guidance as it was") {
  // normalized_guidance(c, u, 3 - 1, MomentumBuffer(-0.5), 0.25, 1.5, use_original_formulation=True), then with c / 2.
  const ProjectedGuidance how{.eta = 0.25, .norm_threshold = 1.5, .momentum = -0.5};
  const at::Tensor expected = values({-0.318339326572, 1.59520997054, 1.01076320727, -2.12294773884, -1.78272846683,
                                      1.07389107821, -0.266936859195, 1.86606930132});
  const at::Tensor then = values({-0.684815722646, 0.756736420203, 0.706502018317, -1.24364084225, -0.65163316475,
                                  0.606799413654, -0.297715079277, 0.685695089003});
  const Prediction first = guided({.scale = 3, .projected = how});
  CHECK(largest(first.x_0.sub(expected)) < 1e-11);
  const Prediction second = guided({.scale = 3, .projected = how, .momentum = first.momentum}, conditional.mul(0.5));
  CHECK(largest(second.x_0.sub(then)) < 1e-11);

  const at::Tensor plain = guided({.scale = 3}).x_0;
  const Prediction whole = guided({.scale = 3, .projected = ProjectedGuidance{.eta = 1}});
  CHECK(largest(whole.x_0.sub(plain)) < 1e-14);
  CHECK_FALSE(whole.momentum.defined());
  // What is left with eta 0 is orthogonal to the conditional prediction.
  const at::Tensor across = guided({.scale = 3, .projected = ProjectedGuidance{}}).x_0.sub(conditional);
  CHECK(largest(across.mul(conditional).sum(at::IntArrayRef{1, 2, 3})) < 1e-14);
  const Prediction one_channel = guided({.scale = 3, .channels = 1, .projected = ProjectedGuidance{.momentum = 0.5}});
  CHECK(one_channel.x_0.narrow(1, 1, 1).equal(conditional.narrow(1, 1, 1)));
  CHECK(one_channel.momentum.size(1) == 1);
  const Prediction clipped = guided({.scale = 3, .projected = how}, conditional, Thresholding::clip(1));
  CHECK(clipped.x_0.equal(first.x_0.clamp(-1, 1)));
  CHECK(clipped.unclipped_x_0.equal(first.x_0));
}

TEST_CASE("a prediction of nothing has no direction, and all of the update counts") {
  const at::Tensor update = values({1, 2, 3, 4, 5, 6, 7, 8}), nothing = update.mul(0);
  const at::Tensor x_0 = tstitch::detail::project(nothing, update, 3, {.eta = 0.25});
  CHECK(largest(x_0.sub(update.mul(2))) < 1e-14);
}

TEST_CASE("the momentum of guidance belongs to the run: a copy forks it") {
  const std::vector<Network> networks{labelled(0.1), labelled(0.3)};
  const Guidance guidance{.scale = 3, .projected = ProjectedGuidance{.momentum = -0.5}};
  const Request request{.labels = {0, 3}, .guidance = guidance, .initial_noise = normal({1, 2})};
  const auto check = [&](auto const& sampler) {
    Trajectory run = sampler.begin(networks, request);
    for (int i = 0; i < 3; ++i) sampler.advance(networks, run);
    const at::Tensor kept = run.momentum.clone();
    Trajectory fork = run;
    while (!fork.finished()) sampler.advance(networks, fork);
    CHECK(run.momentum.equal(kept));
    CHECK_FALSE(fork.momentum.equal(kept));
    while (!run.finished()) sampler.advance(networks, run);
    CHECK(run.x.equal(fork.x));
    CHECK(run.x.equal(sampler.sample(networks, request).images));
    Request without = request;
    without.guidance.projected->momentum = 0;
    CHECK_FALSE(run.x.equal(sampler.sample(networks, without).images));
  };
  check(DDIM{schedule, Stitch{0.5}, {.steps = 8}});
  check(Heun{schedule, Stitch{0.5}, {.steps = 8}});
  check(DPMSolver{schedule, Stitch{0.5}, {.steps = 8, .at_switch = SwitchPolicy::re_evaluate}});
}

TEST_CASE("the first evaluation of a step is what momentum remembers") {
  // Heun's first evaluation is DDIM's only one.
  const std::vector<Network> networks{labelled(0.1)};
  const Request request{.labels = {1},
                        .guidance = {.scale = 3, .projected = ProjectedGuidance{.momentum = -0.5}},
                        .initial_noise = normal({1})};
  const DDIM ddim{schedule, SingleNetwork{}, {.steps = 8}};
  const Heun heun{schedule, SingleNetwork{}, {.steps = 8}};
  Trajectory one = ddim.begin(networks, request), two = heun.begin(networks, request);
  ddim.advance(networks, one);
  heun.advance(networks, two);
  CHECK(one.momentum.equal(two.momentum));
}

TEST_CASE("autoguidance moves away from a worse network, whatever both predict") {
  const at::Tensor x = normal({1, 2});
  const BatchCondition both{{tstitch::detail::to_device({0, 1}, at::kCPU)}, {}};
  const Network good = labelled(0.1), bad = labelled(0.4, {}, PredictionType::v_prediction);
  const auto x_0 = [&](Network const& network, EvaluationGuidance const& guidance) {
    return denoise(network, x, point, both, guidance, Thresholding::none()).x_0;
  };
  const at::Tensor from = x_0(bad, {}), to = x_0(good, {});
  CHECK(largest(x_0(good, {.scale = 2.5, .guide = &bad}).sub(from.add(to.sub(from), 2.5))) < 1e-12);
  const at::Tensor first = x_0(good, {.scale = 2.5, .channels = 1, .guide = &bad});
  CHECK(largest(first.narrow(1, 1, 2).sub(to.narrow(1, 1, 2))) == 0);
  CHECK(x_0(good, {.scale = 1, .guide = &bad}).equal(to));
  // Projected with eta 1 it is the same.
  CHECK(largest(x_0(good, {.scale = 2.5, .projected = ProjectedGuidance{.eta = 1}, .guide = &bad})
                    .sub(from.add(to.sub(from), 2.5))) < 1e-12);
}

TEST_CASE("the plan counts the guide's evaluations") {
  const auto small = std::make_shared<std::vector<std::int64_t>>(),
             large = std::make_shared<std::vector<std::int64_t>>();
  const std::vector<Network> networks{labelled(0.1, small), labelled(0.3, large)};
  const auto check = [&](auto const& sampler, Guidance const& guidance) {
    small->clear();
    large->clear();
    sampler.sample(networks, {.labels = {1}, .guidance = guidance, .initial_noise = normal({1})});
    const std::vector<int> called{int(small->size()), int(large->size())};
    CHECK(sampler.plan(guidance).calls() == called);
    return called;
  };
  const Guidance autoguidance{.scale = {1, 2}, .end = 0.8, .guide_network = 0};
  // Of 10 steps 4 are the guide's own, 6 the other's, and 4 of these are guided.
  const DDIM ddim{schedule, Stitch{0.4}, {.steps = 10}};
  CHECK(check(ddim, autoguidance) == std::vector<int>{4 + 4, 6});
  for (std::int64_t rows : *small) CHECK(rows == 1);
  CHECK(check(Heun{schedule, Stitch{0.4}, {.steps = 10}}, autoguidance) == std::vector<int>{8 + 8, 11});
  // Evaluations made again at the switch are guided where those steps are.
  const DPMSolver again{schedule, Stitch{0.4}, {.steps = 10, .at_switch = SwitchPolicy::re_evaluate}, {.order = 3}};
  CHECK(check(again, autoguidance) == std::vector<int>{4 + 4 + 2, 6 + 2});
  CHECK(check(again, {.scale = {1, 2}, .begin = 0.3, .guide_network = 0}) == std::vector<int>{4 + 6 + 1, 6 + 2});
  // In its own steps the guide's scale is that of classifier-free guidance.
  CHECK(check(ddim, {.scale = {3, 2}, .guide_network = 0}) == std::vector<int>{4 + 6, 6});
  CHECK((*small)[0] == 2);
  CHECK(to_string(ddim.plan(autoguidance)).ends_with("evaluations: network 0 takes 8, network 1 takes 6\n"));
  CHECK_THAT(to_string(ddim.plan(autoguidance)), ContainsSubstring("1         2 by network 0\n"));
}

TEST_CASE("autoguidance needs no null class but where it is classifier-free") {
  NetworkInfo info{.channels = 3, .height = 4, .width = 4, .num_classes = 4};
  const Network network([](at::Tensor const& x, at::Tensor const&, Condition const&) { return x.mul(0.5); }, info);
  const DDIM sampler{schedule, Stitch{0.5}, {.steps = 4}};
  CHECK(
      sampler.sample({network, network}, {.labels = {0}, .guidance = {.scale = {1, 2}, .guide_network = 0}}).finished);
  CHECK(message_of<std::invalid_argument>([&] {
          sampler.sample({network, network}, {.labels = {0}, .guidance = {.scale = 2, .guide_network = 0}});
        }) == "tstitch::Guidance: needs networks that were trained with a null class, got network 0");
}

TEST_CASE("gradients give the closed form: what is known of Gaussian data after a measurement") {
  // Data N(m, d^2) and a measurement y = x_0 + r eps. Then p(y | x_t) is normal around E[x_0 | x_t] with the variance
  // of x_0 given x_t plus r^2, and E[x_0 | x_t, y] weighs the three things that are known by their precisions.
  const double m = 0.3, d = 0.5, r = 0.2, y = 0.9;
  const at::Tensor x = normal({1, 2, 3});
  const auto log_density = [=](at::Tensor const& x_0, at::Tensor const& t, Condition const&) {
    std::vector<double> weights;
    for (std::int64_t i = 0; i < t.size(0); ++i) {
      const auto [alpha, sigma] = schedule.at(t.select(0, i).item<double>());
      const double spread = d * d * sigma * sigma / (alpha * alpha * d * d + sigma * sigma);
      weights.push_back(-0.5 / (spread + r * r));
    }
    return x_0.sub(y).square().flatten(1).sum(1).mul(tstitch::detail::one_each(weights, at::kCPU, at::kDouble));
  };
  const GradientGuidance gradient{log_density};
  const auto expected = [&](at::Tensor const& at_x, NoiseLevel level) {
    const auto [alpha, sigma] = level;
    const double precision = 1 / (d * d) + alpha * alpha / (sigma * sigma) + 1 / (r * r);
    return at_x.mul(alpha / (sigma * sigma) / precision).add((m / (d * d) + y / (r * r)) / precision);
  };
  for (PredictionType type : {PredictionType::epsilon, PredictionType::sample, PredictionType::v_prediction}) {
    for (bool learned : {false, true}) {
      const Network network = oracle::gaussian(schedule, m, d, {.prediction_type = type, .learned_variance = learned});
      for (double t : {10.0, 500.0, 990.0}) {
        const Timestep at{t, schedule.at(t)};
        const Prediction found = denoise(network, x, at, {}, {.gradient = &gradient}, Thresholding::none());
        CHECK(largest(found.x_0.sub(expected(x, at.level))) < 1e-10);
        CHECK_FALSE(found.x_0.requires_grad());
        CHECK_FALSE(x.requires_grad());
        CHECK(found.variance_fraction.defined() == learned);
        if (learned) CHECK_FALSE(found.variance_fraction.requires_grad());
      }
    }
  }
  // Each image at a point of its own; the oracle knows one t, so it is asked in a network that answers row by row.
  const Network one = oracle::gaussian(schedule, m, d);
  const Network rows([one](at::Tensor const& all, at::Tensor const& t) {
    const at::Tensor out = all.mul(0);
    at::Tensor sum = out;
    for (std::int64_t i = 0; i < all.size(0); ++i) {
      const at::Tensor pick = t.eq(t.select(0, i)).to(all.scalar_type()).view({-1, 1, 1, 1});
      sum = sum.add(one(all, t.narrow(0, i, 1), {}).mul(pick));
    }
    return sum;
  });
  const std::vector<Timestep> points{{10, schedule.at(10)}, {500, schedule.at(500)}, {990, schedule.at(990)}};
  const at::Tensor found = denoise(rows, x, points, {}, {.gradient = &gradient}, Thresholding::none()).x_0;
  for (std::int64_t i = 0; i < 3; ++i) {
    CHECK(largest(found.narrow(0, i, 1).sub(expected(x.narrow(0, i, 1), points[std::size_t(i)].level))) < 1e-10);
  }
  // A run of it ends in the distribution after the measurement: mean and deviation of the precisions' sum.
  const DDIM sampler{schedule, SingleNetwork{}, {.steps = 250}};
  std::vector<std::uint64_t> seeds(64);
  for (std::size_t i = 0; i < seeds.size(); ++i) seeds[i] = i;
  const at::Tensor drawn =
      sampler.sample({one}, {.gradient = gradient, .batch_size = 24, .initial_noise = normal(seeds)}).images;
  const double precision = 1 / (d * d) + 1 / (r * r);
  CHECK(std::abs(drawn.mean().item<double>() - (m / (d * d) + y / (r * r)) / precision) < 0.02);
  CHECK(std::abs(drawn.std().item<double>() - 1 / std::sqrt(precision)) < 0.02);
}

TEST_CASE("a classifier of noisy pictures moves x_0 by scale sigma^2 / alpha of its gradient") {
  const at::Tensor x = normal({1, 2});
  const auto [alpha, sigma] = point.level;
  // log p = label sin(x), whose gradient is label cos(x); and t is what networks get.
  const GradientGuidance gradient{[](at::Tensor const& picture, at::Tensor const& t, Condition const& condition) {
                                    CHECK(t.scalar_type() == at::kLong);
                                    CHECK(t.eq(500).all().item<bool>());
                                    return picture.sin().flatten(1).sum(1).mul(condition.labels.to(at::kDouble));
                                  },
                                  1.5, DensityOf::x};
  const BatchCondition two{{tstitch::detail::to_device({1, 3}, at::kCPU)},
                           {tstitch::detail::to_device({1, 3, 4, 4}, at::kCPU)}};
  const auto rows = std::make_shared<std::vector<std::int64_t>>();
  const Network network = labelled(0.1, rows);
  for (double scale : {1.0, 2.0}) {
    const at::Tensor before = denoise(network, x, point, two, {.scale = scale}, Thresholding::none()).x_0;
    const at::Tensor weight = two.conditional.labels.to(at::kDouble).view({-1, 1, 1, 1});
    const at::Tensor expected = before.add(x.cos().mul(weight), 1.5 * sigma * sigma / alpha);
    const Prediction found =
        denoise(network, x, point, two, {.scale = scale, .gradient = &gradient}, Thresholding::clip(0.5));
    CHECK(largest(found.unclipped_x_0.sub(expected)) < 1e-12);
    CHECK(found.x_0.equal(found.unclipped_x_0.clamp(-0.5, 0.5)));
  }
  CHECK(*rows == std::vector<std::int64_t>{2, 2, 4, 4});
}

TEST_CASE("gradients go through everything that guides a prediction") {
  const at::Tensor x = normal({1, 2});
  const Network good = labelled(0.1), bad = labelled(0.4, {}, PredictionType::v_prediction);
  const BatchCondition two{{tstitch::detail::to_device({1, 3}, at::kCPU)},
                           {tstitch::detail::to_device({1, 3, 4, 4}, at::kCPU)}};
  const GradientGuidance gradient{
      [](at::Tensor const& x_0, at::Tensor const&, Condition const&) { return x_0.sin().flatten(1).sum(1); }};
  const auto check = [&](EvaluationGuidance guidance) {
    const auto unguided = [&](at::Tensor const& at_x) {
      return denoise(good, at_x, point, two, guidance, Thresholding::none()).x_0;
    };
    // One element's derivative by central differences.
    const double h = 1e-5;
    at::Tensor up = x.clone(), down = x.clone();
    up.select(0, 1).select(0, 2).select(0, 1).select(0, 0).add_(h);
    down.select(0, 1).select(0, 2).select(0, 1).select(0, 0).sub_(h);
    const double slope = unguided(up).sin().sub(unguided(down).sin()).sum().item<double>() / (2 * h);
    const at::Tensor before = unguided(x);
    guidance.gradient = &gradient;
    const at::Tensor moved = unguided(x).sub(before).select(0, 1).select(0, 2).select(0, 1).select(0, 0);
    const auto [alpha, sigma] = point.level;
    CHECK(std::abs(moved.item<double>() - slope * sigma * sigma / alpha) < 1e-6 * std::abs(slope));
  };
  check({});
  check({.scale = 3});
  check({.scale = 3, .channels = 2});
  check({.scale = 3, .channels = 2, .rescale = 0.7});
  check({.scale = 3, .rescale = 0.7});
  check({.scale = 3, .channels = 2, .projected = ProjectedGuidance{.norm_threshold = 0.5, .momentum = 0.5}});
  check({.scale = 3, .channels = 2, .guide = &bad});
}

TEST_CASE("frozen networks have gradients, and their parameters get none") {
  torch::jit::Module module("tiny");
  module.register_parameter("scale", tstitch::detail::host_tensor({1}, at::kFloat).fill_(0.5), true);
  module.define("def forward(self, x, t):\n  return x * x * self.scale\n");
  std::filesystem::create_directories(TSTITCH_TEST_DATA);
  const std::string path = TSTITCH_TEST_DATA "/frozen.pt";
  module.save(path);
  const NetworkInfo info{.prediction_type = PredictionType::sample, .channels = 3, .height = 4, .width = 4};
  const Network frozen = load_torchscript(path, {.info = info});
  const at::Tensor x = normal({1, 2}).to(at::kFloat);
  const GradientGuidance gradient{
      [](at::Tensor const& x_0, at::Tensor const&, Condition const&) { return x_0.flatten(1).sum(1); }};
  const auto [alpha, sigma] = point.level;
  for (int i = 0; i < 4; ++i) {  // TorchScript optimises in its first runs
    const at::Tensor found = denoise(frozen, x, point, {}, {.gradient = &gradient}, Thresholding::none()).x_0;
    CHECK(largest(found.sub(x.square().mul(0.5).add(x, sigma * sigma / alpha))) < 1e-5 * sigma * sigma / alpha);
  }
  CHECK_FALSE(module.attr("scale").toTensor().grad().defined());
}

TEST_CASE("guidance refuses what makes no sense") {
  const Network network = labelled(0.1);
  const DDIM sampler{schedule, SingleNetwork{}, {.steps = 4}};
  const auto message = [&](Guidance const& guidance) {
    return message_of<std::invalid_argument>([&] { sampler.sample({network}, {.labels = {0}, .guidance = guidance}); });
  };
  CHECK(message({.rescale = 1.5}) == "tstitch::Guidance: rescale must be in [0, 1], got 1.5");
  const std::string only_output =
      "tstitch::Guidance: rescale, for outputs, must be 0 with projected or guide_network, which guide x_0, got 0.5";
  CHECK(message({.rescale = 0.5, .projected = ProjectedGuidance{}}) == only_output);
  CHECK(message({.rescale = 0.5, .guide_network = 0}) == only_output);
  CHECK(message({.projected = ProjectedGuidance{.eta = -1}}) ==
        "tstitch::ProjectedGuidance: eta must be in [0, 1], got -1");
  CHECK(message({.projected = ProjectedGuidance{.norm_threshold = 0}}) ==
        "tstitch::ProjectedGuidance: norm_threshold must be above 0, got 0");
  CHECK(message({.projected = ProjectedGuidance{.momentum = -1}}) ==
        "tstitch::ProjectedGuidance: momentum must be inside (-1, 1), got -1");
  CHECK(message({.guide_network = 1}) ==
        "tstitch::Guidance: guide_network must be the index of one of the 1 networks, got 1");
  CHECK(message({.guide_network = std::size_t(-1)}) ==
        "tstitch::Guidance: guide_network must be the index of a network, got -1");

  const auto by_gradient = [&](GradientGuidance const& gradient) {
    return [&] { sampler.sample({network}, {.labels = {0}, .gradient = gradient}); };
  };
  using std::invalid_argument, std::runtime_error;
  CHECK(message_of<invalid_argument>(by_gradient({.scale = NAN})) ==
        "tstitch::GradientGuidance: scale must be a finite number, got nan");
  const auto sum = [](at::Tensor const& x, at::Tensor const&, Condition const&) { return x.sum(); };
  CHECK(message_of<runtime_error>(by_gradient({sum})) ==
        "tstitch::GradientGuidance: log_density must return [1], got []");
  const auto constant = [](at::Tensor const& x, at::Tensor const&, Condition const&) {
    return x.detach().flatten(1).sum(1);
  };
  CHECK(message_of<runtime_error>(by_gradient({constant})) ==
        "tstitch::GradientGuidance: log_density must depend on x by operations with gradients");
  const NoiseSchedule flow = NoiseSchedule::flow();
  const DDIM flowing{flow, SingleNetwork{}, {.steps = 4, .spacing = Spacing::shifted()}};
  CHECK(message_of<invalid_argument>(
            [&] { flowing.sample({labelled(0.1, {}, PredictionType::flow)}, {.labels = {0}, .gradient = {sum}}); }) ==
        "tstitch::GradientGuidance: no step may begin at pure noise (alpha = 0), where x says nothing of x_0, got step "
        "0");
}
