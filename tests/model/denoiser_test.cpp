#include <tstitch/model/denoiser.hpp>
#include <tstitch/tensor/host_tensor.hpp>
#include <tstitch/tensor/noise.hpp>

#include <cmath>
#include <optional>
#include <vector>

#include "../catch.hpp"
#include "../oracle.hpp"

using namespace tstitch;

TEST_CASE("guidance is u + scale (c - u), on all channels or the first k") {
  NetworkInfo info{.learned_variance = true, .channels = 4, .height = 2, .width = 2, .num_classes = 3, .null_class = 3};
  // Outputs the label in every channel, and minus the label as variance.
  const Network network(
      [](at::Tensor const& x, at::Tensor const&, Condition const& condition) {
        const at::Tensor labels = condition.labels.to(at::kFloat).view({-1, 1, 1, 1});
        at::Tensor out = x.new_zeros({x.size(0), 8, 2, 2});
        out.narrow(1, 0, 4).add_(labels);
        out.narrow(1, 4, 4).sub_(labels);
        return out;
      },
      info);
  const at::Tensor x = noise({1}, NoiseAddress::initial(), {4, 2, 2}, at::kFloat).zero_();
  const BatchCondition labels{{tstitch::detail::to_device({1}, at::kCPU)},
                              {tstitch::detail::to_device({1, 3}, at::kCPU)}};
  const Timestep point{500, {0.8, 0.6}};
  const auto eps = [&](Prediction const& p) { return p.x_0.mul(-0.8 / 0.6).select(0, 0).select(1, 0).select(1, 0); };
  const Prediction all = denoise(network, x, point, labels, 2.5, 0, Thresholding::none());
  const Prediction three = denoise(network, x, point, labels, 2.5, 3, Thresholding::none());
  for (std::int64_t c = 0; c < 4; ++c) {
    const double guided = 3 + 2.5 * (1 - 3);
    CHECK(std::abs(eps(all)[c].item<double>() - guided) < 1e-6);
    CHECK(std::abs(eps(three)[c].item<double>() - (c < 3 ? guided : 1)) < 1e-6);
  }
  CHECK(all.variance_fraction.eq(-1).all().item<bool>());
}

TEST_CASE("every prediction type gives x_0") {
  const NoiseSchedule noise_schedule = NoiseSchedule::linear();
  const at::Tensor x = noise({3}, NoiseAddress::initial(), {2, 4, 4}, at::kDouble);
  for (double t : {0.0, 300.0, 999.0}) {
    const Timestep point{t, noise_schedule.at(t)};
    const auto predict = [&](PredictionType type, bool learned) {
      const NetworkInfo info{.prediction_type = type, .learned_variance = learned};
      return denoise(oracle::gaussian(noise_schedule, 0.3, 0.5, info), x, point, {}, 1, 0, Thresholding::none());
    };
    // E[x_0 | x] of N(0.3, 0.5^2), as in oracle.hpp but written out.
    const auto [alpha, sigma] = point.level;
    const at::Tensor expected = x.mul(alpha * 0.25).add(sigma * sigma * 0.3).div(alpha * alpha * 0.25 + sigma * sigma);
    for (PredictionType type : {PredictionType::epsilon, PredictionType::sample, PredictionType::v_prediction}) {
      INFO("t = " << t << ", " << to_string(type));
      CHECK(predict(type, false).x_0.sub(expected).abs().max().item<double>() < 1e-11);
      CHECK_FALSE(predict(type, false).variance_fraction.defined());
      const Prediction learned = predict(type, true);
      CHECK(learned.x_0.sub(expected).abs().max().item<double>() < 1e-11);
      CHECK(learned.variance_fraction.sizes() == x.sizes());
    }
  }
}

TEST_CASE("a network's tensors are left as they are") {
  // Networks may keep what they return, as a CUDA graph does, and what they are given belongs to the sampler.
  const at::Tensor kept = noise({4}, NoiseAddress::initial(), {2, 4, 4}, at::kFloat), copy = kept.clone();
  for (PredictionType type : {PredictionType::epsilon, PredictionType::sample, PredictionType::v_prediction}) {
    const NetworkInfo info{.prediction_type = type, .num_classes = 2, .null_class = 2};
    const Network network(
        [&](at::Tensor const& x, at::Tensor const&, Condition const&) {
          return x.size(0) == 1 ? kept : kept.repeat({2, 1, 1, 1});
        },
        info);
    const at::Tensor x = noise({5}, NoiseAddress::initial(), {2, 4, 4}, at::kFloat), x_copy = x.clone();
    const BatchCondition labels{{tstitch::detail::to_device({0}, at::kCPU)},
                                {tstitch::detail::to_device({0, 2}, at::kCPU)}};
    for (double scale : {1.0, 3.0}) denoise(network, x, {500, {0.8, 0.6}}, labels, scale, 1, Thresholding::clip(0.1));
    CHECK(kept.equal(copy));
    CHECK(x.equal(x_copy));
  }
}

