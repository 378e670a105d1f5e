#include <c10/util/Exception.h>
#include <tstitch/method/ddim.hpp>
#include <tstitch/study/fastest_batch.hpp>

#include <functional>
#include <stdexcept>

#include "../catch.hpp"
#include "../work_clock.hpp"

using namespace tstitch;

namespace {

/// Takes so many milliseconds for so many rows.
Network working(std::function<double(std::int64_t)> milliseconds) {
  return Network(
      [milliseconds](at::Tensor const& x, at::Tensor const&) {
        WorkClock::work(1e3 * milliseconds(x.size(0)));
        return x.clone();
      },
      {.channels = 1, .height = 2, .width = 2, .num_classes = 1, .null_class = 0});
}

std::vector<std::int64_t> sizes(std::vector<BatchTime> const& times) {
  std::vector<std::int64_t> found;
  for (BatchTime const& time : times) found.push_back(time.batch);
  return found;
}

}  // namespace

TEST_CASE("batches are timed by what the plan asks of each network") {
  // 1 ms a call and 0.1 a row, and ten times that.
  const std::vector<Network> networks{working([](std::int64_t rows) { return 1 + 0.1 * double(rows); }),
                                      working([](std::int64_t rows) { return 10 + double(rows); })};
  const DDIM sampler{NoiseSchedule::linear(), Stitch{0.4}, {.steps = 10}};
  const std::vector<BatchTime> plain = time_batches<WorkClock>(sampler.plan(), networks, 6);
  CHECK(sizes(plain) == std::vector<std::int64_t>{1, 2, 4, 6});
  for (BatchTime const& time : plain) {
    const double rows = double(time.batch);
    CHECK(time.seconds == Approx((4 * (1 + 0.1 * rows) + 6 * (10 + rows)) / 1e3 / rows));
  }
  CHECK(fastest_batch(plain) == 6);
  // Guided, half of the steps have twice the rows.
  const Plan half = sampler.plan({.scale = 2, .begin = 0.5});
  for (BatchTime const& time : time_batches<WorkClock>(half, networks, 2)) {
    const double rows = double(time.batch);
    CHECK(time.seconds == Approx((4 * (1 + 0.1 * rows) + (10 + rows) + 5 * (10 + 2 * rows)) / 1e3 / rows));
  }
}

TEST_CASE("sizes are tried until they become slower, and the smallest of equals is taken") {
  const DDIM sampler{NoiseSchedule::linear(), SingleNetwork{}, {.steps = 2}};
  // Rows beyond 8 take ten times as long.
  const Network small_cache = working([](std::int64_t rows) {
    return 1 + double(std::min<std::int64_t>(rows, 8)) + 10 * std::max(0.0, double(rows - 8));
  });
  const std::vector<BatchTime> times = time_batches<WorkClock>(sampler.plan(), {small_cache}, 256);
  CHECK(sizes(times) == std::vector<std::int64_t>{1, 2, 4, 8, 16});
  CHECK(fastest_batch(times) == 8);
  // As fast from the start.
  const Network even = working([](std::int64_t rows) { return 0.01 + double(rows); });
  CHECK(fastest_batch(time_batches<WorkClock>(sampler.plan(), {even}, 64)) == 1);

  // A GPU's memory ends somewhere, which TorchScript tells in another way.
  const auto narrow = [](std::function<void()> const& fail) {
    return Network(
        [fail](at::Tensor const& x, at::Tensor const&) {
          if (x.size(0) > 4) fail();
          WorkClock::time += std::chrono::milliseconds(1);
          return x.clone();
        },
        {.channels = 1, .height = 2, .width = 2});
  };
  const Network plain = narrow([] { TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory."); });
  const Network scripted = narrow([] {
    throw std::runtime_error("The following operation failed in the TorchScript interpreter.\nCUDA out of memory.");
  });
  for (Network const& network : {plain, scripted}) {
    CHECK(sizes(time_batches<WorkClock>(sampler.plan(), {network}, 64)) == std::vector<std::int64_t>{1, 2, 4});
  }
  const Network broken = narrow([] { throw std::runtime_error("a defect"); });
  CHECK_THROWS_WITH(time_batches<WorkClock>(sampler.plan(), {broken}, 64), "a defect");
}

TEST_CASE("what cannot be timed is refused") {
  const DDIM sampler{NoiseSchedule::linear(), Stitch{0.5}, {.steps = 2}};
  const Network network = working([](std::int64_t) { return 1; });
  CHECK_THROWS_WITH(time_batches(sampler.plan(), {network, network}, 0),
                    "tstitch::time_batches: most must be at least 1, got 0");
  CHECK_THROWS_WITH(time_batches(sampler.plan(), {network}, 4),
                    "tstitch::time_batches: networks must be at least 2, got 1");
  NetworkInfo open{.name = "open", .channels = 1, .height = 2, .width = 2};
  open.conditions.push_back({.name = "text", .shape = {0, 3}, .floating = true});
  CHECK_THROWS_WITH(time_batches(sampler.plan(),
                                 {network, Network([](at::Tensor const& x, at::Tensor const&) { return x; }, open)}, 4),
                    "tstitch::time_batches: the input sizes must give 'text' of 'open' sizes of [*, 3], got none");
  CHECK_THROWS_WITH(fastest_batch({}), "tstitch::fastest_batch: times must be at least one, got none");
}
