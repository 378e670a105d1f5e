#include <tstitch/plan/timesteps.hpp>

#include <array>
#include <fstream>

#include "../golden.hpp"

using namespace tstitch;

namespace {

const NoiseSchedule linear = NoiseSchedule::linear();

std::vector<double> times(Spacing const& spacing, int steps, NoiseSchedule const& schedule = linear) {
  std::vector<double> list;
  for (auto const& [t, level] : spacing(schedule, steps)) list.push_back(t);
  return list;
}

std::vector<double> rounded(std::vector<double> list) {
  for (double& t : list) t = std::nearbyint(t);
  return list;
}

using List = std::vector<double>;
const Grid without_last{.include_last = false};

}  // namespace

TEST_CASE("spacings give the peers' lists for N = 10") {
  // Each list was printed by the peer's own code (diffusers, guided-diffusion, k-diffusion).
  CHECK(times(Spacing::leading(), 10) == List{900, 800, 700, 600, 500, 400, 300, 200, 100, 0});
  CHECK(times(Spacing::leading(1), 10) == List{901, 801, 701, 601, 501, 401, 301, 201, 101, 1});
  CHECK(times(Spacing::leading(0, without_last), 10) == List{900, 810, 720, 630, 540, 450, 360, 270, 180, 90});
  CHECK(times(Spacing::linspace(), 10) == List{999, 888, 777, 666, 555, 444, 333, 222, 111, 0});
  CHECK(times(Spacing::linspace(without_last), 10) == List{999, 899, 799, 699, 599, 500, 400, 300, 200, 100});
  CHECK(times(Spacing::trailing(), 10) == List{999, 899, 799, 699, 599, 499, 399, 299, 199, 99});
  CHECK(times(Spacing::sections(), 10) == List{999, 888, 777, 666, 555, 444, 333, 222, 111, 0});
  CHECK(times(Spacing::ddim_stride(), 10) == List{900, 800, 700, 600, 500, 400, 300, 200, 100, 0});
  CHECK(rounded(times(Spacing::karras(), 10)) == List{999, 937, 864, 775, 663, 511, 301, 102, 18, 0});
  CHECK(rounded(times(Spacing::uniform_logsnr(), 10)) == List{999, 886, 757, 603, 410, 202, 73, 22, 5, 0});
}

TEST_CASE("sigma families hand the network the timesteps of diffusers") {
  const SigmaGrid nearest{.time = TimeOfSigma::nearest}, truncated{.time = TimeOfSigma::truncated};
  const NoiseSchedule float32 = linear.in_float32();
  for (auto const& [name, spacing] :
       {std::pair{"karras", Spacing::karras(7, nearest)}, std::pair{"lu", Spacing::uniform_logsnr(nearest)},
        std::pair{"exponential", Spacing::uniform_logsnr(truncated)},
        std::pair{"beta", Spacing::beta_on_sigma(0.6, 0.6, truncated)}}) {
    for (golden::Run const& run : golden::read(std::string("diffusers_dpmpp_") + name).runs) {
      INFO(name << ", " << run.steps << " steps");
      CHECK(times(spacing, run.steps, float32) == run.timesteps);
    }
  }
  for (golden::Run const& run : golden::read("dpm_solver_multistep2_quadratic").runs) {
    const List list = times(Spacing::quadratic(), run.steps);
    REQUIRE(list.size() == run.timesteps.size());
    for (std::size_t i = 0; i < list.size(); ++i) CHECK(std::abs(list[i] - run.timesteps[i]) < 1e-9);
  }
}

