// The adaptive DPM-Solver: beside the authors' own code and k-diffusion's, trial by trial, and what its errors promise.

#include <tstitch/method/dpm_solver_adaptive.hpp>

#include <algorithm>
#include <array>
#include <fstream>

#include "euler_family.hpp"

using namespace tstitch;

namespace {

const NoiseSchedule exact = NoiseSchedule::linear();
const NetworkInfo fractional{.timestep_type = TimestepType::float32};

const SamplingOptions to_sigma_min{.steps = 1, .final_sigma = FinalSigma::sigma_min};

/// The start of the peers and, if wanted, the second image of their batch, -0.5 times the first.
at::Tensor start(int images) {
  const at::Tensor x = tstitch::detail::host_tensor({images, 5, 1, 1}, at::kDouble);
  x.select(0, 0).copy_(golden::start().select(0, 0));
  if (images == 2) x.select(0, 1).copy_(x.select(0, 0).mul(-0.5));
  return x;
}

/// What a network was asked, call by call.
struct Calls {
  std::vector<double> t = {};
  std::vector<at::Tensor> x = {};
};

Network watched(Network const& network, Calls& calls) {
  return Network(
      [network, &calls](at::Tensor const& x, at::Tensor const& t) {
        calls.t.push_back(t.const_data_ptr<double>()[0]);
        calls.x.push_back(x);
        return network(x, t, {});
      },
      network.info());
}

struct Difference {
  double t;
  double state;
};

/// Holds a rule to a peer: as many trials, the network asked at the same t, the same x after each accepted trial.
Difference check(std::string const& name, AdaptiveDPMSolverUpdate rule) {
  std::ifstream file(TSTITCH_GOLDEN "/" + name + ".json");
  REQUIRE(file);
  const auto json = nlohmann::json::parse(file);
  const auto run = json.at("runs").at(0);
  const bool ratio = json.at("scaling") == "ve";  // the states are x / alpha, the network was given sigma / alpha
  std::vector<double> timesteps = run.at("timesteps");
  if (ratio) {
    for (double& t : timesteps) t = exact.timestep(-std::log(t));
  }
  const std::vector<std::vector<double>> states = run.at("states");

  int trials = 0, accepted = 0, evaluations = 0;
  rule.observer = [&](AdaptiveReport const& report) {
    trials = report.trials[0];
    accepted = report.accepted[0];
    evaluations = report.evaluations;
  };
  Calls calls;
  const Network network = watched(golden::network(exact, fractional), calls);
  const at::Tensor end = AdaptiveDPMSolver{exact, SingleNetwork{}, to_sigma_min, rule}
                             .sample({network}, {.initial_noise = start(int(states[0].size()) / 5)})
                             .images;
  CHECK(trials == run.at("trials"));
  CHECK(accepted == int(states.size()));

  Difference difference{0, 0};
  std::size_t call = 0, state = 0;
  double before = 0;
  const auto compare = [&](at::Tensor const& x, double t) {
    const double scale = ratio ? exact.alpha(t) : 1;
    for (std::size_t c = 0; c < states[state].size(); ++c) {
      const double away = std::abs(x.const_data_ptr<double>()[c] / scale - states[state][c]);
      difference.state = std::max(difference.state, away / std::max(1.0, std::abs(states[state][c])));
    }
    ++state;
  };
  // The peer asks again at the same place after a trial that failed; we do not.
  for (std::size_t trial = 0; trial < timesteps.size() / rule.order; ++trial) {
    const double begin = timesteps[rule.order * trial];
    const bool again = trial > 0 && begin == before;
    if (trial > 0 && !again) compare(calls.x.at(call), calls.t[call]);
    before = begin;
    for (int k = again; k < rule.order; ++k, ++call) {
      difference.t = std::max(difference.t, std::abs(calls.t.at(call) - timesteps[rule.order * trial + k]));
    }
  }
  compare(end, 0);
  CHECK(call == calls.t.size());
  CHECK(evaluations == int(calls.t.size()));
  CHECK(state == states.size());
  return difference;
}

}  // namespace

