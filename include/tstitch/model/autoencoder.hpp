/// @file
/// Latents to pictures or videos and back: the two halves of an autoencoder, in slices and tiles that bound memory.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "../base/text.hpp"
#include "../tensor/host_tensor.hpp"
#include "network_info.hpp"
#include "per_channel.hpp"

namespace tstitch {

/// What an autoencoder is. Networks know latent_scale (latent - latent_shift) of a latent.
///
/// Where scaled_latents is true, the callable takes or gives what networks know, whatever their scale and shift; then
/// latent_scale is 1 and latent_shift 0, and say nothing about networks.
struct AutoencoderInfo {
  std::string name = {};
  std::int64_t latent_channels = 4;
  std::int64_t picture_channels = 3;
  std::int64_t upsampling = 8;  ///< pixels of a picture for one of a latent, each way
  /// Of videos, at least 1: F frames of a latent are temporal_upsampling (F - 1) + 1 of the video. 0: of pictures.
  std::int64_t temporal_upsampling = 0;
  PerChannel latent_scale = 1;
  PerChannel latent_shift = 0;
  bool scaled_latents = false;
  std::string license = {};
};

/// One half of an autoencoder before slices and tiles: a callable and what it is.
struct Autoencoder {
  /// [n, C, h, w] in float32 to [n, C', h', w'] in any floating type; of videos [n, C, F, h, w] to [n, C', F', h', w'].
  std::function<at::Tensor(at::Tensor const&)> function;
  AutoencoderInfo info = {};
  at::Device device = at::kCPU;
};

/// What a decoder or an encoder must be for a network, and is not: "must take 4 channels for 'latent', got 16".
/// @param decodes else it encodes
/// @returns nothing where it suits. Latents of scale 1 suit any network: tiny autoencoders are trained on latents as
/// diffusion networks know them, and say so.
inline std::string latents_mismatch(NetworkInfo const& network, AutoencoderInfo const& autoencoder, bool decodes) {
  const std::string of = " for " + detail::in_quotes(network.name) + ", got ";
  if (autoencoder.latent_channels != network.channels) {
    return std::string(decodes ? "must take " : "must make ") + std::to_string(network.channels) + " channels" + of +
           std::to_string(autoencoder.latent_channels);
  }
  const bool same =
      network.latent_scale == autoencoder.latent_scale && network.latent_shift == autoencoder.latent_shift;
  const bool any = autoencoder.latent_scale == 1 && autoencoder.latent_shift == 0;
  if (network.latent_scale == 0 || same || any) return "";
  const auto text = [](auto const& side, auto const& other) {
    return "scale " + words::scale_and_shift(side.latent_scale, side.latent_shift, other.latent_scale,
                                             other.latent_shift, " and shift ");
  };
  return "must have latents of " + text(network, autoencoder) + of + text(autoencoder, network);
}

/// Gives the shape of x the size of what is decoded from it; 0 leaves a size as it is.
/// @param shape [C, H, W], or of a video [C, F, H, W]
/// @param height, width in pixels
/// @throws std::invalid_argument for sizes that the decoder does not make, and for other shapes
inline void take_picture_size(std::vector<std::int64_t>& shape, AutoencoderInfo const& decoder, std::int64_t height,
                              std::int64_t width, std::int64_t frames) {
  constexpr auto place = "take_picture_size";
  const std::int64_t pixels = decoder.upsampling, stride = std::max<std::int64_t>(decoder.temporal_upsampling, 1);
  if ((height || width) && shape.size() < 3) {
    detail::refuse(place, "height and width are for networks whose x has them", words::sizes_text(shape));
  }
  if (height < 0 || width < 0 || height % pixels || width % pixels) {
    detail::refuse(place, "height and width must be multiples of " + std::to_string(pixels),
                   std::to_string(height) + " and " + std::to_string(width));
  }
  if (frames && shape.size() != 4) {
    detail::refuse(place, "frames are for networks whose x is a video", words::sizes_text(shape));
  }
  if (frames && (frames < 1 || (frames - 1) % stride)) {
    detail::refuse(place, "frames must be 1 plus a multiple of " + std::to_string(stride), std::to_string(frames));
  }
  if (frames) shape[1] = (frames - 1) / stride + 1;
  if (height) shape[shape.size() - 2] = height / pixels;
  if (width) shape.back() = width / pixels;
}

/// How much is decoded or encoded at once.
struct Tiling {
  std::int64_t rows = 0;  ///< pictures at once, 0 for all
  /// Height and width of a tile, in pixels of the latent; 0 for whole pictures. Tiles are all of this size, so that an
  /// engine sees one shape; smaller pictures are one tile.
  std::int64_t tile = 0;
  /// By how much neighbouring tiles overlap at least, in pixels of the latent: there they go over into each other
  /// linearly. Half a receptive field hides a seam; 16 does for the usual autoencoders.
  std::int64_t overlap = 16;
};

namespace detail {

/// @throws std::invalid_argument for what is no half of an autoencoder
inline Autoencoder checked(Autoencoder half) {
  AutoencoderInfo const& info = half.info;
  const std::string place = "Autoencoder '" + info.name + "'";
  require_callable(place, half.function);
  for (const std::int64_t number : {info.latent_channels, info.picture_channels, info.upsampling}) {
    if (number < 1) refuse(place, "channels and upsampling must be at least 1", double(number));
  }
  if (info.temporal_upsampling < 0) {
    refuse(place, "temporal_upsampling must not be negative", double(info.temporal_upsampling));
  }
  require_channels(place, "latent_scale", info.latent_scale, info.latent_channels);
  require_channels(place, "latent_shift", info.latent_shift, info.latent_channels);
  for (double const scale : info.latent_scale.values()) {
    if (!(std::isfinite(scale) && scale != 0)) refuse(place, "latent_scale must be a number other than 0", scale);
  }
  for (double const shift : info.latent_shift.values()) {
    if (!std::isfinite(shift)) refuse(place, "latent_shift must be a number", shift);
  }
  if (info.scaled_latents && (info.latent_scale != 1 || info.latent_shift != 0)) {
    refuse(place, "scaled latents must have latent_scale 1 and latent_shift 0",
           words::text(info.latent_scale) + " and " + words::text(info.latent_shift));
  }
  return half;
}

/// Where tiles begin along one side; the last is moved back to end with the side.
inline std::vector<std::int64_t> tile_starts(std::int64_t size, std::int64_t tile, std::int64_t overlap) {
  std::vector<std::int64_t> starts{0};
  while (starts.back() + tile < size) starts.push_back(std::min(starts.back() + tile - overlap, size - tile));
  return starts;
}

/// One side of a tile: where it is among the pixels that come out.
struct TileSide {
  std::int64_t begin, size, overlap, whole;