TEST_CASE("sections and ddim_stride are guided-diffusion's for every N") {
  std::ifstream file(TSTITCH_GOLDEN "/guided_diffusion_spacing.json");
  const auto json = nlohmann::json::parse(file);
  for (auto const& [key, spacing] :
       {std::pair{"uniform", Spacing::sections()}, std::pair{"ddim", Spacing::ddim_stride()}}) {
    std::size_t checked = 0;
    for (auto const& entry : json.at(key)) {
      const int steps = entry[0];
      if (steps == 1) continue;  // the peer selects t = 0 and then fails; ours starts from noise
      const List list = times(spacing, steps);
      // Sum of (i + 1) t over the ascending list: a digest that no two of these lists share.
      double digest = 0;
      for (std::size_t i = 0; i < list.size(); ++i) digest += double(i + 1) * list[list.size() - 1 - i];
      INFO(key << ", " << steps << " steps");
      CHECK(list.size() == entry[1].get<std::size_t>());
      CHECK(digest == entry[2].get<double>());
      ++checked;
    }
    CHECK(checked > 50);
  }
}

TEST_CASE("the beta distribution's quantile is scipy's") {
  // scipy.stats.beta.ppf(p, a, b)
  for (auto const& [p, a, b, expected] :
       {std::array{0.001, 0.6, 0.6, 1.855873851745199e-05}, std::array{0.001, 0.5, 2.0, 4.4444457613175582e-07},
        std::array{0.001, 3.0, 1.5, 0.077810994189144472}, std::array{0.1, 0.6, 0.6, 0.039584405588780847},
        std::array{0.1, 0.5, 2.0, 0.0044576818876213764}, std::array{0.1, 3.0, 1.5, 0.37816036438826151},
        std::array{0.5, 0.6, 0.6, 0.50000000000000011}, std::array{0.5, 0.5, 2.0, 0.12061475842818319},
        std::array{0.5, 3.0, 1.5, 0.69305274422879903}, std::array{0.9, 0.6, 0.6, 0.96041559441121915},
        std::array{0.9, 0.5, 2.0, 0.53187743347358052}, std::array{0.9, 3.0, 1.5, 0.91356556569531855},
        std::array{0.999, 0.6, 0.6, 0.99998144126148258}, std::array{0.999, 0.5, 2.0, 0.94880805528416867},
        std::array{0.999, 3.0, 1.5, 0.99625039752072719}}) {
    INFO("p " << p << ", a " << a << ", b " << b);
    CHECK(std::abs(tstitch::detail::beta_quantile(p, a, b) - expected) < 1e-13);
  }
  CHECK(tstitch::detail::beta_quantile(0, 0.6, 0.6) < 1e-300);
  CHECK(tstitch::detail::beta_quantile(1, 0.6, 0.6) == 1);
  const List both_ends = times(Spacing::beta(), 20);
  CHECK(both_ends.front() == 999);
  // More steps at both ends than in the middle.
  CHECK(both_ends[0] - both_ends[1] < both_ends[9] - both_ends[10]);
  CHECK(both_ends[18] - both_ends[19] < both_ends[9] - both_ends[10]);
}

TEST_CASE("points are where their formulas put them, with the last one or without") {
  const Grid last{.include_last = true, .round = false};
  const auto is_near = [](List const& list, auto expected) {
    for (std::size_t i = 0; i < list.size(); ++i) {
      INFO(i);
      CHECK(list[i] == Approx(expected(double(i))).epsilon(0).margin(1e-9));
    }
  };
  // Roots of t + 1 from sqrt(1000) to 1, and the uniform distribution, which is beta(1, 1).
  const double root = std::sqrt(1000.0);
  is_near(times(Spacing::quadratic(last), 5), [&](double i) { return std::pow(root + (1 - root) * i / 4, 2) - 1; });
  is_near(times(Spacing::beta(1, 1, last), 5), [](double i) { return 999 * (1 - i / 4); });
  // The quantile of beta(2, 1) is a square root.
  is_near(times(Spacing::beta(2, 1), 5), [](double i) { return 999 * std::sqrt(1 - i / 5); });
  const double most = std::exp(-linear.lambda(999)), least = std::exp(-linear.lambda(0));
  const auto on_sigma = Spacing::beta_on_sigma(2, 1)(linear, 5);
  const auto even = Spacing::uniform_logsnr({.include_last = false})(linear, 5);
  for (std::size_t i = 0; i < 5; ++i) {
    const double sigma = least + std::sqrt(1 - double(i) / 4) * (most - least);
    CHECK(std::exp(-on_sigma[i].level.lambda()) == Approx(sigma).epsilon(1e-9));
    const double lambda = linear.lambda(999) + (linear.lambda(0) - linear.lambda(999)) * double(i) / 5;
    CHECK(even[i].level.lambda() == Approx(lambda).epsilon(0).margin(1e-9));
  }
  // numpy.round takes 7.5 to 8 and 2.5 to 2.
  CHECK(times(Spacing::trailing(), 4, NoiseSchedule::linear(10, 0.01, 0.5)) == List{9, 7, 4, 1});
}

