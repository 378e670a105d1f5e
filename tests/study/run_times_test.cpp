// Predictions beside runs, by a clock that goes on only while networks work, so that both are exact.
#include <tstitch/file/fingerprint.hpp>
#include <tstitch/method/by_name.hpp>
#include <tstitch/method/ddim.hpp>
#include <tstitch/model/split_network.hpp>
#include <tstitch/plan/by_name.hpp>
#include <tstitch/study/run_times.hpp>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>

#include "../catch.hpp"
#include "../work_clock.hpp"

using namespace tstitch;

namespace {

int calls = 0;

/// Takes 10 microseconds a call, so many a row in its blocks, and 3 a timestep before a run.
Network working(double a_row) {
  struct Working : SplitNetwork {
    void prepare(std::span<const double> timesteps, Condition const&) const {
      WorkClock::work(50 + 3.0 * double(timesteps.size()));
    }
  };
  Working parts;
  parts.embed = [](at::Tensor const& x, at::Tensor const&, Condition const&) {
    ++calls;
    WorkClock::work(10);
    return std::vector{x.clone()};
  };
  parts.blocks = [a_row](std::vector<at::Tensor> const& embedded) {
    WorkClock::work(a_row * double(embedded[0].size(0)));
    return embedded[0].mul(0.5);
  };
  parts.head = [](std::vector<at::Tensor> const&, at::Tensor const& feature) { return feature.clone(); };
  NetworkInfo info{.channels = 1, .height = 2, .width = 2, .num_classes = 3, .null_class = 3};
  info.name = "working";
  info.noise_schedule = NoiseSchedule::linear();
  return Network(parts, info);
}

double run_of(auto const& sampler, std::vector<Network> const& networks, Request const& request) {
  const WorkClock::time_point start = WorkClock::now();
  sampler.sample(networks, request);
  return std::chrono::duration<double>(WorkClock::now() - start).count();
}

std::string read(std::string const& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

}  // namespace

TEST_CASE("what is predicted is what a run takes, whatever is routed, guided and forecast") {
  const std::vector<Network> networks{working(7), working(90), working(250)};
  for (const std::int64_t images : {1, 3}) {
    Request request{.labels = std::vector<std::int64_t>(std::size_t(images), 1)};
    request.guidance = {.scale = 2};
    RunTimes<WorkClock> times(networks, request);
    for (const double end : {1.0, 0.6}) {
      for (std::string const of_guidance : {"none", "every:2", "every:3,0"}) {
        request.guidance.end = end;
        request.guidance.forecast = forecast_by_name(of_guidance, {.warm_up = 2});
        for (std::string const name : {"ddim", "heun", "dpm-solver++", "unipc", "pndm"}) {
          for (std::string const forecast : {"none", "every:2", "every:3,2"}) {
            for (const int steps : {2, 9, 30}) {
              const AnySampler sampler{NoiseSchedule::linear(),
                                       Fractions{{0.3, 0.3, 0.4}},
                                       {.steps = steps, .forecast = forecast_by_name(forecast, {.first_network = 1})},
                                       update_rule_by_name(name)};
              CAPTURE(images, end, of_guidance, name, forecast, steps);
              // A forecast weighs nothing in this clock, so that is exact, too.
              REQUIRE(times.predict(sampler, request.guidance) ==
                      Approx(run_of(sampler, networks, request)).epsilon(1e-9));
            }
          }
        }
      }
    }
    const int before = calls;
    times.predict(AnySampler{NoiseSchedule::linear(), Stitch{0.5}, {.steps = 17}, DDIMUpdate{}});
    CHECK(calls == before);  // all is known
  }
}

TEST_CASE("a measured run corrects what is predicted of others") {
  // A network that takes twice as long in a run as by itself: what comes between its calls is slow.
  double between = 1;
  const auto part = [&between] { WorkClock::work(100 * between); };
  NetworkInfo info{.channels = 1, .height = 2, .width = 2};
  info.noise_schedule = NoiseSchedule::linear();
  const Network network(
      [part](at::Tensor const& x, at::Tensor const&) {
        part();
        return x.clone();
      },
      info);
  const auto of = [&](int steps) { return DDIM{NoiseSchedule::linear(), SingleNetwork{}, {.steps = steps}}; };
  RunTimes<WorkClock> times({network}, {.count = 1});
  CHECK(times.predict(of(10)) == Approx(10 * 100e-6));
  CHECK_FALSE(times.is_measured(of(10)));
  between = 2;
  CHECK(times.predict(of(10)) == Approx(10 * 100e-6));  // what is known stays
  CHECK(times.measure(of(10)) == Approx(10 * 200e-6));
  CHECK(times.is_measured(of(10)));
  CHECK_FALSE(times.is_measured(of(20)));
  CHECK(times.predict(of(10)) == Approx(10 * 200e-6));
  CHECK(times.predict(of(20)) == Approx(20 * 200e-6));
}

TEST_CASE("files of networks are told apart by their contents") {
  const std::string small = fingerprint_text(TSTITCH_MODELS "/cifar10_dit_small.pt");
  CHECK(small.size() == 16);
  CHECK(small == fingerprint_text(TSTITCH_MODELS "/cifar10_dit_small.pt"));
  CHECK(small != fingerprint_text(TSTITCH_MODELS "/cifar10_dit_large.pt"));
  CHECK_THAT(message_of<std::runtime_error>([] { fingerprint_text(TSTITCH_MODELS "/cifar10_quality.txt"); }),
             ContainsSubstring("must be a TorchScript file, an AOTInductor package"));
}

TEST_CASE("times are kept in a file for the next program") {
  const std::string path = (std::filesystem::temp_directory_path() / "tstitch_run_times_test.txt").string();
  std::filesystem::remove(path);
  const std::vector<Network> networks{working(7), working(90)};
  const Request request{.labels = {1}};
  const DDIM sampler{NoiseSchedule::linear(), Stitch{0.5}, {.steps = 8}};
  const KeptTimes kept{path, {"small", "large"}};
  const double first = RunTimes<WorkClock>(networks, request, kept).predict(sampler);
  CHECK(read(path).starts_with("tstitch times 1\n"));
  CHECK(read(path).find("\tlarge | [1, 1, 2, 2] computed\n") != std::string::npos);
  const int before = calls;
  CHECK(RunTimes<WorkClock>(networks, request, kept).predict(sampler) == first);
  CHECK(calls == before);
  // Another network, or another batch, is another matter.
  RunTimes<WorkClock>(networks, request, {path, {"small", "larger"}}).predict(sampler);
  CHECK(calls > before);
  const int after = calls;
  RunTimes<WorkClock>(networks, {.labels = {1, 2}}, kept).predict(sampler);
  CHECK(calls > after);

  // So is a guided run, which has other rows.
  Request both = request;
  both.guidance.scale = 2;
  CHECK(RunTimes<WorkClock>(networks, both, kept).predict(sampler) == Approx(run_of(sampler, networks, both)));
  CHECK(RunTimes<WorkClock>(networks, request, kept).predict(sampler) == first);

  const auto refusal = [&](std::string const& text) {
    std::ofstream(path) << text;
    return message_of<std::runtime_error>([&] { RunTimes<WorkClock>(networks, request, kept); });
  };
  CHECK_THAT(refusal("something else\n"), ContainsSubstring("must be a file of times, got another first line"));
  CHECK_THAT(refusal("tstitch times 1\n0.1\ta"), ContainsSubstring("cut off; delete it to measure again"));
  for (std::string const line : {"nan\ta", "-1\ta", "0.1 a", "x\ta", "inf\ta"}) {
    CHECK_THAT(refusal("tstitch times 1\n" + line + "\n"),
               ContainsSubstring("where a line must be seconds, a tab and a name"));
  }
  std::filesystem::remove(path);
  CHECK_THROWS_AS(RunTimes<WorkClock>(networks, request, {path, {"small"}}), std::invalid_argument);
  CHECK_THROWS_AS(RunTimes<WorkClock>({}, request), std::invalid_argument);
  // Guidance may be another one than the request's.
  Request guided = request;
  guided.guidance.scale = 2;
  CHECK(RunTimes<WorkClock>(networks, request).predict(sampler, guided.guidance) ==
        Approx(run_of(sampler, networks, guided)));
  CHECK_THROWS_AS(RunTimes<WorkClock>(networks, request).predict(sampler, Guidance{.scale = 2, .guide_network = 0}),
                  std::invalid_argument);
}
