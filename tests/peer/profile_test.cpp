// Every profile beside the program it is named after: whole trajectories, timestep lists, routing, random numbers.

#include <tstitch/peer/by_name.hpp>

#include <set>

#include "../golden.hpp"

using namespace tstitch;

namespace {

const NoiseSchedule linear = NoiseSchedule::linear();
const NoiseSchedule cosine = NoiseSchedule::cosine();

/// int64 timesteps, as most programs hand to the network.
Network network(NetworkInfo info = {}) {
  return golden::network(linear, std::move(info));
}

/// Fractional ones.
Network any_time() {
  return network({.timestep_type = TimestepType::float32});
}

Network learned() {
  return network({.learned_variance = true});
}

/// Holds a profile, with `edit` made to it, to a case.
template <class MakeProfile, class Edit>
void check(std::string const& name, Network const& net, MakeProfile make_profile, Edit edit, double at_999_steps = 0) {
  golden::check(
      name, net,
      [&](int steps) {
        auto profile = make_profile(linear, steps);
        edit(profile);
        return make_sampler(profile, SingleNetwork{});
      },
      0, at_999_steps);
}

template <class MakeProfile>
void check(std::string const& name, Network const& net, MakeProfile make_profile, double tolerance = 0) {
  check(
      name, net, make_profile, [](auto&) {}, tolerance);
}

/// The timesteps of the plan are those that the peer handed to its network.
template <class MakeProfile>
void check_timesteps(std::string const& name, MakeProfile make_profile) {
  for (golden::Run const& run : golden::read(name).runs) {
    if (!run.error.empty()) continue;
    const Plan plan = make_sampler(make_profile(linear, run.steps), SingleNetwork{}).plan();
    REQUIRE(plan.steps.size() == run.timesteps.size());
    for (std::size_t i = 0; i < plan.steps.size(); ++i) {
      INFO(name << ", " << run.steps << " steps, step " << i);
      CHECK(std::abs(plan.steps[i].step.t - run.timesteps[i]) <= 1e-12 * 999);
    }
  }
}

const auto eta_1_ddim = [](NoiseSchedule const& trained, int steps) { return profile::dit_ddim(trained, steps, 1); };
const auto eta_0_ddim = [](NoiseSchedule const& trained, int steps) { return profile::dit_ddim(trained, steps); };
const auto latent = [](NoiseSchedule const& trained, int steps) { return profile::latent_diffusion(trained, steps); };
const auto latent_1 = [](NoiseSchedule const& trained, int steps) {
  return profile::latent_diffusion(trained, steps, 1);
};

}  // namespace

TEST_CASE("profiles visit the timesteps of their programs") {
  check_timesteps("guided_diffusion_ddpm", profile::dit);
  check_timesteps("guided_diffusion_ddim", eta_0_ddim);
  check_timesteps("diffusers_ddpm", profile::diffusers_ddpm);
  check_timesteps("diffusers_ddim", profile::diffusers_ddim);
  check_timesteps("diffusers_dpmpp", profile::diffusers_dpmpp);
  check_timesteps("dpm_solver_multistep2", profile::dpm_solver);
  check_timesteps("latent_diffusion_ddim", latent);
}

TEST_CASE("DiT: guided-diffusion's DDPM and DDIM") {
  check("guided_diffusion_ddpm", learned(), profile::dit);
  // The peer takes square roots in float32 with a library that rounds a third of them one unit off, the same way
  // wherever sigma is near 1. Over 999 steps that is worth 2e-5, also when its states are float64.
  check("guided_diffusion_ddim", learned(), eta_0_ddim, 2.1e-5);
  golden::check(
      "guided_diffusion_ddim_float64", learned(),
      [](int steps) { return make_sampler(profile::dit_ddim(linear, steps), SingleNetwork{}); }, 1e-5, 2.1e-5);
  check("guided_diffusion_ddim_eta1", learned(), eta_1_ddim);
  check("guided_diffusion_ddpm_fixed_small", network(), profile::dit);
  check("guided_diffusion_ddpm_fixed_large", network(), profile::dit,
        [](auto& profile) { profile.rule.variance = Variance::fixed_large; });
  const auto clip = [](auto& profile) { profile.options.thresholding = Thresholding::clip(); };
  check("guided_diffusion_ddpm_clip", learned(), profile::dit, clip);
  check("guided_diffusion_ddim_clip", learned(), eta_0_ddim, clip);
  check("guided_diffusion_ddim_clip_eta1", learned(), eta_1_ddim, clip);
}

