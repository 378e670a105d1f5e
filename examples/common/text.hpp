/// @file
/// Words in pictures.
#pragma once

#include <tstitch/output/image.hpp>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#if __has_include(<stb_easy_font.h>)
#include <stb_easy_font.h>
#else
#include <stb/stb_easy_font.h>
#endif

constexpr int font_scale = 2;        // pixels for one of the font's
constexpr int caption_margin = 120;  // pixels

/// In pixels, of the longest line.
inline int text_width(std::string text) {
  return font_scale * stb_easy_font_width(text.data());
}

/// Black text, its first line's top left corner at (x, y); "\n" begins a new line.
inline void draw_text(tstitch::Picture& picture, int x, int y, std::string text) {
  constexpr int size = font_scale;
  struct Vertex {
    float x, y, z;
    unsigned char color[4];
  };
  std::vector<Vertex> vertices(4 * 70 * (text.size() + 1));
  const int quads =
      stb_easy_font_print(0, 0, text.data(), nullptr, vertices.data(), int(vertices.size() * sizeof(Vertex)));
  for (int q = 0; q < quads; ++q) {
    Vertex const& from = vertices[std::size_t(4 * q)];
    Vertex const& to = vertices[std::size_t(4 * q + 2)];
    for (int py = y + size * int(from.y); py < y + size * int(to.y); ++py) {
      for (int px = x + size * int(from.x); px < x + size * int(to.x); ++px) {
        if (px < 0 || py < 0 || px >= picture.width || py >= picture.height) continue;
        std::fill_n(picture.row(py) + px * picture.channels, picture.channels, std::uint8_t{0});
      }
    }
  }
}

/// A grid with one caption to the left of each row.
inline tstitch::Picture with_captions(tstitch::Picture const& grid, std::vector<std::string> const& captions) {
  tstitch::Picture picture{grid.width + caption_margin, grid.height, grid.channels};
  picture.pixels.assign(std::size_t(picture.width) * std::size_t(picture.height) * std::size_t(picture.channels), 255);
  for (int y = 0; y < grid.height; ++y) {
    const std::size_t bytes = std::size_t(grid.width) * std::size_t(grid.channels);
    std::copy_n(grid.pixels.data() + std::size_t(y) * bytes, bytes, picture.row(y) + caption_margin * picture.channels);
  }
  for (std::size_t i = 0; i < captions.size(); ++i) {
    const int top = int(double(grid.height) * double(i) / double(captions.size()));
    draw_text(picture, 8, top + std::max(0, grid.height / int(captions.size()) / 2 - 24), captions[i]);
  }
  return picture;
}
