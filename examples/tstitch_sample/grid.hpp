/// @file
/// All pictures on one.
#pragma once

#include <tstitch/output/animation.hpp>
#include <tstitch/output/image.hpp>

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "../common/text.hpp"
#include "output.hpp"
#include "places.hpp"

/// @param captions one for each row, or none
inline void write_grid(Job const& job, std::vector<tstitch::Picture> pictures, tstitch::PngText const& text,
                       std::vector<std::string> const& captions = {}) {
  for (tstitch::Picture& picture : pictures) picture = tstitch::enlarge(picture, job.arguments.scale);
  const tstitch::Picture grid = tstitch::make_grid(pictures, int(grid_columns(job)), grid_gap);
  tstitch::write_png(job.arguments.grid, captions.empty() ? grid : with_captions(grid, captions), text);
}

/// A frame for each seed, or each place on the way from one to another: what is beside one another there.
inline void write_animation(Job const& job, std::vector<tstitch::Picture> const& pictures,
                            tstitch::PngText const& text) {
  const auto of_one = std::ptrdiff_t(job.beside());
  std::vector<tstitch::Picture> frames;
  for (auto next = pictures.begin(); pictures.end() - next >= of_one; next += of_one) {
    std::vector<tstitch::Picture> row;
    std::transform(next, next + of_one, std::back_inserter(row),
                   [&](tstitch::Picture const& each) { return tstitch::enlarge(each, job.arguments.scale); });
    frames.push_back(tstitch::make_grid(row, int(of_one), grid_gap));
  }
  if (!frames.empty()) tstitch::write_animation(job.arguments.animation, frames, job.arguments.frame_seconds, text);
}
