/// @file
/// How far into a trajectory the first network will do for the last.
#pragma once

#include <tstitch/model/network_wrapper.hpp>
#include <tstitch/study/agreement.hpp>

#include <cstddef>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "arguments.hpp"
#include "call.hpp"
#include "progress.hpp"

using Json = nlohmann::ordered_json;

/// A network whose evaluations are shown, where each is a step.
struct Watched : tstitch::NetworkWrapper<Watched> {
  Watched(tstitch::Network network, Progress& shown) : NetworkWrapper(std::move(network)), progress(&shown) {}

  at::Tensor operator()(at::Tensor const& x, at::Tensor const& t, tstitch::Condition const& condition,
                        tstitch::Evaluation const& evaluation) const {
    const at::Tensor output = inner()(x, t, condition, evaluation);
    progress->add(x.size(0), "comparing along the trajectory");
    return output;
  }

  Progress* progress;
};

/// Where the first network agrees with the last, along the last one's trajectory.
inline Json probe(std::vector<tstitch::Network> networks, Arguments const& arguments,
                  std::vector<tstitch::NamedCondition> const& conditions, Progress& progress) {
  const std::size_t last = networks.size() - 1;
  const auto sampler = even_sampler(networks[last].noise_schedule(), last, arguments.steps);
  std::vector<tstitch::NetworkInfo> infos;
  for (tstitch::Network const& network : networks) infos.push_back(network.info());
  tstitch::Request request = request_for(networks, conditions, arguments.count, shape_for(infos, arguments.shape));
  request.guidance.scale = networks[last].info().null_class ? networks[last].info().guidance_scale : 1;
  networks[0] = Watched(networks[0], progress).network();
  const tstitch::Agreement agreement = tstitch::measure_agreement(sampler, networks, request, 0, last);
  progress.clear();
  const std::vector<double> means = tstitch::Agreement::means(agreement.cosines);
  const std::vector<double> differences = tstitch::Agreement::means(agreement.differences);
  const std::vector<double> shares = agreement.cumulative_share();
  Json json{{"steps", arguments.steps}, {"images", arguments.count}};
  for (std::size_t i = 0; i < means.size(); ++i) {
    json["timesteps"].push_back(agreement.steps[i].step.t);
    json["cosines"].push_back(means[i]);
    json["differences"].push_back(differences[i]);
    json["cumulative_shares"].push_back(shares[i]);
  }
  json["tolerance"] = arguments.tolerance;
  json["suggested_ratio"] = agreement.ratio(arguments.tolerance);
  return json;
}
