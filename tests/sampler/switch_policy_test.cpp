// What becomes of a multistep rule's history when another network takes over.

#include <tstitch/method/dpm_solver.hpp>

#include "../catch.hpp"
#include "../oracle.hpp"

using namespace tstitch;

namespace {

const NoiseSchedule linear = NoiseSchedule::linear();

Request request() {
  return {.initial_noise = noise({1, 2}, NoiseAddress::initial(), {1, 8, 8}, at::kDouble)};
}

SamplingOptions options(int steps, SwitchPolicy policy, Spacing spacing = Spacing::quadratic()) {
  return {.steps = steps, .spacing = std::move(spacing), .at_switch = policy};
}

/// Noise level at which network 1 takes over.
double switch_lambda(Plan const& plan) {
  for (PlannedStep const& planned : plan.steps) {
    if (planned.network == 1) return planned.step.from.lambda();
  }
  return plan.steps.back().step.from.lambda();
}

/// Where a run with that switch ends when its steps are short: 400 on either side, without history across.
at::Tensor exact(std::vector<Network> const& networks, double lambda) {
  const auto by_lambda = [lambda](Step const& step) -> std::size_t {
    return step.from.lambda() < lambda - 1e-9 ? 0 : 1;
  };
  const Spacing dense("dense", [lambda](NoiseSchedule const& schedule, int steps) {
    const double first = schedule.lambda(999), last = schedule.lambda(0);
    std::vector<Timestep> list;
    for (int i = 0; i < steps; ++i) {
      const int half = steps / 2;
      const double at =
          i < half ? first + (lambda - first) * i / half : lambda + (last - lambda) * (i - half) / (steps - 1 - half);
      list.push_back(schedule.point(std::clamp(at, first, last)));
    }
    return list;
  });
  return DPMSolver{linear, by_lambda, options(800, SwitchPolicy::reset, dense)}.sample(networks, request()).images;
}

double error(at::Tensor const& x, at::Tensor const& of) {
  return std::sqrt(x.sub(of).square().mean().item<double>());
}

}  // namespace

TEST_CASE("what failed when the history was asked again is asked once more") {
  const Network exact_network = oracle::mixture(linear);
  bool fails = false;
  const Network failing(
      [&](at::Tensor const& x, at::Tensor const& t) {
        if (std::exchange(fails, false)) throw std::runtime_error("no memory");
        return exact_network(x, t, {}).mul(0.9);
      },
      exact_network.info());
  const std::vector<Network> networks{exact_network, failing};
  const DPMSolver sampler{linear, Stitch{0.5}, options(6, SwitchPolicy::re_evaluate)};
  const at::Tensor expected = sampler.sample(networks, request()).images;
  Trajectory trajectory = sampler.begin(networks, request());
  for (int step = 0; step < 3; ++step) sampler.advance(networks, trajectory);
  fails = true;
  CHECK_THROWS_AS(sampler.advance(networks, trajectory), std::runtime_error);
  while (!trajectory.finished()) sampler.advance(networks, trajectory);
  CHECK(trajectory.x.equal(expected));
}

TEST_CASE("a network that takes over from its equal changes nothing, unless history is reset") {
  const std::vector<Network> networks{oracle::mixture(linear), oracle::mixture(linear)};
  for (int order : {2, 3}) {
    const auto run = [&](auto schedule, SwitchPolicy policy) {
      return DPMSolver{linear, schedule, options(12, policy), {.order = order}}.sample(networks, request()).images;
    };
    const at::Tensor alone = run(SingleNetwork{}, SwitchPolicy::keep);
    CHECK(run(Stitch{0.5}, SwitchPolicy::keep).equal(alone));
    CHECK(error(run(Stitch{0.5}, SwitchPolicy::re_evaluate), alone) < 1e-14);
    CHECK(error(run(Stitch{0.5}, SwitchPolicy::reset), alone) > 1e-4);
  }
}

