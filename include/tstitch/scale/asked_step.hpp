/// @file
/// Steps of a run whose network evaluations are made by somebody else.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "../model/network.hpp"
#include "../sampler/any_sampler.hpp"
#include "../sampler/trajectory.hpp"

namespace tstitch::detail {

/// What a step asks of a network.
struct AskedEvaluation {
  std::size_t network = 0;
  bool guided = false;  ///< by 2n rows, the condition and then its null counterpart
  at::Tensor x = {};    ///< [n, C, ...]
  at::Tensor t = {};    ///< [n or 2n], where the images are at points of their own; else undefined
  std::optional<double> timestep = {};
};

/// Takes the steps of a run by asking for one network evaluation at a time.
///
/// A step that asks is left by an exception and taken again once it has its answer. Steps depend on nothing but the
/// trajectory, noise by address, and what networks say, so that each time is like the time before; rules that evaluate
/// once have computed nothing before they ask.
class AskedSteps {
 public:
  /// @param networks whose places in the run are taken; they are told nothing of it
  /// @throws what `begin` throws
  AskedSteps(AnySampler sampler, Request const& request, std::vector<Network> const& networks)
      : sampler_(std::move(sampler)), desk_(std::make_shared<Desk>()) {
    for (std::size_t k = 0; k < networks.size(); ++k) {
      stand_ins_.emplace_back(StandIn{k, desk_}, networks[k].info(), networks[k].device());
    }
    trajectory_ = sampler_.begin(stand_ins_, request);
  }

  Trajectory const& trajectory() const { return trajectory_; }

  /// Takes steps until one asks, which then is in `asked`, or one is taken.
  /// @returns whether a step was taken
  /// @throws what the sampler throws
  bool go_on() {
    desk_->next = 0;
    desk_->asked.reset();
    try {
      sampler_.advance(stand_ins_, trajectory_);
    } catch (Asks const&) {
      return false;
    }
    desk_->answers.clear();
    return true;
  }

  AskedEvaluation const& asked() const { return *desk_->asked; }

  /// @param output of the network for what is asked
  void answer(at::Tensor output) { desk_->answers.push_back(std::move(output)); }

 private:
  struct Asks {};

  struct Desk {
    std::vector<at::Tensor> answers = {};  ///< of the step, in the order of its evaluations
    std::size_t next = 0;
    std::optional<AskedEvaluation> asked = {};
  };

  /// Answers in the place of a network.
  struct StandIn {
    static constexpr bool knows_timestep = true, repeats_x = true;
    std::size_t network;
    std::shared_ptr<Desk> desk;

    at::Tensor operator()(at::Tensor const& x, at::Tensor const& t, Condition const&,
                          Evaluation const& evaluation) const {
      if (desk->next < desk->answers.size()) return desk->answers[desk->next++];
      desk->asked = AskedEvaluation{network, evaluation.both_halves, x, t, evaluation.timestep};
      throw Asks();
    }
  };

  AnySampler sampler_;
  std::shared_ptr<Desk> desk_;
  std::vector<Network> stand_ins_ = {};
  Trajectory trajectory_ = {};
};

}  // namespace tstitch::detail