TEST_CASE("adaptive DPM-Solver of the authors") {
  for (AlgorithmType type : {AlgorithmType::dpmsolver, AlgorithmType::dpmsolver_plus_plus}) {
    for (int order : {2, 3}) {
      const bool noise = type == AlgorithmType::dpmsolver;
      const std::string name = (noise ? "dpm_solver_noise_adaptive" : "dpm_solver_adaptive") + std::to_string(order);
      const auto [t, state] = check(name, {.order = order, .algorithm_type = type, .error_norm = ErrorNorm::batch});
      INFO(name << ": t differs by " << t << ", x by " << state);
      // The peer rounds the factor of the step size to float32, and so each t. With that rounding we differ by 5e-12 in
      // t and by 3e-14 in x.
      CHECK(t < 1e-4);
      CHECK(state < 1e-7);
    }
  }
}

TEST_CASE("adaptive DPM-Solver of k-diffusion") {
  for (int order : {2, 3}) {
    const std::string name = "k_diffusion_dpm_adaptive" + std::to_string(order);
    const auto [t, state] = check(
        name,
        {.order = order, .algorithm_type = AlgorithmType::dpmsolver, .pid = PIDController{}, .error_of_ratio = true});
    INFO(name << ": t differs by " << t << ", x by " << state);
    CHECK(t < 1e-10);
    CHECK(state < 1e-12);
  }
}

TEST_CASE("an image takes its own steps, whichever images are beside it") {
  // Three that need different numbers of trials.
  const at::Tensor x = tstitch::detail::host_tensor({3, 5, 1, 1}, at::kDouble);
  for (int i = 0; i < 3; ++i) x.select(0, i).copy_(golden::start().select(0, 0).mul(std::array{1.0, -0.1, 2.5}[i]));
  const Network network = golden::network(exact, fractional);
  for (int order : {2, 3}) {
    for (AlgorithmType type : {AlgorithmType::dpmsolver, AlgorithmType::dpmsolver_plus_plus}) {
      for (auto const& pid : {std::optional<PIDController>{}, std::optional<PIDController>{PIDController{}}}) {
        std::vector<int> trials, accepted;
        AdaptiveDPMSolverUpdate rule{.order = order, .algorithm_type = type, .pid = pid};
        rule.observer = [&](AdaptiveReport const& report) {
          trials = report.trials;
          accepted = report.accepted;
        };
        const auto end = [&](at::Tensor const& begin) {
          return AdaptiveDPMSolver{exact, SingleNetwork{}, {.steps = 1}, rule}
              .sample({network}, {.initial_noise = begin})
              .images;
        };
        const at::Tensor together = end(x);
        const std::vector<int> trials_together = trials, accepted_together = accepted;
        CHECK(*std::min_element(trials.begin(), trials.end()) < *std::max_element(trials.begin(), trials.end()));
        for (int i = 0; i < 3; ++i) {
          CHECK(end(x.narrow(0, i, 1)).equal(together.narrow(0, i, 1)));
          CHECK(trials[0] == trials_together[i]);
          CHECK(accepted[0] == accepted_together[i]);
        }
        rule.error_norm = ErrorNorm::batch;
        CHECK_FALSE(end(x).equal(together));
        CHECK(trials == std::vector<int>(3, trials[0]));
      }
    }
  }
}

TEST_CASE("adaptive DPM-Solver keeps to its tolerances") {
  const Network network = golden::network(exact, fractional);
  const double true_end = euler_family::exact_end(exact, exact.at(999), exact.at(0), -0.5);
  for (int order : {2, 3}) {
    for (AlgorithmType type : {AlgorithmType::dpmsolver, AlgorithmType::dpmsolver_plus_plus}) {
      int before = 0;
      for (double tolerance : {1e-2, 1e-4, 1e-6}) {
        int evaluations = 0;
        AdaptiveDPMSolverUpdate rule{
            .order = order, .algorithm_type = type, .atol = tolerance, .rtol = tolerance, .max_trials = 5000};
        rule.observer = [&](AdaptiveReport const& report) { evaluations = report.evaluations; };
        const at::Tensor x = AdaptiveDPMSolver{exact, SingleNetwork{}, to_sigma_min, rule}
                                 .sample({network}, {.initial_noise = golden::start()})
                                 .images;
        const double error = std::abs(x.const_data_ptr<double>()[1] - true_end);
        INFO("order " << order << ", tolerance " << tolerance << ", " << evaluations << " evaluations: error "
                      << error);
        // The tolerance is of one step, the error of all of them.
        CHECK(error < 10 * tolerance);
        CHECK(evaluations > 2 * before);
        before = evaluations;
      }
    }
  }
}

