#include <tstitch/plan/plan.hpp>

#include <sstream>

#include "../catch.hpp"

using namespace tstitch;

namespace {
const NoiseSchedule noise = NoiseSchedule::linear();
}

TEST_CASE("each step leads to the next, the last one to x_0 or to sigma_min") {
  const Plan zero = make_plan(noise, 20, Spacing::trailing(), FinalSigma::zero, Stitch{});
  for (std::size_t i = 0; i + 1 < 20; ++i) CHECK(zero.steps[i].step.to == zero.steps[i + 1].step.from);
  CHECK(zero.steps.back().step.to == NoiseLevel::clean());
  const Plan min = make_plan(noise, 20, Spacing::trailing(), FinalSigma::sigma_min, Stitch{});
  CHECK(min.steps.back().step.to == noise.at(0));
  CHECK(message_of<std::invalid_argument>([] {
          make_plan(noise, 20, Spacing::linspace(), FinalSigma::sigma_min, Stitch{});
        }) == "tstitch::Plan: with FinalSigma::sigma_min the last timestep must be above 0, got 0");
}

TEST_CASE("guidance has a scale for each network and an interval of steps") {
  const Plan plan = make_plan(noise, 10, Spacing::linspace(), FinalSigma::zero, Stitch{0.5},
                              {.scale = {1.5, 4}, .begin = 0.2, .end = 0.8});
  std::vector<double> scales;
  for (PlannedStep const& planned : plan.steps) scales.push_back(planned.guidance_scale);
  CHECK(scales == std::vector<double>{1, 1, 1.5, 1.5, 1.5, 4, 4, 4, 1, 1});
}

TEST_CASE("guidance refuses with place, rule and value") {
  const auto message = [](Guidance const& guidance) {
    return message_of<std::invalid_argument>([&] {
      make_plan(noise, 10, Spacing::linspace(), FinalSigma::zero, Fractions{{0.3, 0.3, 0.4}}, guidance);
    });
  };
  CHECK(message({.scale = NAN}) == "tstitch::Guidance: scale must be a finite number, got nan");
  CHECK(message({.scale = {1, 2}}) ==
        "tstitch::Guidance: scale needs one value, or one for each network (step 6 goes to network 2), got 2 values");
  CHECK(message({.begin = -0.5}) == "tstitch::Guidance: begin must be in [0, 1], got -0.5");
  CHECK(message({.begin = 0.5, .end = 0.4}) == "tstitch::Guidance: begin must not be above end (0.4), got 0.5");
  for (const double value : {double(NAN), double(INFINITY), -double(INFINITY)}) {
    const std::string got = ", got " + tstitch::detail::text(value);
    CHECK(message({.scale = {1, value}}) == "tstitch::Guidance: scale must be a finite number" + got);
    CHECK(message({.begin = value}) == "tstitch::Guidance: begin must be in [0, 1]" + got);
    CHECK(message({.end = value}) == "tstitch::Guidance: end must be in [0, 1]" + got);
    CHECK(message({.rescale = value}) == "tstitch::Guidance: rescale must be in [0, 1]" + got);
    CHECK(message({.projected = ProjectedGuidance{.eta = value}}) ==
          "tstitch::ProjectedGuidance: eta must be in [0, 1]" + got);
    CHECK(message({.projected = ProjectedGuidance{.momentum = value}}) ==
          "tstitch::ProjectedGuidance: momentum must be inside (-1, 1)" + got);
  }
  const auto of_two = [](Guidance const& guidance) {
    return message_of<std::invalid_argument>([&] { guidance.validate(2); });
  };
  CHECK(of_two({.scale = {1, 2, 3}}) ==
        "tstitch::Guidance: scale must be one value, or one for each of the 2 networks, got 3 values");
  CHECK(of_two({.scale = {1, 2}}) == "nothing was thrown");
  CHECK(message({.channels = -1}) == "tstitch::Guidance: channels must not be negative, got -1");
}

TEST_CASE("a plan prints as a table") {
  std::ostringstream text;
  text << make_plan(noise, 3, Spacing::linspace(), FinalSigma::zero, Stitch{1.0 / 3}, {.scale = 1.5});
  CHECK(text.str() ==
        "noise schedule linear(1000, 0.0001, 0.02), spacing linspace, 3 steps\n"
        " step         t     alpha     sigma    lambda  network  guidance\n"
        "    0   999.000  0.006353  0.999980   -5.0588        0       1.5\n"
        "    1   500.000  0.278921  0.960314   -1.2363        1       1.5\n"
        "    2     0.000  0.999950  0.010000    4.6051        1       1.5\n"
        "steps: network 0 takes 1, network 1 takes 2\n");
}
