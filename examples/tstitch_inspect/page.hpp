/// @file
/// What one wants to know of networks at first: what they are, whether they fit together, what that saves, and what to
/// type. All of it is in the report; what else is there is shown by --details.
#pragma once

#include <tstitch/base/text.hpp>
#include <tstitch/model/network_info.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "../common/terminal.hpp"
#include "arguments.hpp"
#include "describe.hpp"

/// A paragraph of the page: a word to its left, and what is said of it.
/// @param command whether it is one that a shell takes, whose lines end in "\" where they go on
inline void say(std::string const& word, std::string const& text, bool command = false) {
  constexpr std::size_t left = 11, narrowest = 40, widest = 80;
  const std::size_t columns = std::clamp(std::size_t(terminal_columns()), narrowest, widest);
  std::printf("%-*s%s\n", int(left), word.c_str(),
              in_lines(tstitch::words::printable(text, 4000), columns, left, command ? " \\" : "").c_str());
}

/// "12 %".
inline std::string percent(double share) {
  return tstitch::words::text(std::round(100 * share)) + " %";
}

/// A number in three digits: "0.811", "13.5".
inline std::string short_text(double number) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", number);
  return text;
}

/// "13.5 million".
inline std::string in_millions(std::int64_t number) {
  const double value = double(number);
  if (number < 1'000'000) return grouped(number);
  return value < 1e9 ? short_text(value / 1e6) + " million" : short_text(value / 1e9) + " billion";
}

/// "3 x 32 x 32", with * for any size.
inline std::string with_spaces(Json const& sizes) {
  std::string text;
  for (Json const& size : sizes) {
    text += (text.empty() ? "" : " x ") +
            (size.is_string() ? size.get<std::string>() : std::to_string(size.get<std::int64_t>()));
  }
  return text;
}

/// "a DiT of 1.87 million weights, float16".
inline std::string kind_of(Json const& network) {
  std::string text = "a network";
  if (network.contains("architecture")) {
    const std::string kind = network["architecture"]["kind"];
    text = "a transformer (" + (kind.starts_with("dit") ? "DiT" : kind == "sit" ? "SiT" : kind) + ")";
  }
  if (network.contains("parameters") && network["parameters"] > 0) {
    std::string type = network["parameter_type"];
    if (type == "Half") type = "float16";
    if (type == "Float") type = "float32";
    if (type == "BFloat16") type = "bfloat16";
    text += " of " + in_millions(network["parameters"]) + " weights, " + type;
  }
  if (network.contains("compiled_for")) {
    Json const& compiled = network["compiled_for"];
    text += ", compiled for " + compiled["device"].get<std::string>() + " in " + compiled["dtype"].get<std::string>();
  }
  return text;
}

/// "makes pictures of 3 x 32 x 32, of 10 classes".
inline std::string makes_of(Json const& network) {
  std::string text = "makes " + network["makes"].get<std::string>();
  if (network.contains("input")) text += " of " + with_spaces(network["input"]);
  const std::int64_t classes = network["num_classes"];
  if (classes > 0) text += ", of " + std::to_string(classes) + (classes == 1 ? " class" : " classes");
  if (network.contains("conditions")) {
    std::vector<std::string> wanted;
    for (Json const& each : network["conditions"]) wanted.push_back(each);
    text += ", for " + joined_with_and(wanted);
  }
  return text;
}

/// "a call takes 0.811 GFLOP a picture; 2.1 ms for 1 picture, 1.6 ms each for 8, on cpu".
inline std::string costs_of(Json const& network) {
  std::vector<std::string> times;
  if (network.contains("milliseconds_a_row")) {
    for (auto const& [rows, each] : network["milliseconds_a_row"].items()) {
      times.push_back(short_text(each) + " ms " + (rows == "1" ? "for 1 picture" : "each for " + rows));
    }
  }
  std::string text;
  if (network.contains("gflop") && network["gflop"] > 0) text = short_text(network["gflop"]) + " GFLOP a picture";
  if (!times.empty()) {
    text += (text.empty() ? "" : "; ") + joined(times) + ", on " + network["device"].get<std::string>();
  }
  return text.empty() ? "" : "a call takes " + text;
}

/// How much of the last network's cost the first one has.
/// @param json of a first and a last network
/// @returns nothing where it is not known of both
inline std::optional<double> share_of_arithmetic(Json const& first, Json const& last) {
  if (!first.contains("gflop") || !last.contains("gflop")) return {};
  const double a = first["gflop"], b = last["gflop"];
  return a > 0 && b > 0 ? std::optional(a / b) : std::nullopt;
}

