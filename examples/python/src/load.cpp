/// @file
/// Networks from files, and pipelines from folders.
#include "common.hpp"

#include <tstitch/load.hpp>
#include <tstitch/output/image.hpp>
#include <tstitch/pipeline.hpp>
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

/// What Python gives of a PipelineRequest; seeds are set in the Request that is made of it.
PipelineRequest wanted_of(std::vector<std::string> prompts, std::vector<std::int64_t> labels, std::int64_t count,
                          std::optional<std::string> negative, std::optional<double> ratio, std::optional<int> steps,
                          std::optional<std::vector<double>> const& guidance, std::int64_t height, std::int64_t width,
                          std::int64_t frames, std::string profile) {
  PipelineRequest wanted;
  wanted.prompts = std::move(prompts);
  wanted.labels = std::move(labels);
  wanted.count = count;
  wanted.negative = std::move(negative);
  wanted.ratio = ratio;
  wanted.steps = steps;
  if (guidance) wanted.guidance = GuidanceScale(*guidance);
  wanted.height = height;
  wanted.width = width;
  wanted.frames = frames;
  wanted.profile = std::move(profile);
  return wanted;
}

/// What the folder says of itself, as its pipeline.txt has it.
py::dict stated_by(PipelineInfo const& info) {
  py::dict stated;
  stated["name"] = info.name;
  stated["networks"] = info.networks;
  stated["shape"] = info.shape;
  stated["profile"] = info.profile;
  stated["steps"] = info.steps;
  stated["guidance"] = info.guidance;
  stated["ratio"] = info.ratio;
  stated["routing"] = info.routing;
  stated["negative"] = info.negative;
  stated["license"] = info.license;
  stated["measured"] = info.measured;
  return stated;
}

void bind_pipeline(py::module_& module) {
  py::class_<PipelineRequest>(module, "PipelineRequest")
      .def(py::init(&wanted_of), py::kw_only(), py::arg("prompts"), py::arg("labels"), py::arg("count"),
           py::arg("negative"), py::arg("ratio"), py::arg("steps"), py::arg("guidance"), py::arg("height"),
           py::arg("width"), py::arg("frames"), py::arg("profile"));
  py::class_<Pipeline>(module, "Pipeline")
      .def_static(
          "load",
          [](std::string const& folder, at::Device device, std::string const& dtype, std::string const& backend,
             bool keep_text_encoders, std::string const& prompt_cache) {
            PipelineOptions options;
            options.networks = options_of(device, dtype, {backend}, {}).front();
            options.keep_text_encoders = keep_text_encoders;
            options.prompt_cache = prompt_cache;
            const py::gil_scoped_release release;
            return load_pipeline(folder, std::move(options));
          },
          py::arg("folder"), py::arg("device"), py::arg("dtype"), py::arg("backend"), py::arg("keep_text_encoders"),
          py::arg("prompt_cache"))
      .def_property_readonly("stated", [](Pipeline const& self) { return stated_by(self.info()); })
      .def_property_readonly("networks", &Pipeline::networks, py::return_value_policy::copy)
      .def_property_readonly("decoder", &Pipeline::decoder, py::return_value_policy::copy)
      .def(
          "sampler",
          [](Pipeline const& self, PipelineRequest const& wanted) {
            const py::gil_scoped_release release;
            return self.sampler(wanted);
          },
          py::arg("wanted"))
      .def(
          "request",
          [](Pipeline const& self, PipelineRequest const& wanted) {
            const py::gil_scoped_release release;
            return self.request(wanted);
          },
          py::arg("wanted"));
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
  bind_pipeline(module);
  module.def(
      "to_bytes",
      [](at::Tensor const& images) {
        const py::gil_scoped_release release;
        return to_bytes(images);
      },
      py::arg("images"));
}

}  // namespace tstitch::python
