#include <tstitch/plan/plan.hpp>

#include <vector>

#include "../catch.hpp"

using namespace tstitch;

namespace {

const NoiseSchedule noise = NoiseSchedule::linear();

Step step_of(int index, int count) {
  return {index, count, 999.0 - index, noise.at(999.0 - index), noise.at(998.0 - index)};
}

/// What a run of `steps` steps is, of which network 0 takes the share `ratio`.
struct Run {
  int steps;
  double ratio;
  Forecast forecast = {};
  Guidance guidance = {.scale = 1.5};
};

/// The work of network 1.
NetworkWork work(Run const& run) {
  Plan plan = detail::make_plan(noise, run.steps, Spacing::linspace(), FinalSigma::zero, Stitch{run.ratio},
                                run.guidance, PreviousTimestep::in_plan);
  detail::add_forecasts(plan, run.forecast, run.guidance.forecast);
  return plan.work(2)[1];
}

Forecast every(int number, int order = 1, int warm_up = 3) {
  return ForecastEvery{.every = number, .order = order, .warm_up = warm_up, .first_network = 1};
}

Guidance guidance_every(int number) {
  return {.scale = 1.5, .forecast = ForecastEvery{.every = number, .warm_up = 2}};
}

}  // namespace

TEST_CASE("extrapolation goes through polynomials up to its order") {
  for (const auto& nodes : std::vector<std::vector<int>>{{4}, {4, 5}, {2, 5}, {1, 2, 4}, {9, 7, 6, 3}}) {
    for (const int at : {0, 6, 8, 11}) {
      for (std::size_t degree = 0; degree < nodes.size(); ++degree) {
        const auto value = [&](int x) { return std::pow(x - 1.5, double(degree)) + 3; };
        double sum = 0;
        for (ForecastTerm const& term : extrapolation(nodes, at)) sum += term.weight * value(term.step);
        CHECK(sum == Approx(value(at)).epsilon(1e-12));
      }
    }
  }
  CHECK(extrapolation(std::vector{1, 3}, 4)[0].weight == -0.5);
  CHECK(extrapolation(std::vector{1, 3}, 4)[1].weight == 1.5);
}

TEST_CASE("computed steps and rows are those of the trial that chose the rule") {
  // Steps, ratio, every, order, warm-up, and how many steps of network 1 are computed.
  CHECK(work({50, 0, every(2)}).computed == 27);
  CHECK(work({50, 0, every(3)}).computed == 19);
  CHECK(work({50, 0.4, every(2)}).computed == 17);
  CHECK(work({50, 0.4, every(3)}).computed == 12);
  CHECK(work({50, 0.4, every(4)}).computed == 10);
  CHECK(work({50, 0.4, every(5)}).computed == 9);
  CHECK(work({100, 0.4, every(2)}).computed == 32);
  CHECK(work({30, 0, every(2, 2)}).computed == 17);
  CHECK(work({30, 0, every(2, 1, 2)}).computed == 16);
  // Rows: guidance alone, and both together.
  CHECK(work({20, 0.4, {}, guidance_every(2)}).rows == 19);
  CHECK(work({20, 0.4, {}, guidance_every(3)}).rows == 18);
  CHECK(work({30, 0.4, {}, guidance_every(2)}).rows == 28);
  CHECK(work({100, 0.4, every(2), guidance_every(2)}).rows == 49);
  CHECK(work({50, 0.4, every(2), guidance_every(2)}).rows == 27);
  CHECK(work({30, 0.4, every(2, 2), guidance_every(2)}).rows == 18);
  CHECK(work({20, 0.4, every(2, 2), guidance_every(2)}).rows == 13);
  CHECK(work({50, 0.4, every(1), guidance_every(1)}).rows == 60);
}