TEST_CASE("diffusers' DDPM") {
  check("diffusers_ddpm", network(), profile::diffusers_ddpm);
  check("diffusers_ddpm_no_clip", network(), profile::diffusers_ddpm,
        [](auto& profile) { profile.options.thresholding = Thresholding::none(); });
  check("diffusers_ddpm_linspace", network(), profile::diffusers_ddpm,
        [](auto& profile) { profile.options.spacing = Spacing::linspace(); });
  check("diffusers_ddpm_trailing", network(), profile::diffusers_ddpm,
        [](auto& profile) { profile.options.spacing = Spacing::trailing(); });
  check("diffusers_ddpm_trailing_fixed_large", network(), profile::diffusers_ddpm, [](auto& profile) {
    profile.options.spacing = Spacing::trailing();
    profile.rule.variance = Variance::fixed_large;
  });
  check("diffusers_ddpm_fixed_large", network(), profile::diffusers_ddpm,
        [](auto& profile) { profile.rule.variance = Variance::fixed_large; });
  check("diffusers_ddpm_learned_range", learned(), profile::diffusers_ddpm,
        [](auto& profile) { profile.rule.variance = Variance::learned_range; });
}

TEST_CASE("diffusers' DDIM") {
  check("diffusers_ddim", network(), profile::diffusers_ddim);
  check("diffusers_ddim_no_clip", network(), profile::diffusers_ddim,
        [](auto& profile) { profile.options.thresholding = Thresholding::none(); });
  check("diffusers_ddim_linspace", network(), profile::diffusers_ddim,
        [](auto& profile) { profile.options.spacing = Spacing::linspace(); });
  check("diffusers_ddim_trailing", network(), profile::diffusers_ddim,
        [](auto& profile) { profile.options.spacing = Spacing::trailing(); });
  check("diffusers_ddim_offset1", network(), profile::diffusers_ddim, [](auto& profile) {
    profile.options.spacing = Spacing::leading(1);
    profile.options.final_sigma = FinalSigma::sigma_min;
  });
  check("diffusers_ddim_eta05", network(), profile::diffusers_ddim, [](auto& profile) { profile.rule.eta = 0.5; });
  check("diffusers_ddim_eta1_clipped_output", network(), profile::diffusers_ddim, [](auto& profile) {
    profile.rule.eta = 1;
    profile.rule.eps_of_thresholded = true;
  });
  check("diffusers_ddim_v", network({.prediction_type = PredictionType::v_prediction}), profile::diffusers_ddim);
  check("diffusers_ddim_sample", network({.prediction_type = PredictionType::sample}), profile::diffusers_ddim);
  golden::check(  // it takes square roots of its float32 table in float32
      "diffusers_ddim_float64", network(),
      [](int steps) { return make_sampler(profile::diffusers_ddim(linear, steps), SingleNetwork{}); }, 1e-5);
  check("diffusers_ddim_thresholding", network(), profile::diffusers_ddim,
        [](auto& profile) { profile.options.thresholding = Thresholding::dynamic(0.995, 1, 1); });
}

