/// @file
/// Pictures that are read from PNG and JPEG files.
#pragma once

#include <ATen/ops/adaptive_avg_pool2d.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/upsample_bilinear2d.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <system_error>

#include "strict.hpp"

#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#endif
#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_PNG
#define STBI_ONLY_JPEG
#define STBI_NO_STDIO
#define STBI_MAX_DIMENSIONS 32768
#if __has_include(<stb_image.h>)
#include <stb_image.h>
#else
#include <stb/stb_image.h>
#endif
#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif

/// @param option for messages
/// @param channels 1 (grey) or 3 (RGB); what is transparent counts as it is under it
/// @returns [1, channels, H, W] in [-1, 1], where to_pictures takes it back
/// @throws std::runtime_error for a file that is no PNG or JPEG
inline at::Tensor read_picture(std::string const& option, std::string const& path, int channels) {
  const auto refuse = [&](std::string const& got) {
    throw std::runtime_error(option + ": " + in_quotes(path) + " must be a PNG or JPEG file, got " + got);
  };
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) refuse("none");
  if (std::filesystem::file_size(path, error) > (std::uintmax_t(1) << 30)) refuse("more than 1 GiB");
  std::ifstream stream(path, std::ios::binary);
  const std::string file{std::istreambuf_iterator<char>(stream), {}};
  int width = 0, height = 0, had = 0;
  const std::unique_ptr<stbi_uc, decltype(&stbi_image_free)> pixels(
      stbi_load_from_memory(reinterpret_cast<stbi_uc const*>(file.data()), int(file.size()), &width, &height, &had,
                            channels),
      stbi_image_free);
  if (!pixels) refuse(in_quotes(stbi_failure_reason()));
  const at::Tensor bytes = at::from_blob(pixels.get(), {1, height, width, channels}, at::kByte);
  return bytes.permute({0, 3, 1, 2}).to(at::kFloat).contiguous().div_(127.5).sub_(1);
}

/// The picture at another size of the same shape: an average of the pixels that come to lie on each, or what is between
/// them.
/// @param picture [1, C, h, w]
/// @returns [1, C, height, width]
/// @throws std::invalid_argument where that would distort it
inline at::Tensor resized(std::string const& option, at::Tensor const& picture, std::int64_t height,
                          std::int64_t width) {
  const std::int64_t h = picture.size(2), w = picture.size(3);
  if (h == height && w == width) return picture;
  if (h * width != w * height) {
    const auto size = [](std::int64_t across, std::int64_t down) {
      return std::to_string(across) + " x " + std::to_string(down);
    };
    throw std::invalid_argument(option + ": must be a picture of " + size(width, height) +
                                " or of the same proportions, got one of " + size(w, h));
  }
  if (height < h) return at::adaptive_avg_pool2d(picture, {height, width});
  return at::upsample_bilinear2d(picture, {height, width}, false);
}
