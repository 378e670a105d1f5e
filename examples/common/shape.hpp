/// @file
/// The option --shape: sizes of x that networks leave open.
#pragma once

#include <tstitch/model/network_info.hpp>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "strict.hpp"

/// "4x64x64".
inline std::string with_crosses(std::vector<std::int64_t> const& shape) {
  std::string text;
  for (const std::int64_t size : shape) text += (text.empty() ? "" : "x") + std::to_string(size);
  return text;
}

/// @returns nothing for what is no shape of up to 16 sizes and 2^32 elements
inline std::optional<std::vector<std::int64_t>> shape_in(std::string const& text) {
  std::vector<std::int64_t> shape;
  std::int64_t room = std::int64_t(1) << 32;  // for the sizes that are left
  for (std::string const& part : split(text, 'x')) {
    const std::optional<std::int64_t> size = number_of<std::int64_t>(part);
    if (!size || *size < 1 || *size > room || shape.size() == 16) return {};
    room /= *size;
    shape.push_back(*size);
  }
  return shape;
}

inline CLI::Option* add_shape(CLI::App& app, std::vector<std::int64_t>& shape) {
  const auto read = [&shape](std::string const& text) {
    const std::optional<std::vector<std::int64_t>> given = shape_in(text);
    if (!given) {
      throw std::invalid_argument(
          "--shape: must be sizes from 1 on with x between, at most 16 of them and 4294967296 elements, got " +
          in_quotes(text));
    }
    shape = *given;
  };
  return app
      .add_option_function<std::string>("--shape", read,
                                        "of x for one sample, channels first: 4x64x64, a video 4x8x16x16, a signal "
                                        "1x16000; for networks that leave sizes open [what the networks state]")
      ->type_name("CxHxW");
}

/// The option --size: height and width of the picture in pixels.
inline CLI::Option* add_size(CLI::App& app, std::vector<std::int64_t>& size) {
  const auto read = [&size](std::string const& text) {
    std::vector<std::int64_t> given = shape_in(text).value_or(std::vector<std::int64_t>());
    if (given.size() == 1) given.push_back(given[0]);
    if (given.size() != 2 || given[0] > 65536 || given[1] > 65536) {
      throw std::invalid_argument("--size: must be HEIGHTxWIDTH or one number for both, in [1, 65536], got " +
                                  in_quotes(text));
    }
    size = given;
  };
  return app
      .add_option_function<std::string>("--size", read,
                                        "of a picture in pixels, for networks that leave it open: 768, or height and "
                                        "width, 768x1024")
      ->type_name("HxW");
}

/// [C, ...] of x for one sample, all of it.
/// @param infos of files, which all state a shape
/// @param given --shape, or empty
/// @throws std::invalid_argument where it is needed and not given, or given and contradicts a network
inline std::vector<std::int64_t> shape_for(std::vector<tstitch::NetworkInfo> const& infos,
                                           std::vector<std::int64_t> const& given) {
  std::vector<std::int64_t> stated;
  for (tstitch::NetworkInfo const& info : infos) {
    tstitch::take_shape(stated, info);
    if (given.empty() || tstitch::sizes_fit(info.shape, given)) continue;
    throw std::invalid_argument("--shape: must be one of " + tstitch::words::sizes_text(info.shape) + " for " +
                                in_quotes(info.name) + tstitch::words::advice_on_sizes(info) + ", got " +
                                with_crosses(given));
  }
  if (!given.empty()) return given;
  if (stated.empty() || std::ranges::count(stated, 0) > 0) {
    throw std::invalid_argument("--shape: must say the sizes that the networks leave open, " +
                                tstitch::words::sizes_text(stated) + ", got none");
  }
  return stated;
}
