/// @file
/// How soon a fresh process has its first picture.
#pragma once

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>
#include <tstitch/file/at_once.hpp>

#include <cstring>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "cells.hpp"

extern char** environ;

using Json = nlohmann::ordered_json;

/// What a process does that draws one batch and ends: prints the seconds of its parts, from the time when it was
/// started, as JSON.
///
///     starting   until main, most of which is loading torch's libraries
///     loading    reading the files, moving the weights to the device, all networks at the same time
///     warming    the first call of each network that has steps, in which TorchScript compiles, at the same time; then
///                graphs are captured
///     sampling   the batch, up to x_0 in the host's memory
inline void draw_first_picture(Arguments const& arguments, Clock::time_point main_began) {
  const Clock::time_point started{std::chrono::nanoseconds(arguments.started.value())};
  Clock::time_point last = started;
  Json parts;
  const auto part = [&](char const* name, Clock::time_point end) {
    parts[name] = std::chrono::duration<double>(end - last).count();
    last = end;
  };
  part("starting", main_began);
  const at::Device device = arguments.device;
  const Cell cell{arguments.backends[0], arguments.dtypes[0], arguments.batches[0], arguments.ratios[0]};
  const tstitch::LoadOptions options =
      tstitch::with_backend({.device = device, .dtype = tstitch::dtype_named(cell.dtype)}, cell.backend);
  tstitch::LoadOptions plain = options;
  plain.graphs = tstitch::Graphs::never;
  plain.readers = readers();
  std::vector<tstitch::Network> networks = tstitch::load_networks(arguments.models, plain);
  wait(device);
  part("loading", Clock::now());
  const Run run = make_run(arguments, networks, cell.ratio);
  const tstitch::Request request = make_request(arguments, networks, cell.batch);
  const auto warm = [&](std::size_t k) {
    return run.calls[k] > 0 ? Forward(arguments, networks, k, cell.batch)() : at::Tensor();
  };
  tstitch::at_once(device, networks.size(), warm);
  wait(device);
  for (std::size_t k = 0; k < networks.size(); ++k) {
    if (options.graphs == tstitch::Graphs::never) continue;
    networks[k] = tstitch::with_graphs(networks[k], options);
    warm(k);
  }
  wait(device);
  part("warming", Clock::now());
  run.draw(networks, request).cpu();
  part("sampling", Clock::now());
  parts["seconds"] = std::chrono::duration<double>(last - started).count();
  if (const auto peak = peak_memory(device, false)) parts["peak_memory_bytes"] = peak->bytes;
  std::printf("%s\n", parts.dump().c_str());
}

/// Starts this program again for one first picture.
/// @returns what it printed
/// @throws std::runtime_error when it fails
inline Json run_first_picture(Arguments const& arguments, Cell const& cell) {
  std::vector<std::string> words{"tstitch_benchmark"};
  for (std::string const& path : arguments.models) words.insert(words.end(), {"--model", path});
  words.insert(words.end(), {"--batch", std::to_string(cell.batch), "--ratio", tstitch::words::text(cell.ratio),
                             "--dtype", cell.dtype, "--backend", cell.backend, "--sampler", arguments.sampler,
                             "--steps", std::to_string(arguments.steps), "--device", arguments.device.str()});
  if (arguments.guidance) words.insert(words.end(), {"--guidance", tstitch::words::text(*arguments.guidance)});
  words.insert(words.end(), {"--shape", with_crosses(arguments.shape)});
  for (std::string const& path : arguments.conditions) words.insert(words.end(), {"--condition", path});
  words.insert(words.end(), {"--forecast", arguments.forecast, "--forecast-guidance", arguments.forecast_guidance});
  if (!arguments.spacing.empty()) words.insert(words.end(), {"--spacing", arguments.spacing});
  words.insert(words.end(), {"--started", std::to_string(Clock::now().time_since_epoch().count())});
  std::vector<char*> values;
  for (std::string& word : words) values.push_back(word.data());
  values.push_back(nullptr);

  const auto fail = [](std::string const& got) {
    throw std::runtime_error("first picture: this program must start itself and end well, got " + got);
  };
  int pipe_ends[2];
  if (pipe2(pipe_ends, O_CLOEXEC) != 0) fail(std::strerror(errno));
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, pipe_ends[1], STDOUT_FILENO);
  pid_t child = 0;
  const int error = posix_spawn(&child, "/proc/self/exe", &actions, nullptr, values.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(pipe_ends[1]);
  std::string printed;
  char buffer[4096];
  for (ssize_t count; error == 0 && (count = read(pipe_ends[0], buffer, sizeof buffer)) > 0;) {
    printed.append(buffer, std::size_t(count));
  }
  close(pipe_ends[0]);
  if (error != 0) fail(std::strerror(error));
  int status = 0;
  waitpid(child, &status, 0);
  const Json parts = Json::parse(printed, nullptr, /*allow_exceptions=*/false);
  if (status != 0 || !parts.is_object()) fail("status " + std::to_string(status) + " and '" + printed + "'");
  return parts;
}
