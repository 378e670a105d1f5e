/// @file
/// Networks that are modules or functions of Python, and what is known of networks.
#include "common.hpp"

#include <torch/csrc/autograd/python_variable.h>
#include <tstitch/model/network.hpp>
#include <tstitch/model/split_network.hpp>

#include <array>

namespace tstitch::python {
namespace {

/// The tensor that a network of Python returned: itself, the `sample` of diffusers' outputs, or the first of a tuple.
/// @throws TypeError
at::Tensor output_of(py::object const& returned, std::string const& name) {
  if (THPVariable_Check(returned.ptr())) return THPVariable_Unpack(returned.ptr());
  if (py::isinstance<py::tuple>(returned) && py::len(returned) > 0) {
    const py::object first = py::reinterpret_borrow<py::tuple>(returned)[0];
    if (THPVariable_Check(first.ptr())) return THPVariable_Unpack(first.ptr());
  }
  if (const py::object sample = py::getattr(returned, "sample", py::none()); THPVariable_Check(sample.ptr())) {
    return THPVariable_Unpack(sample.ptr());
  }
  throw py::type_error(name +
                       ": must return a tensor, a tuple that begins with one, or an object with one as .sample, got " +
                       std::string(Py_TYPE(returned.ptr())->tp_name));
}

py::object wrap(at::Tensor const& tensor) {
  return py::reinterpret_steal<py::object>(THPVariable_Wrap(tensor));
}

/// Calls (x, t), (x, t, labels), and these with conditions as keyword arguments.
class PyNetwork {
 public:
  PyNetwork(py::object call, std::string name, std::vector<std::string> const& conditions,
            std::optional<at::ScalarType> dtype)
      : call_(std::move(call)), name_(std::move(name)), conditions_(conditions), dtype_(dtype) {
    py::tuple keywords(conditions.size());
    for (std::size_t i = 0; i < conditions.size(); ++i) {
      py::str word(conditions[i]);
      keywords[i] = word;
    }
    keywords_ = Ref(keywords);
  }

  at::Tensor operator()(at::Tensor const& x, at::Tensor const& t, Condition const& condition) const {
    const py::gil_scoped_acquire gil;
    const bool cast = dtype_ && *dtype_ != x.scalar_type();
    const auto in_dtype = [&](at::Tensor const& tensor) {
      return dtype_ && tensor.is_floating_point() && tensor.scalar_type() != *dtype_ ? tensor.to(*dtype_) : tensor;
    };
    std::vector<py::object> owned;
    owned.reserve(3 + conditions_.size());
    owned.push_back(wrap(cast ? x.to(*dtype_) : x));
    owned.push_back(wrap(t));
    if (condition.labels.defined()) owned.push_back(wrap(condition.labels));
    const std::size_t positional = owned.size();
    for (std::string const& name : conditions_) owned.push_back(wrap(in_dtype(condition.at(name))));
    std::vector<PyObject*> arguments(owned.size() + 1);
    for (std::size_t i = 0; i < owned.size(); ++i) arguments[i + 1] = owned[i].ptr();
    PyObject* const returned =
        PyObject_Vectorcall(call_.ptr(), arguments.data() + 1, positional | PY_VECTORCALL_ARGUMENTS_OFFSET,
                            conditions_.empty() ? nullptr : keywords_.ptr());
    if (!returned) throw py::error_already_set();
    return output_of(py::reinterpret_steal<py::object>(returned), name_);
  }

