// tstitch_serve: pictures over HTTP. Exit codes: 1 failed, 2 bad arguments, 128 + N stopped by signal N (130 for
// Ctrl-C).
#include <tstitch/file/torchscript.hpp>

#include <atomic>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#include "../common/diagnostics.hpp"
#include "../common/program.hpp"
#include "../common/signals.hpp"
#include "arguments.hpp"
#include "connection.hpp"
#include "routes.hpp"
#include "service.hpp"

namespace {

/// The first line of a file, which nobody is to see.
std::string read_token(std::string const& path) {
  constexpr std::size_t least = 8, most = 4096;
  const auto fail = [&](std::string const& got) {
    throw std::runtime_error("--token-file: " + in_quotes(path) + " must be a file whose first line has " +
                             std::to_string(least) + " to " + std::to_string(most) +
                             " printable characters of ASCII without spaces, got " + got);
  };
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) fail("none");
  std::ifstream file(path, std::ios::binary);
  std::string token;
  if (!std::getline(file, token)) fail("none that can be read");
  if (token.ends_with('\r')) token.pop_back();
  if (token.size() < least || token.size() > most) fail(std::to_string(token.size()));
  const auto plain = [](char c) { return c > ' ' && c <= '~'; };
  if (!std::ranges::all_of(token, plain)) fail("others");
  return token;
}

bool is_loopback(std::string const& host) {
  return host == "localhost" || host == "::1" || host.starts_with("127.");
}

int tstitch_serve(ServeArguments const& arguments) {
  const auto note = [&](std::string const& sentence) {
    if (!arguments.quiet) std::cerr << "tstitch_serve: note: " + in_a_note(sentence) + "\n";
  };
  ServiceArguments const& of = arguments.service;
  const std::string token = of.token_file.empty() ? "" : read_token(of.token_file);
  Service service(of, arguments.drawing);
  if (arguments.plan) {
    Job const& job = service.usual();
    std::cout << plan_by(job, routing(job, job.arguments.routing)) << std::flush;
    if (!std::cout) throw std::runtime_error("--plan: must be able to print, got an output that takes nothing");
    return 0;
  }
  if (token.empty() && !is_loopback(of.host)) {
    note("--host: " + in_quotes(of.host) +
         " can be reached by other machines, and without --token-file anybody there may ask");
  }
  for (const int signal : {SIGPIPE, SIGXFSZ}) std::signal(signal, SIG_IGN);
  const auto refuse = [&](int status, std::string const& message) {
    service.metrics().responded(status);
    return bare_response(status, status == 503 ? "connections" : "request", message);
  };
  Server server({of.connections, of.client_seconds, std::size_t(of.most_body), refuse});
  Routes routes(service, token);
  routes.add_to(server);
  const int port = server.bind(of.host, of.port);  // before anything takes long
  if (port == 0) {
    throw std::runtime_error("--port: must be free at an address of this machine, got " + in_quotes(of.host) + " and " +
                             std::to_string(of.port));
  }
  service.load();
  for (std::string const& sentence : service.usual().notes) note(sentence);
  has_begun = true;
  std::atomic<bool> listens = true;
  std::thread listening([&] {
    server.listen_after_bind();
    listens = false;
  });
  constexpr std::chrono::milliseconds look(20);
  while (listens && !server.is_running())
    std::this_thread::sleep_for(std::chrono::milliseconds(1));  // else close would do nothing
  const bool v6 = of.host.find(':') != std::string::npos;
  std::cout << "listening: http://" + (v6 ? "[" + of.host + "]" : of.host) + ":" + std::to_string(port) + "\n"
            << std::flush;

  while (!stopped_by && listens) std::this_thread::sleep_for(look);
  const bool told = stopped_by != 0;
  service.stop_taking();
  const Clock::time_point stop = Clock::now();
  while (listens && service.drawings() > 0 && seconds_since(stop) < of.grace) std::this_thread::sleep_for(look);
  service.abandon();
  // They see it soon, but who does not read what is sent holds it up.
  while (service.drawings() > 0 && seconds_since(stop) < of.grace + 1) std::this_thread::sleep_for(look);
  server.close();
  listening.join();
  if (!told) throw std::runtime_error("--port: must take clients, got an error of the system");
  return 128 + stopped_by;
}

}  // namespace

int main(int count, char** values) {
  watch_for_signals();
  return exit_code("tstitch_serve", [&] {
    ServeArguments arguments;
    if (const std::optional<int> code = parse(count, values, arguments)) return *code;
    const DiagnosticsAtEnd diagnostics("tstitch_serve", arguments.quiet);
    return tstitch_serve(arguments);
  });
}