TEST_CASE("forecasts begin anew with another network, and guidance after steps without") {
  // Networks 0 and 1 take turns of four steps.
  const auto turns = [](Step const& step) { return std::size_t(step.index / 4 % 2); };
  Plan plan = make_plan(noise, 16, Spacing::linspace(), FinalSigma::zero, turns);
  detail::add_forecasts(plan, ForecastEvery{.warm_up = 0}, {});
  for (PlannedStep const& planned : plan.steps) {
    // Two nodes are needed for a line; then every second one.
    CHECK(planned.forecast.network == (planned.step.index % 4 == 2));
  }
  const Plan guided =
      make_plan(noise, 12, Spacing::linspace(), FinalSigma::zero, SingleNetwork{},
                {.scale = 2, .begin = 0.25, .end = 0.75, .forecast = [](Step const&, std::size_t) { return true; }});
  for (PlannedStep const& planned : guided.steps) {
    CHECK(planned.forecast.guidance == (planned.step.index >= 5 && planned.step.index < 9));
  }
  CHECK(guided.work()[0].rows == 12 + 2);
}

TEST_CASE("a half that was not computed is not extrapolated from") {
  ForecastHistory history;
  const Forecast always([](Step const&, std::size_t) { return true; });
  const Forecast third([](Step const& step, std::size_t) { return step.index == 2; });
  const auto take = [&](int index, Forecast const& forecast, Forecast const& of_guidance) {
    const Step step = step_of(index, 10);
    return history.next({step, 0, 1, GuidedBy::null_half, false}, forecast, of_guidance);
  };
  const Forecast never([](Step const&, std::size_t) { return false; });
  take(0, never, never);
  take(1, never, never);
  CHECK(take(2, never, third).guidance);  // the half with the condition alone
  const StepForecast both = take(3, always, never);
  REQUIRE(both.network);
  CHECK_FALSE(both.guidance);
  CHECK(both.conditional[0].step == 1);
  CHECK(both.conditional[1].step == 2);
  CHECK(both.unconditional[0].step == 0);
  CHECK(both.unconditional[1].step == 1);
  CHECK(both.unconditional[1].weight == 3);  // of the line through 0 and 1, at 3
  const StepForecast again = take(4, always, always);
  CHECK(again.network);
  CHECK(again.guidance);  // it has differences, and needs no half
  CHECK(again.unconditional.empty());
  CHECK(again.difference[1].step == 1);
}

TEST_CASE("rules that evaluate more or less often begin anew") {
  ForecastHistory history;
  const Forecast always([](Step const&, std::size_t) { return true; });
  std::vector<bool> forecast;
  const std::vector<int> evaluations{2, 2, 2, 2, 1, 1, 1, 1};
  for (int i = 0; i < 8; ++i) {
    const Step step = step_of(i, 8);
    forecast.push_back(
        history.next({step, 0, evaluations[std::size_t(i)], GuidedBy::nothing, i == 7}, always, {}).network);
  }
  CHECK(forecast == std::vector<bool>{false, false, true, true, false, false, true, true});
}

TEST_CASE("what is long ago foretells nothing: forecasts begin anew after steps without, and with another rule") {
  ForecastHistory history;
  const Forecast always([](Step const&, std::size_t) { return true; });
  const auto take = [&](int index, Forecast const& forecast, std::uint64_t rule = 0) {
    const Step step = step_of(index, 20);
    return history.next({step, 0, 1, GuidedBy::null_half, false, rule}, forecast, {}).network;
  };
  for (int i = 0; i < 4; ++i) CHECK(take(i, always) == (i >= 2));
  for (int i = 4; i < 8; ++i) CHECK_FALSE(take(i, {}));
  for (int i = 8; i < 12; ++i) CHECK(take(i, always) == (i >= 10));
  for (int i = 12; i < 16; ++i) CHECK(take(i, always, 7) == (i >= 14));
}