TEST_CASE("rounded points are kept apart where a rule crowds them") {
  for (bool include_last : {true, false}) {
    const Grid grid{.include_last = include_last, .round = true};
    for (Spacing const& spacing :
         {Spacing::quadratic(grid), Spacing::beta(0.6, 0.6, grid), Spacing::beta(0.2, 3, grid)}) {
      for (int steps : {1, 2, 7, 20, 50, 100, 400, 900, 999}) {
        INFO(spacing.name() << ", " << steps << " steps, last " << include_last);
        const List list = times(spacing, steps);
        CHECK(list.front() == 999);
        for (std::size_t i = 0; i < list.size(); ++i) {
          REQUIRE(list[i] == std::nearbyint(list[i]));
          if (i) REQUIRE(list[i] <= list[i - 1] - 1);
        }
      }
    }
  }
  // Where they are not crowded they are only rounded.
  const List even = times(Spacing::quadratic({.include_last = false, .round = true}), 10);
  CHECK(even == rounded(times(Spacing::quadratic(), 10)));
}

TEST_CASE("shifted flow timesteps are even ones by Eq. 23, with the shift of the noise schedule where none is given") {
  const NoiseSchedule flow = NoiseSchedule::flow();
  CHECK(times(Spacing::shifted(), 4, flow) == List{1000, 750, 500, 250});
  const List list = times(Spacing::shifted(3), 4, flow);
  CHECK(list[0] == 1000);
  CHECK(list[2] == Approx(750).epsilon(1e-15));  // 3 x 0.5 / (1 + 2 x 0.5)
  CHECK(times(Spacing::shifted(), 4, NoiseSchedule::flow(1000, 3)) == list);
  CHECK(times(Spacing::shifted(1), 4, NoiseSchedule::flow(1000, 3)) == times(Spacing::shifted(), 4, flow));
  CHECK(NoiseSchedule::flow(1000, 3).distance(flow) == 0);
  CHECK(NoiseSchedule::flow(1000, 3).name() == "flow(1000, shift 3)");
}

TEST_CASE("usual timesteps begin at no clean picture") {
  CHECK(times(Spacing::usual(linear), 4, linear) == times(Spacing::linspace(), 4, linear));
  const NoiseSchedule flow = NoiseSchedule::flow(1000, 3);
  CHECK(times(Spacing::usual(flow), 4, flow) == times(Spacing::shifted(3), 4, NoiseSchedule::flow()));
}

TEST_CASE("timesteps of diffusers' FlowMatchEuler") {
  // FlowMatchEulerDiscreteScheduler(shift=3.0).set_timesteps(4), diffusers 0.42.1.
  const List published{1000, 857.6923217773438, 602.1505737304688, 8.928571701049805};
  const List list = times(Spacing::flow_match_euler(3), 4, NoiseSchedule::flow());
  REQUIRE(list.size() == 4);
  for (std::size_t i = 0; i < 4; ++i) CHECK(list[i] == Approx(published[i]).epsilon(1e-6));  // theirs are float32
  CHECK(times(Spacing::flow_match_euler(), 4, NoiseSchedule::flow(1000, 3)) == list);
  CHECK(times(Spacing::flow_match_euler(), 1, NoiseSchedule::flow(1000, 3)) == List{1000});
}

