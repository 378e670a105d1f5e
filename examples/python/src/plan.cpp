/// @file
/// Noise schedules, spacings, routing, forecasts and plans: all that is known before a network is there. No torch.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tstitch/peer/reference_routing.hpp>
#include <tstitch/plan/by_name.hpp>
#include <tstitch/plan/plan.hpp>

#include <string>
#include <utility>
#include <vector>

#include "plan_types.hpp"
#include "python_ref.hpp"

namespace tstitch::python {
namespace {

std::string number(double value) {
  return words::text(value);
}

TimeOfSigma time_named(std::string const& name) {
  return choose<TimeOfSigma>("time", name,
                             {{"exact", TimeOfSigma::exact},
                              {"interpolated", TimeOfSigma::interpolated},
                              {"nearest", TimeOfSigma::nearest},
                              {"truncated", TimeOfSigma::truncated}});
}

void bind_levels(py::module_& module) {
  py::class_<NoiseLevel>(
      module, "NoiseLevel",
      "How much picture and how much noise x holds: x = alpha x_0 + sigma noise. alpha^2 + sigma^2 = 1 for diffusion, "
      "alpha + sigma = 1 for flow matching. log_snr_half is log(alpha / sigma), \"lambda\" of arXiv 2206.00927.")
      .def(py::init<double, double>(), py::arg("alpha"), py::arg("sigma"))
      .def_readonly("alpha", &NoiseLevel::alpha)
      .def_readonly("sigma", &NoiseLevel::sigma)
      .def_property_readonly("log_snr_half", &NoiseLevel::lambda)
      .def("__eq__", [](NoiseLevel const& a, NoiseLevel const& b) { return a == b; })
      .def("__repr__", [](NoiseLevel const& level) {
        return "NoiseLevel(alpha=" + number(level.alpha) + ", sigma=" + number(level.sigma) + ")";
      });
  py::class_<Step>(module, "Step",
                   "All that a routing rule may know of a step: index of count, 0 the noisiest; its training timestep "
                   "t and the t_to that it leads to; the noise levels before and after.")
      .def(py::init([](int index, int count, double t, NoiseLevel from, NoiseLevel to, double t_to) {
             return Step{index, count, t, from, to, t_to};
           }),
           py::arg("index"), py::arg("count"), py::arg("t"), py::arg("from_level"), py::arg("to_level"),
           py::arg("t_to"))
      .def_readonly("index", &Step::index)
      .def_readonly("count", &Step::count)
      .def_readonly("t", &Step::t)
      .def_readonly("t_to", &Step::t_to)
      .def_readonly("from_level", &Step::from)
      .def_readonly("to_level", &Step::to)
      .def("__repr__", [](Step const& step) {
        return "Step(" + std::to_string(step.index) + " of " + std::to_string(step.count) + ", t=" + number(step.t) +
               ", sigma=" + number(step.from.sigma) + " to " + number(step.to.sigma) + ")";
      });
}

void bind_schedules(py::module_& module) {
  using Schedule = NoiseSchedule;
  py::class_<Schedule>(module, "NoiseSchedule",
                       "The noise schedule that a network was trained with: linear (arXiv 2006.11239), scaled_linear "
                       "(Stable Diffusion), cosine (arXiv 2102.09672), flow (arXiv 2210.02747), from_betas, "
                       "from_alphas_cumprod. `at(t)` is the NoiseLevel of any t in [0, noisiest].")
      .def_static("linear", &Schedule::linear, py::arg("num_train_timesteps") = 1000, py::arg("beta_start") = 1e-4,
                  py::arg("beta_end") = 0.02)
      .def_static("scaled_linear", &Schedule::scaled_linear, py::arg("num_train_timesteps") = 1000,
                  py::arg("beta_start") = 0.00085, py::arg("beta_end") = 0.012)
      .def_static("cosine", &Schedule::cosine, py::arg("num_train_timesteps") = 1000)
      .def_static("flow", &Schedule::flow, py::arg("num_train_timesteps") = 1000, py::arg("shift") = 1.0)
      .def_static("from_betas", &Schedule::from_betas, py::arg("betas"), py::arg("name") = "from_betas")
      .def_static("from_alphas_cumprod", &Schedule::from_alphas_cumprod, py::arg("alphas_cumprod"),
                  py::arg("name") = "from_alphas_cumprod")
      .def("with_zero_terminal_snr", &Schedule::with_zero_terminal_snr)
      .def("in_float32", &Schedule::in_float32)
      .def_property_readonly("name", &Schedule::name)
      .def_property_readonly("num_train_timesteps", &Schedule::num_train_timesteps)
      .def_property_readonly("is_flow", &Schedule::is_flow)
      .def_property_readonly("shift", &Schedule::shift)
      .def_property_readonly("noisiest", &Schedule::noisiest)
      .def_property_readonly("alphas_cumprod", &Schedule::alphas_cumprod)
      .def("at", &Schedule::at, py::arg("t"))
      .def("timestep", &Schedule::timestep, py::arg("log_snr_half"))
      .def("level", &Schedule::level, py::arg("log_snr_half"))
      .def("distance", &Schedule::distance, py::arg("other"))
      .def("__repr__", [](Schedule const& schedule) { return "NoiseSchedule(" + schedule.name() + ")"; });
  py::class_<Spacing>(module, "Spacing",
                      "Which training timesteps the steps are at: a call (noise_schedule, steps) lists them, noisiest "
                      "first. leading, linspace, trailing (arXiv 2305.08891), quadratic, beta (arXiv 2407.12173), "
                      "karras (arXiv 2206.00364), shifted (arXiv 2403.03206), sigmas, list.")
      .def_static(
          "by_name", [](std::string const& text) { return spacing_by_name(text, "spacing"); }, py::arg("text"))
      .def_static(
          "leading",
          [](int offset, bool last, bool round) {
            return Spacing::leading(offset, {last, round});
          },
          py::arg("offset") = 0, py::arg("include_last") = true, py::arg("round") = true)
      .def_static(
          "linspace",
          [](bool last, bool round) {
            return Spacing::linspace({last, round});
          },
          py::arg("include_last") = true, py::arg("round") = true)
      .def_static("trailing", &Spacing::trailing)
      .def_static(
          "quadratic",
          [](bool last, bool round) {
            return Spacing::quadratic({last, round});
          },
          py::arg("include_last") = false, py::arg("round") = false)
      .def_static(
          "beta",
          [](double a, double b, bool last, bool round) {
            return Spacing::beta(a, b, {last, round});
          },
          py::arg("a") = 0.6, py::arg("b") = 0.6, py::arg("include_last") = false, py::arg("round") = false)
      .def_static(
          "karras",
          [](double rho, bool last, std::string const& time) {
            return Spacing::karras(rho, {.include_last = last, .time = time_named(time)});
          },
          py::arg("rho") = 7.0, py::arg("include_last") = true, py::arg("time") = "exact")
      .def_static("shifted", &Spacing::shifted, py::arg("shift") = py::none())
      .def_static("flow_match_euler", &Spacing::flow_match_euler, py::arg("shift") = py::none())
      .def_static("flow_unipc", &Spacing::flow_unipc, py::arg("shift") = py::none())
      .def_static("flow_dpm_solver", &Spacing::flow_dpm_solver, py::arg("shift") = py::none())
      .def_static(
          "sigmas",
          [](std::vector<double> sigmas, std::string const& time) {
            return Spacing::sigmas(std::move(sigmas), time_named(time));
          },
          py::arg("sigmas"), py::arg("time") = "exact")
      .def_static("list", &Spacing::list, py::arg("timesteps"))
      .def_property_readonly("name", &Spacing::name)
      .def(
          "__call__",
          [](Spacing const& spacing, NoiseSchedule const& noise, int steps) {
            std::vector<double> timesteps;
            for (Timestep const& each : spacing(noise, steps)) timesteps.push_back(each.t);
            return timesteps;
          },
          py::arg("noise_schedule"), py::arg("steps"))
      .def("__repr__", [](Spacing const& spacing) { return "Spacing(" + spacing.name() + ")"; });
}

/// A routing rule of Python.
Routing routing_of(py::object callable) {
  return {[call = Ref(std::move(callable))](Step const& step) {
            const py::gil_scoped_acquire gil;
            return index_of("routing", call.get()(step));
          },
          "callable"};
}

void bind_routing(py::module_& module) {
  py::class_<Routing>(module, "Routing")
      .def_static(
          "by_name",
          [](std::string const& text, double ratio, std::vector<double> fractions, int timesteps, std::uint32_t seed) {
            return Routing{
                model_schedule_by_name(
                    text,
                    {.ratio = ratio, .fractions = std::move(fractions), .num_train_timesteps = timesteps, .seed = seed},
                    routing::named()),
                text};
          },
          py::arg("text"), py::arg("ratio"), py::arg("fractions"), py::arg("num_train_timesteps"), py::arg("seed"))
      .def_static("table",
                  [](std::vector<std::size_t> networks) {
                    return Routing{Table{std::move(networks)}, "table"};
                  })
      .def_static("single",
                  [](std::size_t network) {
                    return Routing{SingleNetwork{network}, "single"};
                  })
      .def_static("callable", &routing_of)
      .def("__call__", [](Routing const& routing, Step const& step) { return routing.schedule(step); });
  py::class_<Forecast>(module, "Forecast")
      .def_static(
          "by_name",
          [](std::string const& text, std::size_t first_network, int warm_up, std::string const& argument) {
            return forecast_by_name(text, {.warm_up = warm_up, .first_network = first_network}, argument);
          },
          py::arg("text"), py::arg("first_network"), py::arg("warm_up"), py::arg("argument"))
      .def_static("table",
                  [](std::vector<bool> steps, int order, std::size_t first_network) {
                    return Forecast(ForecastTable{std::move(steps), order, first_network});
                  })
      .def_static("callable", [](py::object callable, int order, std::size_t first_network) {
        return Forecast(PyForecast{order, first_network, Ref(std::move(callable))});
      });
  py::list routings;
  for (NamedRouting const& each : routing::named()) {
    routings.append(
        py::dict(py::arg("name") = each.name, py::arg("help") = each.help, py::arg("boundaries") = each.boundaries));
  }
  module.attr("routings") = routings;
  py::list all;
  for (NamedSpacing const& each : spacings()) {
    all.append(py::dict(py::arg("name") = each.name, py::arg("help") = each.help, py::arg("numbers") = each.numbers));
  }
  module.attr("spacings") = all;
}

void bind_plans(py::module_& module) {
  py::class_<PlannedStep>(
      module, "PlannedStep",
      "A step of a plan: the Step, the index of its network, its guidance scale, evaluations that the update rule "
      "makes, rows that a picture has in them, and whether the network or guidance is forecast.")
      .def_readonly("step", &PlannedStep::step)
      .def_readonly("network", &PlannedStep::network)
      .def_readonly("guidance", &PlannedStep::guidance_scale)
      .def_readonly("evaluations", &PlannedStep::evaluations)
      .def_readonly("guide_network", &PlannedStep::guide_network)
      .def_readonly("guide_evaluations", &PlannedStep::guide_evaluations)
      .def_readonly("rows", &PlannedStep::rows)
      .def_property_readonly("forecast", [](PlannedStep const& planned) { return planned.forecast.network; })
      .def_property_readonly("forecast_guidance", [](PlannedStep const& planned) { return planned.forecast.guidance; })
      .def("__repr__", [](PlannedStep const& planned) {
        return "PlannedStep(" + std::to_string(planned.step.index) + ", t=" + number(planned.step.t) +
               ", network=" + std::to_string(planned.network) + ", guidance=" + number(planned.guidance_scale) +
               (planned.forecast.network ? ", forecast" : "") + ")";
      });
  py::class_<Plan>(module, "Plan")
      .def_readonly("sampler", &Plan::sampler)
      .def_readonly("noise_schedule", &Plan::noise_schedule)
      .def_readonly("spacing", &Plan::spacing)
      .def_readonly("steps", &Plan::steps)
      .def("calls", &Plan::calls, py::arg("networks"))
      .def(
          "rows",
          [](Plan const& plan, std::size_t networks) {
            std::vector<int> rows;
            for (NetworkWork const& each : plan.work(networks)) rows.push_back(each.rows);
            return rows;
          },
          py::arg("networks"))
      .def("__len__", [](Plan const& plan) { return plan.steps.size(); })
      .def("fingerprint", [](Plan const& plan) { return fingerprint(plan); })
      .def("timesteps_fingerprint", [](Plan const& plan) { return timesteps_fingerprint(plan); })
      .def("__str__", [](Plan const& plan) { return to_string(plan); });
}

}  // namespace

void bind_plan(py::module_& module) {
  bind_levels(module);
  bind_schedules(module);
  bind_routing(module);
  bind_plans(module);
}

}  // namespace tstitch::python
