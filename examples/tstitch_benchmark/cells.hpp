/// @file
/// What is measured: networks, single forward passes, stitched trajectories.
#pragma once

#include <ATen/ops/cat.h>
#include <tstitch/file/condition_file.hpp>
#include <tstitch/method/by_name.hpp>
#include <tstitch/plan/by_name.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "../common/request.hpp"
#include "arguments.hpp"
#include "measure.hpp"

/// One combination of what is varied.
struct Cell {
  std::string backend, dtype;
  std::int64_t batch;
  double ratio;
};

inline std::vector<tstitch::Network> load_networks(Arguments const& arguments, std::string const& backend,
                                                   std::string const& dtype) {
  return load_networks(arguments.models, {.device = arguments.device, .dtype = tstitch::dtype_named(dtype)}, {backend});
}

inline double guidance_scale(Arguments const& arguments, std::vector<tstitch::Network> const& networks) {
  return arguments.guidance.value_or(networks.back().info().null_class ? 1.5 : 1);
}

/// Images with seeds 0, 1, ... and every class in turn.
inline tstitch::Request make_request(Arguments const& arguments, std::vector<tstitch::Network> const& networks,
                                     std::int64_t batch) {
  std::vector<tstitch::NamedCondition> conditions;
  for (std::string const& path : arguments.conditions) {
    for (tstitch::NamedCondition& each : tstitch::load_conditions(path)) conditions.push_back(std::move(each));
  }
  tstitch::Request request = request_for(networks, conditions, batch, arguments.shape);
  request.guidance.scale = guidance_scale(arguments, networks);
  request.guidance.forecast = forecast_of_guidance(arguments.forecast_guidance);
  return request;
}

/// Stitched trajectories of one ratio.
struct Run {
  double ratio;
  std::vector<int> calls;  ///< computed evaluations of each network
  tstitch::Plan plan;
  /// @returns x_0 [n, C, ...] on the device, which may not have finished yet
  std::function<at::Tensor(std::vector<tstitch::Network> const&, tstitch::Request const&)> draw;

  /// The share of the evaluations that the small network makes.
  double share() const { return double(calls[0]) / double(calls[0] + calls[1]); }
};

/// @throws std::invalid_argument when the sampler refuses
inline Run make_run(Arguments const& arguments, std::vector<tstitch::Network> const& networks, double ratio) {
  tstitch::NoiseSchedule const& noise = networks.back().noise_schedule();
  std::string spacing = arguments.spacing;
  if (spacing.empty()) spacing = noise.is_flow() ? "shifted" : "linspace";
  const tstitch::AnySampler sampler{noise,
                                    tstitch::Stitch{ratio},
                                    {.steps = arguments.steps,
                                     .spacing = tstitch::spacing_by_name(spacing, "--spacing"),
                                     .forecast = forecast_of_steps(arguments.forecast, 2)},
                                    tstitch::update_rule_by_name(arguments.sampler)};
  const tstitch::Plan plan = sampler.plan(
      {.scale = guidance_scale(arguments, networks), .forecast = forecast_of_guidance(arguments.forecast_guidance)});
  return {ratio, plan.calls(networks.size()), plan,
          [sampler](std::vector<tstitch::Network> const& which, tstitch::Request const& request) {
            return sampler.sample(which, request).images;
          }};
}

/// One network asked again and again for the same: as many rows as a step of a trajectory asks for.
class Forward {
 public:
  Forward(Arguments const& arguments, std::vector<tstitch::Network> const& networks, std::size_t index,
          std::int64_t batch)
      : network_(networks[index]) {
    tstitch::NoiseSchedule const& noise = network_.noise_schedule();
    const tstitch::DDIM sampler{
        noise, tstitch::SingleNetwork{index}, {.steps = 2, .spacing = tstitch::Spacing::usual(noise)}};
    const tstitch::Trajectory start = sampler.begin(networks, make_request(arguments, networks, batch));
    guided_ = guidance_scale(arguments, networks) != 1;
    x_ = guided_ ? at::cat({start.x, start.x}) : start.x;
    condition_ = guided_ ? start.condition.guided : start.condition.conditional;
    timestep_ = tstitch::network_timestep(network_, network_.noise_schedule().noisiest() / 2);
    t_ = tstitch::timestep_rows(network_, x_, timestep_, x_.size(0));
    if (network_.prepares()) network_.prepare({&timestep_, 1}, condition_);
  }

  std::int64_t rows() const { return x_.size(0); }
  at::Tensor operator()() const {
    const c10::AutoGradMode no_gradients(false);
    return network_(x_, t_, condition_, timestep_);
  }

  /// The same where the blocks are forecast by a line.
  class Forecast {
   public:
    explicit Forecast(Forward const& forward) : forward_(forward) {
      for (step_.index = 0; step_.index < 2; ++step_.index) ask({.keep = 2});
    }
    at::Tensor operator()() {
      tstitch::StepForecast forecast{.network = true, .conditional = {{0, -1}, {1, 2}}};
      if (forward_.guided_) forecast.unconditional = forecast.conditional;
      return ask(forecast);
    }

   private:
    at::Tensor ask(tstitch::StepForecast const& forecast) {
      const c10::AutoGradMode no_gradients(false);
      return forward_.network_(forward_.x_, forward_.t_, forward_.condition_,
                               tstitch::Evaluation{.timestep = forward_.timestep_,
                                                   .step = &step_,
                                                   .memory = &memory_,
                                                   .forecast = &forecast,
                                                   .both_halves = forward_.guided_});
    }

    Forward const& forward_;
    tstitch::Memory memory_;
    tstitch::Step step_{.index = 0, .count = 3, .t = 0, .from = {}, .to = {}};
  };

 private:
  tstitch::Network network_;
  at::Tensor x_, t_;
  tstitch::Condition condition_;
  double timestep_ = 0;
  bool guided_ = false;
};

/// What each network answers in float32, by TorchScript; on the host.
inline std::vector<at::Tensor> float32_outputs(Arguments const& arguments) {
  const std::vector<tstitch::Network> networks = load_networks(arguments, "torchscript", "float32");
  std::vector<at::Tensor> outputs;
  for (std::size_t k = 0; k < networks.size(); ++k) {
    outputs.push_back(Forward(arguments, networks, k, arguments.batches[0])().cpu());
  }
  return outputs;
}

/// The root of the mean squared difference, relative to that of what is expected.
inline double relative_error(at::Tensor const& got, at::Tensor const& expected) {
  const at::Tensor exact = expected.to(at::kDouble);
  const at::Tensor squares = got.cpu().to(at::kDouble).sub(exact).square();
  return std::sqrt(squares.mean().item<double>() / exact.square().mean().item<double>());
}
