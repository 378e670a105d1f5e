// tstitch_benchmark: how fast two networks and stitched trajectories of them are. Exit codes: 0 done, 1 failed, 2 bad
// arguments.
//
// How each figure is taken. Every time is wall time between two moments at which the device is idle, the median of
// --repeats; while something is timed nothing waits for a GPU, but for sample(), which looks once at its end whether
// all values are finite.
//
//   forward         one network asked 1 to 100 times in a row for the same rows, so often that it takes 50 ms, a call;
//                   2 batch rows where there is guidance. With --forecast of the second network also one whose blocks
//                   are forecast.
//   error           with --accuracy, at the smallest batch: how far the output of such a call is from the one that
//                   TorchScript makes in float32, root mean square over root mean square
//   seconds         Sampler::sample of one batch: noise, labels, all steps, the check of the values. The ratios take
//                   turns, so that what else the machine does is shared by all of them, there and back, so that none
//                   comes always after the same: a GPU at its limit of power is faster after easier work. Before, a
//                   whole trajectory at the smallest and at the largest ratio, in which every network sees all its
//                   timesteps, and four calls of each network.
//   speed_up        seconds at ratio 0 over seconds
//   line_seconds    on the straight line between ratio 0 and ratio 1, at the share of the steps as it was rounded;
//                   line_deviation is how far above it seconds is, as a share of it. What a change of network costs.
//   sampler_share   1 - (time in the networks) / (time of the whole), both in one more trajectory by itself. On the
//                   CPU the time in the networks is that of their calls; on a GPU it is the time on its stream between
//                   an event before and an event after each call. Where the host is too slow for the GPU, the GPU's
//                   waiting is the networks' between those events and the sampler's elsewhere, with the microseconds
//                   that the host needs for the events.
//   peak memory     in that trajectory: on a GPU what tensors took at most (reserved: what the allocator had), on the
//                   CPU what was resident of the process
//   first picture   a process of its own (--started), from the moment before it is started to x_0 in the host's
//                   memory; the files were read before. The smallest batch, at the first ratio at which both networks
//                   have steps. first_picture.hpp says what its parts are.
#include <tstitch/output/npy.hpp>
#include <tstitch/version.hpp>

#include <ATen/Parallel.h>
#include <torch/headeronly/version.h>

#include <cmath>
#include <ctime>
#include <filesystem>
#include <thread>

#include "../common/diagnostics.hpp"
#include "../common/program.hpp"
#include "cells.hpp"
#include "first_picture.hpp"
#include "report.hpp"

