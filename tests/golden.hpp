/// @file
/// What the peers' own code computes, from tests/golden/*.json, and the problem on which it was run. README.md there
/// describes both.
#pragma once

#include <tstitch/sampler/sampler.hpp>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "catch.hpp"
#include "oracle.hpp"

namespace golden {

using namespace tstitch;

/// One run of a peer.
struct Run {
  int steps = 0;
  std::vector<double> timesteps = {};            ///< what the network was given, in order of calls
  std::vector<std::vector<double>> states = {};  ///< x after each step
  std::vector<int> draws = {};                   ///< of noise, in each step
  std::string error = {};                        ///< what the peer failed with
};

struct Case {
  std::string name;
  bool float32;             ///< the arithmetic of the peer
  bool variance_exploding;  ///< its states are x / alpha
  std::vector<Run> runs;
};

inline Case read(std::string const& name) {
  std::ifstream file(TSTITCH_GOLDEN "/" + name + ".json");
  REQUIRE(file);
  const auto json = nlohmann::json::parse(file);
  Case golden{name, json.at("dtype") == "float32", json.at("scaling") == "ve", {}};
  for (auto const& entry : json.at("runs")) {
    Run run{.steps = entry.at("steps").get<int>()};
    run.error = entry.value("error", "");
    run.timesteps = entry.value("timesteps", std::vector<double>{});
    run.states = entry.value("states", std::vector<std::vector<double>>{});
    run.draws = entry.value("draws", std::vector<int>{});
    golden.runs.push_back(std::move(run));
  }
  return golden;
}

/// The table of peers that compute it in float32, as diffusers does.
inline NoiseSchedule float32_linear() {
  return NoiseSchedule::linear().in_float32();
}

/// Where every peer began, [1, 5, 1, 1] float64.
inline at::Tensor start() {
  const at::Tensor x = tstitch::detail::host_tensor({1, 5, 1, 1}, at::kDouble);
  const double values[] = {1.0, -0.5, 0.8, -1.2, 0.4};
  std::copy(std::begin(values), std::end(values), x.mutable_data_ptr<double>());
  return x;
}

/// What the network of the problem predicts for one picture: channel 0 is Gaussian data, channel 1 a Gaussian mixture,
/// channels 2 to 4 a tiny network that mixes them.
inline void predict_epsilon(double const* x, NoiseLevel level, double* epsilon) {
  const double alpha = level.alpha, sigma = level.sigma;  // clang 14's lambdas capture no structured bindings
  const auto from_x_0 = [&](double value, double x_0) { return (value - alpha * x_0) / sigma; };
  epsilon[0] = from_x_0(x[0], (alpha * 0.25 * x[0] + sigma * sigma * 0.3) / (alpha * alpha * 0.25 + sigma * sigma));
  epsilon[1] = from_x_0(x[1], oracle::mixture_x_0(x[1], level));
  for (int i = 0; i < 3; ++i) {
    double sum = 0.1 * level.lambda();
    for (int j = 0; j < 3; ++j) sum += 0.7 * std::sin(1.0 + 3 * i + j) * x[2 + j];
    epsilon[2 + i] = sigma * x[2 + i] + 0.3 * std::tanh(sum);
  }
}

/// The network of the problem; it knows the exact schedule, whatever tables the sampler uses.
inline Network network(NoiseSchedule const& exact, NetworkInfo info = {}) {
  const PredictionType type = info.prediction_type;
  const bool learned = info.learned_variance;
  return Network(
      [exact, type, learned](at::Tensor const& x, at::Tensor const& t) {
        const std::int64_t n = x.size(0), channels = learned ? 10 : 5;
        const at::Tensor in = x.contiguous(), out = tstitch::detail::host_tensor({n, channels, 1, 1}, at::kDouble);
        const at::Tensor times = t.to(at::kDouble);
        for (std::int64_t i = 0; i < n; ++i) {
          double const* const row = in.const_data_ptr<double>() + 5 * i;
          double* const output = out.mutable_data_ptr<double>() + channels * i;
          const NoiseLevel level = exact.at(times.const_data_ptr<double>()[i]);
          predict_epsilon(row, level, output);
          for (int c = 0; c < 5; ++c) {
            // Flow matching begins at alpha = 0, where x says nothing of x_0: there it is the mean of the data.
            // Channels 2 to 4 have no data; their expression is taken for the velocity itself.
            const double mean = c == 0 ? 0.3 : 0.15;
            const double x_0 = level.alpha > 0 ? (row[c] - level.sigma * output[c]) / level.alpha : mean;
            if (type == PredictionType::sample) output[c] = x_0;
            if (type == PredictionType::v_prediction) output[c] = level.alpha * output[c] - level.sigma * x_0;
            if (type == PredictionType::flow && c < 2) output[c] -= x_0;
            if (learned) output[5 + c] = 0.5 * std::tanh(row[c]);
          }
        }
        return out;
      },
      std::move(info));
}

/// The noise that the peers were given instead of theirs: draw k of a run.
inline NoiseSource noise_of(Run const& run) {
  std::vector<int> before{0};
  for (int draws : run.draws) before.push_back(before.back() + draws);
  return [before](std::vector<std::uint64_t> const& seeds, NoiseAddress address, at::IntArrayRef, at::TensorOptions) {
    const at::Tensor noise = tstitch::detail::host_tensor({std::int64_t(seeds.size()), 5, 1, 1}, at::kDouble);
    const int k = before.at(address.step - 1) + int(address.draw);
    for (std::int64_t i = 0; i < noise.numel(); ++i) {
      const double c = double(i % 5);
      noise.mutable_data_ptr<double>()[i] = std::sqrt(2.0) * std::sin(12.9898 * (c + 1) + 78.233 * (k + 1));
    }
    return noise;
  };
}

/// The largest difference of any state of our run from the peer's, relative to that state's largest value.
/// @param x where our run begins
double difference(Case const& golden, Run const& run, auto const& sampler, Network const& network,
                  at::Tensor const& x = start()) {
  Request request{.initial_noise = x};
  if (!run.draws.empty()) request.noise_source = noise_of(run);
  Trajectory trajectory = sampler.begin({network}, request);
  if (trajectory.count != int(run.states.size())) return std::numeric_limits<double>::infinity();
  double worst = 0;
  for (std::vector<double> const& state : run.states) {
    sampler.advance({network}, trajectory);
    double scale = 0, most = 0;
    for (std::size_t c = 0; c < 5; ++c) {
      double ours = trajectory.x.const_data_ptr<double>()[c];
      if (golden.variance_exploding) ours /= trajectory.level.alpha;
      scale = std::max(scale, std::abs(state[c]));
      most = std::max(most, std::abs(ours - state[c]));
    }
    worst = std::max(worst, most / scale);
  }
  return worst;
}

/// Holds a sampler to every run of a case in which the peer itself did not fail.
/// @param make int steps -> sampler
/// @param tolerance relative; 1e-5 for peers that compute in float32, 1e-12 for float64, unless stated
/// @param at_999_steps another tolerance for the longest run; 0: the same
void check(std::string const& name, Network const& network, auto const& make, double tolerance = 0,
           double at_999_steps = 0) {
  const Case golden = read(name);
  if (tolerance == 0) tolerance = golden.float32 ? 1e-5 : 1e-12;
  for (Run const& run : golden.runs) {
    if (!run.error.empty()) continue;
    const double worst = difference(golden, run, make(run.steps), network);
    INFO(name << ", " << run.steps << " steps: differs by " << worst);
    CHECK(worst <= (run.steps == 999 && at_999_steps > 0 ? at_999_steps : tolerance));
  }
}

}  // namespace golden
