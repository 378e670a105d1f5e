// tstitch_inspect: what files are, whether they fit together, and where the small network of a pair will do. Exit
// codes: 0 they can be used, 1 they cannot or something failed, 2 bad arguments.
#include <tstitch/file/condition_file.hpp>
#include <tstitch/file/safetensors.hpp>
#include <tstitch/load.hpp>

#include <cstddef>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../common/diagnostics.hpp"
#include "../common/network.hpp"
#include "../common/program.hpp"
#include "arguments.hpp"
#include "describe.hpp"
#include "forecast.hpp"
#include "page.hpp"
#include "probe.hpp"
#include "progress.hpp"
#include "ways.hpp"

namespace {

/// What is asked for suits so many networks.
void require_suits(Arguments const& arguments, std::size_t networks) {
  const auto require = [&](char const* option, bool asked, bool suits, char const* rule) {
    if (!asked || suits) return;
    throw std::invalid_argument(std::string(option) + ": is for " + rule + ", got " + std::to_string(networks));
  };
  const bool one_or_two = networks == 1 || networks == 2;
  require("--forecast", !arguments.forecast.empty(), one_or_two, "one network or two");
  require("--orders", arguments.orders, networks == 2, "two networks");
  require("--intervals", arguments.intervals, one_or_two, "one network or two");
}

int inspect(Arguments const& arguments) {
  // What would fail or have no effect later is refused now.
  std::vector<std::pair<std::string, std::string>> read;
  for (std::string const& path : arguments.files) read.emplace_back("FILE", path);
  for (std::string const& path : arguments.conditions) read.emplace_back("--condition", path);
  require_different({{"--json", arguments.json}, {"--forecast", arguments.forecast}}, read);
  for (std::string const& path : {arguments.json, arguments.forecast}) {
    if (!path.empty()) tstitch::require_writable(path);
  }
  const tstitch::LoadOptions options{
      .device = device_of(arguments.device), .dtype = tstitch::dtype_named(arguments.dtype), .readers = readers()};
  std::vector<tstitch::NamedCondition> conditions;
  for (std::string const& path : arguments.conditions) {
    for (tstitch::NamedCondition& each : tstitch::load_conditions(path)) conditions.push_back(std::move(each));
  }
  Json json;
  std::vector<Described> described;
  std::vector<std::pair<std::string, tstitch::AutoencoderInfo>> halves;  // of autoencoders, by their kinds
  std::vector<std::string> files;                                        // of networks
  for (std::string const& path : arguments.files) {
    const std::string kind = tstitch::is_safetensors(path) ? "network" : tstitch::read_kind(path);
    if (kind == "network") {
      files.push_back(path);
    } else {
      halves.emplace_back(kind, tstitch::read_autoencoder_info(path, kind));
      described.push_back(describe_autoencoder(path, kind, halves.back().second));
      json["autoencoders"].push_back(described.back().json);
    }
  }
  require_suits(arguments, files.size());
  for (std::string const& path : files) shape_for({load_network_info(path)}, arguments.shape);
  Progress progress(arguments, files.size());
  std::vector<tstitch::Network> networks;
  for (std::size_t k = 0; k < files.size(); ++k) {
    networks.push_back(tstitch::load_network(files[k], options));
    described.insert(described.begin() + std::ptrdiff_t(k),
                     describe(files[k], networks.back(), arguments, conditions, progress));
    json["networks"].push_back(described[k].json);
  }
  std::vector<std::string> mismatches = tstitch::mismatches(networks);
  for (auto const& [kind, info] : halves) {
    if (networks.empty()) break;
    const std::string mismatch = latents_mismatch(networks.back().info(), info, kind == "decoder");
    if (!mismatch.empty()) mismatches.push_back(in_quotes(info.name) + ": " + mismatch);
  }
  if (networks.size() > 1 || !halves.empty()) json["mismatches"] = mismatches;
  if (networks.size() > 1 && mismatches.empty() && !arguments.no_probe) {
    json["agreement"] = probe(networks, arguments, conditions, progress);
  }
  say_what_they_are(json, mismatches);
  if (json.contains("agreement")) {
    say_ratio(json);
  } else if (networks.size() > 1 && mismatches.empty()) {
    say("ratio", "not measured (--no-probe)");
  }
  if (mismatches.empty()) say_what_to_do(arguments, json);
  if (arguments.details) {
    say_details(described, json);
  } else {
    say("more", "--details: all that is known; --json FILE: the same as a report; --help");
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
