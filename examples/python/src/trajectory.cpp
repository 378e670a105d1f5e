/// @file
/// Runs in flight, and what a file says of them.
#include "common.hpp"

#include <tstitch/method/dpm_solver_adaptive.hpp>
#include <tstitch/peer/torch_noise.hpp>

namespace tstitch::python {
namespace {

using AdaptiveState = AdaptiveDPMSolverUpdate::State;

py::object tensor_or_none(at::Tensor const& tensor) {
  return tensor.defined() ? py::cast(tensor) : py::none();
}

at::Tensor tensor_of(py::handle object) {
  return object.is_none() ? at::Tensor() : object.cast<at::Tensor>();
}

py::tuple plain(NoiseLevel level) {
  return py::make_tuple(level.alpha, level.sigma);
}

NoiseLevel level_of(py::handle object) {
  const auto [alpha, sigma] = object.cast<std::pair<double, double>>();
  return {alpha, sigma};
}

py::dict plain(Condition const& condition) {
  py::dict tensors;
  for (auto const& [name, tensor] : condition.tensors) tensors[py::str(name)] = tensor;
  return py::dict(py::arg("labels") = tensor_or_none(condition.labels), py::arg("host_labels") = condition.host_labels,
                  py::arg("tensors") = tensors);
}

// What may throw stands outside of initialisers: g++ 12 destroys the members of a half-made aggregate twice.
Condition condition_of(py::handle object) {
  Condition condition;
  condition.labels = tensor_of(object["labels"]);
  condition.host_labels = object["host_labels"].cast<std::vector<std::int64_t>>();
  for (auto const& [name, tensor] : object["tensors"].cast<py::dict>()) {
    at::Tensor value = tensor.cast<at::Tensor>();
    condition.tensors.emplace_back(name.cast<std::string>(), std::move(value));
  }
  return condition;
}

/// @throws std::invalid_argument for what cannot be written down
[[noreturn]] void refuse_saving(std::string const& what) {
  throw std::invalid_argument("save: a file holds plain data, and " + what);
}

py::object plain(Forecast const& forecast) {
  if (!forecast) return py::none();
  if (auto const* every = forecast.find<ForecastEvery>()) {
    return py::dict(py::arg("every") = every->every, py::arg("order") = every->order,
                    py::arg("warm_up") = every->warm_up, py::arg("last") = every->last,
                    py::arg("first_network") = every->first_network);
  }
  if (auto const* table = forecast.find<ForecastTable>()) {
    return py::dict(py::arg("table") = table->forecast, py::arg("order") = table->order,
                    py::arg("first_network") = table->first_network);
  }
  refuse_saving("guidance.forecast is a callable; give a name or a list of bools");
}

Forecast forecast_of(py::handle object) {
  if (object.is_none()) return {};
  const int order = object["order"].cast<int>();
  const std::size_t first_network = object["first_network"].cast<std::size_t>();
  if (object.contains("table")) {
    ForecastTable table;
    table.forecast = object["table"].cast<std::vector<bool>>();
    table.order = order;
    table.first_network = first_network;
    return table;
  }
  ForecastEvery every;
  every.every = object["every"].cast<int>();
  every.order = order;
  every.warm_up = object["warm_up"].cast<int>();
  every.last = object["last"].cast<bool>();
  every.first_network = first_network;
  return every;
}

py::list plain(KeptSteps const& steps) {
  py::list kept;
  for (KeptSteps::Kept const& each : steps.kept()) kept.append(py::make_tuple(each.step, each.number, each.tensor));
  return kept;
}

KeptSteps kept_of(py::handle object) {
  std::vector<KeptSteps::Kept> kept;
  for (py::handle each : object) {
    auto [step, number, tensor] = each.cast<std::tuple<int, int, at::Tensor>>();
    kept.push_back({step, number, std::move(tensor)});
  }
  return KeptSteps(std::move(kept));
}

py::dict plain(ForecastHistory const& history) {
  ForecastHistory::State const& state = history.state();
  return py::dict(py::arg("network") = state.network, py::arg("rule") = state.rule,
                  py::arg("evaluations") = state.evaluations, py::arg("taken") = state.taken,
                  py::arg("guided_taken") = state.guided_taken, py::arg("guided") = int(state.guided),
                  py::arg("conditional") = state.conditional, py::arg("unconditional") = state.unconditional,
                  py::arg("differences") = state.differences);
}

ForecastHistory history_of(py::handle object) {
  ForecastHistory::State state;
  state.network = object["network"].cast<std::optional<std::size_t>>();
  state.rule = object["rule"].cast<std::uint64_t>();
  state.evaluations = object["evaluations"].cast<int>();
  state.taken = object["taken"].cast<int>();
  state.guided_taken = object["guided_taken"].cast<int>();
  const int guided = object["guided"].cast<int>();
  if (guided < 0 || guided > int(GuidedBy::guide)) throw std::invalid_argument("load: guided must be 0, 1 or 2");
  state.guided = GuidedBy(guided);
  state.conditional = object["conditional"].cast<std::vector<int>>();
  state.unconditional = object["unconditional"].cast<std::vector<int>>();
  state.differences = object["differences"].cast<std::vector<int>>();
  return ForecastHistory(std::move(state));
}

/// What a network keeps.
py::object plain(Memory const& memory, std::size_t network) {
  if (memory.empty()) return py::none();
  if (auto const* features = memory.find<FeatureMemory>()) {
    FeatureMemory::State const& state = features->state();
    return py::dict(py::arg("conditional") = plain(state.conditional),
                    py::arg("unconditional") = plain(state.unconditional), py::arg("both") = plain(state.both));
  }
  refuse_saving("what network " + std::to_string(network) + " keeps is none");
}

Memory memory_of(py::handle object) {
  Memory memory;
  if (object.is_none()) return memory;
  FeatureMemory::State state;
  state.conditional = kept_of(object["conditional"]);
  state.unconditional = kept_of(object["unconditional"]);
  state.both = kept_of(object["both"]);
  memory.as<FeatureMemory>() = FeatureMemory(std::move(state));
  return memory;
}

py::dict plain(NoiseSource const& source) {
  using Function = decltype(&noise);
  if (auto const* function = source.target<Function>(); function && *function == &noise) {
    return py::dict(py::arg("name") = "philox");
  }
  if (auto const* torch = source.target<TorchNoise>()) {
    return py::dict(py::arg("name") = "torch", py::arg("seed") = torch->seed(),
                    py::arg("rows_per_image") = torch->order().rows_per_image,
                    py::arg("initial_first") = torch->order().initial_first);
  }
  refuse_saving("noise_source is a callable; torch_seed and the library's own noise are saved");
}

NoiseSource noise_of(py::handle object) {
  const std::string name = object["name"].cast<std::string>();
  if (name == "philox") return noise;
  if (name != "torch") throw std::invalid_argument("load: noise must be 'philox' or 'torch', got '" + name + "'");
  NoiseOrder order;
  order.rows_per_image = object["rows_per_image"].cast<int>();
  order.initial_first = object["initial_first"].cast<bool>();
  return TorchNoise(object["seed"].cast<std::uint64_t>(), order);
}

py::dict plain(Guidance const& guidance) {
  py::object projected = py::none();
  if (auto const& p = guidance.projected) projected = py::make_tuple(p->eta, p->norm_threshold, p->momentum);
  return py::dict(py::arg("forecast") = plain(guidance.forecast), py::arg("scale") = guidance.scale.values(),
                  py::arg("begin") = guidance.begin, py::arg("end") = guidance.end,
                  py::arg("channels") = guidance.channels, py::arg("rescale") = guidance.rescale,
                  py::arg("projected") = projected, py::arg("guide_network") = guidance.guide_network);
}

Guidance guidance_of(py::handle object) {
  Guidance guidance;
  guidance.scale = GuidanceScale(object["scale"].cast<std::vector<double>>());
  guidance.begin = object["begin"].cast<double>();
  guidance.end = object["end"].cast<double>();
  guidance.channels = object["channels"].cast<int>();
  guidance.rescale = object["rescale"].cast<double>();
  guidance.guide_network = object["guide_network"].cast<std::optional<std::size_t>>();
  guidance.forecast = forecast_of(object["forecast"]);
  const py::object projected = object["projected"];
  if (!projected.is_none()) {
    const auto [eta, norm, momentum] = projected.cast<std::tuple<double, double, double>>();
    guidance.projected = ProjectedGuidance{eta, norm, momentum};
  }
  guidance.validate();
  return guidance;
}

py::dict plain(Past const& past) {
  Step const& step = past.step;
  return py::dict(
      py::arg("step") = py::make_tuple(step.index, step.count, step.t, plain(step.from), plain(step.to), step.t_to),
      py::arg("network") = past.network, py::arg("x") = past.x, py::arg("x_0") = past.x_0);
}

Past past_of(py::handle object) {
  const py::tuple step = object["step"];
  Past past{};
  past.step.index = step[0].cast<int>();
  past.step.count = step[1].cast<int>();
  past.step.t = step[2].cast<double>();
  past.step.from = level_of(step[3]);
  past.step.to = level_of(step[4]);
  past.step.t_to = step[5].cast<double>();
  past.network = object["network"].cast<std::size_t>();
  past.x = object["x"].cast<at::Tensor>();
  past.x_0 = object["x_0"].cast<at::Tensor>();
  return past;
}

py::object plain_rule_state(Memory const& memory) {
  if (memory.empty()) return py::none();
  if (auto const* state = memory.find<RuleState>()) return state->value ? state->value.get() : py::none();
  if (auto const* state = memory.find<AdaptiveState>()) {
    return py::dict(py::arg("adaptive_h") = state->h, py::arg("adaptive_memory") = state->memory);
  }
  refuse_saving("what the update rule keeps is none");
}

Memory rule_state_of(py::object const& object) {
  Memory memory;
  if (object.is_none()) return memory;
  if (!py::isinstance<py::dict>(object)) throw std::invalid_argument("load: rule_state must be a dict or None");
  if (object.contains("adaptive_h")) {
    AdaptiveState& state = memory.as<AdaptiveState>();
    state.h = object["adaptive_h"].cast<std::vector<double>>();
    state.memory = object["adaptive_memory"].cast<std::vector<PIDController::Memory>>();
  } else {
    memory.as<RuleState>().value = Ref(object);
  }
  return memory;
}

py::dict state_of(PyTrajectory const& self) {
  Trajectory const& run = self.trajectory;
  if (run.gradient) refuse_saving("log_density is a callable");
  py::list memories;
  for (std::size_t k = 0; k < run.memories.size(); ++k) memories.append(plain(run.memories[k], k));
  py::list history;
  for (Past const& each : run.history) history.append(plain(each));
  Inpainting const& kept = run.inpainting;
  return py::dict(py::arg("next") = run.next, py::arg("count") = run.count, py::arg("timesteps") = run.timesteps,
                  py::arg("plan") = run.plan, py::arg("level") = plain(run.level), py::arg("x") = run.x,
                  py::arg("x_0") = tensor_or_none(run.x_0), py::arg("history") = history,
                  py::arg("momentum") = tensor_or_none(run.momentum),
                  py::arg("rule_state") = plain_rule_state(run.rule_state), py::arg("seeds") = run.seeds,
                  py::arg("conditional") = plain(run.condition.conditional),
                  py::arg("guided") = plain(run.condition.guided), py::arg("guidance") = plain(run.guidance),
                  py::arg("inpainting") =
                      py::make_tuple(tensor_or_none(kept.mask), tensor_or_none(kept.image), tensor_or_none(kept.noise)),
                  py::arg("noise") = plain(run.noise_source), py::arg("memories") = memories,
                  py::arg("forecasts") = plain(run.forecasts), py::arg("differences") = plain(run.differences),
                  py::arg("strength") = self.strength);
}

PyTrajectory from_state(py::dict const& state) {
  PyTrajectory made;
  Trajectory& into = made.trajectory;
  into.next = state["next"].cast<int>();
  into.count = state["count"].cast<int>();
  into.timesteps = state["timesteps"].cast<std::uint64_t>();
  into.plan = state["plan"].cast<std::uint64_t>();
  into.level = level_of(state["level"]);
  into.x = state["x"].cast<at::Tensor>();
  into.x_0 = tensor_of(state["x_0"]);
  into.momentum = tensor_of(state["momentum"]);
  into.rule_state = rule_state_of(state["rule_state"]);
  into.seeds = state["seeds"].cast<std::vector<std::uint64_t>>();
  into.condition.conditional = condition_of(state["conditional"]);
  into.condition.guided = condition_of(state["guided"]);
  into.guidance = guidance_of(state["guidance"]);
  const py::tuple inpainting = state["inpainting"];
  into.inpainting.mask = tensor_of(inpainting[0]);
  into.inpainting.image = tensor_of(inpainting[1]);
  into.inpainting.noise = tensor_of(inpainting[2]);
  made.strength = state["strength"].cast<double>();
  for (py::handle each : state["history"]) made.trajectory.history.push_back(past_of(each));
  for (py::handle each : state["memories"]) into.memories.push_back(memory_of(each));
  into.forecasts = history_of(state["forecasts"]);
  into.differences = kept_of(state["differences"]);
  into.noise_source = noise_of(state["noise"]);
  Trajectory const& run = made.trajectory;
  if (!run.x.defined() || run.next < 0 || run.next > run.count || run.x.dim() < 2 ||
      std::size_t(run.x.size(0)) != run.seeds.size() || !run.x.is_floating_point()) {
    throw std::invalid_argument("load: the file must hold a trajectory, with one row of x for each seed");
  }
  return made;
}

}  // namespace

void bind_trajectory(py::module_& module) {
  using Self = PyTrajectory;
  py::class_<Past>(module, "Past")
      .def_readonly("step", &Past::step)
      .def_readonly("network", &Past::network)
      .def_readonly("x", &Past::x)
      .def_readonly("x_0", &Past::x_0);
  py::class_<Self>(module, "Trajectory")
      .def_property_readonly("next", [](Self const& self) { return self.trajectory.next; })
      .def_property_readonly("count", [](Self const& self) { return self.trajectory.count; })
      .def_property_readonly("finished", [](Self const& self) { return self.trajectory.finished(); })
      .def_property_readonly("level", [](Self const& self) { return self.trajectory.level; })
      .def_property_readonly("x", [](Self const& self) { return self.trajectory.x; })
      .def_property_readonly("x_0", [](Self const& self) { return tensor_or_none(self.trajectory.x_0); })
      .def_property_readonly("seeds", [](Self const& self) { return self.trajectory.seeds; })
      .def_property_readonly("labels",
                             [](Self const& self) { return self.trajectory.condition.conditional.host_labels; })
      .def_property_readonly("guidance", [](Self const& self) { return self.trajectory.guidance; })
      .def_property_readonly("strength", [](Self const& self) { return self.strength; })
      .def_property_readonly("plan", [](Self const& self) { return self.trajectory.plan; })
      .def_property_readonly("timesteps", [](Self const& self) { return self.trajectory.timesteps; })
      .def("set_x",
           [](Self& self, at::Tensor const& x) {
             at::Tensor const& old = self.trajectory.x;
             if (x.sizes() != old.sizes() || x.scalar_type() != old.scalar_type() || x.device() != old.device()) {
               throw std::invalid_argument("x: must have the shape, type and device of the trajectory's own");
             }
             self.trajectory.x = x.detach().clone();
           })
      .def("jump",
           [](Self& self, int next, NoiseLevel level) {
             if (next < 0 || next >= self.trajectory.count) {
               throw std::invalid_argument("jump: must be to a step of the run, got " + std::to_string(next));
             }
             self.trajectory.next = next;
             self.trajectory.level = level;
             self.trajectory.history.clear();
           })
      .def("fork",
           [](Self const& self) {
             Self copy = self;
             copy.busy = false;
             return copy;
           })
      .def("state", &state_of)
      .def_static("from_state", &from_state);
}

}  // namespace tstitch::python
