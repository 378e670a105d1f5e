// Classes between two classes: what a network makes of them is between what it makes of the two.

#include <tstitch/method/ddim.hpp>
#include <tstitch/model/class_mixture.hpp>
#include <tstitch/model/split_network.hpp>
#include <tstitch/plan/model_schedule.hpp>

#include <ATen/ops/cat.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "../catch.hpp"

using namespace tstitch;

namespace {

constexpr double noise_of_class[]{0.3, -0.7, 1.1, 0.2};  // of classes 0 to 2, and of none
const NetworkInfo info{.name = "three",
                       .channels = 2,
                       .height = 3,
                       .width = 3,
                       .num_classes = 3,
                       .null_class = 3,
                       .class_names = {"cat", "dog", "ship"}};
const std::vector<ClassMixture> mixtures{{0, 1, 0.25}, {0, 1, 0.75}, {1, 2, 0.5}, {2, 0, 0}, {2, 0, 1}};

/// [n, 1, 1, 1] noise of each row's class.
at::Tensor noise_of(at::Tensor const& labels) {
  at::Tensor all = at::zeros({4});
  for (int i = 0; i < 4; ++i) all.mutable_data_ptr<float>()[i] = float(noise_of_class[i]);
  return all.index_select(0, labels).reshape({-1, 1, 1, 1});
}

/// Predicts the noise of the class whatever x is; keeps how many rows it was asked for.
struct Constant {
  std::shared_ptr<std::vector<std::int64_t>> asked = std::make_shared<std::vector<std::int64_t>>();
  at::Tensor operator()(at::Tensor const& x, at::Tensor const&, Condition const& condition) const {
    asked->push_back(x.size(0));
    CHECK(std::int64_t(condition.host_labels.size()) == x.size(0));
    return at::zeros_like(x).add(noise_of(condition.labels));
  }
};

/// DDIM keeps the x_0 of its first step where the noise is always the same: (x - sigma noise) / alpha there.
double predicted(double x, NoiseLevel level, double conditional, double scale) {
  const double null = noise_of_class[3];
  return (x - level.sigma * (null + scale * (conditional - null))) / level.alpha;
}

double noise_between(std::int64_t label) {
  if (label < 3) return noise_of_class[label];
  ClassMixture const& m = mixtures.at(std::size_t(label - 4));
  return (1 - m.share) * noise_of_class[m.first] + m.share * noise_of_class[m.second];
}

}  // namespace

TEST_CASE("pictures of classes between two are those of noise between theirs, however they are drawn") {
  const NoiseSchedule schedule = NoiseSchedule::linear();
  const Network network = ClassMixtures(Network(Constant{}, info), mixtures).network();
  CHECK(ClassMixtures::first_label(info) == 4);
  CHECK(network.info().num_classes == 9);
  CHECK(network.info().class_names[4] == "cat to dog, 0.25");
  const std::vector<std::int64_t> labels{4, 0, 6, 1, 5, 7, 8, 2};
  for (const double scale : {1.0, 2.5, 0.0}) {
    for (const std::int64_t batch : {0, 1, 3}) {
      for (const bool pads : {false, true}) {
        if (pads && batch == 0) continue;
        for (const bool two : {false, true}) {
          const std::vector<Network> networks(two ? 2 : 1, network);
          const auto sampler = DDIM{schedule, Stitch{.ratio = two ? 0.5 : 1.0}, {.steps = 4}};
          const Request request{
              .labels = labels, .seed = 7, .guidance = {.scale = scale}, .batch_size = batch, .pad_batches = pads};
          const at::Tensor x_0 = sampler.sample(networks, request).images;
          const NoiseLevel level = sampler.begin(networks, request).level;
          for (std::size_t i = 0; i < labels.size(); ++i) {
            const at::Tensor x = noise({7 + i}, NoiseAddress::initial(), {2, 3, 3}, at::kFloat);
            const double expected = predicted(x.data_ptr<float>()[5], level, noise_between(labels[i]), scale);
            CHECK(x_0[std::int64_t(i)].flatten()[5].item<double>() == Approx(expected).epsilon(1e-4).margin(1e-4));
          }
        }
      }
    }
  }
}

TEST_CASE("other rows keep their bits, and only rows between two classes cost another evaluation") {
  const auto asked = std::make_shared<std::vector<std::int64_t>>();
  const Network plain(Constant{asked}, info), mixed = ClassMixtures(plain, mixtures).network();
  const DDIM sampler{NoiseSchedule::linear(), SingleNetwork{}, {.steps = 2}};
  const auto draw = [&](Network const& network, std::vector<std::int64_t> labels, double scale) {
    asked->clear();
    return sampler.sample({network}, {.labels = std::move(labels), .seed = 3, .guidance = {.scale = scale}}).images;
  };
  const at::Tensor ends = draw(plain, {0, 2, 1}, 2);
  CHECK(draw(mixed, {0, 2, 1}, 2).equal(ends));
  CHECK(*asked == std::vector<std::int64_t>{6, 6});
  const at::Tensor between = draw(mixed, {0, 4, 1}, 2);
  CHECK(*asked == std::vector<std::int64_t>{6, 1, 6, 1});  // the half without the class is asked for once
  CHECK(between[0].equal(ends[0]));
  CHECK(between[2].equal(ends[2]));
  CHECK(draw(mixed, {7, 8, 1}, 1)[0].equal(draw(plain, {2, 0, 1}, 1)[0]));
  CHECK(draw(mixed, {7, 8, 1}, 1)[1].equal(draw(plain, {2, 0, 1}, 1)[1]));
}

