/// @file
/// Samplers: update rules by name and of Python, profiles, presets, and the run.
#include "common.hpp"

#include <torch/csrc/autograd/python_variable.h>
#include <tstitch/base/options.hpp>
#include <tstitch/method/by_name.hpp>
#include <tstitch/method/inversion.hpp>
#include <tstitch/peer/by_name.hpp>
#include <tstitch/peer/preset.hpp>

#include "plan_types.hpp"

namespace tstitch::python {
namespace {

/// What a rule of Python is given; it is alive while the rule is called.
struct RuleInput {
  std::shared_ptr<StepInput const*> input;
  py::object state;

  StepInput const& in() const {
    if (!*input) throw std::runtime_error("StepInput: must be used while the update rule is called, not later");
    return **input;
  }

  Prediction denoise(at::Tensor const& x, std::optional<double> t, std::optional<NoiseLevel> level) const {
    StepInput const& now = in();
    const Timestep point = t && level ? Timestep{*t, *level}
                           : t        ? Timestep{*t, now.noise_schedule.at(*t)}
                           : level    ? now.noise_schedule.point(level->lambda())
                                      : Timestep{now.step.t, now.step.from};
    const py::gil_scoped_release release;
    return now.denoise(x, point);
  }
};

/// A rule of Python, called with a RuleInput.
class PyRule {
 public:
  using State = RuleState;

  PyRule(py::object callable, std::string name, int history, py::object evaluations)
      : callable_(std::move(callable)), name_(std::move(name)), history_(history) {
    if (py::isinstance<py::int_>(evaluations)) {
      count_ = evaluations.cast<int>();
    } else {
      evaluations_ = Ref(std::move(evaluations));
    }
  }

  std::string name() const { return name_; }
  int history() const { return history_; }

  int evaluations(Step const& step) const {
    if (!evaluations_) return count_;
    const py::gil_scoped_acquire gil;
    const std::size_t count = index_of("sampler.evaluations", evaluations_.get()(step));
    return count > 1000 ? -1 : int(count);  // which is refused
  }

  at::Tensor operator()(StepInput const& in, State& state) const {
    const py::gil_scoped_acquire gil;
    py::dict kept;
    if (state.value) kept = py::reinterpret_steal<py::dict>(PyDict_Copy(state.value.ptr()));
    const auto input = std::make_shared<StepInput const*>(&in);
    struct Forget {
      std::shared_ptr<StepInput const*> input;
      ~Forget() { *input = nullptr; }
    } const forget{input};
    const py::object returned = callable_.get()(RuleInput{input, kept});
    if (!THPVariable_Check(returned.ptr())) {
      throw py::type_error("sampler: must return a tensor, got " + std::string(Py_TYPE(returned.ptr())->tp_name));
    }
    state.value = Ref(kept);
    return THPVariable_Unpack(returned.ptr());
  }

