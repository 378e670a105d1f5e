// Spacings and model schedules by name: each is what its table says, and what is none is refused with all that are.

#include <tstitch/plan/by_name.hpp>
#include <tstitch/plan/plan.hpp>

#include <cmath>
#include <set>

#include "../catch.hpp"

using namespace tstitch;

namespace {

const NoiseSchedule linear = NoiseSchedule::linear(), flow = NoiseSchedule::flow(1000, 2);

std::string plan_of(Spacing const& spacing, AnyModelSchedule const& schedule = SingleNetwork{}) {
  const bool shifts = spacing.name() == "shifted" || spacing.name() == "flow_match_euler";
  return to_string(make_plan(shifts ? flow : linear, 10, spacing, FinalSigma::zero, schedule));
}

std::string plan_of(AnyModelSchedule const& schedule) {
  return plan_of(Spacing::linspace(), schedule);
}

/// What is said to who asks for it.
std::string refusal(auto action) {
  return message_of<std::invalid_argument>(action);
}

}  // namespace

TEST_CASE("spacings by name are those of the class") {
  const std::vector<std::pair<std::string, Spacing>> expected{
      {"leading", Spacing::leading()},
      {"linspace", Spacing::linspace()},
      {"trailing", Spacing::trailing()},
      {"ddim", Spacing::ddim_stride()},
      {"logsnr", Spacing::uniform_logsnr()},
      {"karras", Spacing::karras()},
      {"quadratic", Spacing::quadratic({.include_last = false, .round = true})},
      {"beta", Spacing::beta(0.6, 0.8, {.include_last = false, .round = true})},
      {"sections:4,6", Spacing::sections({4, 6})},
      {"shifted", Spacing::shifted()},
      {"shifted:3", Spacing::shifted(3)},
      {"flow-match-euler", Spacing::flow_match_euler()},
      {"999,900,800,700,600,500,400,300,200,100.5",
       Spacing::list({999, 900, 800, 700, 600, 500, 400, 300, 200, 100.5})},
  };
  std::set<std::string> plans, names;
  for (auto const& [text, spacing] : expected) {
    INFO(text);
    CHECK(plan_of(spacing_by_name(text)) == plan_of(spacing));
    plans.insert(plan_of(spacing));
    names.insert(text.substr(0, text.find(':')));
  }
  CHECK(plans.size() == expected.size());  // no two are the same
  for (NamedSpacing const& each : spacings()) {
    CHECK(names.contains(each.name));
    CHECK_FALSE(each.help.empty());
  }
}

TEST_CASE("what is no spacing is refused with all that are") {
  const std::string all =
      "tstitch::spacing_by_name: must be leading, linspace, trailing, ddim, logsnr, karras, "
      "quadratic, beta, shifted, flow-match-euler, sections:N,N,... or shifted:S, or a list of timesteps, got ";
  for (char const* text : {"even", "", "sections", "leading:3", "Karras"}) {
    CHECK(refusal([&] { spacing_by_name(text); }) == all + "'" + text + "'");
  }
  CHECK(refusal([] { spacing_by_name("shifted:3:4", "--spacing"); }) ==
        "--spacing: must be a finite number, got '3:4'");
  CHECK(refusal([] { spacing_by_name("sections:2.5"); }) ==
        "tstitch::spacing_by_name: sections: must be whole numbers with commas between, got '2.5'");
  CHECK(refusal([] { spacing_by_name("sections:-1,3"); }) ==
        "tstitch::spacing_by_name: sections: must be in [0, 1000000], got 'sections:-1,3'");
  CHECK(refusal([] { spacing_by_name("9,,1"); }) ==
        "tstitch::spacing_by_name: must be numbers with commas between, got '9,,1'");
}

TEST_CASE("model schedules by name are those of the classes") {
  CHECK(plan_of(model_schedule_by_name("stitch", {.ratio = 0.3})) == plan_of(Stitch{0.3}));
  CHECK(plan_of(model_schedule_by_name("stitch", {.fractions = {0.2, 0.3, 0.5}})) ==
        plan_of(Fractions{{0.2, 0.3, 0.5}}));
  CHECK(plan_of(model_schedule_by_name("large-first", {.ratio = 0.3})) == plan_of(LargeFirst{0.3}));
  CHECK(plan_of(model_schedule_by_name("both-ends", {.ratio = 0.3})) == plan_of(BothEnds{0.3}));
  CHECK(plan_of(model_schedule_by_name("interleaved", {.ratio = 0.3})) == plan_of(Interleaved{0.3}));
  CHECK(plan_of(model_schedule_by_name("falling", {.ratio = 0.3, .seed = 5})) == plan_of(FallingProbability{0.3, 5}));
  CHECK(plan_of(model_schedule_by_name("timestep:800,200")) == plan_of(ByTimestep{{800, 200}}));
  CHECK(plan_of(model_schedule_by_name("logsnr:-3,2.5")) == plan_of(ByLogSnr{{-3, 2.5}}));
  std::set<std::string> names;
  for (NamedRouting const& each : routings()) {
    CHECK(names.insert(each.name).second);
    CHECK_FALSE(each.help.empty());
    CHECK(each.make);
  }
}

