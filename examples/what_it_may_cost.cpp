// What drawing may cost instead of five knobs: presets, the best that fits a budget, and what a run will take. Tried on
// networks that know the answer, in parts so that they can forecast; the large one has ten times the work to do.
#include <tstitch/method/by_name.hpp>
#include <tstitch/model/split_network.hpp>
#include <tstitch/peer/by_name.hpp>
#include <tstitch/peer/preset.hpp>
#include <tstitch/plan/by_name.hpp>
#include <tstitch/study/budget.hpp>
#include <tstitch/study/run_times.hpp>

#include <cstddef>
#include <cstdio>
#include <string>
#include <vector>

namespace {

using namespace tstitch;

// The exact network for data N(0.3, 0.5^2), which does its work so many times: predicts the noise in x.
Network exact_network(NoiseSchedule const& noise, int times) {
  const auto embed = [](at::Tensor const& x, at::Tensor const& t, Condition const&) {
    return std::vector{x.clone(), t};
  };
  const auto blocks = [noise, times](std::vector<at::Tensor> const& embedded) {
    const NoiseLevel level = noise.at(embedded[1].select(0, 0).item<double>());
    const double variance = level.alpha * level.alpha * 0.25 + level.sigma * level.sigma;
    at::Tensor made;
    for (int i = 0; i < times; ++i) made = embedded[0].sub(level.alpha * 0.3).mul(level.sigma / variance);
    return made;
  };
  const auto head = [](std::vector<at::Tensor> const&, at::Tensor const& made) { return made.clone(); };
  NetworkInfo info{.channels = 1, .height = 64, .width = 64, .timestep_type = TimestepType::float32};
  info.noise_schedule = noise;
  return Network(SplitNetwork{.embed = embed, .blocks = blocks, .head = head}, info);
}

std::string work_of(Plan const& plan) {
  const std::vector<NetworkWork> work = plan.work(2);
  return std::to_string(work[0].computed) + " + " + std::to_string(work[1].computed) + " evaluations, " +
         std::to_string(work[1].forecast) + " forecast";
}

}  // namespace

int main() {
  const NoiseSchedule noise = NoiseSchedule::linear();
  const std::vector<Network> networks{exact_network(noise, 1), exact_network(noise, 10)};
  const Request request{.count = 4, .seed = 1};

  RunTimes times(networks, request);
  for (NamedPreset const& named : presets()) {
    const Preset preset = named.make(noise);
    const auto sampler = make_sampler(preset);
    const at::Tensor x = sampler.sample(networks, apply(preset, request)).images;
    std::printf("%s: %s, deviation %.2f, %.2f ms predicted\n", named.name.c_str(), work_of(sampler.plan()).c_str(),
                x.std().item<double>(), 1e3 * times.predict(sampler));
  }

  // Ways to draw with how good each was found to be, the smaller the better, and what a picture costs: here the
  // evaluations, those of the large network ten times.
  struct Measured {
    double distance;
    int steps;
    std::string forecast;
  };
  const std::vector<Measured> measured{{2.03, 30, "none"}, {2.07, 30, "every:2,2"}, {2.36, 10, "every:2,2"}};
  std::vector<AnySampler> samplers;
  std::vector<double> distances;
  for (Measured const& each : measured) {
    AnyProfile profile = any_profile(profile::recommended(noise, each.steps));
    profile.options.forecast = forecast_by_name(each.forecast, {.first_network = 1});
    samplers.push_back(make_sampler(profile, 0.4));
    distances.push_back(each.distance);
  }
  const auto cost = [&](std::size_t i) {
    const std::vector<NetworkWork> work = samplers[i].plan().work(2);
    return double(work[0].rows) + 10 * double(work[1].rows);
  };
  for (const double most : {1000.0, 150.0, 100.0, 10.0}) {
    const BestWithin found = best_within(distances, most, cost);
    if (found.index) {
      std::printf("within %g: %d steps, %s\n", most, measured[*found.index].steps,
                  work_of(samplers[*found.index].plan()).c_str());
    } else {
      std::printf("within %g: nothing, the cheapest costs %g\n", most, found.cost);
    }
  }
}
