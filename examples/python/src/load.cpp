/// @file
/// Networks from files.
#include "common.hpp"

#include <tstitch/load.hpp>
#include <tstitch/tensor/cuda/kernels.hpp>

namespace tstitch::python {
namespace {

std::vector<LoadOptions> options_of(at::Device device, std::string const& dtype,
                                    std::vector<std::string> const& backends, std::optional<NetworkInfo> const& info) {
  std::vector<LoadOptions> all;
  for (std::string const& backend : backends) {
    LoadOptions options;
    options.device = device;
    options.dtype = dtype_named(dtype);
    options.info = info;
    all.push_back(with_backend(options, backend));
  }
  return all;
}

}  // namespace

void bind_load(py::module_& module) {
  module.def("default_device", &default_device);
  module.attr("backends") = backend_names();
  module.def(
      "load_networks",
      [](std::vector<std::string> const& paths, at::Device device, std::string const& dtype,
         std::vector<std::string> const& backends, std::optional<NetworkInfo> const& info) {
        const py::gil_scoped_release release;
        return load_networks(paths, options_of(device, dtype, backends, info));
      },
      py::arg("paths"), py::arg("device"), py::arg("dtype"), py::arg("backends"), py::arg("info"));
  module.def(
      "load_network_info",
      [](std::string const& path, std::optional<NetworkInfo> const& info) {
        const py::gil_scoped_release release;
        return load_network_info(path, {.device = at::kCPU, .info = info});
      },
      py::arg("path"), py::arg("info") = py::none());
}

}  // namespace tstitch::python