TEST_CASE("the schedule of guidance is asked in steps whose network is forecast, too") {
  // Every second step of the network is forecast, from step 2 on.
  const auto forecast_guidance = [](Forecast const& of_guidance) {
    Plan plan = make_plan(noise, 9, Spacing::linspace(), FinalSigma::zero, SingleNetwork{}, {.scale = 2});
    detail::add_forecasts(plan, ForecastEvery{.warm_up = 2, .last = false}, of_guidance);
    std::string found;
    for (PlannedStep const& planned : plan.steps) {
      found += planned.forecast.network ? planned.forecast.guidance ? 'b' : 'n' : planned.forecast.guidance ? 'g' : '-';
    }
    return found;
  };
  CHECK(forecast_guidance({}) == "--n-n-n-n");
  CHECK(forecast_guidance(ForecastEvery{.every = 1}) == "--n-n-n-n");
  CHECK(forecast_guidance(ForecastEvery{.every = 2, .warm_up = 2, .last = false}) == "--bgb-bgb");
  CHECK(forecast_guidance(ForecastEvery{.every = 2, .warm_up = 2}) == "--bgb-bgn");
  CHECK(forecast_guidance(ForecastTable{{0, 0, 1, 0, 0, 1, 0, 0, 0}}) == "--b-ngn-n");
}

TEST_CASE("a plan shows what is forecast") {
  Plan plan = make_plan(noise, 6, Spacing::linspace(), FinalSigma::zero, Stitch{0.5},
                        {.scale = 2, .forecast = ForecastTable{{0, 0, 0, 0, 0, 1}, 0}});
  CHECK_THAT(to_string(plan), ContainsSubstring("network  forecast  guidance\n") &&
                                  ContainsSubstring("        0         -         2\n") &&
                                  ContainsSubstring("        1  guidance         2\n") &&
                                  ContainsSubstring("evaluations: network 0 takes 3 (6 rows an image), network 1 takes "
                                                    "3 (5 rows an image)\n"));
  const std::uint64_t without =
      fingerprint(make_plan(noise, 6, Spacing::linspace(), FinalSigma::zero, Stitch{0.5}, {.scale = 2}));
  CHECK(fingerprint(plan) != without);
  CHECK(timesteps_fingerprint(plan) ==
        timesteps_fingerprint(make_plan(noise, 6, Spacing::linspace(), FinalSigma::zero, Stitch{0.5})));
  detail::add_forecasts(plan, ForecastTable{{0, 1, 0, 0, 1, 0}, 0}, {});
  CHECK_THAT(to_string(plan), ContainsSubstring("        0   network         2\n") &&
                                  ContainsSubstring("network 0 takes 2 (4 rows an image) and forecasts 1, network 1 "
                                                    "takes 2 (4 rows an image) and forecasts 1\n"));
  detail::add_forecasts(plan, ForecastTable{{0, 1, 0, 0, 1, 0}, 0}, ForecastTable{{0, 0, 0, 0, 1, 1}, 0});
  CHECK_THAT(to_string(plan), ContainsSubstring("        1      both         2\n"));
}

TEST_CASE("forecast schedules refuse with place, rule and value") {
  const auto message = [](Forecast const& forecast) {
    return message_of<std::invalid_argument>([&] {
      Plan plan = make_plan(noise, 4, Spacing::linspace(), FinalSigma::zero, SingleNetwork{});
      detail::add_forecasts(plan, forecast, {});
    });
  };
  const auto refused = [](ForecastEvery const& every) {
    return message_of<std::invalid_argument>([&] { Forecast{every}; });
  };
  CHECK(refused({.every = 0}) == "tstitch::ForecastEvery: every must be at least 1, got 0");
  CHECK(refused({.warm_up = -1}) == "tstitch::ForecastEvery: warm_up must not be negative, got -1");
  CHECK(message(ForecastTable{{true, false}}) ==
        "tstitch::ForecastTable: forecast must have one value for each of the 4 steps, got 2");
  CHECK(refused({.order = 9}) == "tstitch::ForecastEvery: order must be in [0, 8], got 9");
  CHECK(message_of<std::invalid_argument>([] {
          Forecast{ForecastTable{{}, -1}};
        }) == "tstitch::Forecast: order must be in [0, 8], got -1");
  CHECK(message_of<std::invalid_argument>([] { Forecast(std::function<bool(Step const&, std::size_t)>()); }) ==
        "tstitch::Forecast: must be given something to call, got an empty function");
}
