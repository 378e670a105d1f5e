#include <tstitch/peer/reference_routing.hpp>
#include <tstitch/plan/baseline_schedules.hpp>
#include <tstitch/plan/plan.hpp>

#include "../catch.hpp"

using namespace tstitch;

namespace {

const NoiseSchedule noise = NoiseSchedule::linear();

/// How many steps go to network 0.
template <class Schedule>
int first_calls(Schedule const& schedule, int steps, Spacing const& spacing = Spacing::linspace()) {
  return make_plan(noise, steps, spacing, FinalSigma::zero, schedule).calls().at(0);
}

std::vector<Spacing> every_spacing() {
  return {Spacing::leading(),        Spacing::leading(0, {.include_last = false}),
          Spacing::linspace(),       Spacing::linspace({.include_last = false}),
          Spacing::trailing(),       Spacing::sections(),
          Spacing::uniform_logsnr(), Spacing::karras()};
}

}  // namespace

TEST_CASE("Stitch gives exactly round(ratio x steps) steps to network 0, ties to even, under every spacing") {
  for (Spacing const& spacing : every_spacing()) {
    for (int steps : {50, 100}) {
      for (int twentieth = 0; twentieth <= 20; ++twentieth) {
        // Exact in integers: steps x twentieth / 20.
        const int product = steps * twentieth, quotient = product / 20, rest = product % 20;
        const int expected = rest < 10 ? quotient : rest > 10 ? quotient + 1 : quotient + quotient % 2;
        INFO(spacing.name() << ", " << steps << " steps, ratio " << twentieth << "/20");
        CHECK(first_calls(Stitch{twentieth / 20.0}, steps, spacing) == expected);
        CHECK(first_calls(Stitch{twentieth * 0.05}, steps, spacing) == expected);
        CHECK(first_calls(Stitch{1 - (20 - twentieth) / 20.0}, steps, spacing) == expected);
      }
    }
  }
}

TEST_CASE("Stitch agrees with the half-even column of the table of routing rules") {
  CHECK(first_calls(Stitch{0.05}, 50) == 2);
  CHECK(first_calls(Stitch{0.25}, 50) == 12);
  CHECK(first_calls(Stitch{0.33}, 50) == 16);
  CHECK(first_calls(Stitch{0.55}, 50) == 28);
  CHECK(first_calls(Stitch{0.7}, 50) == 35);
  CHECK(first_calls(Stitch{0.15}, 25) == 4);
  CHECK(first_calls(Stitch{0.33}, 30) == 10);
  CHECK(first_calls(Stitch{0.95}, 100) == 95);
}

TEST_CASE("Stitch takes the noisy end first") {
  const Plan plan = make_plan(noise, 10, Spacing::linspace(), FinalSigma::zero, Stitch{0.4});
  std::vector<std::size_t> networks;
  for (PlannedStep const& planned : plan.steps) networks.push_back(planned.network);
  CHECK(networks == std::vector<std::size_t>{0, 0, 0, 0, 1, 1, 1, 1, 1, 1});
  CHECK(plan.steps.front().step.t > plan.steps.back().step.t);
}

TEST_CASE("Fractions split between any number of networks and agree with Stitch for two") {
  CHECK(make_plan(noise, 10, Spacing::linspace(), FinalSigma::zero, Fractions{{0.4, 0.4, 0.2}}).calls() ==
        std::vector<int>{4, 4, 2});
  CHECK(make_plan(noise, 10, Spacing::linspace(), FinalSigma::zero, Stitch{1}).calls(3) == std::vector<int>{10, 0, 0});
  // The sum of three tenths in binary is not 0.3; no step is lost, none counted twice.
  CHECK(make_plan(noise, 100, Spacing::linspace(), FinalSigma::zero, Fractions{{0.1, 0.2, 0.3, 0.4}}).calls() ==
        std::vector<int>{10, 20, 30, 40});
  CHECK(make_plan(noise, 10, Spacing::linspace(), FinalSigma::zero, Fractions{{0, 1, 0}}).calls() ==
        std::vector<int>{0, 10});
  for (int percent = 0; percent <= 100; ++percent) {
    const double ratio = percent / 100.0;
    CHECK(make_plan(noise, 50, Spacing::linspace(), FinalSigma::zero, Fractions{{ratio, 1 - ratio}}).calls() ==
          make_plan(noise, 50, Spacing::linspace(), FinalSigma::zero, Stitch{ratio}).calls());
  }
}

