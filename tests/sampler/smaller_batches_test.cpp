#include <c10/util/Exception.h>
#include <tstitch/base/diagnostics.hpp>
#include <tstitch/method/ddim.hpp>
#include <tstitch/method/dpm_solver.hpp>

#include <algorithm>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "../catch.hpp"

using namespace tstitch;

namespace {

const NoiseSchedule schedule = NoiseSchedule::linear();

/// Has memory for so many rows, and answers with what depends on their number.
struct Narrow {
  std::shared_ptr<std::int64_t> room = std::make_shared<std::int64_t>(0);
  std::shared_ptr<std::vector<std::int64_t>> rows = std::make_shared<std::vector<std::int64_t>>();
  double by_rows = 1e-3;
  std::function<void()> fail = [] { TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory. Tried to."); };

  Network network() const {
    NetworkInfo info{.channels = 2, .height = 4, .width = 4, .num_classes = 4, .null_class = 3};
    info.noise_schedule = schedule;
    return Network(
        [self = *this](at::Tensor const& x, at::Tensor const&, Condition const& condition) {
          self.rows->push_back(x.size(0));
          if (x.size(0) > *self.room) self.fail();
          const at::Tensor wave = condition.labels.to(x.scalar_type()).mul(0.1).view({-1, 1, 1, 1});
          return x.mul(0.8).add(wave).add(self.by_rows * double(x.size(0)));
        },
        std::move(info));
  }
};

Request ten(std::int64_t batch_size) {
  return {.labels = {0, 1, 2, 0, 1, 2, 0, 1, 2, 0}, .seed = 5, .batch_size = batch_size, .smaller_batches = true};
}

const std::vector<SamplingOptions> runs{{.steps = 4, .thresholding = Thresholding::none()}};

}  // namespace

TEST_CASE("where memory runs out, batches are halved until they fit, which is said") {
  const DPMSolver sampler{schedule, Stitch{0.5}, runs[0], {.order = 3}};
  for (const double scale : {1.0, 2.0}) {
    const std::int64_t rows = scale == 1 ? 1 : 2;
    for (auto const& fail : std::vector<std::function<void()>>{
             Narrow().fail,
             [] {
               throw std::runtime_error(
                   "The following operation failed in the TorchScript interpreter.\nCUDA out of memory.");
             },
             [] {
               throw std::runtime_error(
                   "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
                   "tried "
                   "to allocate 640000000000 bytes.");
             }}) {
      Narrow small{.fail = fail}, large{.fail = fail};
      *small.room = 100, *large.room = 3 * rows;
      const std::vector<Network> networks{small.network(), large.network()};
      Request request = ten(8);
      request.guidance.scale = scale;
      const Samples samples = sampler.sample(networks, request);
      CHECK(samples.batch_size == 2);
      CHECK(samples.finished);
      CHECK(samples.finished_images == 10);
      CHECK(std::ranges::count(*large.rows, 8 * rows) == 1);
      CHECK(std::ranges::count(*large.rows, 4 * rows) == 1);
      CHECK(std::ranges::count(*large.rows, 2 * rows) == 5 * 2);  // of five batches, two steps each
      request.batch_size = samples.batch_size;
      request.smaller_batches = false;
      const Samples asked = sampler.sample(networks, request);
      CHECK(samples.images.equal(asked.images));
      CHECK(samples.seeds == asked.seeds);
      CHECK(asked.batch_size == 2);
    }
  }
  const std::vector<std::string> said = diagnostics();
  for (char const* const sentence :
       {"tstitch::Sampler::sample: draws batches of 4 because memory ran out in one of 8",
        "tstitch::Sampler::sample: draws batches of 2 because memory ran out in one of 4"}) {
    CHECK(std::ranges::count(said, sentence) == 1);
  }
}

TEST_CASE("memory may run out later, and pictures before that stay") {
  Narrow narrow{.by_rows = 0};
  *narrow.room = 4;
  const DDIM sampler{schedule, SingleNetwork{0}, runs[0]};
  const std::vector<Network> networks{narrow.network()};
  const Samples whole = sampler.sample(networks, ten(4));
  CHECK(whole.batch_size == 4);
  narrow.rows->clear();
  std::vector<std::int64_t> firsts;
  const auto less = [&](StepReport const& report) {
    firsts.push_back(report.first);
    if (report.first == 4 && report.done == 2) *narrow.room = 3;
  };
  const Samples samples = sampler.sample(networks, ten(4), less);
  CHECK(*narrow.rows == std::vector<std::int64_t>{4, 4, 4, 4, 4, 4, 4, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2});
  CHECK(firsts == std::vector<std::int64_t>{0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 6, 6, 6, 6, 8, 8, 8, 8});
  CHECK(samples.images.equal(whole.images));
  CHECK(samples.batch_size == 2);
  CHECK(samples.finished_images == 10);
  // The last batch has fewer images than the others, and half of those.
  *narrow.room = 4;
  const auto at_the_end = [&](StepReport const& report) {
    *narrow.room = report.first == 4 && report.done == 4 ? 1 : 4;
  };
  const Samples odd = sampler.sample(networks, ten(4), at_the_end);
  CHECK(odd.batch_size == 1);
  CHECK(odd.images.equal(whole.images));
}

TEST_CASE("a cancel counts in smaller batches too") {
  Narrow narrow;
  *narrow.room = 2;
  const DDIM sampler{schedule, SingleNetwork{0}, runs[0]};
  const auto cancel = [](StepReport const& report) {
    return report.first == 4 && report.done == 3 ? Control::cancel : Control::proceed;
  };
  const Samples samples = sampler.sample({narrow.network()}, ten(8), cancel);
  CHECK_FALSE(samples.finished);
  CHECK(samples.finished_images == 4);
  CHECK(samples.images.size(0) == 6);
  CHECK(samples.seeds == std::vector<std::uint64_t>{5, 6, 7, 8, 9, 10});
}

TEST_CASE("what is not to be halved is thrown") {
  Narrow narrow;
  const DDIM sampler{schedule, SingleNetwork{0}, runs[0]};
  const std::vector<Network> networks{narrow.network()};
  const auto calls = [&](Request const& request) {
    narrow.rows->clear();
    CHECK_THROWS_AS(sampler.sample(networks, request), c10::OutOfMemoryError);
    return *narrow.rows;
  };
  CHECK(calls(ten(0)) == std::vector<std::int64_t>{10, 5, 2, 1});  // one image is the least
  Request request = ten(8);
  request.smaller_batches = false;
  CHECK(calls(request) == std::vector<std::int64_t>{8});
  const Narrow broken{.fail = [] { throw std::runtime_error("no memory of that"); }};
  CHECK(message_of<std::runtime_error>([&] { sampler.sample({broken.network()}, ten(8)); }) == "no memory of that");
  CHECK(*broken.rows == std::vector<std::int64_t>{8});
  request = ten(8);
  request.pad_batches = true;
  narrow.rows->clear();
  CHECK(message_of<std::invalid_argument>([&] { sampler.sample(networks, request); }) ==
        "tstitch::Request: smaller_batches must be off with pad_batches, whose bits are those of one batch size, got "
        "both");
  CHECK(narrow.rows->empty());
}