TEST_CASE("timesteps of diffusers' UniPC and DPM-Solver with flow sigmas are whole, and their levels are not") {
  struct Case {
    Spacing spacing;
    double shift;
    List times, sigmas;
  };
  // CLASS(use_flow_sigmas=True, flow_shift=S).set_timesteps(N), diffusers 0.42.1.
  for (Case const& each :
       {Case{Spacing::flow_unipc(),
             3,
             {999, 900, 750, 500},
             {0.9999989867210388, 0.900119960308075, 0.7503747940063477, 0.5009989738464355}},
        Case{Spacing::flow_dpm_solver(),
             3,
             {999, 899, 749, 499},
             {0.9996664524078369, 0.8996397852897644, 0.7496247887611389, 0.4996665418148041}},
        Case{Spacing::flow_unipc(),
             5,
             {999, 952, 882, 769, 556},
             {0.9999989867210388, 0.9524376392364502, 0.8825258612632751, 0.7696741223335266, 0.55678790807724}},
        Case{Spacing::flow_dpm_solver(),
             5,
             {999, 952, 882, 768, 555},
             {0.9997998476028442, 0.9521540403366089, 0.8820932507514954, 0.7689347267150879, 0.5552467703819275}},
        Case{Spacing::flow_unipc(), 1, {999}, {0.9999989867210388}},
        Case{Spacing::flow_dpm_solver(), 1, {999}, {0.9990000128746033}},
        Case{Spacing::flow_unipc(), 1, {999, 667, 333}, {0.9999989867210388, 0.6669999957084656, 0.33399999141693115}},
        Case{Spacing::flow_dpm_solver(),
             1,
             {999, 666, 332},
             {0.9990000128746033, 0.6660000085830688, 0.3330000042915344}}}) {
    const int steps = int(each.times.size());
    const std::vector<Timestep> list = each.spacing(NoiseSchedule::flow(1000, each.shift), steps);
    for (std::size_t i = 0; i < each.times.size(); ++i) {
      CHECK(list[i].t == each.times[i]);
      CHECK(list[i].level.sigma == each.sigmas[i]);
      CHECK(list[i].level.alpha == 1 - each.sigmas[i]);
    }
  }
  const NoiseSchedule flow = NoiseSchedule::flow();
  CHECK(times(Spacing::flow_unipc(3), 7, flow) == times(Spacing::flow_unipc(), 7, NoiseSchedule::flow(1000, 3)));
  CHECK(times(Spacing::flow_dpm_solver(12), 7, flow) ==
        times(Spacing::flow_dpm_solver(), 7, NoiseSchedule::flow(1000, 12)));
  for (Spacing const& spacing : {Spacing::flow_unipc(), Spacing::flow_dpm_solver()}) {
    for (const int steps : {1, 2, 999, 1000}) CHECK(spacing(flow, steps).size() == std::size_t(steps));
    CHECK(message_of<std::invalid_argument>([&] { (void)spacing(linear, 4); }) ==
          "tstitch::Spacing::" + spacing.name() + ": is for flow matching, got " + linear.name());
    CHECK_THROWS_AS(spacing(flow, 1001), std::invalid_argument);
  }
  for (const double shift : {0.0, -1.0, std::numeric_limits<double>::infinity(), std::nan("")}) {
    CHECK_THROWS_AS(Spacing::flow_unipc(shift), std::invalid_argument);
    CHECK_THROWS_AS(Spacing::flow_dpm_solver(shift), std::invalid_argument);
  }
}

