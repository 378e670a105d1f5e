/// @file
/// How much alike two networks predict along a trajectory: where the small one will do (arXiv 2402.14167, section 3.1
/// and Figure 3).
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "../sampler/sampler.hpp"
#include "../tensor/host_tensor.hpp"

namespace tstitch {

/// What two networks predict at the same x, step by step.
struct Agreement {
  std::vector<PlannedStep> steps;  ///< of the trajectory that was followed
  /// [steps, n] float64 on the host: the cosine of the angle between the predictions of noise, 1 where they agree. The
  /// paper's measure; where x is nearly all noise it is near 1 for any two networks.
  at::Tensor cosines;
  /// [steps, n] float64 on the host: by how much x after the step, taken by DDIM, differs between the networks, root
  /// mean square. It is what the other network would add to the trajectory there.
  at::Tensor differences;

  /// The mean over the images, one a step.
  static std::vector<double> means(at::Tensor const& values) {
    const at::Tensor means = values.mean(1);
    double const* const begin = detail::values_of<double>(means);
    return {begin, begin + means.numel()};
  }

  /// Entry i is the share that steps 0 to i have of the sum of all differences.
  std::vector<double> cumulative_share() const {
    std::vector<double> sums = means(differences);
    for (std::size_t i = 1; i < sums.size(); ++i) sums[i] += sums[i - 1];
    const double total = sums.empty() ? 0 : sums.back();
    for (double& sum : sums) sum = total == 0 ? 0 : sum / total;
    return sums;
  }

  /// A switch ratio: the share of the steps, from the first on, whose differences are together at most `tolerance` of
  /// all. A heuristic; with the default it finds 0.4 for the bundled pair, up to which no loss is measured.
  /// @param tolerance in [0, 1]
  double ratio(double tolerance = 0.1) const {
    if (!(tolerance >= 0 && tolerance <= 1)) {
      detail::refuse("Agreement::ratio", "tolerance must be in [0, 1]", tolerance);
    }
    const std::vector<double> shares = cumulative_share();
    std::size_t count = 0;
    while (count < shares.size() && shares[count] <= tolerance) ++count;
    return shares.empty() ? 0 : double(count) / double(shares.size());
  }
};

/// Follows a sampler and asks two networks at every x on its way, without guidance. Costs two evaluations a step more
/// than sampling.
/// @param sampler of any rule and schedule; its own choice of networks makes the trajectory
/// @param first, second of networks
/// @throws as sampling does
template <class Rule, class Schedule>
Agreement measure_agreement(Sampler<Rule, Schedule> const& sampler, std::vector<Network> const& networks,
                            Request const& request, std::size_t first, std::size_t second) {
  if (first >= networks.size() || second >= networks.size()) {
    detail::refuse("measure_agreement",
                   "first and second must be of the " + std::to_string(networks.size()) + " networks",
                   double(std::max(first, second)));
  }
  const c10::AutoGradMode no_gradients(false);
  Trajectory trajectory = sampler.begin(networks, request);
  Agreement agreement{{sampler.plan().steps.begin() + trajectory.next, sampler.plan().steps.end()}, {}, {}};
  const at::Tensor cosines = trajectory.x.new_empty({std::int64_t(agreement.steps.size()), trajectory.x.size(0)},
                                                    trajectory.x.options().dtype(at::kDouble));
  const at::Tensor differences = cosines.clone();
  for (std::int64_t i = 0; !trajectory.finished(); ++i) {
    Step const& step = agreement.steps[std::size_t(i)].step;
    const NoiseLevel from = step.from, to = step.to;  // clang 14's lambdas capture no structured bindings
    const Timestep point{step.t, from};
    const auto x_0 = [&](Network const& network) {
      return denoise(network, trajectory.x, point, trajectory.condition, 1, 0, Thresholding::none()).x_0;
    };
    const auto epsilon = [&](at::Tensor const& predicted) {
      return weighted_sum(1 / from.sigma, trajectory.x, -from.alpha / from.sigma, predicted).flatten(1).to(at::kDouble);
    };
    const at::Tensor x_a = x_0(networks[first]), x_b = x_0(networks[second]), a = epsilon(x_a), b = epsilon(x_b);
    cosines.select(0, i).copy_(a.mul(b).sum(1).div_(a.square().sum(1).mul_(b.square().sum(1)).sqrt_()));
    const double of_x_0 = to.alpha - to.sigma / from.sigma * from.alpha;
    differences.select(0, i).copy_(x_a.sub(x_b).flatten(1).to(at::kDouble).square_().mean(1).sqrt_().mul_(of_x_0));
    sampler.advance(networks, trajectory);
  }
  agreement.cosines = cosines.cpu();
  agreement.differences = differences.cpu();
  if (!agreement.differences.isfinite().all().item<bool>()) {
    throw std::runtime_error("tstitch::measure_agreement: predictions must be finite numbers, got nan or infinity");
  }
  return agreement;
}

}  // namespace tstitch
