/// @file
/// Pictures for a look at them: in another size, and as text.
#pragma once

#include <tstitch/output/image.hpp>

#include <ATen/ops/adaptive_avg_pool2d.h>
#include <ATen/ops/from_blob.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

/// Bytes in the 64 characters of RFC 4648, section 4.
inline std::string base64(std::string_view bytes) {
  static constexpr char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    std::uint32_t bits = 0;
    for (std::size_t k = 0; k < 3; ++k) {
      bits = bits << 8 | (i + k < bytes.size() ? static_cast<unsigned char>(bytes[i + k]) : 0U);
    }
    for (std::size_t k = 0; k < 4; ++k) text += i + k > bytes.size() ? '=' : digits[bits >> (18 - 6 * k) & 63U];
  }
  return text;
}

/// The picture at another size: of the pixels that come to lie on each their mean.
inline tstitch::Picture resized_picture(tstitch::Picture const& picture, int width, int height) {
  if (width == picture.width && height == picture.height) return picture;
  const at::Tensor bytes = at::from_blob(const_cast<std::uint8_t*>(picture.pixels.data()),
                                         {1, picture.height, picture.width, picture.channels}, at::kByte);
  const at::Tensor small =
      at::adaptive_avg_pool2d(bytes.permute({0, 3, 1, 2}).to(at::kFloat), {height, width}).round().to(at::kByte);
  const at::Tensor rows = small.permute({0, 2, 3, 1}).contiguous();
  tstitch::Picture made{width, height, picture.channels};
  made.pixels.assign(rows.const_data_ptr<std::uint8_t>(), rows.const_data_ptr<std::uint8_t>() + rows.numel());
  return made;
}