TEST_CASE("ByTimestep compares integers, so that its steps do not move with binary fractions") {
  // T-Stitch's DiT rule, t >= T - round(ratio T). With doubles, 1 - 0.7 > 300 / 1000 loses a step under "leading".
  CHECK(first_calls(ByTimestep{{300}}, 50, Spacing::leading()) == 35);
  CHECK(first_calls(ByTimestep{{300}}, 100, Spacing::leading()) == 70);
  // On the list of diffusers' multistep linspace, ratio 0.1 to 0.9. The peer's doubles give 35 where this says 36.
  const std::vector<int> expected{5, 10, 15, 20, 26, 31, 36, 41, 46};
  for (int k = 1; k <= 9; ++k) {
    CHECK(first_calls(ByTimestep{{1000 - 100 * k}}, 50, Spacing::linspace({.include_last = false})) ==
          expected[std::size_t(k - 1)]);
  }
  CHECK(make_plan(noise, 10, Spacing::linspace(), FinalSigma::zero, ByTimestep{{700, 300}}).calls() ==
        std::vector<int>{3, 4, 3});
}

TEST_CASE("ByTimestep compares fractions as they are") {
  const auto network = [](double t) { return ByTimestep{{600}}(Step{0, 10, t, noise.at(t), noise.at(0)}); };
  CHECK(network(600) == 0);
  CHECK(network(599.999) == 1);
  CHECK(network(599.6) == 1);
}

TEST_CASE("the rules of T-Stitch's own DiT code, which Stitch's are not") {
  CHECK(first_calls(Stitch{0.5}, 25) == 12);
  CHECK(first_calls(routing::DiT{0.5}, 25, Spacing::sections()) == 13);
  const auto network = [](std::vector<double> fractions, double t) {
    return routing::DiTFractions{std::move(fractions)}(Step{0, 250, t, noise.at(t), noise.at(0)});
  };
  // Float32 holds 0.7 and 0.2 as 0.699999988 and 0.200000003; their sum in double rounds up to 0.9 as float32 has it.
  CHECK(make_plan(noise, 50, Spacing::sections(), FinalSigma::zero, routing::DiTFractions{{0.15, 0.65, 0.2}})
            .steps.back()
            .network == 2);
  CHECK(network({0.15, 0.65, 0.2}, 0) == 2);
  CHECK(make_plan(noise, 250, Spacing::sections(), FinalSigma::zero, routing::DiTFractions{{0.2, 0.7, 0.1}})
            .steps[224]
            .network == 1);
}

TEST_CASE("ByLogSnr routes by 2 lambda") {
  const Plan plan = make_plan(noise, 40, Spacing::karras(), FinalSigma::zero, ByLogSnr{{-4, 2}});
  for (PlannedStep const& planned : plan.steps) {
    const double log_snr = 2 * planned.step.from.lambda();
    CHECK(planned.evaluations == 1);
    CHECK(planned.network == (log_snr < -4 ? 0u : log_snr < 2 ? 1u : 2u));
  }
}

TEST_CASE("a table, a lambda and a single network are model schedules") {
  CHECK(make_plan(noise, 4, Spacing::linspace(), FinalSigma::zero, Table{{1, 0, 1, 0}}).calls() ==
        std::vector<int>{2, 2});
  CHECK(make_plan(noise, 4, Spacing::linspace(), FinalSigma::zero, SingleNetwork{}).calls() == std::vector<int>{4});
  const auto last_only = [](Step const& step) -> std::size_t { return step.index + 1 == step.count ? 1 : 0; };
  CHECK(make_plan(noise, 4, Spacing::linspace(), FinalSigma::zero, last_only).calls() == std::vector<int>{3, 1});
  STATIC_REQUIRE(ModelSchedule<AnyModelSchedule>);
  STATIC_REQUIRE_FALSE(ModelSchedule<int>);
  STATIC_REQUIRE_FALSE(ModelSchedule<double (*)(Step const&)>);
  STATIC_REQUIRE_FALSE(ModelSchedule<std::size_t (*)(int)>);
}

