#include <tstitch/method/ddim.hpp>
#include <tstitch/method/heun.hpp>
#include <tstitch/model/split_network.hpp>
#include <tstitch/study/forecast_calibration.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "../catch.hpp"

using namespace tstitch;

namespace {

const NoiseSchedule noise_schedule = NoiseSchedule::linear();

/// What the blocks add at a timestep: a line with a kink, and a wave behind it.
double added(double t) {
  return std::abs(t - 600) / 300 + (t < 300 ? 0.2 * std::cos(t / 40) : 0);
}

/// A network of x_0.
/// @param of_x how much of x is in it; 0, so that errors are known
Network network(double of_x = 0) {
  SplitNetwork parts;
  parts.embed = [of_x](at::Tensor const& x, at::Tensor const& t, Condition const&) {
    return std::vector{x.mul(of_x), t};
  };
  parts.blocks = [](std::vector<at::Tensor> const& embedded) {
    const at::Tensor t = embedded[1].to(at::kDouble);
    const at::Tensor value = t.sub(600).abs().div(300).add(t.div(40).cos().mul(t.lt(300)), 0.2);
    return embedded[0].add(value.view({-1, 1, 1, 1}));
  };
  parts.head = [](std::vector<at::Tensor> const&, at::Tensor const& feature) { return feature.mul(0.5); };
  return Network(parts, {.name = "kinked",
                         .prediction_type = PredictionType::sample,
                         .timestep_type = TimestepType::float32,
                         .noise_schedule = noise_schedule});
}

Request request() {
  const at::Tensor x = noise({1, 2}, NoiseAddress::initial(), {1, 2, 2}, at::kFloat).to(at::kDouble);
  return {.count = 2, .initial_noise = x};
}

AnySampler sampler(int steps, double ratio, Forecast const& forecast = {}) {
  return AnySampler{noise_schedule, Stitch{ratio}, {.steps = steps, .forecast = forecast}, DDIMUpdate{}};
}

/// All tables that compute so many of the steps: order + 1 first ones, the last, and any others.
std::vector<ForecastTable> all_tables(ForecastErrors const& errors, int computed) {
  std::vector<ForecastTable> tables;
  const int all = int(errors.steps.size());
  for (unsigned bits = 0; bits < 1u << all; ++bits) {
    if (all - std::popcount(bits) != computed || (bits >> (all - 1)) & 1) continue;
    if (bits & ((1u << (errors.order + 1)) - 1)) continue;
    ForecastTable table{.forecast = std::vector<bool>(std::size_t(errors.count)),
                        .order = errors.order,
                        .first_network = errors.network};
    for (int k = 0; k < all; ++k) table.forecast[std::size_t(errors.steps[std::size_t(k)])] = (bits >> k) & 1;
    tables.push_back(table);
  }
  return tables;
}

}  // namespace

TEST_CASE("errors of forecasts are those of what is known") {
  const std::vector<Network> networks{network(), network()};
  for (const int order : {0, 1, 2}) {
    const AnySampler by = sampler(16, 0.25);
    const ForecastErrors found = measure_forecasts(by, networks, request(), 1, order);
    CHECK(found.steps.size() == 12);
    CHECK(found.count == 16);
    CHECK(found.longest == (order < 2 ? 3 : 2));
    CHECK(found.errors.size() > 20);
    for (auto const& [nodes, error] : found.errors) {
      std::vector<int> from;
      for (std::size_t i = 0; i + 1 < nodes.size(); ++i) from.push_back(found.steps[std::size_t(nodes[i])]);
      Step const& step = by.plan().steps[std::size_t(found.steps[std::size_t(nodes.back())])].step;
      double forecast = 0;
      for (ForecastTerm const& term : extrapolation(from, step.index)) {
        forecast += term.weight * added(by.plan().steps[std::size_t(term.step)].step.t);
      }
      const double effect = step.to.alpha - step.to.sigma / step.from.sigma * step.from.alpha;
      CHECK(error == Approx(0.5 * std::abs(forecast - added(step.t)) * effect).epsilon(1e-4).margin(1e-6));
    }
  }
}

