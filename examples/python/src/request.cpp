/// @file
/// Requests: what is drawn, and how it is guided.
#include "common.hpp"

#include <torch/csrc/autograd/python_variable.h>
#include <tstitch/peer/torch_noise.hpp>

#include "plan_types.hpp"

namespace tstitch::python {
namespace {

/// A noise source of Python: (seeds, step, draw, shape, dtype, device) -> tensor; step -1 is the initial noise.
struct PyNoise {
  Ref callable;

  at::Tensor operator()(std::vector<std::uint64_t> const& seeds, NoiseAddress address, at::IntArrayRef shape,
                        at::TensorOptions options) const {
    const py::gil_scoped_acquire gil;
    const at::Device device = options.device();
    const py::object returned =
        callable.get()(seeds, int(address.step) - 1, int(address.draw), py::tuple(py::cast(shape.vec())),
                       py::cast(at::typeMetaToScalarType(options.dtype())), device);
    if (THPVariable_Check(returned.ptr())) return THPVariable_Unpack(returned.ptr());
    throw py::type_error("noise_source: must return a tensor, got " + std::string(Py_TYPE(returned.ptr())->tp_name));
  }
};

/// A log density of Python: (picture, t, labels or none, conditions) -> [n].
struct PyLogDensity {
  Ref callable;

  at::Tensor operator()(at::Tensor const& picture, at::Tensor const& t, Condition const& condition) const {
    const py::gil_scoped_acquire gil;
    py::dict conditions;
    for (auto const& [name, tensor] : condition.tensors) conditions[py::str(name)] = tensor;
    const py::object labels = condition.labels.defined() ? py::cast(condition.labels) : py::none();
    const py::object returned = callable.get()(picture, t, labels, conditions);
    if (THPVariable_Check(returned.ptr())) return THPVariable_Unpack(returned.ptr());
    throw py::type_error("log_density: must return a tensor, got " + std::string(Py_TYPE(returned.ptr())->tp_name));
  }
};

void bind_guidance(py::module_& module) {
  py::class_<ProjectedGuidance>(
      module, "ProjectedGuidance",
      "Adaptive projected guidance (arXiv 2410.02416, Algorithm 1): eta in [0, 1] is left of the parallel part, "
      "updates are at most norm_threshold long, momentum is inside (-1, 1).")
      .def(py::init([](double eta, double norm_threshold, double momentum) {
             ProjectedGuidance projected{eta, norm_threshold, momentum};
             projected.validate();
             return projected;
           }),
           py::kw_only(), py::arg("eta") = 0.0, py::arg("norm_threshold") = std::numeric_limits<double>::infinity(),
           py::arg("momentum") = 0.0)
      .def_readonly("eta", &ProjectedGuidance::eta)
      .def_readonly("norm_threshold", &ProjectedGuidance::norm_threshold)
      .def_readonly("momentum", &ProjectedGuidance::momentum)
      .def("__repr__", [](ProjectedGuidance const& self) {
        return "ProjectedGuidance(eta=" + words::text(self.eta) +
               ", norm_threshold=" + words::text(self.norm_threshold) + ", momentum=" + words::text(self.momentum) +
               ")";
      });
  py::class_<Guidance>(module, "Guidance")
      .def(py::init([](std::vector<double> scale, double begin, double end, int channels, double rescale,
                       std::optional<ProjectedGuidance> projected, std::optional<std::size_t> guide_network,
                       std::optional<Forecast> forecast) {
        Guidance guidance{.scale = GuidanceScale(std::move(scale)),
                          .begin = begin,
                          .end = end,
                          .channels = channels,
                          .rescale = rescale,
                          .projected = projected,
                          .guide_network = guide_network,
                          .forecast = forecast ? *forecast : Forecast()};
        guidance.validate();
        return guidance;
      }))
      .def_property_readonly("scale", [](Guidance const& self) { return self.scale.values(); });
}

}  // namespace

void bind_request(py::module_& module) {
  bind_guidance(module);
  using Self = Request;
  py::class_<Self> request(module, "Request");
  request.def(py::init<>());
  const auto field = [&](char const* name, auto member) {
    using Value = std::remove_cvref_t<decltype(std::declval<Request>().*member)>;
    request.def_property(
        name, [member](Self const& self) { return self.*member; },
        [member](Self& self, Value value) { self.*member = std::move(value); });
  };
  field("labels", &Request::labels);
  field("count", &Request::count);
  field("seed", &Request::seed);
  field("seeds", &Request::seeds);
  field("guidance", &Request::guidance);
  field("batch_size", &Request::batch_size);
  field("pad_batches", &Request::pad_batches);
  field("shape", &Request::shape);
  field("initial_noise", &Request::initial_noise);
  field("initial_image", &Request::initial_image);
  field("strength", &Request::strength);
  field("mask", &Request::mask);
  request.def("add_condition", [](Self& self, std::string name, at::Tensor value, std::optional<at::Tensor> null) {
    self.conditions.push_back({std::move(name), std::move(value), null ? *null : at::Tensor()});
  });
  request.def("set_guidance_channels", [](Self& self, int channels) { self.guidance.channels = channels; });
  request.def("set_torch_noise", [](Self& self, std::uint64_t seed, int rows_per_image) {
    self.noise_source = TorchNoise(seed, {.rows_per_image = rows_per_image});
  });
  request.def("set_noise_source",
              [](Self& self, py::object callable) { self.noise_source = PyNoise{Ref(std::move(callable))}; });
  request.def("set_log_density", [](Self& self, py::object callable, double scale, std::string const& of) {
    self.gradient.of = choose<DensityOf>("log_density_of", of, {{"x", DensityOf::x}, {"x_0", DensityOf::x_0}});
    self.gradient.scale = scale;
    self.gradient.log_density = PyLogDensity{Ref(std::move(callable))};
  });
}

}  // namespace tstitch::python