TEST_CASE("model schedules refuse with place, rule and value") {
  const auto message = [](auto const& schedule) {
    return message_of<std::invalid_argument>(
        [&] { make_plan(noise, 10, Spacing::linspace(), FinalSigma::zero, schedule); });
  };
  CHECK(message(Stitch{-0.1}) == "tstitch::Stitch: ratio must be in [0, 1], got -0.1");
  CHECK(message(Stitch{1.4}) == "tstitch::Stitch: ratio must be in [0, 1], got 1.4");
  CHECK(message(Stitch{NAN}) == "tstitch::Stitch: ratio must be in [0, 1], got nan");
  CHECK(message(Fractions{{0.5, 0.4}}) == "tstitch::Fractions: fractions must add up to 1, got 0.9");
  CHECK(message(Fractions{{1.5, -0.5}}) == "tstitch::Fractions: each fraction must be in [0, 1], got 1.5");
  for (const double value : {double(NAN), double(INFINITY), -double(INFINITY), 1e308, -1e-9}) {
    const std::string got = ", got " + tstitch::detail::text(value);
    CHECK(message(Stitch{value}) == "tstitch::Stitch: ratio must be in [0, 1]" + got);
    CHECK(message(Fractions{{value, 1}}) == "tstitch::Fractions: each fraction must be in [0, 1]" + got);
    CHECK(message(Fractions{{1, value}}) == "tstitch::Fractions: each fraction must be in [0, 1]" + got);
    CHECK(message(routing::DiTFractions{{1, value}}) ==
          "tstitch::routing::DiTFractions: each fraction must be in [0, 1]" + got);
    CHECK(message(routing::DiT{value}) == "tstitch::routing::DiT: ratio must be in [0, 1]" + got);
    CHECK(message(routing::LatentDiffusion{value}) ==
          "tstitch::routing::LatentDiffusion: ratio must be in [0, 1]" + got);
  }
  CHECK(message(routing::DiT{0.5, 0}) == "tstitch::routing::DiT: num_train_timesteps must be at least 1, got 0");
  CHECK(message(Fractions{{}}) == "tstitch::Fractions: fractions must add up to 1, got 0");
  CHECK(message(Table{{0, 1}}) == "tstitch::Table: one entry for each of the 10 steps is needed, got 2");
  CHECK(message(ByTimestep{{300, 700}}) ==
        "tstitch::ByTimestep: boundaries must be strictly decreasing, got 700 after 300");
  CHECK(message(ByLogSnr{{NAN}}) ==
        "tstitch::ByLogSnr: boundaries must be strictly increasing numbers, got nan at position 0");
  CHECK(message([](Step const&) { return -1; }) ==
        "tstitch::Plan: the model schedule must return the index of a network at step 0, got -1");
}

TEST_CASE("the baselines give the small network its share, elsewhere") {
  const auto route = [](AnyModelSchedule const& schedule, int steps) {
    std::string taken;
    for (PlannedStep const& planned :
         make_plan(NoiseSchedule::linear(), steps, Spacing::linspace(), FinalSigma::zero, schedule).steps) {
      taken += char('0' + planned.network);
    }
    return taken;
  };
  CHECK(route(LargeFirst{0.3}, 10) == "1111111000");
  CHECK(route(BothEnds{0.3}, 10) == "0011111110");
  CHECK(route(BothEnds{0.4}, 5) == "01110");
  CHECK(route(Interleaved{0.5}, 10) == "0101010101");
  CHECK(route(Interleaved{0.2}, 10) == "0111101111");
  CHECK(route(Interleaved{0.6}, 5) == "01010");
  for (int steps : {1, 7, 50, 100}) {
    for (int tenth = 0; tenth <= 10; ++tenth) {
      const double ratio = tenth / 10.0;
      const std::string stitch = route(Stitch{ratio}, steps);
      const auto small_steps = std::count(stitch.begin(), stitch.end(), '0');
      for (std::string const& other :
           {route(LargeFirst{ratio}, steps), route(BothEnds{ratio}, steps), route(Interleaved{ratio}, steps)}) {
        CHECK(std::count(other.begin(), other.end(), '0') == small_steps);
      }
    }
  }
  // By chance: the share on average, and more of it early.
  CHECK(route(FallingProbability{0, 3}, 20) == std::string(20, '1'));
  CHECK(route(FallingProbability{1, 3}, 20) == std::string(20, '0'));
  CHECK(route(FallingProbability{0.5, 3}, 50) == route(FallingProbability{0.5, 3}, 50));
  CHECK(route(FallingProbability{0.5, 3}, 50) != route(FallingProbability{0.5, 4}, 50));
  for (const double ratio : {0.3, 0.5, 0.8}) {
    double early = 0, late = 0;
    for (std::uint32_t seed = 0; seed < 200; ++seed) {
      const std::string by_chance = route(FallingProbability{ratio, seed}, 100);
      early += double(std::count(by_chance.begin(), by_chance.begin() + 50, '0')) / 200 / 50;
      late += double(std::count(by_chance.begin() + 50, by_chance.end(), '0')) / 200 / 50;
    }
    const double quarter = ratio < 0.5 ? 2 * ratio / 4 : 2 * (1 - ratio) / 4;  // how far the halves are from the mean
    CHECK(std::abs(early - (ratio + quarter)) < 0.02);
    CHECK(std::abs(late - (ratio - quarter)) < 0.02);
  }
  CHECK(message_of<std::invalid_argument>([&] { route(Interleaved{1.5}, 10); }) ==
        "tstitch::Interleaved: ratio must be in [0, 1], got 1.5");
  CHECK(message_of<std::invalid_argument>([&] { route(FallingProbability{-1}, 10); }) ==
        "tstitch::FallingProbability: ratio must be in [0, 1], got -1");
}