TEST_CASE("a list of sigmas is taken as it is") {
  const auto list = Spacing::sigmas({80, 10, 1, 0.1})(linear, 4);
  CHECK(std::abs(list[1].level.sigma / list[1].level.alpha - 10) < 1e-13);
  CHECK(std::abs(linear.at(list[1].t).sigma / linear.at(list[1].t).alpha - 10) < 1e-9);
  CHECK(times(Spacing::sigmas({80, 10}, TimeOfSigma::nearest), 2)[1] == std::nearbyint(list[1].t));
  CHECK(message_of<std::invalid_argument>([&] {
          (void)Spacing::sigmas({80, 0})(linear, 2);
        }) == "tstitch::Spacing::sigmas: each sigma must be above 0, got 0");
}

TEST_CASE("sigma families may begin and end where another list does") {
  // Schedulers that apply Karras' rule to an already spaced list, leading here, begin at its first level.
  const auto spaced = Spacing::leading()(linear, 10);
  const auto list = Spacing::karras(7, {.begin = spaced.front().level, .end = spaced.back().level})(linear, 10);
  CHECK(list.front().level == spaced.front().level);
  CHECK(list.back().level == spaced.back().level);
  CHECK(std::abs(list.front().level.sigma / list.front().level.alpha - 60.8) < 0.05);
}

TEST_CASE("spacings refuse what the schedule does not have") {
  const auto message = [](auto action) { return message_of<std::invalid_argument>(action); };
  CHECK(message([] { (void)Spacing::shifted(3)(linear, 4); }) ==
        "tstitch::Spacing::shifted: is for flow matching, got linear(1000, 0.0001, 0.02)");
  CHECK(message([] { (void)Spacing::shifted(0); }) == "tstitch::Spacing::shifted: shift must be above 0, got 0");
  CHECK(message([] { (void)Spacing::beta(0, 1); }) == "tstitch::Spacing::beta: a and b must be above 0, got 0 and 1");
  CHECK(message([] { (void)Spacing::karras()(NoiseSchedule::flow(), 4); }) ==
        "tstitch::Spacing::karras: must begin and end where there is both picture and noise, got flow(1000); state "
        "SigmaGrid::begin and end");
}

TEST_CASE("DiT's sections round running sums half to even") {
  CHECK(times(Spacing::sections(), 7) == List{999, 832, 666, 500, 333, 166, 0});
  const List fifty = times(Spacing::sections(), 50);
  CHECK(List(fifty.begin(), fifty.begin() + 4) == List{999, 979, 958, 938});
  CHECK(List(fifty.end() - 4, fifty.end()) == List{61, 41, 20, 0});
  const List many = times(Spacing::sections(), 250);
  CHECK(List(many.begin(), many.begin() + 3) == List{999, 995, 991});
  // The least noisy section comes first: 3 steps in [0, 499], 2 in [500, 999].
  CHECK(times(Spacing::sections({3, 2}), 5) == List{999, 500, 499, 250, 0});
  // T mod m sections are one longer: lengths 334, 333, 333.
  CHECK(times(Spacing::sections({2, 2, 2}), 6) == List{999, 667, 666, 334, 333, 0});
}

TEST_CASE("ddim_stride exists for exactly the counts that the peer accepts") {
  const std::vector<int> impossible{37, 41, 43, 45, 47, 49, 51, 52, 54, 55, 57, 58, 60, 61, 62, 64,
                                    65, 66, 68, 69, 70, 71, 73, 74, 75, 76, 78, 79, 80, 81, 82, 83,
                                    85, 86, 87, 88, 89, 90, 92, 93, 94, 95, 96, 97, 98, 99, 1};
  for (int steps = 1; steps <= 100; ++steps) {
    INFO(steps);
    if (std::find(impossible.begin(), impossible.end(), steps) != impossible.end()) {
      CHECK_THROWS_AS(times(Spacing::ddim_stride(), steps), std::invalid_argument);
    } else {
      CHECK(times(Spacing::ddim_stride(), steps).size() == std::size_t(steps));
    }
  }
}

