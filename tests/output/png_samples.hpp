/// @file
/// Pictures that png_test.py knows, too.
#pragma once

#include <tstitch/output/image.hpp>

#include <string>

inline tstitch::Picture sample(int width, int height, int channels) {
  tstitch::Picture picture{width, height, channels};
  for (std::int64_t i = 0; i < std::int64_t(width) * height * channels; ++i) {
    picture.pixels.push_back(std::uint8_t((i * i * 7 + i * 3) % 251));
  }
  return picture;
}

/// Of another translation unit than main's.
void write_elsewhere(std::string const& path, tstitch::Picture const& picture);

/// By a copy of stb_image_write that is the program's own, which counts what it allocates.
void write_by_own_copy(std::string const& path, tstitch::Picture const& picture);
int allocations_of_own_copy();
