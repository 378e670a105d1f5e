#include <tstitch/method/by_name.hpp>
#include <tstitch/model/bridge.hpp>
#include <tstitch/sampler/any_sampler.hpp>

#include <ATen/ops/full.h>
#include <cmath>
#include <string>
#include <vector>

#include "../catch.hpp"

using namespace tstitch;

namespace {

/// The exact network for latents whose elements are independent and normal, with this mean and deviation.
struct OfGaussian {
  NetworkInfo info;
  double mean = 0.4, deviation = 0.7;

  at::Tensor operator()(at::Tensor const& x, at::Tensor const& t, Condition const&) const {
    // E[x_0 | x] in the network's own latents, channel by channel.
    const NoiseLevel level = info.noise_schedule->at(t[0].item<double>());
    const at::Tensor x_0 = x.clone(), eps = x.clone();
    for (std::int64_t c = 0; c < x.size(1); ++c) {
      const double scale = info.latent_scale.of(std::size_t(c)), shift = info.latent_shift.of(std::size_t(c));
      const double m = scale * (mean - shift), s = scale * deviation;
      const double total = level.alpha * level.alpha * s * s + level.sigma * level.sigma;
      x_0.select(1, c).sub_(level.alpha * m).mul_(level.alpha * s * s / total).add_(m);
      eps.select(1, c).sub_(level.alpha * m).mul_(level.sigma / total);
    }
    switch (info.prediction_type) {
      case PredictionType::epsilon: return eps;
      case PredictionType::sample: return x_0;
      case PredictionType::v_prediction: return eps.mul(level.alpha).sub(x_0.mul(level.sigma));
      case PredictionType::flow: return eps.sub(x_0);
    }
    return {};
  }

  Network network() const { return Network(*this, info); }
};

NetworkInfo of(std::string name, PredictionType type, NoiseSchedule schedule, PerChannel scale, PerChannel shift) {
  return {.name = std::move(name),
          .prediction_type = type,
          .timestep_type = TimestepType::float32,
          .noise_schedule = std::move(schedule),
          .latent_scale = std::move(scale),
          .latent_shift = std::move(shift)};
}

Request request() {
  return {.count = 2, .initial_noise = noise({1, 2}, NoiseAddress::initial(), {2, 3, 3}, at::kFloat).to(at::kDouble)};
}

/// Timesteps of a schedule at these places, noisiest first.
std::vector<double> timesteps(NoiseSchedule const& schedule, double first, double last, int steps) {
  std::vector<double> list;
  for (int i = 0; i < steps; ++i) list.push_back(schedule.timestep(first + (last - first) * i / (steps - 1)));
  return list;
}

double largest_difference(at::Tensor const& a, at::Tensor const& b) {
  return a.sub(b).abs().max().item<double>();
}

}  // namespace

TEST_CASE("a bridged network is the network of the trajectory, whatever its latents, schedule and prediction are") {
  const std::vector<NoiseSchedule> schedules{NoiseSchedule::linear(), NoiseSchedule::scaled_linear(),
                                             NoiseSchedule::cosine(500), NoiseSchedule::flow(),
                                             NoiseSchedule::flow(600, 3)};
  const std::vector<PredictionType> types{PredictionType::epsilon, PredictionType::sample, PredictionType::v_prediction,
                                          PredictionType::flow};
  int differing = 0;
  for (NoiseSchedule const& schedule : schedules) {
    for (NoiseSchedule const& own : schedules) {
      for (PredictionType const type : types) {
        const OfGaussian large{of("large", PredictionType::flow, schedule, 1.5, -0.1)};
        const OfGaussian small{of("small", type, own, 0.5, 0.3)};
        const Network bridge = bridged(small.network(), large.info);
        const SamplingOptions options{
            .steps = 9, .spacing = Spacing::list(timesteps(schedule, -1, 2, 9)), .thresholding = Thresholding::none()};
        for (double const ratio : {0.45, 1.0}) {
          const AnySampler stitched{schedule, Stitch{ratio}, options, update_rule_by_name("dpm-solver++")};
          const AnySampler alone{schedule, SingleNetwork{}, options, update_rule_by_name("dpm-solver++")};
          const at::Tensor exact = alone.sample({large.network()}, request()).images;
          const at::Tensor made = stitched.sample({bridge, large.network()}, request()).images;
          CHECK(largest_difference(made, exact) <= 1e-10);
          // As it is it would be another trajectory.
          if (ratio < 1 || type != PredictionType::sample || own.noisiest() < schedule.noisiest()) continue;
          const Network unbridged(OfGaussian(small), [&] {
            NetworkInfo info = large.info;
            info.prediction_type = type;
            return info;
          }());
          differing +=
              largest_difference(stitched.sample({unbridged, large.network()}, request()).images, exact) > 1e-2;
        }
      }
    }
  }
  CHECK(differing > 5);
}

