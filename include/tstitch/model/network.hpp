/// @file
/// A network as it was trained.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <algorithm>
#include <concepts>
#include <cstddef>
#include <stdexcept>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "../base/diagnostics.hpp"
#include "../base/error.hpp"
#include "../base/member_name.hpp"
#include "../plan/noise_schedule.hpp"
#include "condition.hpp"
#include "evaluation.hpp"
#include "network_info.hpp"

TSTITCH_HAS_NAMED(captured)
TSTITCH_HAS_NAMED(forecasts)
TSTITCH_HAS_NAMED(knows_timestep)
TSTITCH_HAS_NAMED(prepare)
TSTITCH_HAS_NAMED(repeats_x)
TSTITCH_HAS_NAMED(settles_at_once)

namespace tstitch {

/// Any function of tensors whose result depends on nothing else, and that never looks at their values on the host.
using TensorFunction = std::function<at::Tensor(std::vector<at::Tensor> const&)>;

/// Makes a function that gives the same in another way, such as by replaying a CUDA graph (engine/cuda_graph.hpp).
using Capture = std::function<TensorFunction(TensorFunction)>;

namespace detail {

/// The device that is meant where no index is given: the current one, where there is any.
inline at::Device with_index(at::Device device) {
  if (device.is_cpu() || device.has_index() || !c10::impl::hasDeviceGuardImpl(device.type())) return device;
  auto const* const devices = c10::impl::getDeviceGuardImpl(device.type());
  return devices->deviceCount() > 0 ? devices->getDevice() : device;
}

}  // namespace detail

/// A trained network: (x, t, condition) -> raw output. A cheap-to-copy value; calls cost a network evaluation, so the
/// callable is type-erased.
class Network {
 public:
  /// @param x [n, C, ...] of any rank, in the sampler's type (float32 unless the caller chose another); to be left as
  ///        it is, and so are the tensors of the condition
  /// @param t [n], int64 or the type of x, as info().timestep_type says
  /// @returns [n, C, ...] like x, or [n, 2C, ...] with a learned variance, in any floating type
  using Function =
      std::function<at::Tensor(at::Tensor const& x, at::Tensor const& t, Condition const&, Evaluation const&)>;

  /// From any callable (x, t, condition, evaluation), (x, t, condition, timestep), (x, t, condition) or (x, t); the
  /// timestep is Evaluation::timestep. It must be safe to call from several threads if the sampler is used from
  /// several, so what it keeps from step to step belongs into Evaluation::memory.
  ///
  /// Besides it may have:
  ///   bool knows_timestep
  ///       true: t may be undefined where the timestep is given, and costs nothing then
  ///   bool repeats_x
  ///       true: x may have half of the rows of the condition, [n / 2, C, ...], which come twice
  ///   bool settles_at_once
  ///       true: the first call of a shape does all that is done once, compiling and choosing; one call warms it up
  ///   bool forecasts
  ///       true: does what Evaluation::forecast says, as SplitNetwork does (model/split_network.hpp)
  ///   void prepare(std::span<const double> timesteps, Condition const&) const
  ///       is told of a run before it begins, and may compute ahead what depends on timestep and condition alone
  ///   Callable captured(Capture const&) const
  ///       for `captured`: replays only part of itself; else all of it is replayed
  /// @param device where x and t are to be; cuda without an index is the GPU that is current
  /// @throws std::invalid_argument for an empty function, and for classes and sizes that make no sense
  template <class Callable>
  requires(!std::is_same_v<std::remove_cvref_t<Callable>, Network>)
      Network(Callable callable, NetworkInfo info, at::Device device = at::kCPU)
      : self_(make_self(std::move(callable), std::move(info), device)) {}

