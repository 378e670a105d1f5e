/// @file
/// How far pictures that are drawn in several ways lie from one another, from the same noise.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>

#include <cmath>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <vector>

#include "../sampler/any_sampler.hpp"

namespace tstitch {

/// A way to draw.
struct ComparedWay {
  AnySampler sampler;
  Guidance guidance = {};
};

/// How far the pictures of each way are from those of a reference, drawn from the same noise: the root mean square of
/// the difference, relative to that of the reference's pictures. It says how faithful a way is to the reference,
/// picture by picture, and nothing of how good its pictures are. Waits for the GPU.
/// @param request whose guidance gives way to that of each way
/// @throws as sampling does
inline std::vector<double> distances_from(ComparedWay const& reference, std::vector<ComparedWay> const& ways,
                                          std::vector<Network> const& networks, Request request) {
  const c10::AutoGradMode no_gradients(false);
  const auto draw = [&](ComparedWay const& way) {
    request.guidance = way.guidance;
    return way.sampler.sample(networks, request).images.to(at::kDouble);
  };
  const at::Tensor exact = draw(reference);
  const double scale = exact.square().mean().item<double>();
  std::vector<double> distances;
  for (ComparedWay const& way : ways)
    distances.push_back(std::sqrt(draw(way).sub_(exact).square_().mean().item<double>() / scale));
  return distances;
}

}  // namespace tstitch
