#include <tstitch/method/by_name.hpp>
#include <tstitch/model/split_network.hpp>
#include <tstitch/peer/by_name.hpp>
#include <tstitch/peer/preset.hpp>

#include <stdexcept>

#include "../catch.hpp"

using namespace tstitch;

TEST_CASE("presets are the profiles and forecasts that they say") {
  const NoiseSchedule noise = NoiseSchedule::linear();
  const auto fingerprint = [&](AnySampler const& sampler, Forecast const& guidance) {
    return tstitch::fingerprint(sampler.plan({.scale = 1.5, .forecast = guidance}));
  };
  struct Case {
    std::string name;
    int steps;
    std::string forecast, guidance;
    std::vector<int> rows;  // of each network
  };
  // 12 steps of 30, 4 of 10; guided steps have two rows.
  for (Case const& each :
       {Case{"exact", 30, "none", "none", {24, 36}}, Case{"fast", 30, "every:2,2", "every:2", {19, 18}},
        Case{"fastest", 10, "every:2,2", "none", {8, 10}}}) {
    CAPTURE(each.name);
    const Preset preset = preset_by_name(each.name, noise);
    AnyProfile profile = profile_by_name("recommended", noise, each.steps);
    profile.options.forecast = forecast_by_name(each.forecast, {.first_network = 1});
    const Forecast guidance = forecast_by_name(each.guidance, {.warm_up = 2});
    CHECK(fingerprint(make_sampler(preset), preset.guidance) == fingerprint(make_sampler(profile, 0.4), guidance));
    const std::vector<NetworkWork> work = make_sampler(preset).plan({.scale = 1.5, .forecast = preset.guidance}).work();
    CHECK(std::vector{work[0].rows, work[1].rows} == each.rows);
  }
  CHECK_THAT(message_of<std::invalid_argument>([&] { preset_by_name("slow", noise); }),
             ContainsSubstring("must be one of exact, fast, fastest, got 'slow'"));
}
