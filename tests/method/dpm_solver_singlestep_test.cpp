// Singlestep DPM-Solver: beside the peers' own code, in its order, and what it does with a change of network in a
// group.

#include <tstitch/method/dpm_solver_singlestep.hpp>

#include "euler_family.hpp"

using namespace tstitch;

namespace {

using Rule = DPMSolverSinglestepUpdate;
using Orders = std::vector<int>;

const NoiseSchedule exact = NoiseSchedule::linear();
const Network eps = golden::network(exact, {.timestep_type = TimestepType::float32});
const Spacing uniform = Spacing::linspace({.include_last = false, .round = false});

/// Holds a rule to a case whose states are those after groups.
/// @param evaluations int N that the peer was asked for -> as many as it makes
void check_groups(std::string const& name, Rule const& rule, Spacing const& spacing, auto evaluations,
                  FinalSigma end = FinalSigma::sigma_min) {
  const golden::Case peer = golden::read(name);
  for (golden::Run const& run : peer.runs) {
    const int steps = evaluations(run.steps);
    INFO(name << ", " << run.steps << " evaluations");
    REQUIRE(run.error.empty());
    REQUIRE(run.timesteps.size() == std::size_t(steps));
    const DPMSolverSinglestep sampler{
        exact, SingleNetwork{}, {.steps = steps, .spacing = spacing, .final_sigma = end}, rule};
    const Orders orders = singlestep_orders(steps, rule.order, rule.pattern);
    REQUIRE(orders.size() == run.states.size());
    Trajectory trajectory = sampler.begin({eps}, {.initial_noise = golden::start()});
    double worst = 0;
    for (std::size_t group = 0; group < orders.size(); ++group) {
      for (int i = 0; i < orders[group]; ++i) {
        const Step step = sampler.plan().steps[trajectory.next].step;
        const double told = run.timesteps[trajectory.next];
        CHECK(std::abs((peer.variance_exploding ? step.from.sigma / step.from.alpha : step.t) - told) < 1e-9);
        sampler.advance({eps}, trajectory);
      }
      double scale = 0, most = 0;
      for (std::size_t c = 0; c < 5; ++c) {
        double ours = trajectory.x.const_data_ptr<double>()[c];
        if (peer.variance_exploding) ours /= trajectory.level.alpha;
        scale = std::max(scale, std::abs(run.states[group][c]));
        most = std::max(most, std::abs(ours - run.states[group][c]));
      }
      worst = std::max(worst, most / scale);
    }
    INFO("differs by " << worst);
    CHECK(worst <= 1e-12);
  }
}

double largest_difference(at::Tensor const& a, at::Tensor const& b) {
  return a.sub(b).abs().max().item<double>();
}

int all(int evaluations) {
  return evaluations;
}

}  // namespace

TEST_CASE("evaluations form the groups of dpm_solver and diffusers") {
  using enum SinglestepPattern;
  CHECK(singlestep_orders(1, 3) == Orders{1});
  CHECK(singlestep_orders(2, 3) == Orders{2});
  CHECK(singlestep_orders(3, 3) == Orders{2, 1});
  CHECK(singlestep_orders(5, 3) == Orders{3, 2});
  CHECK(singlestep_orders(6, 3) == Orders{3, 2, 1});
  CHECK(singlestep_orders(7, 3) == Orders{3, 3, 1});
  CHECK(singlestep_orders(12, 3) == Orders{3, 3, 3, 2, 1});
  CHECK(singlestep_orders(6, 2) == Orders{2, 2, 2});
  CHECK(singlestep_orders(7, 2) == Orders{2, 2, 2, 1});
  CHECK(singlestep_orders(4, 1) == Orders{1, 1, 1, 1});
  for (int evaluations : {1, 2, 3, 5, 6, 7, 12, 25}) {
    CHECK(singlestep_orders(evaluations, 3, diffusers) == singlestep_orders(evaluations, 3));
    CHECK(singlestep_orders(evaluations, 1, diffusers) == singlestep_orders(evaluations, 1));
  }
  CHECK(singlestep_orders(2, 2, diffusers) == Orders{1, 1});
  CHECK(singlestep_orders(6, 2, diffusers) == Orders{2, 2, 1, 1});
  CHECK(singlestep_orders(7, 2, diffusers) == Orders{2, 2, 2, 1});
  CHECK(singlestep_orders(1, 3, keeps_order) == Orders{1});
  CHECK(singlestep_orders(4, 3, keeps_order) == Orders{2, 2});
  CHECK(singlestep_orders(6, 3, keeps_order) == Orders{3, 3});
  CHECK(singlestep_orders(7, 3, keeps_order) == Orders{3, 2, 2});
  CHECK(singlestep_orders(8, 3, keeps_order) == Orders{3, 3, 2});
  CHECK(singlestep_orders(6, 2, keeps_order) == Orders{2, 2, 2});
  CHECK(singlestep_orders(7, 2, keeps_order) == Orders{2, 2, 2, 1});
  CHECK(singlestep_orders(1, 3, denoise_to_zero) == Orders{1});
  CHECK(singlestep_orders(7, 3, denoise_to_zero) == Orders{3, 2, 1, 1});
  CHECK(singlestep_orders(8, 3, denoise_to_zero) == Orders{3, 3, 1, 1});
}

