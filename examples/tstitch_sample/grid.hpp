/// @file
/// All pictures on one.
#pragma once

#include <tstitch/output/image.hpp>

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
