// Runs that begin at pure noise, alpha = 0: zero terminal SNR and flow matching.

#include <tstitch/method/ddim.hpp>
#include <tstitch/method/ddpm.hpp>
#include <tstitch/method/dpm_solver.hpp>
#include <tstitch/method/heun.hpp>
#include <tstitch/method/lms.hpp>

#include "../catch.hpp"
#include "../oracle.hpp"

using namespace tstitch;

namespace {

/// The end of a run from x = 1 on data N(0.3, 0.5^2); exactly 0.3 + 0.5 x for deterministic samplers.
double end_of(auto const& sampler, PredictionType type, NoiseSchedule const& schedule) {
  const Network network =
      oracle::gaussian(schedule, 0.3, 0.5, {.prediction_type = type, .timestep_type = TimestepType::float32});
  return sampler
      .sample({network}, {.initial_noise = tstitch::detail::host_tensor({1, 1, 1, 1}, at::kDouble).fill_(1.0)})
      .images.template item<double>();
}

}  // namespace

TEST_CASE("networks that predict x_0 or a velocity run from pure noise") {
  struct Setting {
    NoiseSchedule schedule;
    PredictionType type;
    Spacing spacing;
  };
  for (Setting const& setting :
       {Setting{NoiseSchedule::linear().with_zero_terminal_snr(), PredictionType::v_prediction, Spacing::trailing()},
        Setting{NoiseSchedule::linear().with_zero_terminal_snr(), PredictionType::sample, Spacing::trailing()},
        Setting{NoiseSchedule::flow(), PredictionType::flow, Spacing::shifted()},
        Setting{NoiseSchedule::flow(), PredictionType::flow, Spacing::shifted(3)}}) {
    NoiseSchedule const& schedule = setting.schedule;  // clang 14's lambdas capture no structured bindings
    const PredictionType type = setting.type;
    Spacing const& spacing = setting.spacing;
    const SamplingOptions options{.steps = 100, .spacing = spacing};
    CHECK(make_plan(schedule, 100, spacing, FinalSigma::zero, SingleNetwork{}).steps[0].step.from == NoiseLevel{0, 1});
    INFO(schedule.name() << ", " << spacing.name() << ", " << to_string(type));
    const auto near = [&](char const* name, auto const& sampler, double tolerance) {
      INFO(name);
      CHECK(std::abs(end_of(sampler, type, schedule) - 0.8) < tolerance);
    };
    const SingleNetwork one;
    near("DDIM", DDIM{schedule, one, options}, 0.03);
    near("DPM-Solver++ 2", DPMSolver{schedule, one, options}, 0.004);
    near("DPM-Solver++ 3", DPMSolver{schedule, one, options, {.order = 3}}, 0.004);
    near("DPM-Solver 2", DPMSolver{schedule, one, options, {.algorithm_type = AlgorithmType::dpmsolver}}, 0.004);
    near("Heun", Heun{schedule, one, options}, 0.004);
    near("LMS", LMS{schedule, one, options}, 0.004);
    CHECK(std::isfinite(end_of(DDPM{schedule, one, options}, type, schedule)));
    CHECK(std::isfinite(end_of(DDIM{schedule, one, options, {.eta = 1}}, type, schedule)));
    CHECK(std::isfinite(end_of(DPMSolver{schedule, one, options, {.eta = 1}}, type, schedule)));
  }
}

TEST_CASE("at pure noise epsilon says nothing of x_0, so that networks that predict it are refused") {
  const NoiseSchedule schedule = NoiseSchedule::linear().with_zero_terminal_snr();
  const auto message = [&](Spacing const& spacing) {
    return message_of<std::invalid_argument>([&] {
      end_of(DDIM{schedule, SingleNetwork{}, {.steps = 10, .spacing = spacing}}, PredictionType::epsilon, schedule);
    });
  };
  CHECK(
      message(Spacing::trailing()) ==
      "tstitch::Sampler: a step that begins at pure noise (alpha = 0) needs a network that predicts x_0 or a velocity, "
      "because there the noise says nothing of x_0, got step 0 to network 0 ('gaussian'), which predicts epsilon");
  CHECK(message(Spacing::leading()) == "nothing was thrown");  // begins at t = 900, where there is a little picture
  CHECK_THAT(message(Spacing::karras()), ContainsSubstring("must begin and end where there is both picture and noise"));
}

TEST_CASE("no step may begin at the clean picture") {
  CHECK(message_of<std::invalid_argument>([] {
          DDIM{NoiseSchedule::flow(), SingleNetwork{}, {.steps = 10, .spacing = Spacing::linspace()}};
        }) ==
        "tstitch::Plan: no step may begin at the clean picture (Spacing::shifted is for flow matching), got t = 0 "
        "by spacing linspace");
}