 private:
  Ref callable_;
  std::string name_;
  int history_;
  int count_ = 1;
  Ref evaluations_ = {};
};

void bind_rule_input(py::module_& module) {
  py::class_<Prediction>(module, "Prediction",
                         "What a network says of x: x_0 [n, C, ...] thresholded, unclipped_x_0, and variance_fraction "
                         "of a learned variance or None.")
      .def_readonly("x_0", &Prediction::x_0)
      .def_readonly("unclipped_x_0", &Prediction::unclipped_x_0)
      .def_property_readonly("variance_fraction", [](Prediction const& self) -> py::object {
        return self.variance_fraction.defined() ? py::cast(self.variance_fraction) : py::none();
      });
  py::class_<RuleInput>(
      module, "StepInput",
      "What an update rule is given, while it is called: step, x [n, C, ...] at step.from_level (not to be changed in "
      "place), history (oldest first), noise_schedule, a dict `state` that is kept from step to step (replace what is "
      "in it, never change it in place). predict() asks the network here, denoise(x, t, level) anywhere (t alone: at "
      "the level of t; level alone: at the t of the level), noise(draw) draws.")
      .def_property_readonly("step", [](RuleInput const& self) { return self.in().step; })
      .def_property_readonly("x", [](RuleInput const& self) { return self.in().x; })
      .def_property_readonly("history",
                             [](RuleInput const& self) {
                               const auto history = self.in().history;
                               return std::vector<Past>(history.begin(), history.end());
                             })
      .def_property_readonly("noise_schedule", [](RuleInput const& self) { return self.in().noise_schedule; })
      .def_readonly("state", &RuleInput::state)
      .def("denoise", &RuleInput::denoise, py::arg("x"), py::arg("t") = py::none(), py::arg("level") = py::none())
      .def("predict", [](RuleInput const& self) { return self.denoise(self.in().x, {}, {}); })
      .def(
          "noise",
          [](RuleInput const& self, int draw) {
            StepInput const& now = self.in();
            const py::gil_scoped_release release;
            return now.noise(draw);
          },
          py::arg("draw") = 0);
  py::class_<AnyUpdateRule>(module, "UpdateRule")
      .def_static(
          "by_name",
          [](std::string const& name, std::map<std::string, std::string> const& options) {
            OptionValues values;
            for (auto const& [option, value] : options) values.emplace(option, value);
            return update_rule_by_name(name, values);
          },
          py::arg("name"), py::arg("options"))
      .def_static("callable",
                  [](py::object callable, std::string name, int history, py::object evaluations) -> AnyUpdateRule {
                    return PyRule(std::move(callable), std::move(name), history, std::move(evaluations));
                  })
      .def_property_readonly("name", &AnyUpdateRule::name)
      .def_property_readonly("history", &AnyUpdateRule::history);
  py::list rules;
  for (NamedRule const& each : update_rules()) {
    py::dict options;
    for (NamedOption const& option : each.options) options[py::str(option.name)] = option.usual;
    rules.append(py::dict(py::arg("name") = each.name, py::arg("help") = each.help, py::arg("options") = options));
  }
  module.attr("update_rules") = rules;
}

void bind_options(py::module_& module) {
  py::class_<Thresholding>(module, "Thresholding",
                           "Keeps x_0 in the range of pictures: automatic() clips where the networks make pixels, "
                           "none(), clip(range), dynamic(quantile, range, most) of arXiv 2205.11487.")
      .def_static("automatic", &Thresholding::automatic)
      .def_static("none", &Thresholding::none)
      .def_static("clip", &Thresholding::clip, py::arg("range") = 1.0)
      .def_static("dynamic", &Thresholding::dynamic, py::arg("quantile") = 0.995, py::arg("range") = 1.0,
                  py::arg("most") = 1e9);
  using Options = SamplingOptions;
  py::class_<Options>(module, "Options")
      .def(py::init<>())
      .def_readwrite("steps", &Options::steps)
      .def_readwrite("spacing", &Options::spacing)
      .def_readwrite("thresholding", &Options::thresholding)
      .def_readwrite("forecast", &Options::forecast)
      .def("set_final_sigma",
           [](Options& self, std::string const& name) {
             self.final_sigma = choose<FinalSigma>("final_sigma", name,
                                                   {{"zero", FinalSigma::zero}, {"sigma_min", FinalSigma::sigma_min}});
           })
      .def("set_previous_timestep",
           [](Options& self, std::string const& name) {
             self.previous_timestep = choose<PreviousTimestep>(
                 "previous_timestep", name,
                 {{"in_plan", PreviousTimestep::in_plan}, {"by_stride", PreviousTimestep::by_stride}});
           })
      .def("set_at_switch", [](Options& self, std::string const& name) {
        self.at_switch = choose<SwitchPolicy>(
            "at_switch", name,
            {{"keep", SwitchPolicy::keep}, {"reset", SwitchPolicy::reset}, {"re_evaluate", SwitchPolicy::re_evaluate}});
      });
  py::class_<AnyProfile>(module, "Profile")
      .def_static("by_name", &profile_by_name, py::arg("name"), py::arg("noise_schedule"), py::arg("steps"))
      .def_readonly("noise_schedule", &AnyProfile::noise_schedule)
      .def_readonly("options", &AnyProfile::options)
      .def_readonly("rule", &AnyProfile::rule)
      .def_readonly("guidance_channels", &AnyProfile::guidance_channels)
      .def_readonly("routing", &AnyProfile::routing)
      .def_property_readonly("rows_per_image", [](AnyProfile const& self) { return self.noise_order.rows_per_image; });
  module.def("preset_by_name", [](std::string const& name, NoiseSchedule const& trained) {
    const Preset preset = preset_by_name(name, trained);
    return py::make_tuple(any_profile(preset.profile), preset.ratio, preset.guidance);
  });
  py::list profile_list, preset_list;
  for (NamedProfile const& each : profiles()) profile_list.append(py::make_tuple(each.name, each.help));
  for (NamedPreset const& each : presets()) preset_list.append(py::make_tuple(each.name, each.help));
  module.attr("profiles") = profile_list;
  module.attr("presets") = preset_list;
}

/// Lets Ctrl-C come through, which Python notes while the library runs.
void check_signals() {
  const py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

/// What a callback sees of a step.
struct PyReport {
  Step step;
  std::size_t network;
  double seconds;
  at::Tensor x, x_0;
  std::int64_t first, images;
  int done, steps;
};

/// Asks the callback, if there is one.
struct PyObserver {
  Ref callback;

  Control before(StepBegin const&) {
    check_signals();
    return Control::proceed;
  }

  Control operator()(StepReport const& report) {
    if (!callback) return Control::proceed;
    const py::gil_scoped_acquire gil;
    const py::object returned =
        callback.get()(PyReport{report.step, report.network, report.seconds, report.x, report.x_0, report.first,
                                report.images, report.done, report.steps});
    if (returned.is_none() || returned.ptr() == Py_True) return Control::proceed;
    if (returned.ptr() == Py_False) return Control::cancel;
    throw py::type_error("callback: must return nothing, or False to stop the run, got " +
                         py::repr(returned).cast<std::string>());
  }
};

/// Marks a trajectory as one that is advanced.
class Busy {
 public:
  explicit Busy(PyTrajectory& run) : run_(run) {
    if (run.busy) throw std::runtime_error("advance: another thread is advancing this trajectory; fork it first");
    run.busy = true;
  }
  Busy(Busy const&) = delete;
  ~Busy() { run_.busy = false; }

 private:
  PyTrajectory& run_;
};

void advance(AnySampler const& sampler, std::vector<Network> const& networks, PyTrajectory& run, int steps) {
  if (steps < 1) throw std::invalid_argument("advance: steps must be at least 1, got " + std::to_string(steps));
  const Busy busy(run);
  // Others may look at the trajectory meanwhile, so a copy goes on.
  Trajectory trajectory = run.trajectory;
  std::exception_ptr failure;
  {
    const py::gil_scoped_release release;
    try {
      for (int i = 0; i < steps; ++i) {
        check_signals();
        sampler.advance(networks, trajectory);
      }
    } catch (...) {
      failure = std::current_exception();  // the steps before it were taken
    }
  }
  run.trajectory = std::move(trajectory);
  if (failure) std::rethrow_exception(failure);
}

void bind_runs(py::module_& module) {
  py::class_<PyReport>(module, "StepReport",
                       "What a callback sees after a step: the Step, the index of its network, seconds on the host, x "
                       "and x_0 [n, C, ...] of the batch, first (position of its first picture), images (rows after "
                       "these are padding), done and steps.")
      .def_readonly("step", &PyReport::step)
      .def_readonly("network", &PyReport::network)
      .def_readonly("seconds", &PyReport::seconds)
      .def_readonly("x", &PyReport::x)
      .def_readonly("x_0", &PyReport::x_0)
      .def_readonly("first", &PyReport::first)
      .def_readonly("images", &PyReport::images)
      .def_readonly("done", &PyReport::done)
      .def_readonly("steps", &PyReport::steps)
      .def("__repr__", [](PyReport const& self) {
        return "StepReport(" + std::to_string(self.done) + " of " + std::to_string(self.steps) +
               " done, t=" + words::text(self.step.t) + ", network=" + std::to_string(self.network) + ")";
      });
  py::class_<AnySampler>(module, "Sampler")
      .def(py::init([](NoiseSchedule noise, Routing const& routing, SamplingOptions options, AnyUpdateRule rule) {
             return AnySampler(std::move(noise), routing.schedule, std::move(options), std::move(rule));
           }),
           py::arg("noise_schedule"), py::arg("routing"), py::arg("options"), py::arg("rule"))
      .def(
          "plan",
          [](AnySampler const& sampler, Guidance const& guidance, double strength) {
            return sampler.plan(guidance, strength);
          },
          py::arg("guidance"), py::arg("strength") = 1.0)
      .def_property_readonly("noise_schedule", &AnySampler::noise_schedule, py::return_value_policy::copy)
      .def(
          "inversion",
          [](AnySampler const& sampler, AnyUpdateRule rule, int iterations) {
            SamplingOptions options = sampler.options();
            options.forecast = {};
            return AnySampler(sampler.noise_schedule(), sampler.model_schedule(), std::move(options),
                              InversionUpdate<AnyUpdateRule>{std::move(rule), iterations});
          },
          py::arg("rule"), py::arg("iterations"))
      .def(
          "begin",
          [](AnySampler const& sampler, std::vector<Network> const& networks, Request const& request) {
            PyTrajectory run{.trajectory = {}, .strength = request.strength};
            const Request copy = request;
            const py::gil_scoped_release release;
            run.trajectory = sampler.begin(networks, copy);
            return run;
          },
          py::arg("networks"), py::arg("request"))
      .def("advance", &advance, py::arg("networks"), py::arg("trajectory"), py::arg("steps") = 1)
      .def(
          "sample",
          [](AnySampler const& sampler, std::vector<Network> const& networks, Request const& request,
             py::object callback) {
            Ref call;
            if (!callback.is_none()) call = Ref(std::move(callback));
            const Request copy = request;
            Samples samples;
            {
              const py::gil_scoped_release release;
              samples = sampler.sample(networks, copy, PyObserver{call});
            }
            return py::make_tuple(samples.images, samples.seeds, samples.finished_images, samples.finished);
          },
          py::arg("networks"), py::arg("request"), py::arg("callback"));
}

}  // namespace

void bind_sampler(py::module_& module) {
  bind_rule_input(module);
  bind_options(module);
  bind_runs(module);
}

}  // namespace tstitch::python
