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
  std::string label = {};  ///< in the legend; empty: not there
  bool dashed = false;
  bool dots = false;  ///< at each point
};

/// Colours that can be told apart, again from the first after the last.
inline std::array<std::uint8_t, 3> curve_color(std::size_t index) {
  constexpr std::array<std::array<std::uint8_t, 3>, 8> colors{{{31, 119, 180},
                                                               {214, 90, 20},
                                                               {44, 140, 60},
                                                               {150, 60, 170},
                                                               {190, 30, 60},
                                                               {120, 85, 70},
                                                               {20, 150, 160},
                                                               {120, 120, 120}}};
  return colors[index % colors.size()];
}

/// Where an axis from 0 may end so that its five ticks are round numbers: at `largest` or a little above.
inline double axis_end(double largest) {
  if (!(largest > 0)) return 1;
  const double power = std::pow(10, std::floor(std::log10(largest)));
  for (const double factor : {1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.5}) {
    if (factor * power >= largest) return factor * power;
  }
  return 10 * power;
}

/// Axes with ticks, curves on them, dashed vertical lines, words, and a legend of the curves that have a label.
struct Plot {
  std::string title;
  std::string x_label;
  double x_begin = 0, x_end = 1, y_begin = 0, y_end = 1;
  std::vector<Curve> curves = {};
  std::vector<double> marks = {};    ///< at these x
  std::vector<double> x_ticks = {};  ///< six even ones if empty
  bool x_logarithmic = false;

  /// @returns a picture that is higher by the legend
  tstitch::Picture draw(int width = 900, int height = 560) const {
    constexpr int entry_height = 24;
    int entry_width = 0;
    std::vector<Curve const*> entries;
    for (Curve const& curve : curves) {
      if (curve.label.empty()) continue;
      entries.push_back(&curve);
      entry_width = std::max(entry_width, text_width(curve.label) + 60);
    }
    const int left = 90, right = width - 30, top = 60, bottom = height - 80;
    const int columns = std::max(1, (right - left) / std::max(1, entry_width));
    const int rows = (int(entries.size()) + columns - 1) / columns;
    tstitch::Picture picture{width, height + rows * entry_height, 3};
    picture.pixels.assign(std::size_t(picture.width) * std::size_t(picture.height) * 3, 255);
    const auto px = [&](double x) {
      const double share = x_logarithmic ? std::log(x / x_begin) / std::log(x_end / x_begin)  //
                                         : (x - x_begin) / (x_end - x_begin);
      return left + (right - left) * share;
    };
    const auto py = [&](double y) { return bottom - (bottom - top) * (y - y_begin) / (y_end - y_begin); };
    const auto dot = [&](int x, int y, std::array<std::uint8_t, 3> color) {
      if (x >= 0 && y >= 0 && x < picture.width && y < picture.height) {
        std::copy(color.begin(), color.end(), picture.row(y) + 3 * x);
      }
    };
    const auto square = [&](double x, double y, int half, std::array<std::uint8_t, 3> color) {
      for (int dx = -half; dx <= half; ++dx) {
        for (int dy = -half; dy <= half; ++dy) dot(int(x) + dx, int(y) + dy, color);
      }
    };
    // What is above `from` or below `to` is left out.
    const auto line = [&](double x0, double y0, double x1, double y1, Curve const& curve, int from, int to) {
      const double length = std::hypot(x1 - x0, y1 - y0);
      const int points = int(std::max(std::abs(x1 - x0), std::abs(y1 - y0))) + 1;
      for (int i = 0; i <= points; ++i) {
        const double u = double(i) / points, y = y0 + u * (y1 - y0);
        if (y < from || y > to || (curve.dashed && int(u * length) / 7 % 2)) continue;
        square(x0 + u * (x1 - x0), y, 1, curve.color);
      }
    };
    constexpr std::array<std::uint8_t, 3> grey{215, 215, 215}, dark{60, 60, 60};
    char text[32];
    for (int tick = 0; tick <= 5; ++tick) {
      const double y = y_begin + (y_end - y_begin) * tick / 5;
      for (int i = left; i <= right; ++i) dot(i, int(py(y)), tick ? grey : dark);
      std::snprintf(text, sizeof text, "%.4g", y);
      draw_text(picture, 20, int(py(y)) - 8, text);
    }
    std::vector<double> ticks = x_ticks;
    for (int tick = 0; x_ticks.empty() && tick <= 5; ++tick) {
      ticks.push_back(x_begin + (x_end - x_begin) * tick / 5);
    }
    for (const double x : ticks) {
      for (int i = top; i <= bottom; ++i) dot(int(px(x)), i, grey);
      std::snprintf(text, sizeof text, "%.4g", x);
      draw_text(picture, int(px(x)) - 12, bottom + 12, text);
    }
    for (int i = top; i <= bottom; ++i) dot(left, i, dark);
    for (const double mark : marks) {
      for (int i = top; i <= bottom; ++i) {
        if (i / 6 % 2) dot(int(px(mark)), i, dark);
      }
    }
    for (Curve const& curve : curves) {
      for (std::size_t k = 0; k < curve.x.size(); ++k) {
        const double x = px(curve.x[k]), y = py(curve.y[k]);
        if (k > 0) line(px(curve.x[k - 1]), py(curve.y[k - 1]), x, y, curve, top, bottom);
        if (curve.dots && y >= top && y <= bottom) square(x, y, 4, curve.color);
      }
    }
    draw_text(picture, left, 20, title);
    draw_text(picture, left, bottom + 44, x_label);
    for (std::size_t i = 0; i < entries.size(); ++i) {
      const int x = left + int(i) % columns * entry_width, y = bottom + 84 + int(i) / columns * entry_height;
      line(x, y, x + 28, y, *entries[i], 0, picture.height);
      if (entries[i]->dots) square(x + 14, y, 4, entries[i]->color);
      draw_text(picture, x + 40, y - 8, entries[i]->label);
    }
    return picture;
  }
};

/// Two pictures of three channels in one, side by side.
inline tstitch::Picture beside(tstitch::Picture const& left, tstitch::Picture const& right) {
  tstitch::Picture both{left.width + right.width, std::max(left.height, right.height), 3};
  both.pixels.assign(std::size_t(both.width) * std::size_t(both.height) * 3, 255);
  for (int y = 0; y < both.height; ++y) {
    if (y < left.height) std::copy_n(left.pixels.data() + std::size_t(y) * left.width * 3, left.width * 3, both.row(y));
    if (y < right.height) {
      std::copy_n(right.pixels.data() + std::size_t(y) * right.width * 3, right.width * 3,
                  both.row(y) + 3 * left.width);
    }
  }
  return both;
}
