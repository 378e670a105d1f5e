/// @file
/// Curves in a picture.
#pragma once

#include <tstitch/output/image.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "text.hpp"

struct Curve {
  std::vector<double> x = {}, y = {};
  std::array<std::uint8_t, 3> color{31, 119, 180};
};

/// Axes with ticks, curves on them, dashed vertical lines, and words.
struct Plot {
  std::string title;
  std::string x_label;
  double x_begin = 0, x_end = 1, y_begin = 0, y_end = 1;
  std::vector<Curve> curves = {};
  std::vector<double> marks = {};  ///< at these x

  tstitch::Picture draw(int width = 900, int height = 560) const {
    tstitch::Picture picture{width, height, 3};
    picture.pixels.assign(std::size_t(width) * std::size_t(height) * 3, 255);
    const int left = 90, right = width - 30, top = 60, bottom = height - 80;
    const auto px = [&](double x) { return left + (right - left) * (x - x_begin) / (x_end - x_begin); };
    const auto py = [&](double y) { return bottom - (bottom - top) * (y - y_begin) / (y_end - y_begin); };
    const auto dot = [&](int x, int y, std::array<std::uint8_t, 3> color) {
      if (x >= 0 && y >= 0 && x < width && y < height) std::copy(color.begin(), color.end(), picture.row(y) + 3 * x);
    };
    constexpr std::array<std::uint8_t, 3> grey{215, 215, 215}, dark{60, 60, 60};
    for (int tick = 0; tick <= 5; ++tick) {
      const double x = x_begin + (x_end - x_begin) * tick / 5, y = y_begin + (y_end - y_begin) * tick / 5;
      for (int i = left; i <= right; ++i) dot(i, int(py(y)), tick ? grey : dark);
      for (int i = top; i <= bottom; ++i) dot(int(px(x)), i, tick ? grey : dark);
      char text[32];
      std::snprintf(text, sizeof text, "%.4g", y);
      draw_text(picture, 20, int(py(y)) - 8, text);
      std::snprintf(text, sizeof text, "%.4g", x);
      draw_text(picture, int(px(x)) - 12, bottom + 12, text);
    }
    for (const double mark : marks) {
      for (int i = top; i <= bottom; ++i) {
        if (i / 6 % 2) dot(int(px(mark)), i, dark);
      }
    }
    for (Curve const& curve : curves) {
      for (std::size_t k = 1; k < curve.x.size(); ++k) {
        const double x0 = px(curve.x[k - 1]), y0 = py(curve.y[k - 1]), x1 = px(curve.x[k]), y1 = py(curve.y[k]);
        const int points = int(std::max(std::abs(x1 - x0), std::abs(y1 - y0))) + 1;
        for (int i = 0; i <= points; ++i) {
          const double u = double(i) / points;
          for (int dx = -1; dx <= 1; ++dx) {
            for (int dy = -1; dy <= 1; ++dy) {
              const double y = y0 + u * (y1 - y0);
              if (y >= top && y <= bottom) dot(int(x0 + u * (x1 - x0)) + dx, int(y) + dy, curve.color);
            }
          }
        }
      }
    }
    draw_text(picture, left, 20, title);
    draw_text(picture, left, bottom + 44, x_label);
    return picture;
  }
};