TEST_CASE("with its grid a profile lays even timesteps as its program does") {
  const auto leading = [](auto make_profile, int offset) {
    return [=](NoiseSchedule const& trained, int steps) {
      auto profile = make_profile(trained, steps);
      profile.options.spacing = Spacing::leading(offset, profile.grid);
      return profile;
    };
  };
  // Of diffusers' schedulers this one alone leaves t = 0 out: its stride is floor(T / (N + 1)).
  check_timesteps("diffusers_dpmpp_leading", leading(profile::diffusers_dpmpp, 0));
  check_timesteps("diffusers_dpmpp_leading_offset1", leading(profile::diffusers_dpmpp, 1));
  check_timesteps("diffusers_ddim", leading(profile::diffusers_ddim, 0));
  check_timesteps("diffusers_ddim_offset1", leading(profile::diffusers_ddim, 1));
  check_timesteps("diffusers_ddpm", leading(profile::diffusers_ddpm, 0));
  const auto linspace = [](auto make_profile) {
    return [=](NoiseSchedule const& trained, int steps) {
      auto profile = make_profile(trained, steps);
      profile.options.spacing = Spacing::linspace(profile.grid);
      return profile;
    };
  };
  check_timesteps("diffusers_dpmpp", linspace(profile::diffusers_dpmpp));
  check_timesteps("diffusers_ddim_linspace", linspace(profile::diffusers_ddim));
  check_timesteps("dpm_solver_multistep2", linspace(profile::dpm_solver));
}

TEST_CASE("diffusers' multistep DPM-Solver") {
  const auto edited = [](std::string const& name, auto edit, NetworkInfo info = {}) {
    check("diffusers_" + name, network(std::move(info)), profile::diffusers_dpmpp, edit);
  };
  edited("dpmpp", [](auto&) {});
  edited("dpmpp_order1", [](auto& profile) { profile.rule.order = 1; });
  edited("dpmpp_order3", [](auto& profile) { profile.rule.order = 3; });
  edited("dpmpp_heun", [](auto& profile) { profile.rule.solver_type = SolverType::heun; });
  edited("dpmpp_trailing", [](auto& profile) { profile.options.spacing = Spacing::trailing(); });
  edited("dpmpp_leading",
         [](auto& profile) { profile.options.spacing = Spacing::leading(0, {.include_last = false}); });
  edited("dpmpp_leading_offset1",
         [](auto& profile) { profile.options.spacing = Spacing::leading(1, {.include_last = false}); });
  edited("dpmpp_karras",
         [](auto& profile) { profile.options.spacing = Spacing::karras(7, {.time = TimeOfSigma::nearest}); });
  edited("dpmpp_exponential",
         [](auto& profile) { profile.options.spacing = Spacing::uniform_logsnr({.time = TimeOfSigma::truncated}); });
  edited("dpmpp_lu",
         [](auto& profile) { profile.options.spacing = Spacing::uniform_logsnr({.time = TimeOfSigma::nearest}); });
  edited("dpmpp_beta", [](auto& profile) {
    profile.options.spacing = Spacing::beta_on_sigma(0.6, 0.6, {.time = TimeOfSigma::truncated});
  });
  const auto to_sigma_min = [](auto& profile) { profile.options.final_sigma = FinalSigma::sigma_min; };
  edited("dpmpp_sigma_min", to_sigma_min);
  edited("dpmpp_sigma_min_order3", [&](auto& profile) {
    to_sigma_min(profile);
    profile.rule.order = 3;
  });
  edited("dpmpp_euler_at_final", [](auto& profile) { profile.rule.euler_at_final = true; });
  edited("dpmpp_sigma_min_euler_at_final", [&](auto& profile) {
    to_sigma_min(profile);
    profile.rule.euler_at_final = true;
  });
  edited("dpmpp_thresholding",
         [](auto& profile) { profile.options.thresholding = Thresholding::dynamic(0.995, 1, 1); });
  const auto on_cosine = [](auto edit) {
    return [edit](NoiseSchedule const&, int steps) {
      auto profile = profile::diffusers_dpmpp(cosine, steps);
      edit(profile);
      return profile;
    };
  };
  const Network cosine_network = golden::network(cosine);
  check("diffusers_dpmpp_cosine", cosine_network, on_cosine([](auto&) {}));
  check("diffusers_dpmpp_cosine_clipped", cosine_network,
        on_cosine([](auto& profile) { profile.options.spacing = Spacing::clipped(profile.options.spacing, -5.1); }));
  edited("dpmpp_v", [](auto&) {}, {.prediction_type = PredictionType::v_prediction});
  edited("dpmpp_sample", [](auto&) {}, {.prediction_type = PredictionType::sample});
  const auto noise_form = [&](int order, SolverType type) {
    return [=](auto& profile) {
      to_sigma_min(profile);
      profile.rule.algorithm_type = AlgorithmType::dpmsolver;
      profile.rule.order = order;
      profile.rule.solver_type = type;
    };
  };
  edited("dpm_order1", noise_form(1, SolverType::midpoint));
  edited("dpm_order2", noise_form(2, SolverType::midpoint));
  edited("dpm_order3", noise_form(3, SolverType::midpoint));
  edited("dpm_heun", noise_form(2, SolverType::heun));
  const auto stochastic = [](int order, SolverType type) {
    return [=](auto& profile) {
      profile.rule.eta = 1;
      profile.rule.order = order;
      profile.rule.solver_type = type;
    };
  };
  edited("sde_dpmpp_order1", stochastic(1, SolverType::midpoint));
  edited("sde_dpmpp_order2", stochastic(2, SolverType::midpoint));
  edited("sde_dpmpp_heun", stochastic(2, SolverType::heun));
  edited("sde_dpmpp_karras", [](auto& profile) {
    profile.rule.eta = 1;
    profile.options.spacing = Spacing::karras(7, {.time = TimeOfSigma::nearest});
  });
}

