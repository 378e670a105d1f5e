#include <tstitch/study/budget.hpp>

#include <cmath>
#include <limits>
#include <random>
#include <stdexcept>

#include "../catch.hpp"

using namespace tstitch;

TEST_CASE("budgets are read with their units") {
  using Of = Budget::Of;
  const auto same = [](std::string const& text, Of of, double amount) {
    const Budget budget = budget_by_name(text);
    CHECK(budget.of == of);
    CHECK(budget.amount == Approx(amount));
  };
  same("80ms", Of::seconds, 0.08);
  same("1.5s", Of::seconds, 1.5);
  same("20img/s", Of::images_per_second, 20);
  same("4TFLOP", Of::flop, 4e12);
  same("250GFLOP", Of::flop, 250e9);
  CHECK(budget_by_name("20img/s").most(4) == 0.2);
  CHECK(budget_by_name("80ms").most(4) == 0.08);
  for (std::string const text :
       {"", "80", "ms", "0ms", "-3s", "nans", "infs", "1e308TFLOP", "3 s", "5img", "5IMG/S", "s5"}) {
    CAPTURE(text);
    CHECK(message_of<std::invalid_argument>([&] { budget_by_name(text, "--budget"); }) ==
          "--budget: must be 80ms or 1.5s for a batch, 20img/s, or 4TFLOP for a picture, got '" + text + "'");
  }
}

TEST_CASE("the best that fits is found, and no more is asked than is needed") {
  std::mt19937 random(7);
  for (int round = 0; round < 500; ++round) {
    std::vector<double> distances(1 + random() % 12), costs(distances.size());
    for (std::size_t i = 0; i < costs.size(); ++i) distances[i] = int(random() % 6), costs[i] = 1 + int(random() % 9);
    const double most = 0.5 + double(random() % 10);
    std::vector<std::size_t> asked;
    const BestWithin found = best_within(distances, most, [&](std::size_t i) { return asked.push_back(i), costs[i]; });
    // By trying all.
    std::optional<std::size_t> best;
    std::size_t cheapest = 0;
    for (std::size_t i = 0; i < costs.size(); ++i) {
      if (costs[i] <= most && (!best || distances[i] < distances[*best])) best = i;
      if (costs[i] < costs[cheapest]) cheapest = i;
    }
    REQUIRE(found.index == best);
    REQUIRE(found.cost == (best ? costs[*best] : costs[cheapest]));
    for (const std::size_t i : asked) REQUIRE((!best || distances[i] <= distances[*best]));
  }
  const std::vector<double> one{1}, none, nan{std::nan("")};
  const auto cost = [](std::size_t) { return 1.0; };
  CHECK_THROWS_AS(best_within(none, 1, cost), std::invalid_argument);
  CHECK_THROWS_AS(best_within(nan, 1, cost), std::invalid_argument);
  CHECK_THROWS_AS(best_within(one, std::nan(""), cost), std::invalid_argument);
  CHECK_THROWS_AS(best_within(one, 0, cost), std::invalid_argument);
  CHECK_THROWS_AS(best_within(one, 1, [](std::size_t) { return std::nan(""); }), std::invalid_argument);
}

TEST_CASE("the last network takes as many steps as fit, then the one before it") {
  const std::vector<double> price{1, 4, 10};
  const auto within = [&](std::size_t networks, double most) {
    return largest_networks_within(networks, 10, most, [&](std::vector<int> const& counts) {
      double sum = 0;
      for (std::size_t k = 0; k < networks; ++k) sum += counts[k] * price[k];
      return sum;
    });
  };
  CHECK(within(2, 40).value() == std::vector{0, 10});
  CHECK(within(2, 39).value() == std::vector{1, 9});
  CHECK(within(2, 10).value() == std::vector{10, 0});
  CHECK_FALSE(within(2, 9.9));
  CHECK(within(3, 100).value() == std::vector{0, 0, 10});
  CHECK(within(3, 40).value() == std::vector{6, 1, 3});  // 6 + 4 + 30
  CHECK(within(1, 10).value() == std::vector{10});
  CHECK_FALSE(within(2, std::nan("")));
  CHECK_THROWS_AS(within(0, 1), std::invalid_argument);
}