 private:
  Ref call_;
  std::string name_;
  std::vector<std::string> conditions_;
  std::optional<at::ScalarType> dtype_;
  Ref keywords_ = {};
};

/// A network of Python in parts, see SplitNetwork.
SplitNetwork parts_of(py::object embed, py::object blocks, py::object head, bool residual, std::string const& name,
                      std::vector<std::string> const& conditions) {
  const auto tensors = [](py::object const& object) {
    std::vector<at::Tensor> all;
    if (THPVariable_Check(object.ptr())) return std::vector{at::Tensor(THPVariable_Unpack(object.ptr()))};
    for (py::handle each : object) all.push_back(each.cast<at::Tensor>());
    return all;
  };
  SplitNetwork parts;
  parts.residual = residual;
  parts.embed = [call = Ref(std::move(embed)), conditions, tensors](at::Tensor const& x, at::Tensor const& t,
                                                                    Condition const& condition) {
    const py::gil_scoped_acquire gil;
    py::dict keywords;
    for (std::string const& each : conditions) keywords[py::str(each)] = wrap(condition.at(each));
    if (condition.labels.defined()) return tensors(call.get()(wrap(x), wrap(t), wrap(condition.labels), **keywords));
    return tensors(call.get()(wrap(x), wrap(t), **keywords));
  };
  parts.blocks = [call = Ref(std::move(blocks)), name](std::vector<at::Tensor> const& embedded) {
    const py::gil_scoped_acquire gil;
    return output_of(call.get()(*py::cast(embedded)), name + " blocks");
  };
  parts.head = [call = Ref(std::move(head)), name](std::vector<at::Tensor> const& embedded, at::Tensor const& feature) {
    const py::gil_scoped_acquire gil;
    return output_of(call.get()(wrap(feature), *py::cast(embedded)), name + " head");
  };
  return parts;
}

std::vector<std::string> names_of_conditions(NetworkInfo const& info) {
  std::vector<std::string> names;
  for (ConditionInfo const& each : info.conditions) names.push_back(each.name);
  return names;
}

template <class Member>
void stated(py::class_<NetworkInfo>& info, char const* name, Member NetworkInfo::*member) {
  info.def_readwrite(name, member);
}

void stated(py::class_<NetworkInfo>& info, char const* name, PerChannel NetworkInfo::*member) {
  info.def_property(
      name, [member](NetworkInfo const& self) { return to_python(self.*member); },
      [member](NetworkInfo& self, PyPerChannel const& numbers) { self.*member = from_python(numbers); });
}

void bind_info(py::module_& module) {
  py::class_<ConditionInfo>(module, "ConditionInfo")
      .def(py::init([](std::string name, std::vector<std::int64_t> shape, bool floating) {
             return ConditionInfo{std::move(name), std::move(shape), floating};
           }),
           py::arg("name"), py::arg("shape"), py::arg("floating") = true)
      .def_readonly("name", &ConditionInfo::name)
      .def_readonly("shape", &ConditionInfo::shape)
      .def_readonly("floating", &ConditionInfo::floating)
      .def("__repr__", [](ConditionInfo const& info) {
        return "ConditionInfo('" + info.name + "', " + text_of(info) + (info.floating ? ")" : ", int64)");
      });
  py::class_<NetworkInfo> info(module, "NetworkInfo");
  info.def(py::init<>());
  stated(info, "name", &NetworkInfo::name);
  stated(info, "learned_variance", &NetworkInfo::learned_variance);
  stated(info, "shape", &NetworkInfo::shape);
  stated(info, "num_classes", &NetworkInfo::num_classes);
  stated(info, "null_class", &NetworkInfo::null_class);
  stated(info, "class_names", &NetworkInfo::class_names);
  stated(info, "conditions", &NetworkInfo::conditions);
  stated(info, "noise_schedule", &NetworkInfo::noise_schedule);
  stated(info, "latent_scale", &NetworkInfo::latent_scale);
  stated(info, "latent_shift", &NetworkInfo::latent_shift);
  stated(info, "guidance_scale", &NetworkInfo::guidance_scale);
  stated(info, "profile", &NetworkInfo::profile);
  stated(info, "steps", &NetworkInfo::steps);
  stated(info, "training_data", &NetworkInfo::training_data);
  stated(info, "license", &NetworkInfo::license);
  info.def_property_readonly("full_shape", [](NetworkInfo const& self) {
    std::vector<std::int64_t> shape;
    take_shape(shape, self);
    return shape;
  });
  info.def_property(
      "prediction", [](NetworkInfo const& self) { return to_string(self.prediction_type); },
      [](NetworkInfo& self, std::string const& name) {
        self.prediction_type = choose<PredictionType>("prediction", name,
                                                      {{"epsilon", PredictionType::epsilon},
                                                       {"sample", PredictionType::sample},
                                                       {"v_prediction", PredictionType::v_prediction},
                                                       {"v", PredictionType::v_prediction},
                                                       {"flow", PredictionType::flow},
                                                       {"flow_prediction", PredictionType::flow}});
      });
  info.def_property(
      "timestep_type",
      [](NetworkInfo const& self) { return self.timestep_type == TimestepType::int64 ? "int64" : "float32"; },
      [](NetworkInfo& self, std::string const& name) {
        self.timestep_type = choose<TimestepType>("timestep_type", name,
                                                  {{"int64", TimestepType::int64}, {"float32", TimestepType::float32}});
      });
  info.def_property(
      "decoding", [](NetworkInfo const& self) { return self.decoding == Decoding::pixels ? "pixels" : "none"; },
      [](NetworkInfo& self, std::string const& name) {
        self.decoding = choose<Decoding>("decoding", name, {{"none", Decoding::none}, {"pixels", Decoding::pixels}});
      });
  info.def("__copy__", [](NetworkInfo const& self) { return self; });
}

}  // namespace

void bind_network(py::module_& module) {
  bind_info(module);
  py::class_<Network>(module, "Network")
      .def(py::init([](py::object call, NetworkInfo info, at::Device device, std::optional<at::ScalarType> dtype) {
             const std::vector<std::string> conditions = names_of_conditions(info);
             PyNetwork network(std::move(call), info.name, conditions, dtype);
             return Network(std::move(network), std::move(info), device);
           }),
           py::arg("call"), py::arg("info"), py::arg("device"), py::arg("dtype") = py::none())
      .def_static(
          "in_parts",
          [](py::object embed, py::object blocks, py::object head, bool residual, NetworkInfo info, at::Device device) {
            const std::vector<std::string> conditions = names_of_conditions(info);
            SplitNetwork parts =
                parts_of(std::move(embed), std::move(blocks), std::move(head), residual, info.name, conditions);
            return Network(std::move(parts), std::move(info), device);
          })
      .def_property_readonly("info", &Network::info, py::return_value_policy::copy)
      .def_property_readonly("device", &Network::device)
      .def_property_readonly("forecasts", &Network::forecasts)
      .def(
          "__call__",
          [](Network const& network, at::Tensor const& x, at::Tensor const& t, std::optional<at::Tensor> labels,
             std::vector<std::pair<std::string, at::Tensor>> conditions) {
            const py::gil_scoped_release release;
            Condition condition{.labels = labels.value_or(at::Tensor()), .tensors = std::move(conditions)};
            return network(x, t, condition);
          },
          py::arg("x"), py::arg("t"), py::arg("labels"), py::arg("conditions"));
  module.def("require_compatible", &require_compatible);
}

}  // namespace tstitch::python
