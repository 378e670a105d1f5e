#include <tstitch/sampler/dpm_solver_singlestep.hpp>

#include "../golden.hpp"

using namespace tstitch;

namespace {

const NoiseSchedule linear = NoiseSchedule::linear();

Network any_time() {
  return golden::network(linear, {.timestep_type = TimestepType::float32});
}

/// The states of dpm_solver are those after groups.
void check_groups(std::string const& name, DPMSolverSinglestepUpdate const& rule, auto spacing, auto evaluations) {
  for (golden::Run const& run : golden::read(name).runs) {
    if (!run.error.empty()) continue;
    const int steps = evaluations(run.steps);
    const DPMSolverSinglestep sampler{
        linear, SingleNetwork{}, {.steps = steps, .spacing = spacing, .final_sigma = FinalSigma::sigma_min}, rule};
    Trajectory trajectory = sampler.begin({any_time()}, {.initial_noise = golden::start()});
    std::size_t group = 0;
    for (const int size : singlestep_orders(steps, rule.order, rule.pattern)) {
      for (int i = 0; i < size; ++i) sampler.advance({any_time()}, trajectory);
      INFO(name << ", " << run.steps << " evaluations, group " << group);
      REQUIRE(group < run.states.size());
      double scale = 0, most = 0;
      for (std::size_t c = 0; c < 5; ++c) {
        scale = std::max(scale, std::abs(run.states[group][c]));
        most = std::max(most, std::abs(trajectory.x.const_data_ptr<double>()[c] - run.states[group][c]));
      }
      CHECK(most <= 1e-12 * scale);
      ++group;
    }
    CHECK(group == run.states.size());
  }
}

}  // namespace

TEST_CASE("evaluations are grouped as in dpm_solver and diffusers") {
  using Orders = std::vector<int>;
  CHECK(singlestep_orders(5, 3) == Orders{3, 2});
  CHECK(singlestep_orders(6, 3) == Orders{3, 2, 1});
  CHECK(singlestep_orders(7, 3) == Orders{3, 3, 1});
  CHECK(singlestep_orders(10, 3) == Orders{3, 3, 3, 1});
  CHECK(singlestep_orders(12, 3) == Orders{3, 3, 3, 2, 1});
  CHECK(singlestep_orders(20, 3) == Orders{3, 3, 3, 3, 3, 3, 2});
  CHECK(singlestep_orders(6, 2) == Orders{2, 2, 2});
  CHECK(singlestep_orders(7, 2) == Orders{2, 2, 2, 1});
  CHECK(singlestep_orders(6, 2, SinglestepPattern::diffusers) == Orders{2, 2, 1, 1});
  CHECK(singlestep_orders(4, 1) == Orders{1, 1, 1, 1});
  CHECK(singlestep_orders(1, 3) == Orders{1});
  CHECK(singlestep_orders(2, 3) == Orders{2});
  CHECK(singlestep_orders(3, 3) == Orders{2, 1});
  CHECK(message_of<std::invalid_argument>([] { singlestep_orders(0, 2); }) ==
        "tstitch::singlestep_orders: evaluations must be at least 1, got 0");
  CHECK(message_of<std::invalid_argument>([] {
          DPMSolverSinglestep{linear, SingleNetwork{}, {}, {.order = 4}};
        }) == "tstitch::DPMSolverSinglestep: order must be 1, 2 or 3, got 4");
}

TEST_CASE("singlestep DPM-Solver of dpm_solver, both forms") {
  const Spacing uniform = Spacing::linspace({.include_last = false, .round = false}), quadratic = Spacing::quadratic();
  for (AlgorithmType form : {AlgorithmType::dpmsolver_plus_plus, AlgorithmType::dpmsolver}) {
    for (int order : {2, 3}) {
      const std::string name =
          (form == AlgorithmType::dpmsolver ? "dpm_solver_noise_singlestep" : "dpm_solver_singlestep") +
          std::to_string(order) + "_";
      const DPMSolverSinglestepUpdate rule{.order = order, .algorithm_type = form};
      DPMSolverSinglestepUpdate taylor = rule;
      taylor.solver_type = SolverType::heun;
      const auto all = [](int n) { return n; };
      check_groups(name + "uniform", rule, uniform, all);
      check_groups(name + "quadratic", rule, quadratic, all);
      check_groups(name + "logsnr", rule, singlestep_logsnr(order), all);
      check_groups(name + "taylor", taylor, uniform, all);
    }
  }
}