TEST_CASE("the authors' multistep DPM-Solver") {
  const auto edited = [](std::string const& name, auto edit) {
    check("dpm_solver_" + name, any_time(), profile::dpm_solver, edit);
  };
  edited("multistep2", [](auto&) {});
  edited("multistep1", [](auto& profile) { profile.rule.order = 1; });
  edited("multistep3", [](auto& profile) { profile.rule.order = 3; });
  edited("multistep2_taylor", [](auto& profile) { profile.rule.solver_type = SolverType::heun; });
  edited("multistep2_not_lower_final", [](auto& profile) { profile.rule.lower_order_final_below = 0; });
  edited("multistep2_quadratic", [](auto& profile) { profile.options.spacing = Spacing::quadratic(); });
  edited("multistep2_logsnr",
         [](auto& profile) { profile.options.spacing = Spacing::uniform_logsnr({.include_last = false}); });
  edited("multistep2_thresholding",
         [](auto& profile) { profile.options.thresholding = Thresholding::dynamic(0.995, 1); });
  const auto noise_form = [](int order, SolverType type) {
    return [=](auto& profile) {
      profile.rule.algorithm_type = AlgorithmType::dpmsolver;
      profile.rule.order = order;
      profile.rule.solver_type = type;
    };
  };
  edited("noise_multistep1", noise_form(1, SolverType::midpoint));
  edited("noise_multistep2", noise_form(2, SolverType::midpoint));
  edited("noise_multistep2_taylor", noise_form(2, SolverType::heun));
  edited("noise_multistep3", noise_form(3, SolverType::midpoint));
}

TEST_CASE("the authors' denoise_to_zero is one evaluation more, from t = 0 to x_0") {
  const golden::Case golden = golden::read("dpm_solver_multistep2_denoise_to_zero");
  for (golden::Run const& run : golden.runs) {
    if (run.steps < 10) continue;  // it lowers the order once more before that evaluation
    auto profile = profile::dpm_solver(linear, run.steps + 1);
    profile.options.spacing = Spacing::linspace({.round = false});
    profile.options.final_sigma = FinalSigma::zero;
    INFO(run.steps << " steps");
    CHECK(golden::difference(golden, run, make_sampler(profile, SingleNetwork{}), any_time()) <= 1e-12);
  }
}

TEST_CASE("k-diffusion's DPM-Solver++") {
  const auto edited = [](std::string const& name, auto edit) {
    check("k_diffusion_" + name, any_time(), profile::k_diffusion, [&](auto& profile) {
      profile.options.spacing =
          Spacing::karras();  // the network of the problem knows sigma itself, not a t made from it
      edit(profile);
    });
  };
  const auto with = [](int order, SolverType type, double eta) {
    return [=](auto& profile) {
      profile.rule.order = order;
      profile.rule.solver_type = type;
      profile.rule.eta = eta;
    };
  };
  edited("dpmpp_2m", [](auto&) {});
  edited("dpmpp_2m_sde", with(2, SolverType::midpoint, 1));
  edited("dpmpp_2m_sde_heun", with(2, SolverType::heun, 1));
  edited("dpmpp_2m_sde_eta0", with(2, SolverType::midpoint, 0));
  edited("dpmpp_3m_sde", with(3, SolverType::heun, 1));
  edited("dpmpp_3m_sde_eta0", with(3, SolverType::heun, 0));
}