TEST_CASE("after a reset the new network begins with order 1") {
  const std::vector<Network> networks{oracle::mixture(linear, 0.9), oracle::mixture(linear)};
  const DPMSolver sampler{linear, Stitch{0.5}, options(4, SwitchPolicy::reset), {.lower_order_final_below = 0}};
  const DPMSolver first_order{linear, SingleNetwork{1}, options(4, SwitchPolicy::keep), {.order = 1}};
  Trajectory trajectory = sampler.begin(networks, request());
  sampler.advance(networks, trajectory);
  sampler.advance(networks, trajectory);
  CHECK(trajectory.history.size() == 1);
  Trajectory other = trajectory;
  sampler.advance(networks, trajectory);
  first_order.advance(networks, other);
  CHECK(trajectory.x.equal(other.x));
}

TEST_CASE("the plan counts what is evaluated again") {
  const auto calls = [](int order, SwitchPolicy policy, AnyModelSchedule const& schedule) {
    return DPMSolver{linear, schedule, options(10, policy), {.order = order}}.plan().calls();
  };
  CHECK(calls(3, SwitchPolicy::keep, Stitch{0.4}) == std::vector<int>{4, 6});
  CHECK(calls(2, SwitchPolicy::re_evaluate, Stitch{0.4}) == std::vector<int>{4, 7});
  CHECK(calls(3, SwitchPolicy::re_evaluate, Stitch{0.4}) == std::vector<int>{4, 8});
  CHECK(calls(3, SwitchPolicy::re_evaluate, Stitch{0.1}) == std::vector<int>{1, 10});  // one step of history only
  CHECK(calls(1, SwitchPolicy::re_evaluate, Stitch{0.4}) == std::vector<int>{4, 6});
  // And that many evaluations happen.
  int evaluations = 0;
  const Network exact_network = oracle::mixture(linear);
  const Network counting(
      [&](at::Tensor const& x, at::Tensor const& t) { return ++evaluations, exact_network(x, t, {}); },
      exact_network.info());
  DPMSolver{linear, Stitch{0.4}, options(10, SwitchPolicy::re_evaluate), {.order = 3}}.sample({exact_network, counting},
                                                                                              request());
  CHECK(evaluations == 8);
}

TEST_CASE("with a small network that is wrong, keeping history is as good as anything that costs no more") {
  // Geometric means over three ratios, three spacings, 10 and 20 steps, and a small network that is 3 or 10 % off.
  for (int order : {2, 3}) {
    double reset = 0, re_evaluate = 0;
    int cells = 0;
    for (double gain : {0.97, 0.9}) {
      const std::vector<Network> networks{oracle::mixture(linear, gain), oracle::mixture(linear)};
      for (Spacing const& spacing : {Spacing::linspace({.include_last = false, .round = false}), Spacing::quadratic(),
                                     Spacing::uniform_logsnr()}) {
        for (double ratio : {0.2, 0.4, 0.6}) {
          for (int steps : {10, 20}) {
            const auto sampler = [&](SwitchPolicy policy) {
              return DPMSolver{linear, Stitch{ratio}, options(steps, policy, spacing), {.order = order}};
            };
            const at::Tensor end = exact(networks, switch_lambda(sampler(SwitchPolicy::keep).plan()));
            const auto error_of = [&](SwitchPolicy policy) {
              return error(sampler(policy).sample(networks, request()).images, end);
            };
            const double keep = error_of(SwitchPolicy::keep);
            reset += std::log(error_of(SwitchPolicy::reset) / keep);
            re_evaluate += std::log(error_of(SwitchPolicy::re_evaluate) / keep);
            ++cells;
          }
        }
      }
    }
    reset = std::exp(reset / cells);
    re_evaluate = std::exp(re_evaluate / cells);
    std::printf("order %d: errors relative to keep: reset %.3f, re-evaluate %.3f\n", order, reset, re_evaluate);
    CHECK(reset > 0.97);
    // A little better, for the price of order - 1 evaluations, which buy more as steps.
    CHECK(re_evaluate < 1);
    CHECK(re_evaluate > 0.9);
  }
}