TEST_CASE("singlestep DPM-Solver of dpm_solver, both forms") {
  for (AlgorithmType form : {AlgorithmType::dpmsolver_plus_plus, AlgorithmType::dpmsolver}) {
    for (int order : {2, 3}) {
      const std::string name = std::string("dpm_solver_") + (form == AlgorithmType::dpmsolver ? "noise_" : "") +
                               "singlestep" + std::to_string(order);
      const Rule rule{.order = order, .algorithm_type = form};
      check_groups(name + "_uniform", rule, uniform, all);
      check_groups(name + "_quadratic", rule, Spacing::quadratic(), all);
      check_groups(name + "_logsnr", rule, singlestep_spacing(Spacing::uniform_logsnr(), order), all);
      check_groups(name + "_taylor", {.order = order, .algorithm_type = form, .solver_type = SolverType::heun}, uniform,
                   all);
      check_groups(name + "_fixed", {.order = order, .algorithm_type = form, .pattern = SinglestepPattern::keeps_order},
                   uniform, [order](int n) { return n / order * order; });
    }
  }
  check_groups(
      "dpm_solver_singlestep3_denoise_to_zero", {.order = 3, .pattern = SinglestepPattern::denoise_to_zero},
      Spacing::linspace({.round = false}), [](int n) { return n + 1; }, FinalSigma::zero);
}

TEST_CASE("k-diffusion's dpm_fast") {
  check_groups("k_diffusion_dpm_fast", {.order = 3, .algorithm_type = AlgorithmType::dpmsolver},
               singlestep_spacing(Spacing::uniform_logsnr(), 3), all);
}

TEST_CASE("singlestep DPM-Solver++ of diffusers, every evaluation") {
  const auto check = [](std::string const& name, int order) {
    golden::check("diffusers_dpmpp_singlestep_" + name, golden::network(exact), [&](int n) {
      return DPMSolverSinglestep{
          golden::float32_linear(),
          SingleNetwork{},
          {.steps = n, .spacing = Spacing::linspace({.include_last = false})},
          {.order = order, .solver_type_inside = SolverType::midpoint, .pattern = SinglestepPattern::diffusers}};
    });
  };
  for (int order : {1, 2, 3}) check("order" + std::to_string(order), order);
  check("lower_final", 3);
}

TEST_CASE("DPM-Solver++(2S) ancestral and the stochastic DPM-Solver++ of k-diffusion") {
  const auto options = [](int n) { return SamplingOptions{.steps = n, .spacing = Spacing::karras()}; };
  golden::check("k_diffusion_dpmpp_2s_ancestral", eps, [&](int n) {
    return DPMSolver2SAncestral{exact, SingleNetwork{}, options(n)};
  });
  golden::check("k_diffusion_dpmpp_sde", eps, [&](int n) { return DPMSolverSDE{exact, SingleNetwork{}, options(n)}; });
}