TEST_CASE("a program's own model schedule by name stands in a table of its own") {
  std::vector<NamedRouting> table = routings();
  table.push_back({.name = "first-and-last",
                   .help = "network 0 for the first A and the last B steps",
                   .boundaries = "A,B",
                   .whole = true,
                   .between = false,
                   .make = [](RoutingOptions const& options) -> AnyModelSchedule {
                     return [first = options.boundaries.at(0), last = options.boundaries.at(1)](Step const& step) {
                       return std::size_t(step.index < first || step.count - step.index <= last ? 0 : 1);
                     };
                   }});
  CHECK(plan_of(model_schedule_by_name("first-and-last:2,1", {}, table)) ==
        plan_of(Table{{0, 0, 1, 1, 1, 1, 1, 1, 1, 0}}));
  CHECK_FALSE(read_routing("first-and-last:2,1", table).first.between);
  CHECK(read_routing("timestep:600", table).first.between);
  CHECK_THAT(refusal([&] { model_schedule_by_name("first-and-last", {}, table); }),
             ContainsSubstring("falling, timestep:T,..., logsnr:L,... or first-and-last:A,B, got 'first-and-last'"));
}

TEST_CASE("what is no model schedule is refused with all that are") {
  const std::string all =
      "tstitch::model_schedule_by_name: must be one of stitch, large-first, both-ends, interleaved, falling, "
      "timestep:T,... or logsnr:L,..., got ";
  for (char const* text : {"random", "", "timestep", "stitch:3", "dit"}) {
    CHECK(refusal([&] { model_schedule_by_name(text); }) == all + "'" + text + "'");
  }
  CHECK(refusal([] { model_schedule_by_name("timestep:600.5"); }) ==
        "tstitch::model_schedule_by_name: timestep: must be whole numbers with commas between, got '600.5'");
  CHECK(refusal([] { model_schedule_by_name("logsnr:inf"); }) ==
        "tstitch::model_schedule_by_name: logsnr: must be numbers with commas between, got 'inf'");
  CHECK(refusal([] {
          model_schedule_by_name("falling", {.fractions = {0.5, 0.5}});
        }) == "tstitch::model_schedule_by_name: fractions are for schedules that take them, got falling");
  CHECK(refusal([] { model_schedule_by_name("stitch", {.boundaries = {600}}); }) ==
        "tstitch::model_schedule_by_name: boundaries are for schedules that take them, got stitch");
  for (const double t : {600.5, double(NAN), double(INFINITY), 1e300}) {
    CHECK(refusal([&] { model_schedule_by_name("timestep", {.boundaries = {t}}); }) ==
          "tstitch::ByTimestep: boundaries must be whole numbers up to 1e9, got " + tstitch::detail::text(t));
  }
  CHECK(plan_of(model_schedule_by_name("timestep", {.boundaries = {800, 200}})) == plan_of(ByTimestep{{800, 200}}));
  CHECK(refusal([] { plan_of(model_schedule_by_name("stitch", {.ratio = 2})); }) ==
        "tstitch::Stitch: ratio must be in [0, 1], got 2");
}

TEST_CASE("forecast schedules by name") {
  CHECK_FALSE(forecast_by_name("none"));
  const auto computed = [](Forecast const& forecast, std::size_t network) {
    const NoiseSchedule noise = NoiseSchedule::linear();
    Plan plan = make_plan(noise, 20, Spacing::linspace(), FinalSigma::zero, SingleNetwork{network});
    tstitch::detail::add_forecasts(plan, forecast, {});
    return plan.calls(2)[network];
  };
  CHECK(computed(forecast_by_name("every:2"), 0) == computed(ForecastEvery{}, 0));
  CHECK(computed(forecast_by_name("every:3,2"), 0) == computed(ForecastEvery{.every = 3, .order = 2}, 0));
  CHECK(forecast_by_name("every:3,2").order() == 2);
  CHECK(computed(forecast_by_name("every:4,0,7"), 0) ==
        computed(ForecastEvery{.every = 4, .order = 0, .warm_up = 7}, 0));
  CHECK(computed(forecast_by_name("every:2", {.first_network = 1}), 0) == 20);
  CHECK(computed(forecast_by_name("every:2", {.first_network = 1}), 1) == computed(ForecastEvery{}, 1));
  const auto message = [](std::string const& text) {
    return message_of<std::invalid_argument>([&] { forecast_by_name(text, {}, "--forecast"); });
  };
  CHECK(message("each:2") == "--forecast: must be none or every:N[,ORDER[,WARM_UP]], got 'each:2'");
  CHECK(message("every:x") == "--forecast: every: must be whole numbers with commas between, got 'x'");
  CHECK(message("every:1,2,3,4") == "--forecast: every: must be 1 to 3 numbers, got 'every:1,2,3,4'");
  CHECK(message("every:0") == "tstitch::ForecastEvery: every must be at least 1, got 0");
  CHECK(message("every:2,9") == "tstitch::ForecastEvery: order must be in [0, 8], got 9");
  CHECK(message("every:2,1,-1") == "tstitch::ForecastEvery: warm_up must not be negative, got -1");
  CHECK(message("every:99999999999").starts_with("--forecast: every: must be whole numbers"));
}
