#include <tstitch/method/ddim.hpp>
#include <tstitch/study/agreement.hpp>

#include <cmath>

#include "../catch.hpp"
#include "../oracle.hpp"

using namespace tstitch;

namespace {

const NoiseSchedule schedule = NoiseSchedule::linear();

/// Predicts the noise of standard normal data, x sigma, turned by an angle that grows as noise falls: 0 at t = 999.
Network turned(double most, PredictionType type = PredictionType::epsilon) {
  return Network(
      [most, type](at::Tensor const& x, at::Tensor const& t) {
        const double at = t.select(0, 0).item<double>();
        const auto [alpha, sigma] = schedule.at(at);
        const double angle = most * (1 - at / 999);
        const at::Tensor a = x.narrow(1, 0, 1), b = x.narrow(1, 1, 1), eps = x.clone();
        eps.narrow(1, 0, 1).copy_(a.mul(std::cos(angle)).sub(b, std::sin(angle)));
        eps.narrow(1, 1, 1).copy_(a.mul(std::sin(angle)).add(b, std::cos(angle)));
        eps.mul_(sigma);
        return type == PredictionType::epsilon ? eps : x.sub(eps, sigma).div(alpha);
      },
      {.prediction_type = type, .channels = 2, .height = 3, .width = 3});
}

}  // namespace

TEST_CASE("agreement is the cosine between predictions of noise, whatever the networks predict") {
  const DDIM sampler{schedule, SingleNetwork{1}, {.steps = 10}};
  const Request request{.initial_noise = noise({1, 2, 3}, NoiseAddress::initial(), {2, 3, 3}, at::kDouble)};
  for (PredictionType type : {PredictionType::epsilon, PredictionType::sample}) {
    const Agreement agreement = measure_agreement(sampler, {turned(1, type), turned(0)}, request, 0, 1);
    REQUIRE(agreement.steps.size() == 10);
    CHECK(agreement.cosines.sizes() == at::IntArrayRef({10, 3}));
    const std::vector<double> means = Agreement::means(agreement.cosines);
    for (std::size_t i = 0; i < 10; ++i) {
      const double angle = 1 - agreement.steps[i].step.t / 999;
      CHECK(std::abs(means[i] - std::cos(angle)) < 1e-9);
    }
    // The first step's networks agree; then eps differs by 2 sin(angle / 2) of its size, which is that of sigma x.
    CHECK(agreement.differences.select(0, 0).abs().max().item<double>() < 1e-12);
    const DDIM same{schedule, SingleNetwork{1}, {.steps = 10}};
    Trajectory run = same.begin({turned(1, type), turned(0)}, request);
    same.advance({turned(1, type), turned(0)}, run);
    const auto [from, to] = std::pair{agreement.steps[1].step.from, agreement.steps[1].step.to};
    const double eps_off = 2 * std::sin((1 - agreement.steps[1].step.t / 999) / 2) * from.sigma;
    const double of_eps = to.alpha * from.sigma / from.alpha - to.sigma;
    const at::Tensor expected = run.x.flatten(1).square().mean(1).sqrt().mul(eps_off * of_eps);
    CHECK(agreement.differences.select(0, 1).sub(expected).abs().max().item<double>() < 1e-9);
    const std::vector<double> shares = agreement.cumulative_share();
    CHECK(shares.front() < 1e-9);
    CHECK(shares.back() == 1);
    CHECK(agreement.ratio(1e-9) == 0.1);
    CHECK(agreement.ratio(shares[4]) == 0.5);
    CHECK(agreement.ratio(1) == 1);
  }
  CHECK(message_of<std::invalid_argument>([&] {
          measure_agreement(sampler, {turned(0), turned(0)}, {}, 0, 2);
        }) == "tstitch::measure_agreement: first and second must be of the 2 networks, got 2");
  CHECK(message_of<std::invalid_argument>([&] {
          measure_agreement(sampler, {turned(0), turned(0)}, {}, 3, 0);
        }) == "tstitch::measure_agreement: first and second must be of the 2 networks, got 3");
  // The trajectory is the sound network's, so that sampling has nothing to say.
  const Network broken([](at::Tensor const& x, at::Tensor const&) { return x.mul(NAN); });
  CHECK(message_of<std::runtime_error>([&] {
          measure_agreement(sampler, {broken, turned(0)}, request, 0, 1);
        }) == "tstitch::measure_agreement: predictions must be finite numbers, got nan or infinity");
}

TEST_CASE("the trajectory is the sampler's own, and may begin at a picture") {
  const DDIM sampler{schedule, SingleNetwork{0}, {.steps = 10}};
  const at::Tensor picture = noise({1}, NoiseAddress::of_step(3), {2, 3, 3}, at::kDouble);
  const Agreement agreement =
      measure_agreement(sampler, {turned(0)}, {.initial_image = picture, .strength = 0.4}, 0, 0);
  REQUIRE(agreement.steps.size() == 4);
  CHECK(agreement.steps[0].step.index == 6);
  CHECK(agreement.cosines.sub(1).abs().max().item<double>() < 1e-12);
  CHECK(agreement.ratio() == 1);  // nothing differs
}
