/// @file
/// Who said first what is no finite number, for the message of a run that ends in one.
#pragma once

#include <ATen/core/Tensor.h>
#include <cstdint>

#include <cstddef>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "../model/network_wrapper.hpp"
#include "trajectory.hpp"

namespace tstitch::detail {

inline bool is_finite(at::Tensor const& values) {
  return values.isfinite().all().item<bool>();
}

/// Watches a batch that is run again. Waits for the device after every evaluation.
class Culprit {
 public:
  Culprit() = default;
  Culprit(Culprit const&) = delete;  // what it watches tells this one

  /// The same networks, which tell of their answers. For as long as this lives.
  std::vector<Network> watch(std::vector<Network> const& networks) {
    std::vector<Network> watched;
    for (std::size_t k = 0; k < networks.size(); ++k) {
      const std::string name = name_of(networks[k], k);
      const bool learned = networks[k].info().learned_variance;
      const auto see = [this, name, learned](at::Tensor const& output) {
        if (!output.defined() || output.dim() < 2 || !output.is_floating_point()) return;
        note(learned ? output.narrow(1, 0, output.size(1) / 2) : output, name);
        if (learned && of_variance_.empty() && !is_finite(output)) of_variance_ = name;
      };
      watched.push_back(Watched(networks[k], see).network());
    }
    return watched;
  }

  /// The same for its noise and its log density.
  void watch(Trajectory& trajectory) {
    trajectory.noise_source = [this, source = trajectory.noise_source](std::vector<std::uint64_t> const& seeds,
                                                                       NoiseAddress address, at::IntArrayRef shape,
                                                                       at::TensorOptions options) {
      const at::Tensor noise = source(seeds, address, shape, options);
      note(noise, "noise_source");
      return noise;
    };
    if (!trajectory.gradient) return;
    trajectory.gradient.log_density = [this, log_density = trajectory.gradient.log_density](
                                          at::Tensor const& picture, at::Tensor const& t, Condition const& condition) {
      if (picture.requires_grad()) {
        picture.register_hook([this](at::Tensor const& slope) { note(slope, "the gradient of log_density"); });
      }
      return log_density(picture, t, condition);
    };
  }

  /// What was seen before the next step.
  void forget() {
    first_.clear();
    of_variance_.clear();
  }

  /// Whose numbers were the first that are none. A variance that is none comes last, because not every rule uses it.
  /// @param otherwise where nobody was seen
  std::string name(std::string const& otherwise) const {
    return !first_.empty() ? first_ : !of_variance_.empty() ? of_variance_ : otherwise;
  }

 private:
  struct Watched : NetworkWrapper<Watched> {
    Watched(Network network, std::function<void(at::Tensor const& output)> look)
        : NetworkWrapper(std::move(network)), see(std::move(look)) {}

    at::Tensor operator()(at::Tensor const& x, at::Tensor const& t, Condition const& condition,
                          Evaluation const& evaluation) const {
      at::Tensor output = inner()(x, t, condition, evaluation);
      see(output);
      return output;
    }

    std::function<void(at::Tensor const& output)> see;
  };

  void note(at::Tensor const& values, std::string const& who) {
    if (first_.empty() && values.defined() && !is_finite(values)) first_ = who;
  }

  std::string first_, of_variance_;
};

}  // namespace tstitch::detail
