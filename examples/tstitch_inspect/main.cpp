// tstitch_inspect: what files are, whether they fit together, and where the small network of a pair will do. Exit
// codes: 0 they can be used, 1 they cannot or something failed, 2 bad arguments.
#include <tstitch/file/condition_file.hpp>
#include <tstitch/load.hpp>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../common/diagnostics.hpp"
#include "../common/program.hpp"
#include "arguments.hpp"
#include "describe.hpp"
#include "forecast.hpp"
#include "probe.hpp"
#include "progress.hpp"
#include "summary.hpp"
#include "ways.hpp"

namespace {

int inspect(Arguments const& arguments) {
  // What would fail or have no effect later is refused now.
  std::vector<std::pair<std::string, std::string>> read;
  for (std::string const& path : arguments.files) read.emplace_back("FILE", path);
  for (std::string const& path : arguments.conditions) read.emplace_back("--condition", path);
  require_different({{"--json", arguments.json}, {"--forecast", arguments.forecast}}, read);
  if (!arguments.forecast.empty() && arguments.files.size() > 2) {
    throw std::invalid_argument("--forecast: is for one network or two, got " + std::to_string(arguments.files.size()));
  }
  if (arguments.orders && arguments.files.size() != 2) {
    throw std::invalid_argument("--orders: is for two networks, got " + std::to_string(arguments.files.size()));
  }
  if (arguments.intervals && arguments.files.size() > 2) {
    throw std::invalid_argument("--intervals: is for one network or two, got " +
                                std::to_string(arguments.files.size()));
  }
  for (std::string const& path : {arguments.json, arguments.forecast}) {
    if (!path.empty()) tstitch::require_writable(path);
  }
  const tstitch::LoadOptions options{.device = device_of(arguments.device),
                                     .dtype = tstitch::dtype_named(arguments.dtype)};
  std::vector<tstitch::NamedCondition> conditions;
  for (std::string const& path : arguments.conditions) {
    for (tstitch::NamedCondition& each : tstitch::load_conditions(path)) conditions.push_back(std::move(each));
  }
  for (std::string const& path : arguments.files) shape_for({tstitch::load_network_info(path)}, arguments.shape);
  Json json;
  Progress progress(arguments);
  std::vector<tstitch::Network> networks;
  for (std::string const& path : arguments.files) {
    networks.push_back(tstitch::load_network(path, options));
    json["networks"].push_back(describe(path, networks.back(), arguments, conditions, progress));
  }
  const std::vector<std::string> mismatches = tstitch::mismatches(networks);
  if (networks.size() > 1) {
    std::printf(mismatches.empty() ? "these networks fit together\n" : "these networks cannot share a trajectory\n");
    for (std::string const& line : mismatches) std::printf("  %s\n", line.c_str());
    json["mismatches"] = mismatches;
  }
  if (networks.size() > 1 && mismatches.empty() && !arguments.no_probe) {
    json["agreement"] = probe(networks, arguments, conditions, progress);
    if (networks.size() == 2) summarise(arguments, json);
  }
  if (!arguments.forecast.empty() && mismatches.empty()) {
    json["forecast"] = calibrate_forecast(networks, arguments, conditions);
  }
  if (arguments.orders && mismatches.empty()) json["orders"] = compare_orders(networks, arguments, conditions);
  if (arguments.intervals && mismatches.empty()) {
    json["guidance_intervals"] = compare_intervals(networks, arguments, conditions);
  }
  if (!arguments.json.empty()) {
    json["diagnostics"] = tstitch::diagnostics();
    tstitch::write_file(arguments.json, json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  }
  return mismatches.empty() ? 0 : 1;
}

}  // namespace

int main(int count, char** values) {
  return exit_code("tstitch_inspect", [&] {
    Arguments arguments;
    if (const std::optional<int> code = parse(count, values, arguments)) return *code;
    const DiagnosticsAtEnd diagnostics("tstitch_inspect");
    return inspect(arguments);
  });
}
