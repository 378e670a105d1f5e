/// @file
/// Tensors to pictures: single ones, strips and grids, as PNG files that carry the run's parameters. Needs
/// stb_image_write.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../base/crc32.hpp"
#include "../base/error.hpp"
#include "../base/write_file.hpp"
#include "../tensor/host_tensor.hpp"
#include "stb.hpp"

namespace tstitch {

/// 8-bit pixels, row by row from the top, channels interleaved.
struct Picture {
  int width = 0;
  int height = 0;
  int channels = 0;  ///< 1 (grey) or 3 (RGB)
  std::vector<std::uint8_t> pixels = {};

  std::uint8_t* row(int y) { return pixels.data() + std::size_t(y) * std::size_t(width) * std::size_t(channels); }
};

/// What a PNG says about itself: keyword (1 to 79 printable ASCII characters, without spaces at its ends or side by
/// side) and UTF-8 text without NUL.
using PngText = std::vector<std::pair<std::string, std::string>>;

/// Levels of 256, on the device of the images.
/// @param images [n, C, H, W], or videos [n, C, F, H, W], of a floating type in [-1, 1], C = 1 or 3; values outside are
///        clipped
/// @returns [n, H, W, C] or [n, F, H, W, C] uint8; a value v becomes round(127.5 (v + 1)), ties up, and what is not a
///          number anything
/// @throws std::invalid_argument for other shapes and types
inline at::Tensor to_bytes(at::Tensor const& images) {
  if (!images.defined() || !images.is_floating_point()) {
    detail::refuse("to_pictures", "images must be of a floating type, or bytes",
                   images.defined() ? at::toString(images.scalar_type()) : "an undefined tensor");
  }
  if ((images.dim() != 4 && images.dim() != 5) || (images.size(1) != 1 && images.size(1) != 3)) {
    detail::refuse("to_pictures", "images must be [n, 1 or 3, H, W]", detail::shape_text(images.sizes()));
  }
  return images.to(at::kFloat).mul(127.5).add_(128).clamp_(0, 255).to(at::kByte).movedim(1, -1).contiguous();
}

namespace detail {

/// Which of the images have finite values only; on their device, without a wait.
/// @returns [n] bool
inline at::Tensor are_finite(at::Tensor const& images) {
  return images.isfinite().flatten(1).all(1);
}

/// @param finite of are_finite, on the host
/// @throws std::runtime_error
inline void require_finite(char const* place, at::Tensor const& finite) {
  for (std::int64_t i = 0; i < finite.size(0); ++i) {
    if (values_of<bool>(finite)[i]) continue;
    throw std::runtime_error("tstitch::" + std::string(place) +
                             ": values must be finite numbers, got nan or infinity in image " + std::to_string(i) +
                             " of " + std::to_string(finite.size(0)));
  }
}

}  // namespace detail

/// @param images [n, C, H, W] in [-1, 1] on any device, see to_bytes; or what that gives, [n, H, W, C] uint8
/// @throws std::invalid_argument for other shapes and types
/// @throws std::runtime_error for values that are not finite, which a decoder in float16 may make
inline std::vector<Picture> to_pictures(at::Tensor const& images) {
  const bool are_bytes = images.defined() && images.scalar_type() == at::kByte;
  if (images.defined() && !are_bytes && images.dim() == 5) {
    detail::refuse("to_pictures", "images must be [n, 1 or 3, H, W]", detail::shape_text(images.sizes()));
  }
  if (are_bytes && (images.dim() != 4 || (images.size(3) != 1 && images.size(3) != 3))) {
    detail::refuse("to_pictures", "bytes must be [n, H, W, 1 or 3]", detail::shape_text(images.sizes()));
  }
  constexpr std::int64_t most = std::numeric_limits<int>::max();
  if (are_bytes && (images.size(1) > most || images.size(2) > most)) {
    detail::refuse("to_pictures", "height and width must be at most " + std::to_string(most),
                   detail::shape_text(images.sizes()));
  }
  const at::Tensor bytes = (are_bytes ? images : to_bytes(images)).cpu().contiguous();
  if (!are_bytes) detail::require_finite("to_pictures", detail::are_finite(images).cpu());
  std::vector<Picture> pictures;
  const std::int64_t size = bytes.size(0) ? bytes.numel() / bytes.size(0) : 0;
  for (std::int64_t i = 0; i < bytes.size(0); ++i) {
    const std::uint8_t* const begin = detail::values_of<std::uint8_t>(bytes) + i * size;
    pictures.push_back({int(bytes.size(2)), int(bytes.size(1)), int(bytes.size(3)), {begin, begin + size}});
  }
  return pictures;
}

namespace detail {

/// What stb can encode. It counts bytes in int and doubles its buffer, the last time to 1.5 GiB; what it makes of noise
/// is up to an eighth larger than the pixels.
inline constexpr std::int64_t most_picture_bytes = std::int64_t(1300) << 20;

/// @throws std::invalid_argument for more
inline void require_encodable(char const* place, std::int64_t width, std::int64_t height, std::int64_t channels) {
  constexpr std::int64_t most = most_picture_bytes;
  if (width < most && height < most && width * channels + 1 < most / std::max<std::int64_t>(height, 1)) return;
  refuse(place, "a picture must have less than 1300 MiB",
         std::to_string(width) + " x " + std::to_string(height) + " of " + std::to_string(channels) + " channels");
}

/// @throws std::invalid_argument for that, and for pictures that do not have the pixels they should
inline void require_encodable(char const* place, Picture const& picture) {
  require_encodable(place, picture.width, picture.height, picture.channels);
  const std::int64_t size = std::int64_t(picture.width) * picture.height * picture.channels;
  if (picture.width < 1 || picture.height < 1 || (picture.channels != 1 && picture.channels != 3) ||
      std::int64_t(picture.pixels.size()) != size) {
    refuse(place, "a picture must have pixels of width x height of 1 or 3 channels",
           std::to_string(picture.pixels.size()) + " bytes for " + std::to_string(picture.width) + " x " +
               std::to_string(picture.height) + " of " + std::to_string(picture.channels));
  }
}

}  // namespace detail

/// Each pixel as a square of factor x factor.
/// @throws std::invalid_argument for a factor below 1, a picture without its pixels, and for more than a PNG can have
///   here (1300 MiB)
inline Picture enlarge(Picture const& picture, int factor) {
  if (factor < 1) detail::refuse("enlarge", "factor must be at least 1", factor);
  detail::require_encodable("enlarge", picture);
  detail::require_encodable("enlarge", std::int64_t(picture.width) * factor, std::int64_t(picture.height) * factor,
                            picture.channels);
  Picture large{picture.width * factor, picture.height * factor, picture.channels};
  large.pixels.reserve(picture.pixels.size() * std::size_t(factor) * std::size_t(factor));
  for (int y = 0; y < large.height; ++y) {
    for (int x = 0; x < large.width; ++x) {
      const auto pixel =
          picture.pixels.begin() + (std::int64_t(y / factor) * picture.width + x / factor) * picture.channels;
      large.pixels.insert(large.pixels.end(), pixel, pixel + picture.channels);
    }
  }
  return large;
}

/// How large a grid is.
struct GridSize {
  int columns, rows;
  int width, height;  ///< of the whole, in pixels
};

/// How large make_grid will make a grid, and whether it can, before its pictures are drawn.
/// @param count of pictures, at least 1
/// @param width, height of each, at least 1
/// @param channels of each, 1 or 3
/// @param columns, gap see make_grid
/// @throws std::invalid_argument for others, and for more than a PNG can have here (1300 MiB)
inline GridSize grid_size(std::int64_t count, std::int64_t width, std::int64_t height, std::int64_t channels,
                          std::int64_t columns = 0, std::int64_t gap = 2) {
  constexpr auto place = "make_grid";
  if (count < 1) detail::refuse(place, "at least one picture is needed", double(count));
  if (columns < 0) detail::refuse(place, "columns must not be negative", double(columns));
  if (gap < 0) detail::refuse(place, "gap must not be negative", double(gap));
  if (width < 1 || height < 1 || (channels != 1 && channels != 3)) {
    detail::refuse(place, "pictures must have width and height from 1 on and 1 or 3 channels",
                   std::to_string(width) + " x " + std::to_string(height) + " of " + std::to_string(channels));
  }
  // Else the products could be beyond 64 bits.
  if (count > detail::most_picture_bytes) {
    detail::refuse(place, "pictures must be at most " + std::to_string(detail::most_picture_bytes),
                   std::to_string(count));
  }
  constexpr std::int64_t most_gap = std::numeric_limits<int>::max();
  if (gap > most_gap) detail::refuse(place, "gap must be at most " + std::to_string(most_gap), std::to_string(gap));
  if (columns == 0) columns = std::int64_t(std::ceil(std::sqrt(double(count))));
  columns = std::min(columns, count);
  const std::int64_t rows = (count + columns - 1) / columns;
  detail::require_encodable(place, width, height, channels);  // for the same reason
  detail::require_encodable(place, columns * (width + gap), rows * (height + gap), channels);
  return {int(columns), int(rows), int(columns * (width + gap) - gap), int(rows * (height + gap) - gap)};
}

/// Pictures of one size side by side, row after row, on white.
/// @param columns 1 makes a column, pictures.size() a strip, 0 about a square
/// @param gap pixels between pictures
/// @throws std::invalid_argument for no pictures or pictures of different sizes, and for more than a PNG can have here
///   (1300 MiB)
inline Picture make_grid(std::vector<Picture> const& pictures, int columns = 0, int gap = 2) {
  if (pictures.empty()) detail::refuse("make_grid", "at least one picture is needed", 0);
  detail::require_encodable("make_grid", pictures[0]);
  const int width = pictures[0].width, height = pictures[0].height, channels = pictures[0].channels;
  const GridSize size = grid_size(std::int64_t(pictures.size()), width, height, channels, columns, gap);
  Picture grid{size.width, size.height, channels};
  grid.pixels.assign(std::size_t(grid.width) * std::size_t(grid.height) * std::size_t(channels), 255);
  for (int i = 0; i < int(pictures.size()); ++i) {
    Picture const& picture = pictures[std::size_t(i)];
    if (picture.width != width || picture.height != height || picture.channels != channels) {
      detail::refuse("make_grid", "all pictures must have the size of the first", i);
    }
    detail::require_encodable("make_grid", picture);
    for (int y = 0; y < height; ++y) {
      const std::size_t bytes = std::size_t(width) * std::size_t(channels);
      std::memcpy(grid.row(i / size.columns * (height + gap) + y) + i % size.columns * (width + gap) * channels,
                  picture.pixels.data() + std::size_t(y) * bytes, bytes);
    }
  }
  return grid;
}

namespace detail {

inline void append_big_endian(std::string& bytes, std::uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) bytes += char(value >> shift);
}

/// A chunk of a PNG file: size, kind, body and checksum.
inline std::string png_chunk(std::string_view kind, std::string_view body) {
  std::string chunk;
  append_big_endian(chunk, std::uint32_t(body.size()));
  chunk += kind;
  chunk += body;
  Crc32 sum;
  sum.add(chunk.data() + 4, chunk.size() - 4);
  append_big_endian(chunk, sum.value());
  return chunk;
}

/// One iTXt chunk (PNG specification, 11.3.3.4), uncompressed.
/// @throws std::invalid_argument for what the specification does not allow
inline std::string text_chunk(std::string_view keyword, std::string_view text) {
  const auto printable = [](char c) { return c >= ' ' && c <= '~'; };
  if (keyword.empty() || keyword.size() > 79 || !std::all_of(keyword.begin(), keyword.end(), printable) ||
      keyword.front() == ' ' || keyword.back() == ' ' || keyword.find("  ") != keyword.npos) {
    refuse("encode_png",
           "a keyword must be 1 to 79 printable ASCII characters, without spaces at its ends or side by side",
           "'" + std::string(keyword.substr(0, 200)) + "' (" + std::to_string(keyword.size()) + " bytes)");
  }
  constexpr std::size_t most = (std::size_t(1) << 31) - 100;  // with what comes before it in the chunk
  if (text.size() > most) {
    refuse("encode_png", "a text must have at most " + std::to_string(most) + " bytes",
           std::to_string(text.size()) + " for '" + std::string(keyword) + "'");
  }
  if (!is_utf8(text) || text.find('\0') != text.npos) {
    refuse("encode_png", "a text must be UTF-8 without NUL",
           "'" + std::string(text.substr(0, 200)) + "' for '" + std::string(keyword) + "'");
  }
  std::string body(keyword);
  body += std::string(5, '\0');  // end of keyword, no compression (2), no language, no translated keyword
  body += text;
  return png_chunk("iTXt", body);
}

}  // namespace detail