TEST_CASE("singlestep DPM-Solver converges with its order, and where published groups have a lower one") {
  // A run that ends where there is noise: nearer to x_0 all errors are too small for the last group's to be seen.
  std::vector<double> alphas_cumprod;
  for (int t = 200; t <= 700; ++t) alphas_cumprod.push_back(exact.alpha(t) * exact.alpha(t));
  const NoiseSchedule middle = NoiseSchedule::from_alphas_cumprod(alphas_cumprod);
  const Network network = golden::network(middle, {.timestep_type = TimestepType::float32});
  // Several starts, because the error of any one changes its sign somewhere.
  const double starts[] = {-0.5, 0.3, 1.1, -1.4};
  const at::Tensor x = golden::start().repeat({4, 1, 1, 1});
  double truth[4];
  for (int i = 0; i < 4; ++i) {
    x.mutable_data_ptr<double>()[5 * i + 1] = starts[i];
    truth[i] = euler_family::exact_end(middle, middle.at(500), middle.at(0), starts[i]);
  }
  const auto slope = [&](int steps, Rule const& rule, Spacing const& spacing) {
    const auto error = [&](int n) {
      const DPMSolverSinglestep sampler{
          middle, SingleNetwork{}, {.steps = n, .spacing = spacing, .final_sigma = FinalSigma::sigma_min}, rule};
      const at::Tensor end = sampler.sample({network}, {.initial_noise = x}).images;
      double squares = 0;
      for (int i = 0; i < 4; ++i) squares += std::pow(end.const_data_ptr<double>()[5 * i + 1] - truth[i], 2);
      return std::sqrt(squares);
    };
    return std::log(error(steps) / error(steps + 180)) / std::log(double(steps + 180) / steps);  // same rest
  };
  for (AlgorithmType form : {AlgorithmType::dpmsolver_plus_plus, AlgorithmType::dpmsolver}) {
    for (SolverType type : {SolverType::midpoint, SolverType::heun}) {
      for (SolverType inside : {SolverType::midpoint, SolverType::heun}) {
        for (int order : {1, 2, 3}) {
          Rule rule{.order = order, .algorithm_type = form, .solver_type = type, .solver_type_inside = inside};
          for (int rest : {0, 1, 2}) {
            INFO("order " << order << ", form " << int(form) << ", types " << int(type) << int(inside) << ", rest "
                          << rest);
            const int steps = 300 + rest;
            // Inner points in thirds of lambda, and where an even grid in t has them.
            rule.pattern = SinglestepPattern::keeps_order;
            const Spacing thirds = singlestep_spacing(Spacing::uniform_logsnr(), order, rule.pattern);
            CHECK(slope(steps, rule, thirds) > order - 0.15);
            CHECK(slope(steps, rule, uniform) > order - 0.15);
            if (order < 3) continue;
            rule.pattern = SinglestepPattern::dpm_solver;
            const double published = slope(steps, rule, singlestep_spacing(Spacing::uniform_logsnr(), 3));
            CHECK(std::abs(published - (rest == 2 ? 3 : 2)) < 0.15);
          }
          if (order < 3) continue;
          // Order 3 is there for r_2 = 2/3 only.
          const Spacing halves("r_1 = 1/4, r_2 = 1/2", [](NoiseSchedule const& noise, int steps) {
            std::vector<Timestep> list = Spacing::uniform_logsnr({.include_last = false})(noise, steps);
            for (int i = 0; i < steps; i += 3) {
              const double begin = list[i].level.lambda(), h = 3 * (list[i + 1].level.lambda() - begin);
              list[i + 1] = noise.point(begin + h / 4);
              list[i + 2] = noise.point(begin + h / 2);
            }
            return list;
          });
          rule.pattern = SinglestepPattern::keeps_order;
          CHECK(std::abs(slope(300, rule, halves) - 2) < 0.15);
        }
      }
    }
  }
}

TEST_CASE("a change of network falls inside a group, or between groups with per_group") {
  for (int steps : {20, 50}) {
    const Orders orders = singlestep_orders(steps, 3);
    for (int tenth = 1; tenth < 10; ++tenth) {
      INFO(steps << " steps, ratio 0." << tenth);
      const DPMSolverSinglestep by_evaluation{
          exact, Stitch{tenth / 10.0}, {.steps = steps, .spacing = uniform}, {.order = 3}};
      const int first = by_evaluation.plan().calls()[0];
      CHECK(first == steps * tenth / 10);
      const bool inside = first % 3 != 0;  // all groups but the last are of 3
      CHECK(inside == (tenth % 3 != 0));
      const DPMSolverSinglestep by_group{
          exact, per_group(by_evaluation.plan(), orders), {.steps = steps}, {.order = 3}};
      CHECK(by_group.plan().calls()[0] == std::min((first + 2) / 3 * 3, steps));
      // A rule that goes by t.
      const Plan by_t = make_plan(exact, steps, uniform, FinalSigma::zero, ByTimestep{{tenth * 100}});
      const Table whole = per_group(by_t, orders);
      int at = 0;
      for (const int size : orders) {
        for (int i = 0; i < size; ++i) CHECK(whole.networks[at + i] == by_t.steps[at].network);
        at += size;
      }
    }
  }
  const Plan plan = make_plan(exact, 20, uniform, FinalSigma::zero, Stitch{});
  CHECK(message_of<std::invalid_argument>([&] { per_group(plan, singlestep_orders(19, 3)); }) ==
        "tstitch::per_group: orders must add up to the 20 steps of the plan, got 19");
}