TEST_CASE("an observer sees each evaluation and may cancel there") {
  Calls calls;
  const Network network = watched(golden::network(exact, fractional), calls);
  AdaptiveDPMSolverUpdate rule{.order = 3};
  int evaluations = 0;
  rule.observer = [&](AdaptiveReport const& report) { evaluations += report.evaluations; };
  const AdaptiveDPMSolver sampler{exact, SingleNetwork{}, {.steps = 1}, rule};
  int reports = 0, done = -1;
  const auto cancel_after = [&](int most) {
    reports = 0;
    calls = {};
    return sampler.sample({network}, {.initial_noise = start(2)}, [&](StepReport const& report) {
      done = report.done;
      CHECK(report.x_0.sizes() == start(2).sizes());
      return ++reports == most ? Control::cancel : Control::proceed;
    });
  };
  const Samples whole = cancel_after(0);
  CHECK(whole.finished);
  CHECK(reports == evaluations + 1);  // and the step
  CHECK(done == 1);
  CHECK(whole.images.equal(sampler.sample({network}, {.initial_noise = start(2)}).images));
  for (const int most : {1, 2, 7}) {
    const Samples cancelled = cancel_after(most);
    CHECK_FALSE(cancelled.finished);
    CHECK(cancelled.finished_images == 0);
    CHECK(cancelled.images.size(0) == 2);
    CHECK(int(calls.t.size()) == most);
    CHECK(done == 0);
  }
}

TEST_CASE("two planned steps stitch two networks, and the observer counts what the plan cannot") {
  const Network small = golden::network(exact, fractional);
  Calls calls;
  const Network large = watched(small, calls);
  std::vector<int> evaluations;
  AdaptiveDPMSolverUpdate rule{.order = 2};
  rule.observer = [&](AdaptiveReport const& report) {
    CHECK(report.step.index == int(evaluations.size()));
    evaluations.push_back(report.evaluations);
  };
  const AdaptiveDPMSolver sampler{
      exact, Stitch{.ratio = 0.5}, {.steps = 2, .spacing = Spacing::list({999, 400})}, rule};
  CHECK(sampler.plan().calls() == std::vector<int>{2, 3});
  const at::Tensor x = sampler.sample({small, large}, {.initial_noise = golden::start()}).images;
  REQUIRE(evaluations.size() == 2);
  CHECK(evaluations[0] > 2);
  CHECK(evaluations[1] == int(calls.t.size()));
  CHECK(std::abs(calls.t.front() - 400) < 1e-9);
  CHECK(calls.t.back() == 0);
  // The networks are one, so that only the tolerance tells this run from an undivided one.
  rule.observer = {};
  const at::Tensor undivided = AdaptiveDPMSolver{exact, SingleNetwork{}, {.steps = 1}, rule}
                                   .sample({small}, {.initial_noise = golden::start()})
                                   .images;
  CHECK(x.sub(undivided).abs().max().item<double>() < 0.05);
  // From t = 0 there is nothing to adapt.
  CHECK(AdaptiveDPMSolver{exact, SingleNetwork{}, {.steps = 2}, rule}.plan().calls() == std::vector<int>{3});
}