TEST_CASE("bridged networks serve every update rule, under guidance, too") {
  const NoiseSchedule schedule = NoiseSchedule::flow();
  const OfGaussian large{of("large", PredictionType::flow, schedule, 1.5, -0.1)};
  const OfGaussian small{of("small", PredictionType::epsilon, NoiseSchedule::linear(), 0.5, 0.3)};
  const std::vector<Network> pair{bridged(small.network(), large.info), large.network()},
      twice{large.network(), large.network()};
  const SamplingOptions options{.steps = 8, .spacing = Spacing::list(timesteps(schedule, -1, 2, 8))};
  int tried = 0;
  for (NamedRule const& rule : update_rules()) {
    if (rule.name.ends_with("adaptive")) {
      const AnySampler sampler{schedule, SingleNetwork{}, options, update_rule_by_name(rule.name)};
      CHECK(message_of<std::invalid_argument>([&] { sampler.sample({pair[0]}, request()); }).find("tstitch::") == 0);
      continue;
    }
    SamplingOptions with = options;
    if (rule.name == "lcm") with.thresholding = Thresholding::none();
    const AnySampler sampler{schedule, Stitch{0.5}, with, update_rule_by_name(rule.name)};
    const at::Tensor exact = sampler.sample(twice, request()).images, made = sampler.sample(pair, request()).images;
    INFO(rule.name);
    CHECK(largest_difference(made, exact) <= 1e-10);
    ++tried;
  }
  CHECK(tried > 12);
}

TEST_CASE("at pure noise a bridge of flow matching is exact, too") {
  const OfGaussian large{of("large", PredictionType::flow, NoiseSchedule::flow(), 1.5, -0.1)};
  const OfGaussian small{of("small", PredictionType::v_prediction, NoiseSchedule::flow(700), 0.5, 0.3)};
  const AnySampler sampler{
      NoiseSchedule::flow(), Stitch{0.5}, {.steps = 6, .spacing = Spacing::shifted(3)}, DDIMUpdate{}};
  const at::Tensor exact = sampler.sample({large.network(), large.network()}, request()).images;
  const at::Tensor made = sampler.sample({bridged(small.network(), large.info), large.network()}, request()).images;
  CHECK(made.isfinite().all().item<bool>());
  CHECK(largest_difference(made, exact) <= 1e-10);
}

TEST_CASE("latents may have another mean in each channel, and another sign") {
  struct Latents {
    PerChannel scale, shift;
  };
  // Of a scale of its own in each channel, too, as long as the factor between the two is of one magnitude.
  const std::vector<std::pair<Latents, Latents>> pairs{
      {{1.5, {-0.1, 0.4}}, {0.5, {0.3, -0.8}}},       {{1.5, 0.2}, {0.5, {0.3, -0.8}}},
      {{{1.5, 3}, {-0.1, 0.4}}, {{0.5, 1}, 0.3}},     {{{1.5, 3}, 0}, {{0.5, -1}, {0.3, -0.8}}},
      {{{0.25, 7}, {2, 1}}, {{0.25, -7}, {0.5, -2}}}, {{1.5, {-0.1, 0.4}}, {{-0.5, 0.5}, 0}},
  };
  const std::vector<NoiseSchedule> schedules{NoiseSchedule::scaled_linear(), NoiseSchedule::flow(600, 3)};
  for (auto const& [of_large, of_small] : pairs) {
    for (NoiseSchedule const& schedule : schedules) {
      for (NoiseSchedule const& own : schedules) {
        for (PredictionType const type :
             {PredictionType::epsilon, PredictionType::sample, PredictionType::v_prediction, PredictionType::flow}) {
          const OfGaussian large{of("large", PredictionType::flow, schedule, of_large.scale, of_large.shift)};
          const OfGaussian small{of("small", type, own, of_small.scale, of_small.shift)};
          const Network bridge = bridged(small.network(), large.info);
          CHECK(mismatches({bridge, large.network()}).empty());
          const SamplingOptions options{.steps = 9,
                                        .spacing = Spacing::list(timesteps(schedule, -1, 2, 9)),
                                        .thresholding = Thresholding::none()};
          const AnySampler stitched{schedule, Stitch{0.45}, options, update_rule_by_name("dpm-solver++")};
          const AnySampler alone{schedule, SingleNetwork{}, options, update_rule_by_name("dpm-solver++")};
          const at::Tensor exact = alone.sample({large.network()}, request()).images;
          const at::Tensor made = stitched.sample({bridge, large.network()}, request()).images;
          CHECK(largest_difference(made, exact) <= 1e-10);
          CHECK(largest_difference(exact.select(1, 0), exact.select(1, 1)) > 0.1);
        }
      }
    }
  }
}