  /// The same, of which nothing is stated.
  template <class Callable>
  requires(!std::is_same_v<std::remove_cvref_t<Callable>, Network>)
      Network(Callable callable)  // NOLINT: conversion is the purpose
      : Network(std::move(callable), NetworkInfo{}) {
    static_assert(
        !requires { typename Callable::IsNetworkWrapper; },
        "tstitch::NetworkWrapper: its network() says of it what the network inside says; this would not");
  }

  template <std::same_as<Evaluation> Told>
  at::Tensor operator()(at::Tensor const& x, at::Tensor const& t, Condition const& condition,
                        Told const& evaluation) const {
    return self_->function(x, t, condition, evaluation);
  }

  at::Tensor operator()(at::Tensor const& x, at::Tensor const& t, Condition const& condition,
                        std::optional<double> timestep = {}) const {
    return self_->function(x, t, condition, {.timestep = timestep});
  }

  /// Whether t may be undefined where the timestep is given.
  bool knows_timestep() const { return self_->knows_timestep; }

  /// Whether x may have half of the rows of the condition, which come twice.
  bool repeats_x() const { return self_->repeats_x; }

  /// Whether one call of a shape warms it up.
  bool settles_at_once() const { return self_->settles_at_once; }

  /// Whether it can forecast what it would compute, see SamplingOptions::forecast.
  bool forecasts() const { return self_->forecasts; }

  /// Whether it wants to be told of runs before they begin.
  bool prepares() const { return bool(self_->prepare); }

  /// Tells of a run.
  /// @param timesteps at which the network will be asked, each once; integers where info().timestep_type says so
  /// @param condition with which it will be asked
  void prepare(std::span<const double> timesteps, Condition const& condition) const {
    if (self_->prepare) self_->prepare(timesteps, condition);
  }

  /// This network with what it does done by what `capture` makes of it. One that takes an Evaluation and does not say
  /// which part of it to replay stays as it is, which is diagnosed: what it keeps from step to step is no tensor.
  Network captured(Capture const& capture) const {
    if (self_->capture) return self_->capture(capture, *this);
    if (!self_->takes_evaluation) return capture_whole(capture);
    detail::diagnose("Network::captured", "runs '" + detail::printable(info().name) +
                                              "' as it is, because it takes an Evaluation and has no `captured`");
    return *this;
  }

  NetworkInfo const& info() const { return self_->info; }
  at::Device device() const { return self_->device; }

  /// The schedule that the network was trained with.
  /// @throws std::invalid_argument when it is not stated
  NoiseSchedule const& noise_schedule() const {
    if (!info().noise_schedule) {
      throw std::invalid_argument("tstitch::Network::noise_schedule: '" + info().name + "' states no noise schedule");
    }
    return *info().noise_schedule;
  }

 private:
  struct Self {
    Function function;
    NetworkInfo info;
    at::Device device;
    bool knows_timestep = false;
    bool repeats_x = false;
    bool settles_at_once = false;
    bool forecasts = false;
    bool takes_evaluation = false;
    std::function<void(std::span<const double>, Condition const&)> prepare = {};
    std::function<Network(Capture const&, Network const&)> capture = {};
  };

  template <class Callable>
  static constexpr bool takes_evaluation =
      std::is_invocable_r_v<at::Tensor, Callable&, at::Tensor const&, at::Tensor const&, Condition const&,
                            Evaluation const&>;

  template <class Callable>
  static constexpr bool takes_timestep =
      std::is_invocable_r_v<at::Tensor, Callable&, at::Tensor const&, at::Tensor const&, Condition const&,
                            std::optional<double>>;

  /// The one callable that is asked, prepared and captured, whatever it keeps by value.
  template <class Callable>
  struct Shared {
    std::shared_ptr<Callable> callable;

    template <class... Given>
    requires std::is_invocable_v<Callable&, Given...>
    decltype(auto) operator()(Given&&... given) const { return (*callable)(std::forward<Given>(given)...); }
  };