TEST_CASE("with carry_step_size a planned step goes on as the one before ended") {
  const Network network = golden::network(exact, fractional);
  const SamplingOptions halves{.steps = 2, .spacing = Spacing::list({999, 400}), .final_sigma = FinalSigma::sigma_min};
  const double true_end = euler_family::exact_end(exact, exact.at(999), exact.at(0), -0.5);
  for (const bool controlled : {false, true}) {
    for (const double tolerance : {1e-2, 1e-3, 1e-4}) {
      std::vector<int> trials;
      const auto run = [&](bool carry) {
        trials.clear();
        AdaptiveDPMSolverUpdate rule{.order = 2, .atol = tolerance, .rtol = tolerance, .carry_step_size = carry};
        if (controlled) rule.pid = PIDController{};
        rule.observer = [&](AdaptiveReport const& report) { trials.push_back(report.trials[0]); };
        const at::Tensor x = AdaptiveDPMSolver{exact, Stitch{.ratio = 0.5}, halves, rule}
                                 .sample({network, network}, {.initial_noise = golden::start()})
                                 .images;
        return std::abs(x.const_data_ptr<double>()[1] - true_end);
      };
      const double error_anew = run(false);
      const std::vector<int> anew = trials;
      const double error_carried = run(true);
      INFO(anew[0] << " + " << anew[1] << " trials, error " << error_anew << "; carried " << trials[0] << " + "
                   << trials[1] << ", error " << error_carried);
      CHECK(trials[0] == anew[0]);  // the first step has nothing to go on with
      // The controller lengthens a step by 2.6 times at most; without it the first trial says all.
      if (controlled) CHECK(trials[1] < anew[1]);
      CHECK(trials[1] <= anew[1] + 1);
      CHECK(error_carried < 10 * tolerance);
    }
  }
}

TEST_CASE("the step size that is carried is the run's: forks, retries and each image have their own") {
  int calls = 0, fails_at = -1;
  const Network exact_network = golden::network(exact, fractional);
  const Network network(
      [&](at::Tensor const& x, at::Tensor const& t) {
        if (calls++ == fails_at) throw std::runtime_error("once");
        return exact_network(x, t, {});
      },
      fractional);
  const SamplingOptions thirds{.steps = 3, .spacing = Spacing::list({999, 600, 200})};
  const AdaptiveDPMSolver sampler{exact, SingleNetwork{}, thirds, {.order = 2, .carry_step_size = true}};
  const auto finish = [&](Trajectory run) {
    while (!run.finished()) sampler.advance({network}, run);
    return run.x;
  };
  const Trajectory begun = sampler.begin({network}, {.initial_noise = start(2)});
  const at::Tensor alone = finish(begun);
  CHECK_FALSE(alone.equal(AdaptiveDPMSolver{exact, SingleNetwork{}, thirds, {.order = 2}}
                              .sample({exact_network}, {.initial_noise = start(2)})
                              .images));

  Trajectory run = begun;
  sampler.advance({network}, run);
  using State = AdaptiveDPMSolverUpdate::State;
  REQUIRE(run.rule_state.find<State>());
  const std::vector<double> carried = run.rule_state.find<State>()->h;
  REQUIRE(carried.size() == 2);
  CHECK(carried[0] != carried[1]);
  Trajectory fork = run;
  fork.x = fork.x.mul(3);
  CHECK_FALSE(finish(fork).equal(alone));
  CHECK(run.rule_state.find<State>()->h == carried);
  calls = 0;
  fails_at = 5;
  CHECK_THROWS_AS(sampler.advance({network}, run), std::runtime_error);
  CHECK(run.rule_state.find<State>()->h == carried);
  CHECK(finish(run).equal(alone));

  // An image ends the same whichever is beside it.
  for (std::int64_t i = 0; i < 2; ++i) {
    const at::Tensor one = sampler.sample({exact_network}, {.initial_noise = start(2).narrow(0, i, 1)}).images;
    CHECK(one.equal(alone.narrow(0, i, 1)));
  }
}

