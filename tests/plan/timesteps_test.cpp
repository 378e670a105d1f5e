#include <tstitch/plan/timesteps.hpp>

#include "../catch.hpp"

using namespace tstitch;

namespace {

const NoiseSchedule noise = NoiseSchedule::linear();

std::vector<double> times(Spacing const& spacing, int steps, NoiseSchedule const& schedule = noise) {
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
  const auto even = Spacing::uniform_logsnr()(noise, 20);
  for (std::size_t i = 2; i < even.size(); ++i) {
    const double first = even[1].level.lambda() - even[0].level.lambda();
    REQUIRE(std::abs(even[i].level.lambda() - even[i - 1].level.lambda() - first) < 1e-10);
  }
  const List sigmas{157.407, 85.711, 44.048, 21.106, 9.2747, 3.6526, 1.2464, 0.3497, 0.0739, 0.0100};
  const auto karras = Spacing::karras()(noise, 10);
  for (std::size_t i = 0; i < 10; ++i) {
    CHECK(std::abs(std::exp(-karras[i].level.lambda()) - sigmas[i]) < 6e-4 * std::max(1.0, sigmas[i] / 100));
    CHECK(std::abs(noise.lambda(karras[i].t) - karras[i].level.lambda()) < 1e-9);
  }
}

TEST_CASE("lists may be fractional and a user's own rule is checked like ours") {
  CHECK(times(Spacing::list({900.5, 3}), 2) == List{900.5, 3});
  const Spacing own("own", [](NoiseSchedule const& schedule, int) {
    return std::vector<Timestep>{{10, schedule.at(10)}, {20, schedule.at(20)}};
  });
  CHECK_THROWS_AS(own(noise, 2), std::invalid_argument);
}

TEST_CASE("spacings refuse with place, rule and value") {
  const auto message = [](Spacing const& spacing, int steps) {
    return message_of<std::invalid_argument>([&] { (void)spacing(noise, steps); });
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
  CHECK(message(Spacing::ddim_stride(), 99) ==
        "tstitch::Spacing::ddim_stride: no integer stride visits exactly N of 1000 timesteps, got 99");
  CHECK(message_of<std::invalid_argument>([] { Spacing::karras(0); }) ==
        "tstitch::Spacing::karras: rho must be above 0, got 0");
}