  /// Refuses optional members that have the name and not the form.
  template <class Callable>
  static constexpr void require_members() {
    static_assert(
        !detail::HasNamed_knows_timestep<Callable> ||
            requires(Callable const& callable) {
              { callable.knows_timestep } -> std::convertible_to<bool>;
            },
        "tstitch::Network: knows_timestep must be 'bool knows_timestep'");
    static_assert(
        !detail::HasNamed_repeats_x<Callable> ||
            requires(Callable const& callable) {
              { callable.repeats_x } -> std::convertible_to<bool>;
            },
        "tstitch::Network: repeats_x must be 'bool repeats_x'");
    static_assert(
        !detail::HasNamed_settles_at_once<Callable> ||
            requires(Callable const& callable) {
              { callable.settles_at_once } -> std::convertible_to<bool>;
            },
        "tstitch::Network: settles_at_once must be 'bool settles_at_once'");
    static_assert(
        !detail::HasNamed_forecasts<Callable> ||
            requires(Callable const& callable) {
              { callable.forecasts } -> std::convertible_to<bool>;
            },
        "tstitch::Network: forecasts must be 'bool forecasts'");
    static_assert(
        !detail::HasNamed_prepare<Callable> || requires(Callable const& callable, std::span<const double> t,
                                                        Condition const& c) { callable.prepare(t, c); },
        "tstitch::Network: prepare must be 'void prepare(std::span<const double>, tstitch::Condition const&) const'");
    static_assert(
        !detail::HasNamed_captured<Callable> ||
            requires(Callable const& callable, Capture const& capture) { Network(callable.captured(capture)); },
        "tstitch::Network: captured must be 'Callable captured(tstitch::Capture const&) const'");
  }

  template <class Callable>
  static std::shared_ptr<const Self> make_self(Callable callable, NetworkInfo info, at::Device device) {
    require_members<Callable>();
    detail::require_callable("Network", callable);
    if (info.num_classes < 0) detail::refuse("Network", "num_classes must not be negative", double(info.num_classes));
    if (info.null_class && info.num_classes == 0) {
      detail::refuse("Network", "null_class is for networks with classes", double(*info.null_class));
    }
    detail::fill_in_sizes(info);
    detail::require_channels("Network", "latent_scale", info.latent_scale, info.channels);
    detail::require_channels("Network", "latent_shift", info.latent_shift, info.channels);
    Self self{{}, std::move(info), detail::with_index(device)};
    if constexpr (requires { bool(callable.knows_timestep); }) {
      static_assert(takes_timestep<Callable> || takes_evaluation<Callable>,
                    "tstitch::Network: a callable that knows_timestep must take (x, t, condition, timestep) or an "
                    "Evaluation there");
      self.knows_timestep = callable.knows_timestep;
    }
    if constexpr (requires { bool(callable.repeats_x); }) self.repeats_x = callable.repeats_x;
    if constexpr (requires { bool(callable.settles_at_once); }) self.settles_at_once = callable.settles_at_once;
    if constexpr (requires { bool(callable.forecasts); }) {
      static_assert(takes_evaluation<Callable>,
                    "tstitch::Network: a callable that forecasts must take (x, t, condition, evaluation)");
      self.forecasts = callable.forecasts;
    }
    const auto shared = std::make_shared<Callable>(std::move(callable));  // below, only its type is looked at
    if constexpr (requires(std::span<const double> t, Condition const& c) { std::as_const(callable).prepare(t, c); }) {
      self.prepare = [shared](std::span<const double> t, Condition const& c) { std::as_const(*shared).prepare(t, c); };
    }
    if constexpr (requires(Capture const& capture) { Network(std::as_const(callable).captured(capture)); }) {
      self.capture = [shared](Capture const& capture, Network const& whole) {
        return Network(std::as_const(*shared).captured(capture), whole.info(), whole.device());
      };
    }
    self.takes_evaluation = takes_evaluation<Callable>;
    self.function = erase(Shared<Callable>{shared});
    return std::make_shared<const Self>(std::move(self));
  }