TEST_CASE("singlestep DPM-Solver++ of diffusers, every evaluation") {
  for (int order : {1, 2, 3}) {
    golden::check("diffusers_dpmpp_singlestep_order" + std::to_string(order), golden::network(linear), [&](int n) {
      return DPMSolverSinglestep{golden::float32_linear(),
                                 SingleNetwork{},
                                 {.steps = n, .spacing = Spacing::linspace({.include_last = false})},
                                 {.order = order, .pattern = SinglestepPattern::diffusers, .exact_inside = false}};
    });
  }
}

TEST_CASE("singlestep rules converge with their order") {
  const Network network = oracle::mixture(linear);
  const auto end = [&](int steps, DPMSolverSinglestepUpdate const& rule) {
    // Even in lambda but for the last step, a group of its own and so of order 1, which must be short for its error not
    // to be seen: h^2 of a step of h^1.5 is h^3.
    const Spacing spacing("even before a short last step", [](NoiseSchedule const& schedule, int count) {
      const double start = schedule.lambda(999), all = schedule.lambda(0) - start;
      const double last = 0.1 * std::pow(all / count, 1.5);
      std::vector<Timestep> list;
      for (int i = 0; i < count; ++i) list.push_back(schedule.point(start + (all - last) * i / (count - 1)));
      return list;
    });
    const SamplingOptions options{.steps = steps, .spacing = spacing, .final_sigma = FinalSigma::sigma_min};
    const Request request{.initial_noise = noise({1}, NoiseAddress::initial(), {1, 4, 4}, at::kDouble)};
    return DPMSolverSinglestep{linear, SingleNetwork{}, options, rule}.sample({network}, request).images;
  };
  const at::Tensor exact = end(12001, {.order = 3, .solver_type = SolverType::heun});
  for (AlgorithmType form : {AlgorithmType::dpmsolver_plus_plus, AlgorithmType::dpmsolver}) {
    for (SolverType type : {SolverType::midpoint, SolverType::heun}) {
      for (int order : {1, 2, 3}) {
        const DPMSolverSinglestepUpdate rule{.order = order, .algorithm_type = form, .solver_type = type};
        const auto error = [&](int groups) {
          return end(groups * order + 1, rule).sub(exact).square().mean().sqrt().item<double>();
        };
        const double slope = std::log2(error(150) / error(300));
        INFO("order " << order << ", form " << int(form) << ", type " << int(type) << ", slope " << slope);
        CHECK(slope > order - 0.15);
      }
    }
  }
}

TEST_CASE("networks change inside a group, or between groups with PerGroup") {
  const auto calls = [](auto schedule, int steps) {
    return DPMSolverSinglestep{linear, schedule, {.steps = steps}, {.order = 3}}.plan().calls();
  };
  for (int steps : {20, 50}) {
    for (int tenth = 1; tenth < 10; ++tenth) {
      const double ratio = tenth / 10.0;
      const int exact = steps * tenth / 10;
      CHECK(calls(Stitch{ratio}, steps)[0] == exact);
      // A group goes where its first evaluation goes, so up to two more go to network 0.
      const int whole = calls(PerGroup{Stitch{ratio}, 3}, steps)[0];
      INFO(steps << " steps, ratio " << ratio);
      CHECK(whole >= exact);
      CHECK(whole <= exact + 2);
      int first = 0;
      bool between = false;
      for (int size : singlestep_orders(steps, 3)) between = between || (first += size) == whole;
      CHECK(between);
    }
  }
}

TEST_CASE("with k equal networks a run is that of one, and from pure noise it is finite") {
  const Request request{.initial_noise = golden::start()};
  const DPMSolverSinglestepUpdate rule{.order = 3, .solver_type = SolverType::heun};
  const at::Tensor one =
      DPMSolverSinglestep{linear, SingleNetwork{}, {.steps = 20}, rule}.sample({any_time()}, request).images;
  const at::Tensor two =
      DPMSolverSinglestep{linear, Stitch{0.5}, {.steps = 20}, rule}.sample({any_time(), any_time()}, request).images;
  CHECK(one.equal(two));
  const NoiseSchedule zero = linear.with_zero_terminal_snr();
  for (AlgorithmType form : {AlgorithmType::dpmsolver_plus_plus, AlgorithmType::dpmsolver}) {
    const Network v = oracle::gaussian(
        zero, 0.3, 0.5, {.prediction_type = PredictionType::v_prediction, .timestep_type = TimestepType::float32});
    const double end =
        DPMSolverSinglestep{
            zero, SingleNetwork{}, {.steps = 100, .spacing = Spacing::trailing()}, {.order = 3, .algorithm_type = form}}
            .sample({v}, {.initial_noise = detail::host_tensor({1, 1, 1, 1}, at::kDouble).fill_(1.0)})
            .images.item<double>();
    CHECK(std::abs(end - 0.8) < 0.01);
  }
}
