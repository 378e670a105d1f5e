/// @file
/// The command line of tstitch_serve, and that of one request.
#pragma once

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../common/command_line.hpp"

/// What a service is beside what it draws.
struct ServiceArguments {
  std::string host = "127.0.0.1";
  int port = 8080;  ///< 0: any that is free
  std::string token_file;
  double grace = 30;  ///< seconds
  int connections = 128;
  std::int64_t most_waiting = 64;
  std::int64_t most_pictures = 0;  ///< of a request; 0: the batch
  int most_steps = 250;
  std::int64_t most_size = 2048;  ///< pixels a side
  std::int64_t most_body = 65'536;
  double client_seconds = 10;
  int preview_size = 128;  ///< pixels a side
};

/// An option of the command line and what it is given.
struct GivenOption {
  std::string name;  ///< "--steps"
  std::vector<std::string> values;
};

inline std::vector<std::string> words_of(std::vector<GivenOption> const& options) {
  std::vector<std::string> words;
  for (GivenOption const& option : options) {
    for (std::string const& value : option.values) words.push_back(option.name + "=" + value);
  }
  return words;
}

/// The options that programs share, and what is for a service.
struct ServeCommandLine : CommandLine {
  static constexpr char const *service_group = "Service", *limits_group = "Limits";

  /// What the service and its requests have in common.
  void add_drawing() {
    add_routing();
    add_sampling();
    add_pictures();
    add_machine();
    batch = option("--batch", arguments.batch,
                   "pictures of one call of a network, of all requests together [32 on a GPU, 8 on the CPU]")
                ->check(in_range<std::int64_t>(1, 4096));
    pad = flag("--pad-batches", arguments.pad_batches,
               "fill every call up to --batch, so that pictures are bit-equal whatever is drawn beside them");
    group = "Output";
    add_decoder();
    // A Batcher forecasts no steps and asks all networks in turn, and a file of prompts is no request.
    for (CLI::Option** const none : {&preset, &forecast, &prompts}) app.remove_option(std::exchange(*none, nullptr));
    app.remove_option(app.get_option("--one-at-a-time"));
  }

  void add_service(ServiceArguments& service) {
    group = service_group;
    shown("--host", service.host, "address or name to listen at");
    shown("--port", service.port, "port to listen at, 0 for any that is free")->check(in_range(0, 65'535));
    option("--token-file", service.token_file,
           "file whose first line requests must have as Authorization: Bearer TOKEN [anybody may ask]")
        ->type_name("FILE");
    shown("--grace", service.grace, "seconds that requests may still take when the program is told to stop")
        ->check(in_range(0.0, 86'400.0));
    flag("--quiet", arguments.quiet, "print errors only");
    group = limits_group;
    shown("--connections", service.connections, "clients at once; others are turned away")->check(in_range(1, 512));
    shown("--most-waiting", service.most_waiting, "requests that wait for their first step; others are turned away")
        ->check(in_range<std::int64_t>(1, 65'536));
    option("--most-pictures", service.most_pictures, "pictures of one request [as many as --batch]")
        ->check(in_range<std::int64_t>(1, 4096));
    shown("--most-steps", service.most_steps, "steps of one request")->check(in_range(1, 100'000));
    shown("--most-size", service.most_size, "height and width of a picture in pixels")
        ->check(in_range<std::int64_t>(1, 65'536));
    shown("--most-body", service.most_body, "bytes of a request's body")->check(in_range<std::int64_t>(64, 16 << 20));
    shown("--client-seconds", service.client_seconds,
          "how long a client may take to send its request, and to read on where it stopped reading")
        ->check(in_range(0.1, 3600.0));
    shown("--preview-size", service.preview_size, "height and width of previews in pixels, at most")
        ->check(in_range(8, 1024));
  }

  /// What each request says by itself.
  void add_request() {
    group = "Request";
    count = option("--count", arguments.count, "");
    add_numbers(app, "--seed", arguments.seeds, "");
  }

  /// The options that are given, but for those of the service itself.
  std::vector<GivenOption> given() const {
    std::vector<GivenOption> all;
    for (CLI::Option const* const each : std::as_const(app).get_options()) {
      const std::string of = each->get_group();
      if (each->count() == 0 || each == plan || of == service_group || of == limits_group) continue;
      all.push_back({each->get_name(), each->results()});
    }
    return all;
  }

  /// Takes what the options say together, and refuses what they cannot.
  /// @param placeholder a prompt for networks that need one and have none
  void take(std::string const& placeholder) {
    take_given();
    take_pipeline();
    if (arguments.prompts.empty() && !arguments.text_encoders.empty() && !placeholder.empty()) {
      arguments.prompts = {placeholder};
    }
    take_prompts();
    read_routing(arguments);
    require_effect();
    require_numbers();
  }
};

/// What the command line of a service says of the service, and of what it draws.
struct ServeArguments {
  ServiceArguments service = {};
  std::vector<GivenOption> drawing = {};  ///< for each request, which may say otherwise
  bool plan = false;
  bool quiet = false;
};

/// @returns nothing when the program is to go on, else its exit code; help and version have been printed then
/// @throws std::invalid_argument for options that are not what they must be
inline std::optional<int> parse(int count, char** values, ServeArguments& serve) {
  CLI::App app{
      "Draws pictures for clients over HTTP with several diffusion transformers in turn: the first, noisy steps go to "
      "the first network, the later ones to the next (T-Stitch, arXiv 2402.14167). Requests are drawn together.\n"
      "What a request does not say is as the flags say.\n"
      "Networks, text encoders and decoders are programs: take them from whom you trust.",
      "tstitch_serve"};
  Arguments arguments;
  ServeCommandLine line{{app, arguments}};
  line.add_service(serve.service);
  line.add_drawing();
  set_up(app, version_of("tstitch_serve"),
         {{"Service", "tstitch_serve --port 8080 --token-file token.txt"},
          {"Machine", "tstitch_serve --device cuda --batch 32 --pad-batches"}});
  if (const std::optional<int> code = read_arguments(app, count, values)) return code;
  serve.drawing = line.given();
  serve.plan = arguments.plan;
  serve.quiet = arguments.quiet;
  return std::nullopt;
}

/// The arguments that options say, as a command line of them would.
/// @param known what has been read of files
/// @param classes, prompts, negative any text, which words of a command line may not be
/// @param placeholder see ServeCommandLine::take
/// @throws std::invalid_argument for options that are not what they must be, or do not suit each other
inline Arguments arguments_of(std::vector<GivenOption> const& options, Arguments const& known,
                              std::vector<std::string> const& classes, std::vector<std::string> const& prompts,
                              std::optional<std::string> const& negative, std::string const& placeholder = "") {
  CLI::App app;
  Arguments arguments = known;
  ServeCommandLine line{{app, arguments}};
  line.add_drawing();
  line.add_request();
  std::vector<std::string> words = words_of(options);
  std::reverse(words.begin(), words.end());  // as CLI11 takes them
  try {
    app.parse(std::move(words));
  } catch (CLI::ParseError const& error) {
    throw std::invalid_argument(tstitch::words::printable(plain_sentence(app, error), 400));
  }
  arguments.classes = classes;
  if (!prompts.empty()) arguments.prompts = prompts;
  if (negative) arguments.negative = negative;
  line.take(placeholder);
  return arguments;
}