TEST_CASE("each of the two evaluations is forecast from its own") {
  // Blocks add the class's noise, the same at all steps, so that forecasts are exact.
  SplitNetwork parts;
  parts.embed = [](at::Tensor const& x, at::Tensor const&, Condition const& condition) {
    return std::vector<at::Tensor>{at::zeros_like(x), condition.labels};
  };
  int computed = 0;
  parts.blocks = [&](std::vector<at::Tensor> const& embedded) {
    ++computed;
    return embedded[0].add(noise_of(embedded[1]));
  };
  parts.head = [](std::vector<at::Tensor> const&, at::Tensor const& feature) { return feature; };
  const Network network = ClassMixtures(Network(parts, info), mixtures).network();
  CHECK(network.forecasts());
  const Request request{.labels = {4, 6, 1}, .seed = 3, .guidance = {.scale = 3.0}};
  const auto draw = [&](Forecast const& forecast) {
    computed = 0;
    SamplingOptions options{.steps = 8};
    options.forecast = forecast;
    return DDIM{NoiseSchedule::linear(), SingleNetwork{}, options}.sample({network}, request).images;
  };
  const at::Tensor expected = draw({});
  CHECK(computed == 16);
  const at::Tensor forecast = draw(ForecastEvery{.every = 3, .order = 1, .warm_up = 2});
  CHECK(computed < 12);
  CHECK(forecast.sub(expected).abs().max().item<double>() < 1e-4);
}

TEST_CASE("both classes are prepared, labels on the device alone are read, and halves of x come twice") {
  struct Told {
    std::shared_ptr<std::vector<std::int64_t>> prepared;
    bool repeats_x = true;
    at::Tensor operator()(at::Tensor const& x, at::Tensor const&, Condition const& condition) const {
      const at::Tensor all = x.size(0) < condition.labels.size(0) ? at::cat({x, x}) : x;
      return all.add(noise_of(condition.labels));
    }
    void prepare(std::span<const double>, Condition const& condition) const { *prepared = condition.host_labels; }
  };
  const auto prepared = std::make_shared<std::vector<std::int64_t>>();
  const Network plain(Told{prepared}, info), mixed = ClassMixtures(plain, mixtures).network();
  const at::Tensor x = noise({1, 2}, NoiseAddress::initial(), {2, 3, 3}, at::kFloat), t = at::zeros({4});
  Condition condition{.labels = at::zeros({4}, at::kLong)};
  std::copy_n(std::vector<std::int64_t>{4, 1, 3, 3}.begin(), 4, condition.labels.mutable_data_ptr<std::int64_t>());
  const at::Tensor made = mixed(x, t, condition);
  REQUIRE(made.size(0) == 4);
  for (std::int64_t row = 0; row < 4; ++row) {
    const double expected = row == 0 ? noise_between(4) : noise_of_class[row == 1 ? 1 : 3];
    CHECK(made[row].sub(x[row % 2]).sub(expected).abs().max().item<double>() < 1e-6);
  }
  condition.host_labels = {4, 1, 3, 3};
  mixed.prepare(std::vector<double>{5}, condition);
  CHECK(*prepared == std::vector<std::int64_t>{0, 1, 1, 3, 3});
  const Network captured = mixed.captured([](TensorFunction function) { return function; });
  CHECK(captured(x, t, condition).equal(made));
}

TEST_CASE("mixtures of what is not there are refused") {
  const Network network(Constant{}, info), without(Constant{}, {.name = "none"});
  const auto refusal = [](Network const& of, ClassMixture mixture) {
    try {
      ClassMixtures(of, {mixture});
    } catch (std::invalid_argument const& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  CHECK(refusal(without, {0, 0, 0}) == "tstitch::ClassMixtures of 'none': the network must have classes, got 0");
  CHECK(refusal(network, {0, 3, 0.5}) == "tstitch::ClassMixtures of 'three': classes must be in [0, 2], got 3");
  CHECK(refusal(network, {-1, 0, 0.5}) == "tstitch::ClassMixtures of 'three': classes must be in [0, 2], got -1");
  CHECK(refusal(network, {0, 1, 1.5}) == "tstitch::ClassMixtures of 'three': share must be in [0, 1], got 1.5");
  CHECK_FALSE(refusal(network, {0, 1, std::nan("")}).empty());
  CHECK(refusal(network, {0, 1, 0.5}).empty());
}
