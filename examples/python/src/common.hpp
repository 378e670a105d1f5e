/// @file
/// What the files of the extension share.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <ATen/core/Tensor.h>

#include <tstitch/model/per_channel.hpp>
#include <tstitch/plan/plan.hpp>
#include <tstitch/sampler/any_sampler.hpp>

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "python_ref.hpp"

namespace tstitch::python {

/// A trajectory as Python holds it. It is changed under the GIL alone.
struct PyTrajectory {
  Trajectory trajectory;
  double strength = 1;
  bool busy = false;  ///< some thread advances it
};

/// What a Python rule keeps from step to step: a dict, or nothing yet.
struct RuleState {
  Ref value = {};
};

/// As Python has it: a float, or a list of one for each channel.
using PyPerChannel = std::variant<double, std::vector<double>>;

inline PyPerChannel to_python(PerChannel const& numbers) {
  if (numbers.values().size() == 1) return numbers.of(0);
  return numbers.values();
}

inline PerChannel from_python(PyPerChannel const& numbers) {
  if (double const* const all = std::get_if<double>(&numbers)) return *all;
  return PerChannel(std::get<1>(numbers));
}

/// A rule that is a callable of Python.
AnyUpdateRule rule_from_python(py::object callable, std::string name, int history, py::object evaluations);

void bind_plan(py::module_& module);
void bind_network(py::module_& module);
void bind_request(py::module_& module);
void bind_trajectory(py::module_& module);
void bind_sampler(py::module_& module);
void bind_load(py::module_& module);
void bind_budget(py::module_& module);

}  // namespace tstitch::python