  /// How much its pixel i counts: 1, falling linearly over `overlap` towards a neighbour.
  double weight(std::int64_t i) const {
    const auto ramp = [&](std::int64_t from_edge) {
      return std::min(1.0, (double(from_edge) + 0.5) / double(overlap));
    };
    return (begin > 0 ? ramp(i) : 1) * (begin + size < whole ? ramp(size - 1 - i) : 1);
  }
};

/// [down.size, along.size], how much each pixel of a tile counts; on this device without a wait.
inline at::Tensor tile_weights(TileSide const& down, TileSide const& along, at::Tensor const& like) {
  const at::Tensor weights = host_tensor({down.size, along.size}, at::kFloat, like.is_cuda());
  float* value = weights.mutable_data_ptr<float>();
  for (std::int64_t y = 0; y < down.size; ++y) {
    for (std::int64_t x = 0; x < along.size; ++x) *value++ = float(down.weight(y) * along.weight(x));
  }
  return weights.to(like.device(), like.scalar_type(), /*non_blocking=*/like.is_cuda());
}

/// Runs a half over rows and tiles.
/// @param x [n, C, h unit_in, w unit_in], of videos [n, C, F, h unit_in, w unit_in]
/// @param shape_out [channels_out], of videos [channels_out, frames]
/// @returns [n, *shape_out, h unit_out, w unit_out]
inline at::Tensor run_tiled(Autoencoder const& half, at::Tensor const& x, Tiling const& tiling,
                            std::vector<std::int64_t> const& shape_out, std::int64_t unit_in, std::int64_t unit_out) {
  const std::int64_t n = x.size(0), height = x.size(-2) / unit_in, width = x.size(-1) / unit_in;
  const auto sizes_out = [&](std::int64_t rows, std::int64_t h, std::int64_t w) {
    std::vector<std::int64_t> sizes{rows};
    sizes.insert(sizes.end(), shape_out.begin(), shape_out.end());
    sizes.insert(sizes.end(), {h * unit_out, w * unit_out});
    return sizes;
  };
  const at::Tensor out = x.new_empty(sizes_out(n, height, width));
  const auto run = [&](at::Tensor const& part) {
    const at::Tensor result = half.function(part.contiguous());
    const std::vector<std::int64_t> sizes = sizes_out(part.size(0), part.size(-2) / unit_in, part.size(-1) / unit_in);
    if (!result.defined() || result.sizes() != sizes) {
      throw std::runtime_error("tstitch::Autoencoder '" + half.info.name + "': the output must be " +
                               shape_text(sizes) + ", got " +
                               (result.defined() ? shape_text(result.sizes()) : "an undefined tensor"));
    }
    if (!result.is_floating_point()) {
      throw std::runtime_error("tstitch::Autoencoder '" + half.info.name +
                               "': the output must be of a floating type, got " + at::toString(result.scalar_type()));
    }
    return result.to(x.scalar_type());
  };
  const std::int64_t rows = tiling.rows ? tiling.rows : n;
  const std::int64_t tile_h = tiling.tile ? std::min(tiling.tile, height) : height;
  const std::int64_t tile_w = tiling.tile ? std::min(tiling.tile, width) : width;
  const std::int64_t overlap_h = std::min(tiling.overlap, tile_h - 1), overlap_w = std::min(tiling.overlap, tile_w - 1);
  for (std::int64_t first = 0; first < n; first += rows) {
    const std::int64_t count = std::min(rows, n - first);
    const at::Tensor slice = x.narrow(0, first, count), to = out.narrow(0, first, count);
    if (tile_h == height && tile_w == width) {
      to.copy_(run(slice));
      continue;
    }
    to.zero_();
    const at::Tensor total = to.new_zeros({height * unit_out, width * unit_out});
    const std::vector<std::int64_t> tops = tile_starts(height, tile_h, overlap_h),
                                    lefts = tile_starts(width, tile_w, overlap_w);
    for (const std::int64_t top : tops) {
      const TileSide down{top * unit_out, tile_h * unit_out, std::max<std::int64_t>(overlap_h, 1) * unit_out,
                          height * unit_out};
      for (const std::int64_t left : lefts) {
        const TileSide along{left * unit_out, tile_w * unit_out, std::max<std::int64_t>(overlap_w, 1) * unit_out,
                             width * unit_out};
        const auto place = [&](at::Tensor const& of) {
          return of.narrow(of.dim() - 2, down.begin, down.size).narrow(of.dim() - 1, along.begin, along.size);
        };
        const at::Tensor weights = tile_weights(down, along, to);
        const at::Tensor part =
            slice.narrow(-2, top * unit_in, tile_h * unit_in).narrow(-1, left * unit_in, tile_w * unit_in);
        place(to).addcmul_(run(part), weights);
        place(total).add_(weights);
      }
    }
    to.div_(total);
  }
  return out;
}

/// @param video whether x has frames
inline void check_tiling(char const* place, at::Tensor const& x, Tiling const& tiling, std::int64_t channels,
                         bool video) {
  if (!x.defined() || x.dim() != (video ? 5 : 4) || x.size(1) != channels || x.numel() == 0) {
    refuse(place, "x must be [n, " + std::to_string(channels) + (video ? ", F" : "") + ", h, w]",
           x.defined() ? shape_text(x.sizes()) : "an undefined tensor");
  }
  if (!x.is_floating_point()) refuse(place, "x must be of a floating type", at::toString(x.scalar_type()));
  if (tiling.rows < 0) refuse(place, "rows must not be negative", double(tiling.rows));
  if (tiling.tile < 0) refuse(place, "tile must not be negative", double(tiling.tile));
  if (tiling.overlap < 0 || (tiling.tile > 0 && tiling.overlap >= tiling.tile)) {
    refuse(place, "overlap must be in [0, tile)", double(tiling.overlap));
  }
}

}  // namespace detail

/// Latents to pictures, or to videos.
class Decoder {
 public:
  /// @throws std::invalid_argument for information that makes no sense
  explicit Decoder(Autoencoder half) : half_(detail::checked(std::move(half))) {}