TEST_CASE("latent-diffusion's DDIM") {
  check("latent_diffusion_ddim", network(), latent);
  check("latent_diffusion_ddim_eta1", network(), latent_1);
  // Its "quad": squares of even numbers up to the root of 0.8 T, cut off, plus 1.
  check("latent_diffusion_ddim_quad", network(), [](NoiseSchedule const& trained, int steps) {
    auto profile = profile::latent_diffusion(trained, steps);
    std::vector<double> timesteps;
    for (int i = steps - 1; i >= 0; --i) {
      const double root = std::sqrt(0.8 * 1000) * i / (steps - 1);
      timesteps.push_back(std::trunc(root * root) + 1);
    }
    profile.options.steps = steps;
    profile.options.spacing = Spacing::list(std::move(timesteps));
    return profile;
  });
  CHECK(profile::latent_diffusion(linear, 30).options.steps == 31);  // the program runs so many when asked for 30
  CHECK(message_of<std::invalid_argument>([] { profile::latent_diffusion(linear, 1001); }) ==
        "tstitch::profile::latent_diffusion: steps must be in [1, 1000], got 1001");
  // Where the program runs out of its table.
  CHECK(message_of<std::invalid_argument>([] { make_sampler(profile::latent_diffusion(linear, 999), Stitch{}); }) ==
        "tstitch::Spacing::list: timesteps must be in [0, 999], got 1000");
}

TEST_CASE("routing rules of T-Stitch's code give its counts, on the round ratios and off them") {
  const auto calls = [](auto const& profile, AnyModelSchedule const& schedule) {
    return make_sampler(profile, schedule).plan().calls().at(0);
  };
  const auto dit = [&](int steps, double ratio) {
    const auto profile = profile::dit(linear, steps);
    return calls(profile, routing_of(profile, ratio));
  };
  const auto latent_diffusion = [&](int steps, double ratio) {
    const auto profile = profile::latent_diffusion(linear, steps);
    return calls(profile, routing_of(profile, ratio));
  };
  const auto by_index = [&](auto const& rule, int steps) { return calls(profile::dit(linear, steps), rule); };
  for (int steps : {50, 100}) {
    for (int tenth = 1; tenth <= 10; ++tenth) {
      const double ratio = tenth / 10.0;
      const int expected = steps * tenth / 10;
      INFO(steps << " steps, ratio " << ratio);
      CHECK(dit(steps, ratio) == expected);
      CHECK(by_index(routing::DiTFractions{{ratio, 1 - ratio}}, steps) == expected);
      CHECK(latent_diffusion(steps, ratio) == expected);
      CHECK(by_index(routing::StableDiffusion{ratio}, steps) == expected);
      CHECK(by_index(routing::LatentConsistency{ratio}, steps) == (tenth == 10 ? expected : expected + 1));
    }
  }
  struct Row {
    int steps;
    double ratio;
    int a, b, c, d;
  };
  for (auto const& [steps, ratio, a, b, c, d] :
       {Row{50, 0.05, 3, 2, 2, 3}, Row{50, 0.25, 13, 12, 12, 13}, Row{50, 0.33, 17, 16, 16, 17},
        Row{50, 0.55, 27, 27, 27, 28}, Row{25, 0.15, 4, 3, 3, 4}, Row{30, 0.33, 10, 10, 9, 10},
        Row{100, 0.95, 94, 95, 95, 96}}) {
    INFO(steps << " steps, ratio " << ratio);
    CHECK(dit(steps, ratio) == a);
    CHECK(latent_diffusion(steps, ratio) == b);
    CHECK(by_index(routing::StableDiffusion{ratio}, steps) == c);
    CHECK(by_index(routing::LatentConsistency{ratio}, steps) == d);
  }
  CHECK(message_of<std::invalid_argument>([] { make_sampler(profile::dit(linear, 10), routing::DiT{1.5}); }) ==
        "tstitch::routing::DiT: ratio must be in [0, 1], got 1.5");
  CHECK(message_of<std::invalid_argument>([] {
          make_sampler(profile::dit(linear, 10), routing::DiTFractions{{0.3, 0.3}});
        }).starts_with("tstitch::routing::DiTFractions: fractions must reach 1 - t / T at t = 333, got 0.6"));
}