TEST_CASE("latents whose channels have different noise have no timestep") {
  const NetworkInfo large = of("large", PredictionType::flow, NoiseSchedule::flow(), {1.5, 1.5}, 0);
  const OfGaussian small{of("small", PredictionType::flow, NoiseSchedule::flow(), {0.5, -0.75}, 0)};
  CHECK(message_of<std::invalid_argument>([&] { (void)bridged(small.network(), large); }) ==
        "tstitch::bridged: the latents of 'small' must be one factor larger than those of 'large', the same in every "
        "channel, got [0.3333333333, -0.5]");
  const OfGaussian three{of("three", PredictionType::flow, NoiseSchedule::flow(), {0.5, 0.5, 0.5}, 0)};
  CHECK(message_of<std::invalid_argument>([&] { (void)bridged(three.network(), large); }) ==
        "tstitch::PerChannel: must be one number or 3, got 2");
}

TEST_CASE("numbers of each channel are the same however they are written") {
  CHECK(PerChannel({2, 2, 2}) == PerChannel(2));
  CHECK(PerChannel(2) == PerChannel({2, 2, 2}));
  CHECK(PerChannel({2, 2}) != PerChannel({2, 2, 2}));
  CHECK(PerChannel({2, 3}) != PerChannel(2));
  CHECK(PerChannel() == 0);
  CHECK(words::text(PerChannel(0.5)) == "0.5");
  CHECK(words::text(PerChannel({0.5, 1})) == "[0.5, 1]");
  CHECK(words::text(PerChannel({1, 2, 3, 4, 5, 6})) == "[1, 2, 3, 4 and 2 more]");
  const NetworkInfo info{.name = "odd", .channels = 4, .latent_scale = {1, 2, 3}};
  const auto identity = [](at::Tensor const& x, at::Tensor const&) { return x; };
  CHECK(message_of<std::invalid_argument>([&] {
          Network{identity, info};
        }) == "tstitch::Network: latent_scale must be one number or one for each of the 4 channels, got 3");
  CHECK(message_of<std::invalid_argument>([&] {
          Network{identity, {.latent_shift = PerChannel(std::vector<double>())}};
        }) == "tstitch::Network: latent_shift must be one number or one for each channel, got 0");
  const Network a(identity, {.name = "a", .latent_scale = {1, 2, 3}, .latent_shift = {0, 1, 2}});
  const Network b(identity, {.name = "b", .latent_scale = {1, 2, 3}, .latent_shift = {0, 1, 5}});
  CHECK(mismatches({a, a}).empty());
  REQUIRE(mismatches({a, b}).size() == 1);
  CHECK(mismatches({a, b})[0].find("has 3 and 2 in channel 2, ") != std::string::npos);
  CHECK(mismatches({a, b})[0].find("has 3 and 5 in channel 2") != std::string::npos);
  CHECK(mismatches({a, Network(identity, {.name = "c", .latent_scale = {1, 2}})})[0].find("[1, 2, 3]") !=
        std::string::npos);
}

TEST_CASE("a network that differs in nothing is itself") {
  const OfGaussian same{of("same", PredictionType::epsilon, NoiseSchedule::linear(), 0.5, 0.3)};
  CHECK(bridged(same.network(), of("other", PredictionType::flow, NoiseSchedule::linear(), 0.5, 0.3))
            .info()
            .prediction_type == PredictionType::epsilon);
  // Latents that nobody states are the same.
  NetworkInfo unstated = same.info;
  unstated.latent_scale = 0;
  CHECK(bridged(same.network(), unstated).info().prediction_type == PredictionType::epsilon);
}

