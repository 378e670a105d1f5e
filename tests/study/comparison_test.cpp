#include <tstitch/method/ddim.hpp>
#include <tstitch/study/comparison.hpp>

#include <cmath>

#include "../catch.hpp"
#include "../oracle.hpp"

using namespace tstitch;

TEST_CASE("distances are those of the pictures from the same noise") {
  // Networks that say x_0 whatever they are given: a step of the last one is all that is seen.
  const NoiseSchedule noise = NoiseSchedule::linear();
  const auto saying = [&](float value) {
    NetworkInfo info;
    info.channels = 1, info.height = 4, info.width = 4;
    info.prediction_type = PredictionType::sample;
    info.noise_schedule = noise;
    return Network([value](at::Tensor const& x, at::Tensor const&) { return x.new_empty(x.sizes()).fill_(value); },
                   info);
  };
  const std::vector<Network> networks{saying(0.25F), saying(0.5F)};
  const auto by = [&](AnyModelSchedule schedule) {
    return ComparedWay{AnySampler{noise, schedule, {.steps = 6, .thresholding = Thresholding::none()}, DDIMUpdate{}}};
  };
  const ComparedWay large = by(SingleNetwork{1}), small = by(SingleNetwork{0}), stitched = by(Stitch{0.5}),
                    turned = by([](Step const&step) { return std::size_t(step.index < 3 ? 1 : 0); });
  const std::vector<double> distances = distances_from(large, {large, small, stitched, turned}, networks, {.seed = 4});
  CHECK(distances[0] == 0);
  CHECK(distances[1] == Approx(0.5));
  CHECK(distances[2] < 1e-6);
  CHECK(distances[3] == Approx(0.5));
}
