/// @file
/// The extension module.
#include "common.hpp"

#include <c10/util/Exception.h>
#include <tstitch/base/diagnostics.hpp>
#include <tstitch/version.hpp>

namespace tstitch::python {

/// Torch's errors carry a trace of C++ in what(); its first lines are for people.
void translate(std::exception_ptr pointer) {
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (c10::Error const& error) {
    py::set_error(PyExc_RuntimeError, error.what_without_backtrace());
  }
}

}  // namespace tstitch::python

PYBIND11_MODULE(_core, module) {
  using namespace tstitch::python;
  module.doc() = "The C++ half of tstitch; its interface is private.";
  py::register_local_exception_translator(translate);
  module.attr("version") = TSTITCH_VERSION;
#ifdef TSTITCH_WITH_CUDA
  module.attr("with_cuda") = true;
#else
  module.attr("with_cuda") = false;
#endif
  module.def("diagnostics", &tstitch::diagnostics);
  bind_plan(module);
  bind_network(module);
  bind_request(module);
  bind_trajectory(module);
  bind_sampler(module);
  bind_load(module);
  bind_budget(module);
}