TEST_CASE("one step starts from noise") {
  for (Spacing const& spacing : {Spacing::linspace(), Spacing::trailing(), Spacing::sections(), Spacing::karras(),
                                 Spacing::uniform_logsnr(), Spacing::linspace(without_last)}) {
    INFO(spacing.name());
    CHECK(times(spacing, 1) == List{999});
  }
}

TEST_CASE("every spacing gives exactly N strictly decreasing timesteps or refuses") {
  // Trailing is the trap: made with arange it has N + 1 entries and ends in -1 for 62 values of N, 61 the first.
  for (Spacing const& spacing :
       {Spacing::leading(), Spacing::leading(0, without_last), Spacing::linspace(), Spacing::linspace(without_last),
        Spacing::trailing(), Spacing::sections(), Spacing::uniform_logsnr(), Spacing::karras()}) {
    INFO(spacing.name());
    int refused = 0;
    for (int steps = 1; steps <= 1000; ++steps) {
      std::vector<double> list;
      try {
        list = times(spacing, steps);
      } catch (std::invalid_argument const&) {
        ++refused;
        continue;
      }
      REQUIRE(list.size() == std::size_t(steps));
      REQUIRE(list.front() <= 999);
      REQUIRE(list.back() >= 0);
      for (std::size_t i = 1; i < list.size(); ++i) REQUIRE(list[i] < list[i - 1]);
    }
    // Only the lists that drop their last point run out of integers, at N = 1000.
    CHECK(refused <= 1);
  }
}

TEST_CASE("level spacings are what they say") {
  const auto even = Spacing::uniform_logsnr()(linear, 20);
  for (std::size_t i = 2; i < even.size(); ++i) {
    const double first = even[1].level.lambda() - even[0].level.lambda();
    REQUIRE(std::abs(even[i].level.lambda() - even[i - 1].level.lambda() - first) < 1e-10);
  }
  const List sigmas{157.407, 85.711, 44.048, 21.106, 9.2747, 3.6526, 1.2464, 0.3497, 0.0739, 0.0100};
  const auto karras = Spacing::karras()(linear, 10);
  for (std::size_t i = 0; i < 10; ++i) {
    CHECK(std::abs(std::exp(-karras[i].level.lambda()) - sigmas[i]) < 6e-4 * std::max(1.0, sigmas[i] / 100));
    CHECK(std::abs(linear.lambda(karras[i].t) - karras[i].level.lambda()) < 1e-9);
  }
}

TEST_CASE("lists may be fractional and a user's own rule is checked like ours") {
  CHECK(times(Spacing::list({900.5, 3}), 2) == List{900.5, 3});
  const Spacing own("own", [](NoiseSchedule const& schedule, int) {
    return std::vector<Timestep>{{10, schedule.at(10)}, {20, schedule.at(20)}};
  });
  CHECK_THROWS_AS(own(linear, 2), std::invalid_argument);
  // Also where the noise falls.
  const Spacing rising("rising", [](NoiseSchedule const& schedule, int) {
    return std::vector<Timestep>{{10, schedule.at(20)}, {20, schedule.at(10)}};
  });
  CHECK(message_of<std::invalid_argument>([&] { (void)rising(linear, 2); }) ==
        "tstitch::Spacing::rising: timesteps must be strictly decreasing, got 20 after 10");
}

