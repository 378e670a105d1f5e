/// @file
/// What networks are asked, where it does not matter what is drawn.
#pragma once

#include <tstitch/method/ddim.hpp>
#include <tstitch/model/denoiser.hpp>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../common/request.hpp"
#include "../common/shape.hpp"

/// So many steps of a network's trajectory, evenly spaced as networks of its kind are sampled.
/// @param k which of several it is
inline tstitch::DDIM<tstitch::SingleNetwork> even_sampler(tstitch::NoiseSchedule const& schedule, std::size_t k,
                                                          int steps) {
  return tstitch::DDIM{
      schedule, tstitch::SingleNetwork{k}, {.steps = steps, .spacing = tstitch::Spacing::usual(schedule)}};
}

/// The arguments of one evaluation of this many rows.
struct Call {
  at::Tensor x, t;
  tstitch::Condition condition;

  /// @param shape --shape, or empty
  Call(tstitch::Network const& network, std::vector<tstitch::NamedCondition> const& given, std::int64_t rows,
       std::vector<std::int64_t> const& shape) {
    const auto sampler = even_sampler(network.noise_schedule(), 0, 2);
    const tstitch::Trajectory run =
        sampler.begin({network}, request_for({network}, given, rows, shape_for({network.info()}, shape)));
    x = run.x;
    condition = run.condition.conditional;
    t = tstitch::timestep_rows(network, x, network.noise_schedule().noisiest() / 2, rows);
  }
};
