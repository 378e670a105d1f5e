/// @file
/// Pictures one after another in one file: animated PNG, which browsers show and every reader of PNG takes for its
/// first picture. Needs stb_image_write.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "../base/write_file.hpp"
#include "image.hpp"

namespace tstitch {
namespace detail {

/// Where the chunks of a PNG file begin, with their kinds; the file is one that encode_png made.
struct PngChunk {
  std::size_t begin, body, size;  ///< `size` of the body
  std::string_view kind;
};

inline std::vector<PngChunk> png_chunks(std::string_view png) {
  std::vector<PngChunk> chunks;
  for (std::size_t at = 8; at + 12 <= png.size();) {
    std::size_t size = 0;
    for (std::size_t i = 0; i < 4; ++i) size = size << 8 | static_cast<unsigned char>(png[at + i]);
    chunks.push_back({at, at + 8, size, png.substr(at + 4, 4)});
    at += 12 + size;
  }
  return chunks;
}

/// The nearest fraction of two numbers of 16 bits, so that one over a rate of frames is exact.
/// @param seconds in [0.01, 60]
inline std::pair<std::int64_t, std::int64_t> as_fraction(double seconds) {
  std::int64_t p = 1, q = 0, last_p = 0, last_q = 1;  // two convergents of the continued fraction
  for (double rest = seconds; rest < 65536; rest = 1 / (rest - std::floor(rest))) {
    const auto whole = std::int64_t(rest);
    const std::int64_t next_p = whole * p + last_p, next_q = whole * q + last_q;
    if (next_p > 65535 || next_q > 65535) break;
    last_p = std::exchange(p, next_p);
    last_q = std::exchange(q, next_q);
    if (std::abs(double(p) / double(q) - seconds) <= 1e-9 * seconds) break;
  }
  return {p, q};
}

}  // namespace detail

/// The bytes of an animated PNG (PNG specification, third edition, section 11.3.6), which goes round for ever.
/// @param frames of one size, at most 100000
/// @param seconds that each is shown, in [0.01, 60]
/// @throws std::invalid_argument for others, and as encode_png does
inline std::string encode_animation(std::vector<Picture> const& frames, double seconds, PngText const& text = {}) {
  constexpr std::size_t most = 100'000;
  if (frames.empty() || frames.size() > most) {
    detail::refuse("encode_animation", "frames must be 1 to " + std::to_string(most), std::to_string(frames.size()));
  }
  if (!(seconds >= 0.01 && seconds <= 60)) {
    detail::refuse("encode_animation", "seconds must be in [0.01, 60]", seconds);
  }
  const auto [numerator, denominator] = detail::as_fraction(seconds);
  Picture const& first = frames.front();
  std::string file;
  std::uint32_t number = 0;  // of chunks, which readers put in order by it
  for (std::size_t i = 0; i < frames.size(); ++i) {
    Picture const& frame = frames[i];
    if (frame.width != first.width || frame.height != first.height || frame.channels != first.channels) {
      detail::refuse("encode_animation", "all frames must have the size of the first", double(i));
    }
    const std::string png = encode_png(frame, i == 0 ? text : PngText{});
    std::size_t before = 0;  // the pixels: signature, header and texts
    std::string data;
    for (detail::PngChunk const& chunk : detail::png_chunks(png)) {
      if (chunk.kind != "IDAT") continue;
      if (before == 0) before = chunk.begin;
      data += png.substr(chunk.body, chunk.size);
    }
    if (i == 0) {
      file = png.substr(0, before);
      std::string all;
      detail::append_big_endian(all, std::uint32_t(frames.size()));
      detail::append_big_endian(all, 0);  // without end
      file += detail::png_chunk("acTL", all);
    }
    std::string control;
    detail::append_big_endian(control, number++);
    detail::append_big_endian(control, std::uint32_t(frame.width));
    detail::append_big_endian(control, std::uint32_t(frame.height));
    detail::append_big_endian(control, 0);  // from the left
    detail::append_big_endian(control, 0);  // from the top
    detail::append_big_endian(control, std::uint32_t(numerator << 16 | denominator));
    control += std::string(2, '\0');  // each takes the place of the one before
    file += detail::png_chunk("fcTL", control);
    if (i == 0) {
      file += detail::png_chunk("IDAT", data);
    } else {
      std::string numbered;
      detail::append_big_endian(numbered, number++);
      file += detail::png_chunk("fdAT", numbered + data);
    }
  }
  return file + detail::png_chunk("IEND", "");
}

/// @throws as encode_animation does; std::runtime_error when the file cannot be written; then there is no partial file
inline void write_animation(std::string const& path, std::vector<Picture> const& frames, double seconds,
                            PngText const& text = {}) {
  write_file(path, encode_animation(frames, seconds, text));
}

}  // namespace tstitch
