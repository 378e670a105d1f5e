/// @file
/// Who looks on while a run goes its way.
#pragma once

#include <ATen/core/Tensor.h>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <type_traits>
#include <utility>

#include "../base/error.hpp"
#include "../base/member_name.hpp"
#include "../plan/step.hpp"

TSTITCH_HAS_NAMED(before)

namespace tstitch {

struct Trajectory;

/// What an observer sees after each step, and of AdaptiveDPMSolver, whose steps are long, after each evaluation too.
struct StepReport {
  Step const& step;
  std::size_t network;
  /// Wall time of the step on the host. GPUs work behind the host: there it is the time to give the work out.
  double seconds;
  at::Tensor const& x;    ///< [n, C, ...] after the step, or that was evaluated
  at::Tensor const& x_0;  ///< [n, C, ...] predicted in it, or there
  std::int64_t first;     ///< position of the batch's first image in the request
  std::int64_t images;    ///< images in the batch; rows after these are padding
  int done;               ///< steps of the batch, with this one once it is done
  int steps;              ///< that the batch has in all
  /// The run, which a program may keep (file/trajectory_file.hpp); inside of a long step as it was before the step.
  Trajectory const* trajectory = nullptr;
};

/// What an observer's `before` sees.
struct StepBegin {
  Step const& step;
  std::size_t network;
  at::Tensor const& x;                     ///< [n, C, ...] as the step takes it
  std::int64_t first;                      ///< position of the batch's first image in the request
  std::int64_t images;                     ///< images in the batch; rows after these are padding
  Trajectory const* trajectory = nullptr;  ///< the run, as the step takes it
};

enum class Control { proceed, cancel };

/// Sees each step; made from any callable on a StepReport that returns nothing, or a Control to cancel the run. A class
/// with `void before(StepBegin const&)` or `Control before(StepBegin const&)` sees it before the network is asked, too.
class Observer {
 public:
  Observer() = default;

  template <class Callable>
  requires(!std::is_same_v<std::remove_cvref_t<Callable>, Observer>)
      Observer(Callable callable) {  // NOLINT: conversion is the purpose
    detail::require_callable("Observer", callable);
    constexpr bool controls = std::is_invocable_r_v<Control, Callable&, StepReport const&>;
    constexpr bool watches = requires(StepReport const& report) {
      { callable(report) } -> std::same_as<void>;
    };
    static_assert(controls || watches,
                  "tstitch::Observer: must be callable as 'void (tstitch::StepReport const&)' or "
                  "'tstitch::Control (tstitch::StepReport const&)'");
    constexpr bool begins = requires(StepBegin const& begin) {
      { callable.before(begin) } -> std::same_as<void>;
    }
    || requires(StepBegin const& begin) {
      { callable.before(begin) } -> std::same_as<Control>;
    };
    static_assert(begins || !detail::HasNamed_before<Callable>,
                  "tstitch::Observer: before must be 'void before(tstitch::StepBegin const&)' or "
                  "'tstitch::Control before(tstitch::StepBegin const&)'");
    if constexpr (controls || watches) {
      if constexpr (begins) {
        // Both see one object, which may keep what it saw first.
        const auto shared = std::make_shared<Callable>(std::move(callable));
        before_ = [shared](StepBegin const& begin) { return answer([&] { return shared->before(begin); }); };
        after_ = [shared](StepReport const& report) { return answer([&] { return (*shared)(report); }); };
      } else {
        after_ = [callable = std::move(callable)](StepReport const& report) mutable {
          return answer([&] { return callable(report); });
        };
      }
    }
  }

  explicit operator bool() const { return bool(after_); }
  Control operator()(StepReport const& report) const { return after_(report); }
  Control before(StepBegin const& begin) const { return before_ ? before_(begin) : Control::proceed; }

 private:
  template <class Ask>
  static Control answer(Ask ask) {
    if constexpr (std::is_void_v<decltype(ask())>) {
      ask();
      return Control::proceed;
    } else {
      return ask();
    }
  }

  std::function<Control(StepBegin const&)> before_;
  std::function<Control(StepReport const&)> after_;
};

}  // namespace tstitch