  /// @param latents [n, latent_channels, h, w] as networks know them, on the decoder's device;
  ///        of videos [n, latent_channels, F, h, w]
  /// @returns [n, picture_channels, upsampling h, upsampling w] in [-1, 1], a little beyond at times; the type of
  ///          latents; of videos [n, picture_channels, temporal_upsampling (F - 1) + 1, upsampling h, upsampling w]
  /// @throws std::invalid_argument for latents or tiles that make no sense
  /// @throws std::runtime_error when the decoder returns another shape
  at::Tensor operator()(at::Tensor const& latents, Tiling const& tiling = {}) const {
    const c10::AutoGradMode no_gradients(false);
    const bool video = info().temporal_upsampling > 0;
    detail::check_tiling("Decoder", latents, tiling, info().latent_channels, video);
    const at::Tensor z =
        detail::times(latents, detail::each_channel(info().latent_scale, [](double scale) { return 1 / scale; }));
    detail::add_to(z, info().latent_shift);
    std::vector<std::int64_t> shape{info().picture_channels};
    if (video) shape.push_back(info().temporal_upsampling * (latents.size(2) - 1) + 1);
    return detail::run_tiled(half_, z, tiling, shape, 1, info().upsampling);
  }

  AutoencoderInfo const& info() const { return half_.info; }
  at::Device device() const { return half_.device; }