TEST_CASE("what bridges, and what does not, is said with the numbers") {
  const NetworkInfo large = of("large", PredictionType::flow, NoiseSchedule::flow(), 1.5, 0);
  const OfGaussian small{of("small", PredictionType::epsilon, NoiseSchedule::scaled_linear(), 0.5, 0)};
  const auto message = [&](Network const& network, Spacing const& spacing) {
    const AnySampler sampler{NoiseSchedule::flow(), SingleNetwork{}, {.steps = 4, .spacing = spacing}, DDIMUpdate{}};
    return message_of<std::invalid_argument>([&] { sampler.sample({network}, request()); });
  };
  CHECK(
      message(bridged(small.network(), large), Spacing::shifted()) ==
      "tstitch::bridged: the steps of 'small' must be at log(alpha / sigma) in [-2.68202385, 3.534711924] of its noise "
      "schedule scaled_linear(1000, 0.00085, 0.012), got -inf at t = 1000 of flow(1000)");
  const OfGaussian zero{of("zero", PredictionType::epsilon, NoiseSchedule::linear().with_zero_terminal_snr(), 0.5, 0)};
  CHECK(message(bridged(zero.network(), large), Spacing::shifted()).find("where epsilon says nothing of x_0") !=
        std::string::npos);
  NetworkInfo without = large;
  without.noise_schedule.reset();
  CHECK(message_of<std::invalid_argument>([&] { (void)bridged(small.network(), without); }) ==
        "tstitch::bridged: the network of the trajectory must state its noise schedule, got none for 'large'");
  CHECK_THROWS_AS(bridged(Network(small, without), large), std::invalid_argument);
}

TEST_CASE("conditions of one name in two shapes have a tensor each") {
  const NoiseSchedule schedule = NoiseSchedule::linear();
  const auto asks = [&](std::int64_t width, double factor) {
    NetworkInfo info = of("asks", PredictionType::sample, schedule, 1, 0);
    info.conditions = {{"text", {width}}, {"size", {1}}};
    return Network(
        [factor](at::Tensor const& x, at::Tensor const&, Condition const& condition) {
          return x.mul(0).add(
              condition.at("text").sum(1).add(condition.at("size").sum(1)).mul(factor).view({-1, 1, 1, 1}));
        },
        info);
  };
  const Network first = asks(4, 1), second = asks(7, 2);
  CHECK_THROWS_AS(require_compatible({first, second}), std::runtime_error);
  const Network renamed = with_condition_names(second, {{"refiner_text", "text"}});
  REQUIRE(renamed.info().conditions[0].name == "refiner_text");
  REQUIRE(renamed.info().conditions[1].name == "size");
  Request asked = request();
  asked.conditions = {
      {"text", at::full({1, 4}, 0.1)}, {"refiner_text", at::full({2, 7}, 0.01)}, {"size", at::full({1, 1}, 0.5)}};
  for (double const ratio : {0.0, 0.5, 1.0}) {
    const AnySampler sampler{schedule, Stitch{ratio}, {.steps = 4, .thresholding = Thresholding::none()}, DDIMUpdate{}};
    const at::Tensor made = sampler.sample({first, renamed}, asked).images;
    CHECK(made.mean().item<double>() == Approx(ratio == 1 ? 0.9 : 2 * 0.57));
  }
  const auto refusal = [&](std::map<std::string, std::string> const& names) {
    return message_of<std::invalid_argument>([&] { (void)with_condition_names(second, names); });
  };
  CHECK(refusal({{"a", "words"}}) ==
        "tstitch::with_condition_names: each name must be one of the network's, once, got 'words' for 'asks'");
  CHECK(refusal({{"a", "text"}, {"b", "text"}}).find("once, got 'text'") != std::string::npos);
  CHECK(refusal({{"size", "text"}}) ==
        "tstitch::with_condition_names: names must differ from those that stay, got 'size' for 'asks'");
  // Names may change places.
  const Network turned = with_condition_names(asks(1, 1), {{"size", "text"}, {"text", "size"}});
  CHECK(turned.info().conditions[0].name == "size");
  CHECK(turned.info().conditions[1].name == "text");
}