TEST_CASE("what is left of a group whose beginning is gone") {
  const Request request{.initial_noise = golden::start()};
  const auto options = [](SwitchPolicy at_switch, int steps = 20) {
    return SamplingOptions{.steps = steps, .spacing = uniform, .at_switch = at_switch};
  };
  for (AlgorithmType form : {AlgorithmType::dpmsolver_plus_plus, AlgorithmType::dpmsolver}) {
    const Rule rule{.order = 3, .algorithm_type = form};
    const auto end = [&](auto const& schedule, SwitchPolicy at_switch) {
      return DPMSolverSinglestep{exact, schedule, options(at_switch), rule}.sample({eps, eps}, request).images;
    };
    const at::Tensor one = end(SingleNetwork{}, SwitchPolicy::keep);
    CHECK(end(Stitch{0.5}, SwitchPolicy::keep).equal(one));
    CHECK(end(Stitch{0.5}, SwitchPolicy::re_evaluate).equal(one));
    CHECK(!end(Stitch{0.5}, SwitchPolicy::reset).equal(one));
    // Groups know nothing of each other.
    const Plan plan = make_plan(exact, 20, uniform, FinalSigma::zero, Stitch{0.5});
    CHECK(end(per_group(plan, singlestep_orders(20, 3)), SwitchPolicy::reset).equal(one));

    // Of the groups 3, 1 the second evaluation has another network: a step of order 1, and from there one of order 2.
    const auto advanced = [](auto const& sampler, at::Tensor const& x, int steps) {
      Trajectory trajectory = sampler.begin({eps, eps}, {.initial_noise = x});
      for (int i = 0; i < steps; ++i) sampler.advance({eps, eps}, trajectory);
      return trajectory.x;
    };
    const DPMSolverSinglestep reset{exact, Table{{0, 1, 1, 1}}, options(SwitchPolicy::reset, 4), rule};
    const auto t = [&](int step) { return reset.plan().steps[step].step.t; };
    const DPMSolverSinglestep rest{exact,
                                   SingleNetwork{},
                                   {.steps = 3, .spacing = Spacing::list({t(1), t(2), t(3)})},
                                   {.order = 2, .algorithm_type = form}};
    const at::Tensor expected = advanced(rest, advanced(reset, golden::start(), 1), 2);
    CHECK(largest_difference(advanced(reset, golden::start(), 3), expected) < 1e-14);
  }
}

TEST_CASE("a run may begin inside a group") {
  // 3 of 4 evaluations are left, the first of them the second of a group.
  const Request request{.initial_noise = golden::start().mul(0), .initial_image = golden::start(), .strength = 0.75};
  const DPMSolverSinglestep sampler{exact, SingleNetwork{}, {.steps = 4, .spacing = uniform}, {.order = 2}};
  const DDIM ddim{exact, SingleNetwork{}, {.steps = 4, .spacing = uniform}};
  Trajectory a = sampler.begin({eps}, request), b = ddim.begin({eps}, request);
  sampler.advance({eps}, a);
  ddim.advance({eps}, b);
  CHECK(largest_difference(a.x, b.x) < 1e-14);
}

TEST_CASE("without noise the two stochastic rules are singlestep DPM-Solver++ of order 2") {
  const Request request{.initial_noise = golden::start()};
  for (int steps : {4, 9}) {
    SamplingOptions options{
        .steps = steps, .spacing = Spacing::karras(7, {.include_last = false}), .final_sigma = FinalSigma::sigma_min};
    const at::Tensor ancestral =
        DPMSolver2SAncestral{exact, SingleNetwork{}, options, {.eta = 0}}.sample({eps}, request).images;
    const at::Tensor sde = DPMSolverSDE{exact, SingleNetwork{}, options, {.eta = 0}}.sample({eps}, request).images;
    options.steps *= 2;
    options.spacing = singlestep_spacing(Spacing::karras(), 2);
    const at::Tensor expected =
        DPMSolverSinglestep{exact, SingleNetwork{}, options, {.order = 2}}.sample({eps}, request).images;
    CHECK(largest_difference(ancestral, expected) < 1e-12);
    CHECK(largest_difference(sde, expected) < 1e-12);
  }
}