TEST_CASE("timesteps come as the network asks for them") {
  at::Tensor seen;
  const auto ask = [&](TimestepType type, at::ScalarType x_type) {
    const Network network(
        [&](at::Tensor const& x, at::Tensor const& t) {
          seen = t;
          return x;
        },
        {.timestep_type = type});
    denoise(network, noise({1, 2}, NoiseAddress::initial(), {1, 2, 2}, x_type), {500.5, {0.8, 0.6}}, {}, 1, 0,
            Thresholding::none());
  };
  ask(TimestepType::int64, at::kFloat);
  CHECK(seen.scalar_type() == at::kLong);
  CHECK(seen.eq(500).all().item<bool>());  // ties to even
  CHECK(seen.size(0) == 2);
  ask(TimestepType::float32, at::kFloat);
  CHECK(seen.scalar_type() == at::kFloat);
  CHECK(seen.eq(500.5).all().item<bool>());
  ask(TimestepType::float32, at::kDouble);
  CHECK(seen.scalar_type() == at::kDouble);
}

namespace {

/// A network that takes x once for both halves of guidance, and no t where it is told the timestep.
struct Frugal {
  static constexpr bool knows_timestep = true, repeats_x = true;

  at::Tensor operator()(at::Tensor const& x, at::Tensor const& t, Condition const& condition,
                        std::optional<double> timestep) const {
    *rows = x.size(0);
    *has_t = t.defined();
    const at::Tensor labels = condition.labels.to(x.scalar_type());
    const at::Tensor times = t.defined() ? t.to(x.scalar_type()) : labels.new_full(labels.sizes(), *timestep);
    const at::Tensor whole = x.size(0) == labels.size(0) ? x : x.repeat({2, 1, 1, 1});
    return whole.mul(times.add(labels).view({-1, 1, 1, 1}));
  }

  std::int64_t* rows;
  bool* has_t;
};

}  // namespace

TEST_CASE("a network that repeats x and knows the timestep is given no more, and answers the same") {
  std::int64_t rows = 0;
  bool has_t = false;
  const NetworkInfo info{.num_classes = 3, .null_class = 3};
  const Frugal callable{&rows, &has_t};
  const Network frugal(callable, info);
  const Network plain([&](at::Tensor const& x, at::Tensor const& t,
                          Condition const& condition) { return callable(x, t, condition, {}); },
                      info);
  CHECK((frugal.knows_timestep() && frugal.repeats_x()));
  CHECK_FALSE((plain.knows_timestep() || plain.repeats_x()));
  const at::Tensor x = noise({1, 2}, NoiseAddress::initial(), {2, 4, 4}, at::kFloat);
  const BatchCondition labels{{tstitch::detail::to_device({0, 1}, at::kCPU)},
                              {tstitch::detail::to_device({0, 1, 3, 3}, at::kCPU)}};
  const NoiseSchedule schedule = NoiseSchedule::linear();
  const std::vector<Timestep> each{{900, schedule.at(900)}, {3, schedule.at(3)}};
  const auto check = [&](auto const& points, EvaluationGuidance const& guidance, bool needs_t) {
    const at::Tensor expected = denoise(plain, x, points, labels, guidance, Thresholding::none()).x_0;
    CHECK(rows == (guidance.scale == 1 ? 2 : 4));
    CHECK(has_t);
    CHECK(denoise(frugal, x, points, labels, guidance, Thresholding::none()).x_0.equal(expected));
    CHECK(rows == 2);
    CHECK(has_t == needs_t);
  };
  for (EvaluationGuidance const& guidance :
       {EvaluationGuidance{}, {.scale = 2.5}, {.scale = 2.5, .projected = ProjectedGuidance{}}}) {
    check(each[0], guidance, false);
    check(each, guidance, true);
  }
}