/// The bytes of a PNG file.
/// @throws std::invalid_argument for a picture without its pixels or of more than 1300 MiB, and for keywords and texts
///   that a PNG cannot have
inline std::string encode_png(Picture const& picture, PngText const& text = {}) {
  detail::require_encodable("encode_png", picture);
  std::string chunks;
  for (auto const& [keyword, value] : text) chunks += detail::text_chunk(keyword, value);
  int size = 0;
  const std::unique_ptr<unsigned char, decltype(&std::free)> png(
      detail::stb::encode_png(picture.pixels.data(), picture.width, picture.height, picture.channels, size),
      &std::free);
  if (!png) throw std::runtime_error("tstitch::encode_png: out of memory");
  constexpr std::size_t header = 8 + 25;  // signature and IHDR
  std::string bytes(reinterpret_cast<char const*>(png.get()), header);
  bytes += chunks;
  return bytes.append(reinterpret_cast<char const*>(png.get()) + header, std::size_t(size) - header);
}

/// @throws std::runtime_error when the file cannot be written; then there is no partial file. It is path.part until it
///   is whole, or path.part1 and so on where that is taken.
inline void write_png(std::string const& path, Picture const& picture, PngText const& text = {}) {
  write_file(path, encode_png(picture, text));
}

/// All images of a tensor in one PNG; see to_pictures, make_grid and write_png.
inline void write_grid(std::string const& path, at::Tensor const& images, int columns = 0, PngText const& text = {}) {
  write_png(path, make_grid(to_pictures(images), columns), text);
}

}  // namespace tstitch