  template <class Callable>
  static Function erase(Callable callable) {
    using Tensor = at::Tensor const&;
    constexpr bool told = takes_evaluation<Callable>, knowing = takes_timestep<Callable>;
    constexpr bool conditional = std::is_invocable_r_v<at::Tensor, Callable&, Tensor, Tensor, Condition const&>;
    constexpr bool unconditional = std::is_invocable_r_v<at::Tensor, Callable&, Tensor, Tensor>;
    static_assert(told || knowing || conditional || unconditional,
                  "tstitch::Network: the callable must be 'at::Tensor (at::Tensor const& x, at::Tensor const& t, "
                  "tstitch::Condition const&)', which may take 'tstitch::Evaluation const&' besides, or 'at::Tensor "
                  "(at::Tensor const& x, at::Tensor const& t)'");
    if constexpr (told) {
      return callable;
    } else if constexpr (knowing) {
      return [callable = std::move(callable)](Tensor x, Tensor t, Condition const& condition,
                                              Evaluation const& evaluation) mutable {
        return callable(x, t, condition, evaluation.timestep);
      };
    } else if constexpr (conditional) {
      return [callable = std::move(callable)](Tensor x, Tensor t, Condition const& condition,
                                              Evaluation const&) mutable { return callable(x, t, condition); };
    } else if constexpr (unconditional) {
      return [callable = std::move(callable)](Tensor x, Tensor t, Condition const&, Evaluation const&) mutable {
        return callable(x, t);
      };
    }
  }

  /// Of one that does not say which part of it to replay. The tensors are those of the condition, in its order.
  Network capture_whole(Capture const& capture) const {
    // One function for each set of names, because it is the tensors alone that a captured function sees.
    struct Captured {
      std::mutex mutex = {};
      std::map<std::vector<std::string>, TensorFunction> functions = {};
    };
    return Network(
        [whole = *this, capture, captured = std::make_shared<Captured>()](at::Tensor const& x, at::Tensor const& t,
                                                                          Condition const& condition) {
          std::vector<at::Tensor> inputs{x, t};
          std::vector<std::string> names;
          const bool labelled = condition.labels.defined();
          if (labelled) inputs.push_back(condition.labels);
          names.push_back(labelled ? "labels" : "");
          for (auto const& [name, tensor] : condition.tensors) {
            inputs.push_back(tensor);
            names.push_back(name);
          }
          std::unique_lock lock(captured->mutex);
          TensorFunction& function = captured->functions[names];
          if (!function) {
            function = capture([whole, names, labelled](std::vector<at::Tensor> const& given) {
              Condition rebuilt{.labels = labelled ? given[2] : at::Tensor()};
              for (std::size_t i = 1, next = labelled ? 3 : 2; i < names.size(); ++i, ++next) {
                rebuilt.tensors.emplace_back(names[i], given[next]);
              }
              return whole(given[0], given[1], rebuilt);
            });
          }
          lock.unlock();  // who is told of a fallback may ask this network
          return function(inputs);
        },
        info(), device());
  }