TEST_CASE("spacings refuse with place, rule and value") {
  const auto message = [](Spacing const& spacing, int steps) {
    return message_of<std::invalid_argument>([&] { (void)spacing(linear, steps); });
  };
  CHECK(message(Spacing::linspace(), 0) == "tstitch::Spacing::linspace: steps must be at least 1, got 0");
  CHECK(message(Spacing::linspace(), 1001) == "tstitch::Spacing::linspace: steps must be in [1, 1000], got 1001");
  CHECK(message(Spacing::leading(1), 1000) == "tstitch::Spacing::leading: timesteps must be in [0, 999], got 1000");
  CHECK(message(Spacing::list({5, 5}), 2) ==
        "tstitch::Spacing::list: timesteps must be strictly decreasing, got 5 after 5");
  CHECK(message(Spacing::list({5, 4}), 3) == "tstitch::Spacing::list: the rule must give exactly 3 timesteps, got 2");
  CHECK(message(Spacing::list({5, NAN}), 2) == "tstitch::Spacing::list: timesteps must be in [0, 999], got nan");
  CHECK(message(Spacing::sections({3, 3}), 7) ==
        "tstitch::Spacing::sections: the counts must add up to the number of steps (7), got 6");
  CHECK(message(Spacing::sections({-1, 6}), 5) ==
        "tstitch::Spacing::sections: each count must be in [0, 500], its section's length, got -1");
  CHECK_THAT(
      message(Spacing::karras(7, {.end = NoiseLevel::from_lambda(6)}), 5),
      ContainsSubstring("SigmaGrid::end must be a level of the noise schedule linear(1000, 0.0001, 0.02), got "));
  CHECK(message(Spacing::ddim_stride(), 99) ==
        "tstitch::Spacing::ddim_stride: no integer stride visits exactly N of 1000 timesteps, got 99");
  CHECK(message_of<std::invalid_argument>([] { Spacing::karras(0); }) ==
        "tstitch::Spacing::karras: rho must be above 0, got 0");
}

TEST_CASE("clipped leaves out the timesteps next to pure noise") {
  const NoiseSchedule cosine = NoiseSchedule::cosine();
  const Spacing spacing = Spacing::clipped(Spacing::linspace({.include_last = false}), -5.1);
  const std::vector<Timestep> list = spacing(cosine, 10);
  CHECK(list.front().t == 995);  // four are beyond
  CHECK(list.front().level == cosine.at(995));
  CHECK(cosine.lambda(996) < -5.1);
  CHECK(list.size() == 10);
  // The limit itself is not below it.
  CHECK(Spacing::clipped(Spacing::linspace(), cosine.lambda(995))(cosine, 10).front().t == 995);
  CHECK(spacing.name() == "clipped linspace");
  // Linear schedules do not come so near.
  CHECK(spacing(NoiseSchedule::linear(), 10).front().t == 999);
  CHECK(message_of<std::invalid_argument>([&] { spacing(NoiseSchedule::flow(), 10); }) ==
        "tstitch::Spacing::clipped: needs a table, got flow(1000)");
}

TEST_CASE("published sigmas with rounded ends are the ends of the schedule") {
  const NoiseSchedule stable_diffusion = NoiseSchedule::scaled_linear();
  const std::vector<double> published{14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029};
  const std::vector<Timestep> list = Spacing::sigmas(published)(stable_diffusion, 11);
  CHECK(list.front().t == 999);
  CHECK(list.back().t == 0);
  CHECK(std::abs(list.front().level.sigma - stable_diffusion.sigma(999)) < 1e-12);
  CHECK(std::abs(list.back().level.sigma - stable_diffusion.sigma(0)) < 1e-12);
  for (std::size_t i = 1; i + 1 < list.size(); ++i) {
    CHECK(std::abs(list[i].level.sigma / list[i].level.alpha - published[i]) < 1e-12);
  }
  const auto refused = [&](std::vector<double> sigmas) {
    return message_of<std::invalid_argument>([&] { Spacing::sigmas(sigmas)(stable_diffusion, int(sigmas.size())); });
  };
  const std::string range =
      "tstitch::Spacing::sigmas: each sigma must be in [0.02916715815, 14.61464123], the range of the noise schedule, "
      "got ";
  CHECK(refused({15, 1}) == range + "15");
  CHECK(refused({14, 0.02}) == range + "0.02");
  CHECK(refused({INFINITY, 1}) == range + "inf");
  CHECK(refused({14.615, 14.6149}) == range + "14.6149");
  CHECK(refused({14, NAN}) == "tstitch::Spacing::sigmas: each sigma must be above 0, got nan");
  CHECK(refused({14, -1}) == "tstitch::Spacing::sigmas: each sigma must be above 0, got -1");
  CHECK(refused({1, 2}) == "tstitch::Spacing::sigmas: sigmas must be strictly decreasing, got 2 after 1");
  CHECK(Spacing::sigmas({INFINITY, 1})(stable_diffusion.with_zero_terminal_snr(), 2)[0].t == 999);
  CHECK(Spacing::sigmas({INFINITY, 1})(NoiseSchedule::flow(), 2)[1].t == 500);
}