TEST_CASE("what a difference grows to until the end is measured, and between it estimated") {
  const double of_x = 1.2;
  const std::vector<Network> networks{network(of_x), network(of_x)};
  for (const int order : {0, 1, 2}) {
    const AnySampler by = sampler(25, 0.2);
    const ForecastErrors found = measure_forecasts(by, networks, request(), 1, order);
    REQUIRE(found.growth.size() == 20);
    const Plan plan = by.plan();
    // Of x_0 = of_x / 2 x + f(t) a step of DDIM is linear in x.
    std::vector<double> exact(20, 1);
    for (std::size_t k = 19; k-- > 0;) {
      Step const& step = plan.steps[std::size_t(found.steps[k + 1])].step;
      const double shrunk = step.to.sigma / step.from.sigma;
      exact[k] = exact[k + 1] * std::abs(shrunk + (step.to.alpha - shrunk * step.from.alpha) * of_x / 2);
    }
    int measured = 0;
    for (std::size_t k = std::size_t(order) + 1; k < 19; ++k) {
      std::vector<int> nodes;
      for (int node = int(k) - order - 1; node <= int(k); ++node) nodes.push_back(node);
      CHECK(found.effect(nodes) == Approx(found.errors.at(nodes) * found.growth[k]));
      measured += std::abs(found.growth[k] / exact[k] - 1) < 1e-3;
      CHECK(found.growth[k] == Approx(exact[k]).epsilon(0.3));
    }
    CHECK(measured >= 7);
    CHECK(std::isinf(found.effect({0, 19})));
  }
}

TEST_CASE("the best table is the best of all") {
  const std::vector<Network> networks{network(), network()};
  for (const int order : {0, 1, 2}) {
    const ForecastErrors found = measure_forecasts(sampler(12, 0.1), networks, request(), 1, order);
    for (const int computed : {6, 8, 11}) {
      const ForecastTable best = found.best(computed);
      double least = 1e300;
      for (ForecastTable const& table : all_tables(found, computed)) least = std::min(least, found.sum(table));
      CHECK(std::isfinite(least));
      CHECK(found.sum(best) == Approx(least).margin(1e-12));
      // The run does what the table says.
      const Plan plan = sampler(12, 0.1, best).plan();
      CHECK(plan.work(2)[1].computed == computed);
      CHECK(plan.work(2)[0].forecast == 0);
    }
  }
}

TEST_CASE("what is forecast by the best table is nearer than by the rule of every second step") {
  const std::vector<Network> networks{network(0.6), network(0.6)};
  const at::Tensor exact = sampler(40, 0.25).sample(networks, request()).images;
  const ForecastErrors found = measure_forecasts(sampler(40, 0.25), networks, request(), 1, 1);
  const auto error = [&](Forecast const& forecast) {
    return sampler(40, 0.25, forecast)
        .sample(networks, request())
        .images.sub(exact)
        .square()
        .mean()
        .sqrt()
        .item<double>();
  };
  for (const int every : {2, 3}) {
    const ForecastEvery rule{.every = every, .first_network = 1};
    const int computed = sampler(40, 0.25, rule).plan().work(2)[1].computed;
    CHECK(error(found.best(computed)) < error(rule));
  }
}

TEST_CASE("a rule whose last step has fewer evaluations is measured as far as its forecasts go") {
  const std::vector<Network> networks{network(0.6), network(0.6)};
  const AnySampler heun{noise_schedule, Stitch{0.25}, {.steps = 16}, HeunUpdate{}};
  const ForecastErrors found = measure_forecasts(heun, networks, request(), 1);
  const ForecastTable best = found.best(8);
  CHECK(std::isfinite(found.sum(best)));
  CHECK(AnySampler{noise_schedule, Stitch{0.25}, {.steps = 16, .forecast = best}, HeunUpdate{}}
            .plan()
            .work(2)[1]
            .forecast > 0);
}

TEST_CASE("calibration refuses with place, rule and value") {
  const std::vector<Network> networks{network(), network()};
  const auto message = [&](auto action) { return message_of<std::invalid_argument>(action); };
  CHECK(message([&] { measure_forecasts(sampler(8, 0.5), networks, request(), 1, 3); }) ==
        "tstitch::measure_forecasts: order must be in [0, 2], got 3");
  CHECK(message([&] { measure_forecasts(sampler(8, 0.5), networks, request(), 2); }) ==
        "tstitch::measure_forecasts: network must be one of 2, got 2");
  CHECK(message([&] { measure_forecasts(sampler(8, 0), networks, request(), 0); }) ==
        "tstitch::measure_forecasts: the network must have steps, got none of network 0");
  const AnySampler turns{
      noise_schedule, [](Step const& step) { return std::size_t(step.index % 2); }, {.steps = 8}, DDIMUpdate{}};
  CHECK(message([&] { measure_forecasts(turns, networks, request(), 1); }) ==
        "tstitch::measure_forecasts: the network must take its steps in one row, got step 3 after 1");
  const ForecastErrors found = measure_forecasts(sampler(24, 0.5), networks, request(), 1);
  CHECK(message([&] { found.best(1); }) == "tstitch::ForecastErrors::best: computed must be in [2, 12], got 1");
  CHECK(message([&] { found.best(13); }) == "tstitch::ForecastErrors::best: computed must be in [2, 12], got 13");
  CHECK(message([&] { found.best(4); }) ==
        "tstitch::ForecastErrors::best: computed must be enough for 12 steps of which at most 3 in a row are forecast, "
        "got 4");
  CHECK(found.best(5).forecast.size() == 24);
}