/// The same of the time of the largest batch that was timed.
inline std::optional<double> share_of_time(Json const& first, Json const& last) {
  if (!first.contains("milliseconds_a_row")) return {};
  const std::string rows = std::prev(first["milliseconds_a_row"].end()).key();
  const double a = first["milliseconds_a_row"][rows], b = last["milliseconds_a_row"][rows];
  return a > 0 && b > 0 ? std::optional(a / b) : std::nullopt;
}

/// A path as a shell takes it.
inline std::string for_shell(std::string const& path) {
  constexpr auto plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=:,./@%";
  if (!path.empty() && path.find_first_not_of(plain) == path.npos) return path;
  std::string quoted = "'";
  for (const char c : path) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

/// Two digits behind the point, as the ratio is printed and typed.
inline double rounded_ratio(Json const& agreement) {
  return std::round(100 * agreement["suggested_ratio"].get<double>()) / 100;
}

/// Says what the suggested ratio is and saves; the report receives what is left of the costs.
/// @param json of the networks and their agreement
inline void say_ratio(Json& json) {
  Json const &first = json["networks"].front(), &last = json["networks"].back();
  Json& agreement = json["agreement"];
  const double ratio = rounded_ratio(agreement);
  char number[16];
  std::snprintf(number, sizeof number, "%.2f", ratio);
  const std::string share = percent(agreement["tolerance"].get<double>());
  const std::string difference = " of the difference to the last network that it would make in all";
  say("ratio", std::string(number) +
                   (ratio > 0 ? ": the first network may take the first " + percent(ratio) +
                                    " of the steps. There it makes " + share + difference
                              : ": in the first step alone the first network makes more than " + share + difference));
  const std::optional<double> arithmetic = share_of_arithmetic(first, last), time = share_of_time(first, last);
  const auto left = [&](double cost) { return 1 - ratio + ratio * cost; };
  std::vector<std::string> saved;
  for (auto const& [what, cost, key] :
       {std::tuple{"arithmetic", arithmetic, "arithmetic_left"}, std::tuple{"time", time, "time_left"}}) {
    if (!cost) continue;
    agreement[key] = left(*cost);
    const double share_saved = std::round(100 * (1 - left(*cost))) / 100;
    saved.push_back((share_saved > 0 ? percent(share_saved) : "none") + std::string(" of the ") + what +
                    " (the first network costs " + tstitch::words::text(std::round(100 * *cost) / 100) +
                    " of the last)");
  }
  if (!saved.empty()) say("saves", joined_with_and(saved));
  if (time.value_or(0) >= 1 && arithmetic.value_or(1) >= 1) {
    say("note", "the first network is no cheaper than the last: name the small one first");
  }
}

/// The command that draws with these networks.
/// @param json all that is known by now
inline std::string command_of(Arguments const& arguments, Json const& json) {
  std::string command = "tstitch_sample";
  Json const& networks = json["networks"];
  if (!arguments.bundled) {
    for (Json const& network : networks) command += " --model " + for_shell(network["file"]);
  }
  if (json.contains("agreement")) {
    char text[64];
    const double ratio = rounded_ratio(json["agreement"]), other = (1 - ratio) / double(networks.size() - 1);
    std::snprintf(text, sizeof text, "%.2f", ratio);
    std::string fractions = text;
    double left = 1 - ratio;
    for (std::size_t k = 1; k < networks.size(); ++k) {
      const double share = k + 1 < networks.size() ? std::round(100 * other) / 100 : left;
      std::snprintf(text, sizeof text, ",%.2f", share);
      fractions += text;
      left -= share;
    }
    command += networks.size() == 2 ? " --ratio " + fractions.substr(0, 4) : " --fractions " + fractions;
  } else if (networks.size() > 2) {
    command += " --fractions ...";
  }
  bool wants_conditions = false;
  for (Json const& network : networks) wants_conditions = wants_conditions || network.contains("conditions");
  for (std::string const& path : arguments.conditions) command += " --condition " + for_shell(path);
  if (wants_conditions && arguments.conditions.empty()) command += " --condition prompt.pt";
  if (!arguments.shape.empty()) command += " --shape " + with_crosses(arguments.shape);
  std::string decoder;
  if (json.contains("autoencoders")) {
    for (Json const& each : json["autoencoders"]) {
      if (each["kind"] == "decoder") decoder = each["file"];
    }
  }
  if (!decoder.empty()) return command + " --decoder " + for_shell(decoder);
  return command + (networks.back()["makes"] == "latents" ? " --latents latents.npy" : "");
}

/// What a half of an autoencoder is.
inline void say_autoencoder(Json const& json) {
  const std::string kind = json["kind"];
  const std::string latents = "latents of " + std::to_string(json["latent_channels"].get<std::int64_t>()) + " channels",
                    pictures = "pictures of " + std::to_string(json["picture_channels"].get<std::int64_t>()) +
                               " channels, " + std::to_string(json["upsampling"].get<std::int64_t>()) +
                               " times as wide and high";
  say(kind,
      json["name"].get<std::string>() + ": " +
          (kind == "decoder" ? "makes " + pictures + ", from " + latents : "makes " + latents + " from " + pictures));
}

/// What the page says of files: of each network, of what else is named, and whether they fit together.
/// @param misfits of networks with one another, and with autoencoders
inline void say_what_they_are(Json const& json, std::vector<std::string> const& misfits) {
  const std::size_t count = json.contains("networks") ? json["networks"].size() : 0;
  for (std::size_t k = 0; k < count; ++k) {
    Json const& network = json["networks"][k];
    say(count == 1 ? "network" : "network " + std::to_string(k),
        network["name"].get<std::string>() + ": " + kind_of(network));
    say("", makes_of(network));
    if (const std::string costs = costs_of(network); !costs.empty()) say("", costs);
  }
  if (json.contains("autoencoders")) {
    for (Json const& each : json["autoencoders"]) say_autoencoder(each);
  }
  for (std::string const& line : misfits)
    say(&line == &misfits[0] ? "fit" : "", (&line == &misfits[0] ? "no: " : "") + line);
  if (misfits.empty() && count + (json.contains("autoencoders") ? json["autoencoders"].size() : 0) > 1 && count > 0) {
    say("fit", "yes, they fit together");
  }
}

/// What to type, and what else this program says.
inline void say_what_to_do(Arguments const& arguments, Json& json) {
  if (!json.contains("networks")) {
    say("draw", "with a network that makes such latents: tstitch_sample --model network.pt --" +
                    json["autoencoders"][0]["kind"].get<std::string>() + " " +
                    for_shell(json["autoencoders"][0]["file"]));
    return;
  }
  Json const& networks = json["networks"];
  const std::string command = command_of(arguments, json);
  say("draw", command, true);
  if (command.find("--condition prompt.pt") != command.npos) {
    say("", "prompt.pt: tensors by name, such as encode_prompt.py writes");
  }
  if (command.ends_with("--latents latents.npy")) say("", "pictures of the latents: with --decoder FILE");
  if (networks.size() == 1) {
    say("", "to let a small network take the first steps: tstitch_inspect small.pt " + for_shell(networks[0]["file"]));
  }
  if (networks.size() > 2) say("", "measured is the first network's share; how the others share the rest is a guess");
  json["command"] = command;
}

/// All that is known of the files, and the agreement step by step.
inline void say_details(std::vector<Described> const& all, Json const& json) {
  for (Described const& each : all) {
    std::printf("\n%s\n", tstitch::words::printable(each.json["name"].get<std::string>()).c_str());
    for (auto const& [name, text] : each.details) {
      std::printf("  %-16s %s\n", name.c_str(), tstitch::words::printable(text, 4000).c_str());
    }
  }
  if (!json.contains("agreement")) return;
  Json const& agreement = json["agreement"];
  const auto name = [&](Json const& network) {
    return tstitch::words::printable(network["name"].get<std::string>(), 60);
  };
  std::printf("\nagreement of '%s' along the trajectory of '%s', %s\n", name(json["networks"].front()).c_str(),
              name(json["networks"].back()).c_str(), counted(agreement["images"].get<std::int64_t>(), "image").c_str());
  std::printf("  %8s %8s %12s %8s\n", "t", "cosine", "difference", "sum");
  const std::size_t steps = agreement["cosines"].size(), every = std::max<std::size_t>(1, steps / 10);
  for (std::size_t i = 0; i < steps; ++i) {
    if (i % every != 0 && i + 1 != steps) continue;
    std::printf("  %8.1f %8.4f %12.6f %7.1f%%\n", agreement["timesteps"][i].get<double>(),
                agreement["cosines"][i].get<double>(), agreement["differences"][i].get<double>(),
                100 * agreement["cumulative_shares"][i].get<double>());
  }
  std::printf("cosine: of the noise that they predict; difference: of x after the step,\nroot mean square\n");
}
