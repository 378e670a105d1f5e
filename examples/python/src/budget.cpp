/// @file
/// What drawing takes, and the best way to draw that a budget allows.
#include "common.hpp"

#include <pybind11/functional.h>
#include <tstitch/file/quality_table.hpp>
#include <tstitch/study/budget.hpp>
#include <tstitch/study/run_times.hpp>

#include <functional>
#include <span>

namespace tstitch::python {

void bind_budget(py::module_& module) {
  py::class_<Budget>(module, "Budget")
      .def_static(
          "by_name", [](std::string const& text) { return budget_by_name(text, "budget"); }, py::arg("text"))
      .def_property_readonly("is_flop", [](Budget const& self) { return self.of == Budget::Of::flop; })
      .def("most", &Budget::most, py::arg("batch"));
  py::class_<RunTimes<>>(module, "RunTimes")
      .def(py::init([](std::vector<Network> const& networks, Request const& request) {
             return RunTimes<>(networks, request);
           }),
           py::arg("networks"), py::arg("request"))
      .def(
          "predict",
          [](RunTimes<>& self, AnySampler const& sampler, Guidance const& guidance) {
            const py::gil_scoped_release release;
            return self.predict(sampler, guidance);
          },
          py::arg("sampler"), py::arg("guidance"))
      .def(
          "measure",
          [](RunTimes<>& self, AnySampler const& sampler, Guidance const& guidance) {
            const py::gil_scoped_release release;
            return self.measure(sampler, guidance);
          },
          py::arg("sampler"), py::arg("guidance"))
      .def(
          "is_measured",
          [](RunTimes<> const& self, AnySampler const& sampler, Guidance const& guidance) {
            return self.is_measured(sampler, guidance);
          },
          py::arg("sampler"), py::arg("guidance"));
  module.def(
      "best_within",
      [](std::vector<double> const& distances, double most, std::function<double(std::size_t)> const& cost) {
        const BestWithin found = best_within(std::span(distances), most, cost);
        return py::make_tuple(found.index.value_or(found.cheapest), found.index.has_value());
      },
      py::arg("distances"), py::arg("most"), py::arg("cost"));
  module.def(
      "largest_networks_within",
      [](std::size_t networks, int steps, double most, std::function<double(std::vector<int>)> const& cost) {
        return largest_networks_within(networks, steps, most, cost);
      },
      py::arg("networks"), py::arg("steps"), py::arg("most"), py::arg("cost"));
  module.def(
      "read_quality_table",
      [](std::string const& path) {
        const QualityTable table = read_quality_table(path);
        py::list rows;
        for (QualityRow const& row : table.rows) {
          rows.append(
              py::make_tuple(row.distance, row.sampler, row.steps, row.shares, row.forecast, row.forecast_guidance));
        }
        return py::make_tuple(table.networks, table.guidance_scale, rows);
      },
      py::arg("path"));
}

}  // namespace tstitch::python