TEST_CASE("a profile gives its routing, its guided channels and its noise, too") {
  const auto dit = profile::dit(linear, 25);
  CHECK(make_sampler(dit, 0.5).plan().calls() == std::vector<int>{13, 12});
  CHECK(make_sampler(dit, Stitch{0.5}).plan().calls() == std::vector<int>{12, 13});
  CHECK(make_sampler(profile::diffusers_lcm(linear, 5), 0.5).plan().calls() == std::vector<int>{3, 2});
  // T-Stitch's code has no rule for these, so that they have the library's.
  CHECK(make_sampler(profile::recommended(linear, 25), 0.5).plan().calls() == std::vector<int>{12, 13});
  CHECK(make_sampler(profile::recommended(linear, 25), 1).plan().calls() == std::vector<int>{25});
  // Of a schedule of other than 1000 timesteps, too.
  const auto short_dit = profile::dit(NoiseSchedule::linear(100), 10);
  CHECK(make_sampler(short_dit, 0.5).plan().calls() == std::vector<int>{5, 5});
  CHECK(message_of<std::invalid_argument>([&] { make_sampler(dit, 1.5); }) ==
        "tstitch::routing::DiT: ratio must be in [0, 1], got 1.5");

  Request request{.count = 2, .seed = 5, .guidance = {.scale = 2, .end = 0.5}, .shape = {4, 2, 2}};
  const Request applied = apply(dit, request);
  CHECK(applied.guidance.channels == 3);
  CHECK(applied.guidance.scale.values() == request.guidance.scale.values());
  CHECK(applied.guidance.end == 0.5);
  CHECK(apply(profile::recommended(linear, 5), applied).guidance.channels == 0);
  const auto numbers = [](Request const& of, NoiseAddress address) {
    return of.noise_source({1, 2}, address, {4, 2, 2}, at::kFloat);
  };
  for (NoiseAddress const address : {NoiseAddress::initial(), NoiseAddress::of_step(0), NoiseAddress::of_step(3)}) {
    CHECK(numbers(applied, address).equal(numbers(request, address)));
    CHECK(numbers(apply(dit, request, 7), address)
              .equal(TorchNoise(7, {.rows_per_image = 2})({1, 2}, address, {4, 2, 2}, at::kFloat)));
  }
}