TEST_CASE("adaptive DPM-Solver begins at pure noise and ends at x_0, on diffusion and on flow matching") {
  const NoiseSchedule zero_snr = exact.with_zero_terminal_snr(), flow = NoiseSchedule::flow();
  for (auto const& [noise, prediction] : {std::pair{exact, PredictionType::epsilon},
                                          {zero_snr, PredictionType::v_prediction},
                                          {flow, PredictionType::flow}}) {
    const Network network =
        golden::network(noise, {.prediction_type = prediction, .timestep_type = TimestepType::float32});
    const bool zero = noise.alpha(noise.noisiest()) == 0;
    // The first step from pure noise, where x_0 is the mean of the data.
    const NoiseLevel from = noise.at(noise.noisiest() - zero);
    const double x_from = zero ? from.sigma * -0.5 + from.alpha * 0.15 : -0.5;
    const double true_end = euler_family::exact_end(noise, from, NoiseLevel::clean(), x_from);
    for (AlgorithmType type : {AlgorithmType::dpmsolver, AlgorithmType::dpmsolver_plus_plus}) {
      AdaptiveDPMSolverUpdate rule{.algorithm_type = type, .atol = 1e-4, .rtol = 1e-4};
      int reported = 0;
      rule.observer = [&](AdaptiveReport const& report) { reported = report.evaluations; };
      Calls calls;
      const at::Tensor x = AdaptiveDPMSolver{noise, SingleNetwork{}, {.steps = 1}, rule}
                               .sample({watched(network, calls)}, {.initial_noise = golden::start()})
                               .images;
      INFO(noise.name() << ", form " << int(type));
      CHECK(x.isfinite().all().item<bool>());
      CHECK(std::abs(x.const_data_ptr<double>()[1] - true_end) < 2e-3);
      CHECK(reported == int(calls.t.size()));
    }
  }
}

TEST_CASE("adaptive DPM-Solver says where it cannot go on") {
  const auto run = [](Network const& network, AdaptiveDPMSolverUpdate const& rule) {
    AdaptiveDPMSolver{exact, SingleNetwork{}, {.steps = 1}, rule}.sample({network}, {.initial_noise = golden::start()});
  };
  const Network network = golden::network(exact, fractional);
  CHECK_THROWS_AS(run(network, {.max_trials = 3}), std::runtime_error);
  CHECK_THROWS_WITH(run(network, {.max_trials = 3}),
                    ContainsSubstring("AdaptiveDPMSolver: max_trials = 3 must be enough to reach lambda = 4.605") &&
                        ContainsSubstring("(step 0, image 0 of the batch), got -3.596"));
  const Network broken(
      [&](at::Tensor const& x, at::Tensor const& t) {
        return t.const_data_ptr<double>()[0] < 500 ? x.mul(NAN) : network(x, t, {});
      },
      fractional);
  CHECK_THROWS_AS(run(broken, {}), std::runtime_error);
  CHECK_THROWS_WITH(run(broken, {}),
                    ContainsSubstring("AdaptiveDPMSolver: the error at lambda = ") &&
                        ContainsSubstring("must be a finite number (step 0, image 0 of the batch), got nan"));
}

TEST_CASE("what adaptive DPM-Solver refuses") {
  const auto refuses = [](AdaptiveDPMSolverUpdate const& rule, char const* words) {
    CHECK_THROWS_WITH((AdaptiveDPMSolver{exact, SingleNetwork{}, {.steps = 1}, rule}), ContainsSubstring(words));
  };
  refuses({.order = 1}, "AdaptiveDPMSolver: order must be 2 or 3, got 1");
  refuses({.atol = 0}, "AdaptiveDPMSolver: atol must be above 0, got 0");
  refuses({.rtol = -1}, "AdaptiveDPMSolver: rtol must be at least 0, got -1");
  refuses({.theta = 1.5}, "AdaptiveDPMSolver: theta must be in (0, 1], got 1.5");
  refuses({.h_init = 0}, "AdaptiveDPMSolver: h_init must be above 0, got 0");
  refuses({.max_trials = 0}, "AdaptiveDPMSolver: max_trials must be at least 1, got 0");
  refuses({.pid = PIDController{.i = NAN}}, "PIDController: p, i and d must be in [-1e6, 1e6], got nan");
  refuses({.pid = PIDController{.accept_from = 0}}, "PIDController: accept_from must be in (0, 1], got 0");
}