 private:
  Autoencoder half_;
};

/// Pictures to latents: the mean of the distribution that the encoder predicts, as networks know it.
class Encoder {
 public:
  /// @throws std::invalid_argument for information that makes no sense
  explicit Encoder(Autoencoder half) : half_(detail::checked(std::move(half))) {
    if (info().temporal_upsampling > 0) {
      detail::refuse("Encoder", "temporal_upsampling must be 0: videos are decoded only",
                     double(info().temporal_upsampling));
    }
  }

  /// @param pictures [n, picture_channels, H, W] in [-1, 1], on the encoder's device; H and W multiples of upsampling
  /// @returns [n, latent_channels, H / upsampling, W / upsampling], the type of pictures
  /// @throws std::invalid_argument for pictures or tiles that make no sense
  /// @throws std::runtime_error when the encoder returns another shape
  at::Tensor operator()(at::Tensor const& pictures, Tiling const& tiling = {}) const {
    const c10::AutoGradMode no_gradients(false);
    detail::check_tiling("Encoder", pictures, tiling, info().picture_channels, false);
    if (pictures.size(2) % info().upsampling || pictures.size(3) % info().upsampling) {
      detail::refuse("Encoder", "height and width must be multiples of " + std::to_string(info().upsampling),
                     detail::shape_text(pictures.sizes()));
    }
    const at::Tensor latents =
        detail::run_tiled(half_, pictures, tiling, {info().latent_channels}, info().upsampling, 1);
    detail::add_to(latents, detail::negative(info().latent_shift));
    return detail::times(latents, info().latent_scale);
  }

  AutoencoderInfo const& info() const { return half_.info; }
  at::Device device() const { return half_.device; }

 private:
  Autoencoder half_;
};

}  // namespace tstitch
