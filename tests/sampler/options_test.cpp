// Options and requests that make no sense are refused by name: no number, endless, huge, or of another shape.

#include <tstitch/tstitch.hpp>

#include <limits>
#include <string>

#include "../catch.hpp"

using namespace tstitch;

namespace {

const NoiseSchedule schedule = NoiseSchedule::linear();

std::string refusal(auto make) {
  return message_of<std::invalid_argument>([&] { (void)make(); });
}

}  // namespace

TEST_CASE("options refuse numbers that are none") {
  const SingleNetwork one;
  const auto check = [](std::string const& rule, auto make) {
    for (const double value : {double(NAN), double(INFINITY), -double(INFINITY), -1.0}) {
      INFO(rule << ", " << value);
      CHECK(refusal([&] { return make(value); }) == "tstitch::" + rule + ", got " + tstitch::detail::text(value));
    }
  };
  check("DDIM: eta must be in [0, 1]", [&](double v) { return DDIM{schedule, one, {}, {.eta = v}}; });
  check("EulerAncestral: eta must be in [0, 1]", [&](double v) { return EulerAncestral{schedule, one, {}, {v}}; });
  check("DPM2: eta must be in [0, 1]", [&](double v) { return DPM2{schedule, one, {}, {.eta = v}}; });
  check("DPMSolver: eta must be at least 0", [&](double v) { return DPMSolver{schedule, one, {}, {.eta = v}}; });
  check("DPMSolver2SAncestral: eta must be in [0, 1]", [&](double v) {
    return DPMSolver2SAncestral{schedule, one, {}, {v}};
  });
  check("DPMSolverSDE: eta must be in [0, 1]", [&](double v) { return DPMSolverSDE{schedule, one, {}, {v}}; });
  check("Churn: s_churn must be at least 0", [&](double v) { return Euler{schedule, one, {}, {{.s_churn = v}}}; });
  check("Churn: s_noise must be above 0", [&](double v) { return Heun{schedule, one, {}, {{.s_noise = v}}}; });
  check("LCM: timestep_scaling must be above 0", [&](double v) { return LCM{schedule, one, {}, {v}}; });
  check("LCM: sigma_data must be above 0", [&](double v) { return LCM{schedule, one, {}, {.sigma_data = v}}; });
  const auto adaptive = [&](AdaptiveDPMSolverUpdate rule) {
    return AdaptiveDPMSolver{schedule, one, {.steps = 1}, rule};
  };
  check("AdaptiveDPMSolver: atol must be above 0", [&](double v) { return adaptive({.atol = v}); });
  check("AdaptiveDPMSolver: rtol must be at least 0", [&](double v) { return adaptive({.rtol = v}); });
  check("AdaptiveDPMSolver: theta must be in (0, 1]", [&](double v) { return adaptive({.theta = v}); });
  check("AdaptiveDPMSolver: h_init must be above 0", [&](double v) { return adaptive({.h_init = v}); });
  check("PIDController: accept_from must be in (0, 1]",
        [&](double v) { return adaptive({.pid = PIDController{.accept_from = v}}); });
  check("Thresholding::clip: range must be above 0", [](double v) { return Thresholding::clip(v); });
  check("Thresholding::dynamic: quantile must be in (0, 1]", [](double v) { return Thresholding::dynamic(v); });
  check("Thresholding::dynamic: range must be above 0", [](double v) { return Thresholding::dynamic(0.9, v); });
  for (const double value : {double(NAN), double(INFINITY), -double(INFINITY), 1e300}) {
    CHECK(refusal([&] { return adaptive({.pid = PIDController{.d = value}}); }) ==
          "tstitch::PIDController: p, i and d must be in [-1e6, 1e6], got " + tstitch::detail::text(value));
  }
  CHECK(refusal([&] {
          return Inversion{schedule, one, {}, DDIMUpdate{}, std::numeric_limits<int>::max()};
        }) == "tstitch::Inversion: iterations must be at most 10000, got 2147483647");
}

TEST_CASE("an agreement of no numbers suggests no switch") {
  Agreement agreement;
  agreement.differences = tstitch::detail::host_tensor({4, 1}, at::kDouble).fill_(NAN);
  CHECK(agreement.ratio(0.5) == 0);
  agreement.differences.fill_(0);
  CHECK(agreement.ratio(0.5) == 1);
}

TEST_CASE("conditions fit all networks that know them, and their null counterparts") {
  const auto text = [](at::IntArrayRef shape) { return tstitch::detail::host_tensor(shape, at::kFloat).fill_(0.5); };
  const NetworkInfo plain{.channels = 1, .height = 2, .width = 2};
  NetworkInfo prompted = plain;
  prompted.conditions = {{"text", {0, 8}}};
  const auto halve = [](at::Tensor const& x, at::Tensor const&, Condition const&) { return x.mul(0.5); };
  const std::vector<Network> networks{Network(halve, plain), Network(halve, prompted)};
  const auto refused = [&](NamedCondition condition, double ratio, std::int64_t count = 2) {
    const DDIM sampler{schedule, Stitch{ratio}, {.steps = 4}};
    return refusal([&] { return sampler.sample(networks, {.conditions = {condition}, .count = count}).finished; });
  };
  for (const double ratio : {0.5, 1.0}) {  // with 1 the plan does not ask the network that takes it
    CHECK(refused({"text", text({1, 14, 8})}, ratio) == "nothing was thrown");
    CHECK(refused({"text", text({2, 14, 8}), text({1, 14, 8})}, ratio) == "nothing was thrown");
    CHECK(refused({"text", text({3, 14, 8})}, ratio) ==
          "tstitch::Request: conditions: 'text' must have 1 row or one for each of 2 images, got 3");
    CHECK_THAT(refused({"text", text({})}, ratio), ContainsSubstring("conditions: 'text' must be [n or 1, ...]"));
    CHECK_THAT(refused({"text", at::Tensor()}, ratio), ContainsSubstring("got an undefined tensor"));
    for (const std::int64_t tokens : {1, 7}) {
      CHECK(refused({"text", text({1, 14, 8}), text({1, tokens, 8})}, ratio) ==
            "tstitch::Request: conditions: 'text'.null must have the shape of its value, [14, 8] an image, got [" +
                std::to_string(tokens) + ", 8]");
    }
  }
}
