/// @file
/// What a pair saves, in a few lines.
#pragma once

#include <tstitch/base/text.hpp>

#include <cmath>
#include <cstdio>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "arguments.hpp"

using Json = nlohmann::ordered_json;

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

/// What the suggested ratio saves of two networks, and the command that draws so.
/// @param json of the networks and their agreement; receives the shares
inline void summarise(Arguments const& arguments, Json& json) {
  Json const &first = json["networks"].front(), &last = json["networks"].back();
  const double ratio = std::round(100 * json["agreement"]["suggested_ratio"].get<double>()) / 100;
  const auto left = [&](double share) { return 1 - ratio + ratio * share; };
  const std::optional<double> arithmetic = share_of_arithmetic(first, last), time = share_of_time(first, last);
  std::printf("in short\n");
  const auto line = [&](char const* what, std::optional<double> share, char const* key) {
    if (!share) return;
    std::printf("  %-11s the first network takes %.2f of the last one's; at ratio %.2f a picture takes %.2f of it\n",
                what, *share, ratio, left(*share));
    json["agreement"][key] = left(*share);
  };
  line("arithmetic:", arithmetic, "arithmetic_left");
  line("time:", time, "time_left");
  if (time.value_or(0) >= 1 && arithmetic.value_or(1) >= 1) {
    std::printf("  the first network is no cheaper than the last: name the small one first\n");
  }
  std::string command = "tstitch_sample";
  for (std::string const& path : arguments.files) command += " --model " + for_shell(path);
  std::printf("  %s --ratio %.2f\n", tstitch::words::printable(command, 4000).c_str(), ratio);
}
