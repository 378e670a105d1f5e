/// @file
/// JSON files that say by themselves whether they are as they were written.
#pragma once

#include <tstitch/base/digest.hpp>
#include <tstitch/base/write_file.hpp>
#include <tstitch/file/text_file.hpp>

#include <cstddef>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <system_error>

#include "../common/parameters.hpp"

/// Another one for a value that differs in anything.
inline std::string fingerprint_of(Json const& json) {
  return tstitch::detail::digest({text_of(json)});
}

inline void write_sealed(std::string const& path, Json json, tstitch::Sync sync = tstitch::Sync::now) {
  json["seal"] = fingerprint_of(json);
  tstitch::write_file(path, text_of(json, 1) + "\n", sync);
}

/// @param what for messages: "the description of a data set"
/// @throws std::runtime_error for a file that was edited, is damaged, or is none
inline Json read_sealed(std::string const& path, char const* what) {
  constexpr std::size_t most = std::size_t(1) << 30;
  const auto fail = [&](std::string const& got) {
    throw std::runtime_error("'" + path + "': must be " + what + " as it was written, got " + got);
  };
  Json json =
      Json::parse(tstitch::detail::read_text({"generate", what}, path, most), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("seal")) fail("something else");
  const Json seal = json["seal"];
  json.erase("seal");
  if (seal != fingerprint_of(json)) fail("another one, that was edited or is damaged");
  return json;
}

inline bool is_there(std::string const& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}