  std::shared_ptr<const Self> self_;
};

namespace detail {

inline std::string name_of(Network const& network, std::size_t index) {
  return "network " + std::to_string(index) +
         (network.info().name.empty() ? "" : " ('" + printable(network.info().name) + "')");
}

}  // namespace detail

/// Everything in which networks of one run disagree although they must not, one sentence each; empty if they fit
/// together. What a network does not state is not compared. Prediction type, learned variance, timestep type, number
/// format and the set of conditions may differ. Of each network a disagreement is named once, with the first of those
/// before it that it disagrees with.
inline std::vector<std::string> mismatches(std::vector<Network> const& networks) {
  std::vector<std::string> found;
  std::set<std::pair<std::size_t, std::string>> named;  // of the second network, what it is about
  // Two may fit with one that leaves open what they disagree about, so each pair is looked at.
  const auto compare_pair = [&](std::size_t j, std::size_t k) {
    NetworkInfo const& a = networks[j].info();
    NetworkInfo const& b = networks[k].info();
    const auto differ_in = [&](std::string const& about, std::string const& what, std::string const& left,
                               std::string const& right) {
      if (!named.emplace(k, about).second) return;
      found.push_back(what + ": " + detail::name_of(networks[j], j) + " has " + left + ", " +
                      detail::name_of(networks[k], k) + " has " + right);
    };
    const auto differ = [&](std::string const& what, std::string const& left, std::string const& right) {
      differ_in(what, what, left, right);
    };
    const auto compare = [&](char const* what, std::optional<std::int64_t> left, std::optional<std::int64_t> right) {
      if (left && right && *left != *right) differ(what, std::to_string(*left), std::to_string(*right));
    };
    const auto stated = [](std::int64_t number) { return number ? std::optional(number) : std::nullopt; };
    if (!a.shape.empty() && !b.shape.empty()) {
      if (!detail::sizes_agree(a.shape, b.shape)) {
        differ("input shape", detail::sizes_text(a.shape), detail::sizes_text(b.shape));
      }
    } else {
      compare("input channels", stated(a.channels), stated(b.channels));
      compare("input height", stated(a.height), stated(b.height));
      compare("input width", stated(a.width), stated(b.width));
    }
    compare("number of classes", stated(a.num_classes), stated(b.num_classes));
    compare("null class", a.null_class, b.null_class);
    if (!a.class_names.empty() && !b.class_names.empty() && a.class_names != b.class_names) {
      std::size_t i = 0;
      while (i + 1 < std::min(a.class_names.size(), b.class_names.size()) && a.class_names[i] == b.class_names[i]) ++i;
      differ_in("class names", "name of class " + std::to_string(i), "'" + detail::printable(a.class_names[i]) + "'",
                "'" + detail::printable(b.class_names[i]) + "'");
    }
    // Files may have rounded their tables to float32.
    if (a.noise_schedule && b.noise_schedule && a.noise_schedule->distance(*b.noise_schedule) > 1e-6) {
      differ("noise schedule", a.noise_schedule->name(), b.noise_schedule->name());
    }
    if (a.decoding != b.decoding) {
      const auto text = [](Decoding d) { return std::string(d == Decoding::pixels ? "pixels" : "no decoding"); };
      differ("decoding", text(a.decoding), text(b.decoding));
    }
    if (a.latent_scale != 0 && b.latent_scale != 0 &&
        (a.latent_scale != b.latent_scale || a.latent_shift != b.latent_shift)) {
      const auto text = [](NetworkInfo const& of, NetworkInfo const& other) {
        return words::scale_and_shift(of.latent_scale, of.latent_shift, other.latent_scale, other.latent_shift);
      };
      differ("latent scale and shift", text(a, b), text(b, a));
    }
    for (ConditionInfo const& left : a.conditions) {
      for (ConditionInfo const& right : b.conditions) {
        if (left.name != right.name || detail::can_be_one(left, right)) continue;
        differ("condition '" + left.name + "'", text_of(left), text_of(right));
      }
    }
    if (networks[j].device() != networks[k].device()) {
      differ("device", networks[j].device().str(), networks[k].device().str());
    }
  };
  for (std::size_t k = 1; k < networks.size(); ++k) {
    for (std::size_t j = 0; j < k; ++j) compare_pair(j, k);
  }
  return found;
}

/// @throws std::runtime_error naming every mismatch
inline void require_compatible(std::vector<Network> const& networks) {
  const std::vector<std::string> found = mismatches(networks);
  if (found.empty()) return;
  std::string message = "tstitch::require_compatible: these networks cannot share a trajectory";
  for (std::string const& line : found) message += "\n  " + line;
  throw std::runtime_error(message);
}

}  // namespace tstitch