TEST_CASE("profiles by name are the profiles") {
  static const NoiseSchedule flow = NoiseSchedule::flow(1000, 3);
  const auto same = [](std::string const& name, auto const& profile) {
    const AnyProfile named = profile_by_name(name, name.find("flow") != std::string::npos ? flow : linear, 10);
    INFO(name);
    const auto plan = [](auto const& of) { return to_string(make_sampler(of, 0.33).plan()); };
    CHECK(plan(named) == plan(profile));
    CHECK(named.guidance_channels == profile.guidance_channels);
    CHECK(named.noise_order.rows_per_image == profile.noise_order.rows_per_image);
    CHECK(named.grid.include_last == profile.grid.include_last);
    CHECK(named.grid.round == profile.grid.round);
    CHECK(named.routing == profile.routing);
    CHECK(named.options.previous_timestep == profile.options.previous_timestep);
  };
  same("recommended", profile::recommended(linear, 10));
  same("dit", profile::dit(linear, 10));
  same("dit-ddim", profile::dit_ddim(linear, 10));
  same("diffusers-ddpm", profile::diffusers_ddpm(linear, 10));
  same("diffusers-ddim", profile::diffusers_ddim(linear, 10));
  same("diffusers-dpmpp", profile::diffusers_dpmpp(linear, 10));
  same("diffusers-pndm", profile::diffusers_pndm(linear, 10));
  same("diffusers-euler", profile::diffusers_euler(linear, 10));
  same("diffusers-flow-euler", profile::diffusers_flow_euler(flow, 10));
  same("diffusers-flow-unipc", profile::diffusers_flow_unipc(flow, 10));
  same("diffusers-flow-dpmpp", profile::diffusers_flow_dpmpp(flow, 10));
  same("diffusers-lcm", profile::diffusers_lcm(linear, 10));
  same("dpm-solver", profile::dpm_solver(linear, 10));
  same("k-diffusion", profile::k_diffusion(linear, 10));
  same("latent-diffusion", profile::latent_diffusion(linear, 10));
  std::set<std::string> plans;
  for (NamedProfile const& each : profiles()) {
    CHECK_FALSE(each.help.empty());
    NoiseSchedule const& of = each.name.find("flow") != std::string::npos ? flow : linear;
    plans.insert(to_string(make_sampler(each.make(of, 10), 0.33).plan()));
  }
  CHECK(plans.size() == profiles().size());
  CHECK(profiles().size() == 15);
  CHECK(message_of<std::invalid_argument>([] { profile_by_name("dpm", linear, 10); }) ==
        "tstitch::profile_by_name: name must be one of recommended, dit, dit-ddim, diffusers-ddpm, diffusers-ddim, "
        "diffusers-dpmpp, diffusers-pndm, diffusers-euler, diffusers-flow-euler, diffusers-flow-unipc, "
        "diffusers-flow-dpmpp, "
        "diffusers-lcm, dpm-solver, k-diffusion, latent-diffusion, got 'dpm'");
}

TEST_CASE("the routings of T-Stitch's code by name are the rules") {
  const auto plan = [](AnyModelSchedule const& schedule) {
    return to_string(make_sampler(profile::dit(linear, 25), schedule).plan());
  };
  const auto named = [&](std::string const& name, RoutingOptions const& options) {
    return plan(model_schedule_by_name(name, options, routing::named()));
  };
  CHECK(named("dit", {.ratio = 0.5}) == plan(routing::DiT{0.5}));
  CHECK(named("dit", {.ratio = 0.5, .num_train_timesteps = 1500}) == plan(routing::DiT{0.5, 1500}));
  CHECK(named("dit", {.fractions = {0.3, 0.7}}) == plan(routing::DiTFractions{{0.3, 0.7}}));
  CHECK(named("stable-diffusion", {.ratio = 0.5}) == plan(routing::StableDiffusion{0.5}));
  CHECK(named("latent-diffusion", {.ratio = 0.5}) == plan(routing::LatentDiffusion{0.5}));
  CHECK(named("latent-consistency", {.ratio = 0.5}) == plan(routing::LatentConsistency{0.5}));
  CHECK(named("large-first", {.ratio = 0.3}) == plan(LargeFirst{0.3}));  // those of the library, too
  CHECK(routing::named().size() == routings().size() + 4);
}

TEST_CASE("TorchNoise gives what a Python program draws after manual_seed") {
  // torch.manual_seed(7); torch.randn(1, 1, 1, 2); then a step with two rows an image, torch.randn(2, 1, 1, 2).
  const TorchNoise noise(7, {.rows_per_image = 2});
  const auto at = [&](NoiseAddress address) { return noise({0}, address, {1, 1, 2}, at::kFloat); };
  const auto first_of = [](at::Tensor const& x) { return x.flatten().select(0, 0).item<float>(); };
  const float initial = first_of(at(NoiseAddress::initial()));
  CHECK(std::abs(initial - -0.14679509f) < 1e-6);
  CHECK(std::abs(first_of(at(NoiseAddress::of_step(0))) - 0.94682163f) < 1e-6);
  CHECK(std::abs(first_of(at(NoiseAddress::of_step(2))) - 0.31767830f) < 1e-6);
  // Asked again, in any order, an address has the same noise.
  CHECK(first_of(at(NoiseAddress::initial())) == initial);
  CHECK(std::abs(first_of(at(NoiseAddress::of_step(2))) - 0.31767830f) < 1e-6);
}