namespace {

const Clock::time_point main_began = Clock::now();

std::string date() {
  const std::time_t now = std::time(nullptr);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", std::gmtime(&now));
  return text;
}

Json describe(Arguments const& arguments) {
  Json machine{{"processor", processor_name()},
               {"cores", std::thread::hardware_concurrency()},
               {"threads", at::get_num_threads()},
               {"device", arguments.device.str()}};
  if (const std::string gpu = gpu_name(arguments.device); !gpu.empty()) machine["gpu"] = gpu;
  return {{"version", TSTITCH_VERSION},
          {"torch", TORCH_VERSION},
          {"date", date()},
          {"machine", machine},
          {"models", arguments.models},
          {"shape", arguments.shape},
          {"sampler", arguments.sampler},
          {"sampler_name", tstitch::update_rule_by_name(arguments.sampler).name()},
          {"spacing", arguments.spacing.empty() ? "linspace, or shifted for flow matching" : arguments.spacing},
          {"steps", arguments.steps},
          {"conditions", arguments.conditions},
          {"forecast", arguments.forecast},
          {"forecast_guidance", arguments.forecast_guidance},
          {"repeats", arguments.repeats},
          {"forwards", Json::array()},
          {"cells", Json::array()},
          {"first_pictures", Json::array()}};
}

/// That a picture has in the computed evaluations of each network.
Json rows_of(tstitch::Plan const& plan) {
  Json rows = Json::array();
  for (tstitch::NetworkWork const& each : plan.work(2)) rows.push_back(each.rows);
  return rows;
}

/// Names come from files, which may hold bytes that are not UTF-8.
void write_json(Arguments const& arguments, Json const& report) {
  if (arguments.json.empty()) return;
  tstitch::write_file(arguments.json, report.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

/// Of a call, each time it is taken.
template <class Call>
std::vector<double> milliseconds_of(Arguments const& arguments, Call& call) {
  for (int run = 0; run < 4; ++run) call();  // TorchScript compiles in the first ones
  const double once = timed(arguments.device, [&] { call(); });
  const int calls = int(std::clamp(std::ceil(0.05 / once), 1.0, 100.0));
  std::vector<double> milliseconds;
  for (int repeat = 0; repeat < arguments.repeats; ++repeat) {
    const double seconds = timed(arguments.device, [&] {
      for (int done = 0; done < calls; ++done) call();
    });
    milliseconds.push_back(seconds * 1e3 / calls);
  }
  return milliseconds;
}

/// @param expected the output in float32, or undefined
Json measure_forward(Arguments const& arguments, std::vector<tstitch::Network> const& networks, std::size_t index,
                     Cell const& cell, at::Tensor const& expected) {
  const Forward forward(arguments, networks, index, cell.batch);
  const std::vector<double> milliseconds = milliseconds_of(arguments, forward);
  Json json{{"backend", cell.backend},
            {"dtype", cell.dtype},
            {"network", networks[index].info().name},
            {"rows", forward.rows()},
            {"milliseconds", median(milliseconds)},
            {"all_milliseconds", milliseconds}};
  if (arguments.forecast != "none" && index == 1 && networks[index].forecasts()) {
    Forward::Forecast forecast(forward);
    json["forecast_milliseconds"] = median(milliseconds_of(arguments, forecast));
  }
  if (expected.defined()) json["error"] = relative_error(forward(), expected);
  return json;
}

/// What is the sampler's, and memory, of one more trajectory by itself.
/// @param draw draws it with the clock's networks; returns its seconds
void add_shares(Arguments const& arguments, Json& json, auto const& draw) {
  const ForwardClock clock(arguments.device);
  const bool restarted = restart_peak_memory(arguments.device);
  const double whole = draw(clock);
  json["sampler_share"] = 1 - clock.seconds() / whole;
  json["sampler_microseconds_a_step"] = (whole - clock.seconds()) * 1e6 / arguments.steps;
  if (const auto peak = peak_memory(arguments.device, restarted)) {
    json["peak_memory_bytes"] = peak->bytes;
    if (arguments.device.is_cuda()) json["reserved_memory_bytes"] = peak->reserved;
    json["peak_memory_of"] = peak->restarted ? "the trajectory" : "the process";
  }
}

/// All ratios of one batch size.
std::vector<Json> measure_trajectories(Arguments const& arguments, std::vector<tstitch::Network> const& networks,
                                       std::vector<Run> const& runs, Cell const& cell) {
  const at::Device device = arguments.device;
  const tstitch::Request request = make_request(arguments, networks, cell.batch);
  at::Tensor latents;
  const auto draw = [&](Run const& run, std::vector<tstitch::Network> const& which) {
    return timed(device, [&] { latents = run.draw(which, request); });
  };
  draw(runs.front(), networks);
  if (runs.size() > 1) draw(runs.back(), networks);
  std::vector<std::vector<double>> seconds(runs.size());
  for (int repeat = 0; repeat < arguments.repeats; ++repeat) {
    for (std::size_t k = 0; k < runs.size(); ++k) {
      const std::size_t i = repeat % 2 ? runs.size() - 1 - k : k;
      seconds[i].push_back(draw(runs[i], networks));
    }
  }
  if (!arguments.latents.empty()) tstitch::write_npy(arguments.latents, latents.cpu());

  const auto seconds_where = [&](auto wanted) -> std::optional<double> {
    for (std::size_t i = 0; i < runs.size(); ++i) {
      if (wanted(runs[i])) return median(seconds[i]);
    }
    return {};
  };
  const auto large_alone = seconds_where([](Run const& run) { return run.calls[0] == 0; });
  const auto small_alone = seconds_where([](Run const& run) { return run.calls[1] == 0; });
  std::vector<Json> cells;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const double typical = median(seconds[i]);
    Json json{{"backend", cell.backend},  {"dtype", cell.dtype},
              {"batch", cell.batch},      {"ratio", runs[i].ratio},
              {"calls", runs[i].calls},   {"rows", rows_of(runs[i].plan)},
              {"seconds", typical},       {"images_per_second", double(cell.batch) / typical},
              {"all_seconds", seconds[i]}};
    if (large_alone) json["speed_up"] = *large_alone / typical;
    if (large_alone && small_alone && !runs[i].plan.has_forecasts()) {
      const double line = std::lerp(*large_alone, *small_alone, runs[i].share());
      json["line_seconds"] = line;
      json["line_deviation"] = typical / line - 1;
    }
    add_shares(arguments, json, [&](ForwardClock const& clock) { return draw(runs[i], clock.watch(networks)); });
    cells.push_back(json);
  }
  return cells;
}

Json measure_first_picture(Arguments const& arguments, Cell const& cell) {
  std::vector<Json> runs;
  for (int repeat = 0; repeat < std::min(arguments.repeats, 3); ++repeat) {
    runs.push_back(run_first_picture(arguments, cell));
  }
  std::sort(runs.begin(), runs.end(), [](Json const& a, Json const& b) { return a["seconds"] < b["seconds"]; });
  // The parts of one run, so that they add up.
  Json json{{"backend", cell.backend}, {"dtype", cell.dtype}, {"batch", cell.batch}, {"ratio", cell.ratio}};
  json.update(runs[(runs.size() - 1) / 2]);
  return json;
}

/// What is measured and printed, once for all backends and dtypes.
void print_setting(Arguments const& arguments, std::vector<tstitch::Network> const& networks, Json& report) {
  for (tstitch::Network const& network : networks) report["networks"].push_back(network.info().name);
  report["guidance"] = guidance_scale(arguments, networks);
  Json const& machine = report["machine"];
  std::printf("'%s' and '%s' on %s, %s, torch %s\n", networks[0].info().name.c_str(), networks[1].info().name.c_str(),
              arguments.device.str().c_str(), machine.value("gpu", machine["processor"].get<std::string>()).c_str(),
              TORCH_VERSION);
  std::printf("%s, %d steps, guidance %g, %d threads; medians of %d\n",
              report["sampler_name"].get<std::string>().c_str(), arguments.steps, guidance_scale(arguments, networks),
              at::get_num_threads(), arguments.repeats);
}

/// Everything at one batch size.
/// @param expected the outputs of the networks in float32, or undefined ones
void measure_batch(Arguments const& arguments, std::vector<tstitch::Network> const& networks,
                   std::vector<Run> const& runs, Cell const& cell, std::vector<at::Tensor> const& expected,
                   Json& report) {
  for (std::size_t k = 0; k < networks.size(); ++k) {
    report["forwards"].push_back(measure_forward(arguments, networks, k, cell, expected[k]));
    print_forward(report["forwards"].back());
  }
  const std::vector<Json> cells = measure_trajectories(arguments, networks, runs, cell);
  print_cell_header();
  for (Json const& each : cells) {
    print_cell(each);
    report["cells"].push_back(each);
  }
  std::fflush(stdout);
  write_json(arguments, report);
}

/// All ratios at all batch sizes, by one backend in one type of numbers.
/// @returns the ratio of the first picture: the first at which both networks have steps, or else the first
double measure_networks(Arguments const& arguments, std::string const& backend, std::string const& dtype,
                        std::vector<at::Tensor> const& expected, Json& report) {
  const std::vector<tstitch::Network> networks = load_networks(arguments, backend, dtype);
  std::vector<Run> runs;
  for (const double each : arguments.ratios) runs.push_back(make_run(arguments, networks, each));
  double ratio = arguments.ratios[0];
  for (auto run = runs.rbegin(); run != runs.rend(); ++run) {
    if (run->calls[0] > 0 && run->calls[1] > 0) ratio = run->ratio;
  }
  if (!report.contains("networks")) print_setting(arguments, networks, report);
  give_back_memory(arguments.device);
  const std::vector<at::Tensor> none(networks.size());
  for (const std::int64_t batch : arguments.batches) {
    const Cell cell{backend, dtype, batch, ratio};
    measure_batch(arguments, networks, runs, cell, batch == arguments.batches[0] ? expected : none, report);
  }
  return ratio;
}

int tstitch_benchmark(Arguments arguments) {
  if (arguments.started) {
    draw_first_picture(arguments, main_began);
    return 0;
  }
  std::vector<tstitch::NetworkInfo> infos;
  for (std::string const& path : arguments.models) infos.push_back(load_network_info(path));
  arguments.shape = shape_for(infos, arguments.shape);
  for (std::string const& path : {arguments.json, arguments.latents}) {
    if (!path.empty()) tstitch::require_writable(path);  // now rather than after the work
  }
  Json report = describe(arguments);
  std::vector<at::Tensor> expected(arguments.models.size());
  if (arguments.accuracy) expected = float32_outputs(arguments);
  for (std::string const& backend : arguments.backends) {
    for (std::string const& dtype : arguments.dtypes) {
      const double ratio = measure_networks(arguments, backend, dtype, expected, report);
      if (!arguments.first_picture) continue;
      give_back_memory(arguments.device);
      report["first_pictures"].push_back(
          measure_first_picture(arguments, {backend, dtype, arguments.batches[0], ratio}));
      print_first_picture(report["first_pictures"].back());
      std::fflush(stdout);
      write_json(arguments, report);
    }
  }
  if (!arguments.json.empty()) std::printf("json: %s\n", arguments.json.c_str());
  return 0;
}

}  // namespace

int main(int count, char** values) {
  return exit_code("tstitch_benchmark", [&] {
    Arguments arguments;
    if (const std::optional<int> code = parse(count, values, arguments)) return *code;
    const DiagnosticsAtEnd diagnostics("tstitch_benchmark");
    return tstitch_benchmark(std::move(arguments));
  });
}