TEST_CASE("spacings refuse numbers that are none, and huge ones") {
  const NoiseSchedule linear = NoiseSchedule::linear();
  const auto refused = [&](auto make, int steps = 5, NoiseSchedule const& noise = NoiseSchedule::linear()) {
    return message_of<std::invalid_argument>([&] { make()(noise, steps); });
  };
  const auto at_place = [](std::string const& message, char const* place) {
    INFO(message);
    CHECK(message.rfind("tstitch::" + std::string(place), 0) == 0);
  };
  for (const double value : {double(NAN), double(INFINITY), -double(INFINITY), -1.0, 0.0}) {
    at_place(refused([&] { return Spacing::karras(value); }), "Spacing::karras: rho must be above 0");
    at_place(refused([&] { return Spacing::beta(value, 1); }), "Spacing::beta: a and b must be above 0");
    at_place(refused([&] { return Spacing::beta_on_sigma(1, value); }), "Spacing::beta_on_sigma: a and b");
    at_place(refused([&] { return Spacing::shifted(value); }, 5, NoiseSchedule::flow()), "Spacing::shifted: shift");
    at_place(refused([&] { return Spacing::sigmas({value}); }, 1), "Spacing::sigmas: each sigma");
    const NoiseLevel level{0.5, value};
    if (value == 0) continue;
    at_place(refused([&] { return Spacing::karras(7, {.begin = level}); }), "Spacing::karras: ");
    at_place(refused([&] { return Spacing::karras(7, {.end = level}); }), "Spacing::karras: ");
    at_place(refused([&] { return Spacing::list({value}); }, 1), "Spacing::list: timesteps must be in [0, 999]");
    const Spacing own("own", [value](NoiseSchedule const&, int) { return std::vector<Timestep>{{value, {0.5, 0.5}}}; });
    at_place(refused([&] { return own; }, 1), "Spacing::own: each t must be in [0, 999]");
  }
  at_place(refused([] { return Spacing::karras(1e-300); }), "Spacing::karras: its parameters must give finite sigmas");
  at_place(refused([] {
             return Spacing::karras(7, {.begin = NoiseLevel{1e-9, 1}});
           }),
           "Spacing::karras: SigmaGrid::begin must be a level of the noise schedule");
  at_place(refused([] { return Spacing::clipped(Spacing::linspace(), NAN); }),
           "Spacing::clipped: lambda_min must be a number");
  at_place(refused([] { return Spacing::clipped(Spacing::linspace(), INFINITY); }, 1),
           "Spacing::clipped: lambda_min must be at most");
  at_place(refused([] { return Spacing::leading(2'000'000'000); }), "Spacing::leading: timesteps must be in [0, 999]");
  at_place(refused([] { return Spacing::sections(std::vector<int>{}); }),
           "Spacing::sections: at least one count is needed, got none");
  at_place(refused([] {
             return Spacing::sections({2147483647, 2147483647, 7});
           }),
           "Spacing::sections: the counts must add up to the number of steps (5), got 4294967301");
  for (Spacing const& spacing : {Spacing::linspace(), Spacing::shifted(), Spacing::list({5})}) {
    at_place(refused([&] { return spacing; }, 2147483647), ("Spacing::" + spacing.name() + ": ").c_str());
  }
}
