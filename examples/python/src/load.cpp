/// @file
/// Networks from files.
#include "common.hpp"

#include <tstitch/load.hpp>
#include <tstitch/output/image.hpp>
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

TorchScriptOptions options_of(at::Device device, std::string const& dtype) {
  TorchScriptOptions options;
  options.device = device;
  options.dtype = dtype_named(dtype);
  return options;
}

/// One half of an autoencoder.
template <class Half>
void bind_half(py::module_& module, char const* name, Half (*load)(std::string const&, TorchScriptOptions const&)) {
  py::class_<Half> half(module, name);
  const auto stated = [&](char const* member, auto AutoencoderInfo::*value) {
    half.def_property_readonly(member, [value](Half const& self) { return self.info().*value; });
  };
  stated("name", &AutoencoderInfo::name);
  stated("latent_channels", &AutoencoderInfo::latent_channels);
  stated("picture_channels", &AutoencoderInfo::picture_channels);
  stated("upsampling", &AutoencoderInfo::upsampling);
  stated("temporal_upsampling", &AutoencoderInfo::temporal_upsampling);
  half.def_property_readonly("latent_scale", [](Half const& self) { return to_python(self.info().latent_scale); });
  half.def_property_readonly("latent_shift", [](Half const& self) { return to_python(self.info().latent_shift); });
  stated("scaled_latents", &AutoencoderInfo::scaled_latents);
  stated("license", &AutoencoderInfo::license);
  half.def_static(
          "load",
          [load](std::string const& path, at::Device device, std::string const& dtype) {
            const py::gil_scoped_release release;
            return load(path, options_of(device, dtype));
          },
          py::arg("path"), py::arg("device"), py::arg("dtype"))
      .def_property_readonly("device", &Half::device)
      .def(
          "__call__",
          [](Half const& self, at::Tensor const& x, std::int64_t rows, std::int64_t tile, std::int64_t overlap) {
            const py::gil_scoped_release release;
            return self(x, {.rows = rows, .tile = tile, .overlap = overlap});
          },
          py::arg("x"), py::arg("rows"), py::arg("tile"), py::arg("overlap"));
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
  bind_half<Decoder>(module, "Decoder", &load_decoder);
  bind_half<Encoder>(module, "Encoder", &load_encoder);
  module.def(
      "to_bytes",
      [](at::Tensor const& images) {
        const py::gil_scoped_release release;
        return to_bytes(images);
      },
      py::arg("images"));
}

}  // namespace tstitch::python