TEST_CASE("order 1 is DDIM, and x_0 stays as it was thresholded") {
  const Request request{.initial_noise = golden::start()};
  const SamplingOptions options{.steps = 7, .spacing = uniform, .thresholding = Thresholding::clip(0.3)};
  const at::Tensor ddim = DDIM{exact, SingleNetwork{}, options}.sample({eps}, request).images;
  for (AlgorithmType form : {AlgorithmType::dpmsolver_plus_plus, AlgorithmType::dpmsolver}) {
    const auto end = [&](int order) {
      return DPMSolverSinglestep{exact, SingleNetwork{}, options, {.order = order, .algorithm_type = form}}
          .sample({eps}, request)
          .images;
    };
    CHECK(largest_difference(end(1), ddim) < 1e-12);
    for (int order : {2, 3}) CHECK(end(order).abs().max().item<double>() <= 0.3);
  }
  CHECK(
      DPMSolver2SAncestral{exact, SingleNetwork{}, options}.sample({eps}, request).images.abs().max().item<double>() <=
      0.3);
  CHECK(DPMSolverSDE{exact, SingleNetwork{}, options}.sample({eps}, request).images.abs().max().item<double>() <= 0.3);
}

TEST_CASE("from pure noise and for flow matching, with as many evaluations as the plan has") {
  const auto check = [](NoiseSchedule const& noise, PredictionType type, Spacing const& spacing) {
    INFO(noise.name());
    int calls = 0;
    const NetworkInfo info{.prediction_type = type, .timestep_type = TimestepType::float32};
    const Network oracle = oracle::gaussian(noise, 0.3, 0.5, info);
    const Network network(
        [&calls, oracle](at::Tensor const& x, at::Tensor const& t) {
          ++calls;
          return oracle(x, t, {});
        },
        info);
    const at::Tensor start = tstitch::noise({1}, NoiseAddress::initial(), {2, 8, 8}, at::kDouble);
    const auto run = [&](auto const& sampler) {
      calls = 0;
      const at::Tensor x = sampler.sample({network}, {.initial_noise = start}).images;
      CHECK(sampler.plan().calls() == std::vector<int>{calls});
      return x;
    };
    const at::Tensor exact_end = start.mul(0.5).add(0.3);  // what the ODE makes of pure noise
    for (AlgorithmType form : {AlgorithmType::dpmsolver_plus_plus, AlgorithmType::dpmsolver}) {
      for (int order : {2, 3}) {
        INFO("order " << order << ", form " << int(form));
        const DPMSolverSinglestep sampler{
            noise, SingleNetwork{}, {.steps = 100, .spacing = spacing}, {.order = order, .algorithm_type = form}};
        CHECK(largest_difference(run(sampler), exact_end) < 0.02);
      }
    }
    for (double eta : {0., 1.}) {
      const SamplingOptions options{.steps = 50, .spacing = spacing};
      const at::Tensor ancestral = run(DPMSolver2SAncestral{noise, SingleNetwork{}, options, {.eta = eta}});
      const at::Tensor sde = run(DPMSolverSDE{noise, SingleNetwork{}, options, {.eta = eta}});
      if (eta == 0) CHECK(largest_difference(ancestral, exact_end) < 0.02);
      if (eta == 0) CHECK(largest_difference(sde, exact_end) < 0.02);
      for (at::Tensor const& x : {ancestral, sde}) {
        CHECK(std::abs(x.mean().item<double>() - 0.3) < 4 * 0.5 / std::sqrt(128));
        CHECK(std::abs(x.std().item<double>() - 0.5) < 4 * 0.5 / std::sqrt(2 * 128));
      }
    }
  };
  check(exact.with_zero_terminal_snr(), PredictionType::v_prediction, Spacing::trailing());
  check(NoiseSchedule::flow(), PredictionType::flow, Spacing::shifted());
}

TEST_CASE("what singlestep rules refuse") {
  const auto message = [](auto action) { return message_of<std::invalid_argument>(action); };
  CHECK(message([] { singlestep_orders(0, 2); }) ==
        "tstitch::singlestep_orders: evaluations must be at least 1, got 0");
  CHECK(message([] { singlestep_orders(9, 4); }) == "tstitch::singlestep_orders: order must be 1, 2 or 3, got 4");
  CHECK(message([] {
          DPMSolverSinglestep{exact, SingleNetwork{}, {}, {.order = 0}};
        }) == "tstitch::DPMSolverSinglestep: order must be 1, 2 or 3, got 0");
  CHECK(message([] { singlestep_spacing(Spacing::shifted(), 2)(NoiseSchedule::flow(), 6); }) ==
        "tstitch::singlestep_spacing: no group of several evaluations may begin at pure noise, got -inf");
  CHECK(message([] {
          DPMSolver2SAncestral{exact, SingleNetwork{}, {}, {.eta = 2}};
        }) == "tstitch::DPMSolver2SAncestral: eta must be in [0, 1], got 2");
  CHECK(message([] {
          DPMSolverSDE{exact, SingleNetwork{}, {}, {.eta = -1}};
        }) == "tstitch::DPMSolverSDE: eta must be in [0, 1], got -1");
}
