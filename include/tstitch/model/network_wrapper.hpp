/// @file
/// A base for networks around a network: watched, timed, scaled.
#pragma once

#include <span>
#include <utility>

#include "network.hpp"

namespace tstitch {

/// Forwards all that Network may ask of a callable to the network inside, so that nothing of it is lost on the way:
/// what it knows of the timestep, that it repeats x, settles at once or forecasts, what it prepares, and what of it is
/// captured.
///
/// `Derived` is called as (x, t, condition, evaluation) and asks `inner()` with the same, the evaluation above all.
/// What it does beside that stays outside of what is captured, and so is done in every call.
///
///     struct Counted : tstitch::NetworkWrapper<Counted> {
///       Counted(tstitch::Network network, int& counter) : NetworkWrapper(std::move(network)), calls(&counter) {}
///       at::Tensor operator()(at::Tensor const& x, at::Tensor const& t, tstitch::Condition const& condition,
///                             tstitch::Evaluation const& evaluation) const {
///         ++*calls;
///         return inner()(x, t, condition, evaluation);
///       }
///       int* calls;
///     };
///     const tstitch::Network counted = Counted(network, calls).network();
template <class Derived>
class NetworkWrapper {
 public:
  using IsNetworkWrapper = void;  ///< so that Network(wrapper), without what the one inside says, does not compile

  explicit NetworkWrapper(Network inner)
      : knows_timestep(inner.knows_timestep()),
        repeats_x(inner.repeats_x()),
        settles_at_once(inner.settles_at_once()),
        forecasts(inner.forecasts()),
        inner_(std::move(inner)) {}

  bool knows_timestep, repeats_x, settles_at_once, forecasts;

  void prepare(std::span<const double> timesteps, Condition const& condition) const {
    inner_.prepare(timesteps, condition);
  }

  Derived captured(Capture const& capture) const {
    Derived copy = static_cast<Derived const&>(*this);
    static_cast<NetworkWrapper&>(copy).inner_ = inner_.captured(capture);
    return copy;
  }

  /// The wrapper as a network that says of itself what the one inside says.
  Network network() const { return Network(static_cast<Derived const&>(*this), inner_.info(), inner_.device()); }

 protected:
  Network const& inner() const { return inner_; }

 private:
  Network inner_;
};

}  // namespace tstitch