TEST_CASE("images at points of their own are predicted as they are alone") {
  const NoiseSchedule schedule = NoiseSchedule::linear();
  for (TimestepType type : {TimestepType::int64, TimestepType::float32}) {
    for (PredictionType prediction : {PredictionType::epsilon, PredictionType::sample, PredictionType::v_prediction}) {
      // The network reads its own row's t, and doubles it so that guidance has something to do.
      const Network network(
          [](at::Tensor const& x, at::Tensor const& t, Condition const& condition) {
            return x.mul(t.to(x.scalar_type()).add(condition.labels.to(x.scalar_type())).view({-1, 1, 1, 1}));
          },
          {.prediction_type = prediction, .num_classes = 3, .null_class = 3, .timestep_type = type});
      const at::Tensor x = noise({1, 2, 3}, NoiseAddress::initial(), {2, 4, 4}, at::kDouble);
      const std::vector<Timestep> points{{900, schedule.at(900)}, {500.25, schedule.at(500.25)}, {3, schedule.at(3)}};
      const auto labels = [](std::vector<std::int64_t> values) {
        BatchCondition batch{{tstitch::detail::to_device(values, at::kCPU)}, {}};
        values.resize(2 * values.size(), 3);
        batch.guided.labels = tstitch::detail::to_device(values, at::kCPU);
        return batch;
      };
      for (double scale : {1.0, 2.5}) {
        const at::Tensor together =
            denoise(network, x, points, labels({0, 1, 2}), scale, 0, Thresholding::clip(100)).x_0;
        for (std::int64_t i = 0; i < 3; ++i) {
          const at::Tensor alone = denoise(network, x.narrow(0, i, 1), points[std::size_t(i)], labels({i}), scale, 0,
                                           Thresholding::clip(100))
                                       .x_0;
          CHECK(together.narrow(0, i, 1).sub(alone).abs().max().item<double>() < 1e-12);
        }
      }
    }
  }
}

TEST_CASE("the velocity of a diffusion schedule gives x_0, where alpha + sigma is not 1") {
  const at::Tensor picture = noise({1}, NoiseAddress::of_step(0), {2, 4, 4}, at::kDouble);
  const at::Tensor drawn = noise({2}, NoiseAddress::of_step(0), {2, 4, 4}, at::kDouble);
  const Network network([&](at::Tensor const&, at::Tensor const&) { return drawn.sub(picture); },
                        {.prediction_type = PredictionType::flow});
  const at::Tensor x_0 =
      denoise(network, weighted_sum(0.8, picture, 0.6, drawn), {500, {0.8, 0.6}}, {}, 1, 0, Thresholding::none()).x_0;
  CHECK(x_0.sub(picture).abs().max().item<double>() < 1e-14);
}

TEST_CASE("integer timesteps are the nearest, ties to even, for images at one point and at points of their own") {
  std::vector<std::int64_t> told;
  const Network network([&](at::Tensor const& x, at::Tensor const& t) {
    told.insert(told.end(), t.const_data_ptr<std::int64_t>(), t.const_data_ptr<std::int64_t>() + t.numel());
    return x;
  });
  const at::Tensor x = noise({1, 2, 3}, NoiseAddress::initial(), {1, 2, 2}, at::kFloat);
  const NoiseLevel level{0.8, 0.6};
  const std::vector<Timestep> points{{10.5, level}, {11.5, level}, {12.7, level}};
  denoise(network, x, points, {}, 1, 0, Thresholding::none());
  CHECK(told == std::vector<std::int64_t>{10, 12, 13});
  told.clear();
  for (Timestep const& point : points) denoise(network, x.narrow(0, 0, 1), point, {}, 1, 0, Thresholding::none());
  CHECK(told == std::vector<std::int64_t>{10, 12, 13});
}

TEST_CASE("what is no number in x is none in x_0, also of a network that leaves x out") {
  const Network network([](at::Tensor const& x, at::Tensor const&) { return x.new_zeros(x.sizes()).add_(0.25); },
                        {.prediction_type = PredictionType::sample});
  const at::Tensor x = noise({1}, NoiseAddress::initial(), {1, 2, 3}, at::kFloat);
  x.mutable_data_ptr<float>()[4] = INFINITY;
  const at::Tensor x_0 = denoise(network, x, {500, {0.8, 0.6}}, {}, 1, 0, Thresholding::none()).x_0;
  for (int i = 0; i < 6; ++i) {
    const float value = x_0.const_data_ptr<float>()[i];
    CHECK((i == 4 ? std::isnan(value) : value == 0.25f));
  }
}
