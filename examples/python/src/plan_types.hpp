/// @file
/// Routing and forecasts that come from Python. Includes no torch.
#pragma once

#include <tstitch/plan/forecast.hpp>
#include <tstitch/plan/model_schedule.hpp>

#include <cstddef>
#include <string>
#include <utility>

#include "python_ref.hpp"

namespace tstitch::python {

/// Which network takes which step.
struct Routing {
  AnyModelSchedule schedule;
  std::string name;
};

/// A forecast schedule of Python: (step, network, taken) -> bool.
struct PyForecast {
  int order;
  std::size_t first_network;
  Ref callable;

  bool operator()(Step const& step, std::size_t network, ForecastPlace const& place) const {
    const py::gil_scoped_acquire gil;
    const py::object returned = callable.get()(step, network, place.taken);
    if (!PyBool_Check(returned.ptr())) {
      throw py::type_error("forecast: must return True or False, got " + py::repr(returned).cast<std::string>());
    }
    return returned.ptr() == Py_True;
  }
};

}  // namespace tstitch::python
