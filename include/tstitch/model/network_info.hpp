/// @file
/// What the library must know about a network, and what sizes its inputs have.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "../plan/noise_schedule.hpp"
#include "../tensor/host_tensor.hpp"
#include "condition.hpp"
#include "per_channel.hpp"

namespace tstitch {

/// What a network's output means (diffusers' prediction_type).
enum class PredictionType {
  epsilon,       ///< the noise: x_t = alpha x_0 + sigma eps
  sample,        ///< x_0
  v_prediction,  ///< alpha eps - sigma x_0 (Salimans and Ho 2022, arXiv 2202.00512)
  flow,          ///< eps - x_0, the velocity of flow matching (diffusers' flow_prediction)
};

/// What a network takes as its timestep.
enum class TimestepType {
  int64,    ///< int64; fractional timesteps are rounded, ties to even
  float32,  ///< floating point, in the type of x
};

/// How x_0 becomes a picture.
enum class Decoding {
  none,    ///< not known here: a latent
  pixels,  ///< x_0 is the picture, RGB or grey in [-1, 1]
};

/// What a network is. For files it is read from them (see torchscript.hpp); for a plain callable the caller states what
/// differs from the defaults. Zero and empty mean "not stated".
struct NetworkInfo {
  std::string name = {};
  PredictionType prediction_type = PredictionType::epsilon;
  /// The output has twice the channels of x; the second half is Nichol and Dhariwal's v for DDPM's learned range.
  bool learned_variance = false;

  std::int64_t channels = 0;
  std::int64_t height = 0;
  std::int64_t width = 0;
  /// [C, ...] of x for one sample, 0 where any size will do but C: {4, 8, 16, 16} for a video, {1, 0} for signals of
  /// any length. A Network that states it has also the three above, height and width being the last two of its sizes.
  /// Empty: what those say, and between C and H x may have more dimensions.
  std::vector<std::int64_t> shape = {};

  std::int64_t num_classes = 0;                 ///< 0: the network takes no class label
  std::optional<std::int64_t> null_class = {};  ///< the label that means "no class"; guidance needs it
  std::vector<std::string> class_names = {};    ///< empty, or one a class
  std::vector<ConditionInfo> conditions =
      {};  ///< the other tensors that it asks for, in the order in which it takes them

  TimestepType timestep_type = TimestepType::int64;
  std::optional<NoiseSchedule> noise_schedule = {};
  Decoding decoding = Decoding::none;
  /// x is latent_scale (latent - latent_shift), where `latent` is what the autoencoder knows; 0: not stated.
  PerChannel latent_scale = 0;
  PerChannel latent_shift = 0;
  double guidance_scale = 1.0;  ///< the scale that its makers recommend
  std::string profile = {};     ///< the profile (peer/profile.hpp) that its makers sample with
  int steps = 0;                ///< how many steps they take

  std::string training_data = {};
  std::string license = {};
  std::int64_t images_seen = 0;

  /// The shape of the network itself, for engines that run its weights in another way.
  struct Architecture {
    std::string kind = {};  ///< "dit", "sd3", or empty when not stated
    std::int64_t width = 0;
    std::int64_t depth = 0;
    std::int64_t heads = 0;
    std::int64_t patch_size = 0;
    double mlp_ratio = 0;
    /// The largest absolute input of qkv, proj, fc1 and fc2 of the first block, then of the next, along trajectories:
    /// what engines that compute in 8 bits divide by. 0: a layer that is better not in 8 bits. Empty when not stated.
    /// Of an MMDiT (sd3) a block has these of the picture, then qkv and proj of its dual attention where it has that,
    /// then those of the text, of which the last block has qkv alone.
    std::vector<double> e4m3_inputs = {};
    /// What the file's own e4m3 weights of these layers (tstitch/e4m3_weights) are multiplied by. 0: a layer without;
    /// empty: the file has none.
    std::vector<double> e4m3_weight_scales = {};
  };
  Architecture architecture = {};

  /// Of files in parts: whether forecasts extrapolate what the blocks add to what they begin with, or all that they
  /// return, as suits the deep feature of a U-Net (SplitNetwork::residual).
  bool forecasts_residual = true;
};

/// What networks leave open, for who must know it before there is a request: for warming up, and for measuring.
struct InputSizes {
  /// [C, ...] of x for one sample. Empty: as the networks state it.
  std::vector<std::int64_t> shape = {};
  /// By name, with the sizes for one sample. Those that networks do not ask for, or leave no size of open, may be left
  /// out.
  std::vector<ConditionInfo> conditions = {};
};

/// As files and command lines have it: "epsilon", "v_prediction".
inline std::string to_string(PredictionType type) {
  switch (type) {
    case PredictionType::epsilon: return "epsilon";
    case PredictionType::sample: return "sample";
    case PredictionType::v_prediction: return "v_prediction";
    case PredictionType::flow: return "flow";
  }
  return "unknown";
}

namespace detail {

/// Of an image, as `noise` has it.
inline constexpr std::int64_t most_elements_an_image = std::int64_t(1) << 34;

/// Whether all sizes are from 1 on, and their product is no more than that.
inline bool has_room(std::vector<std::int64_t> const& sizes) {
  std::int64_t room = most_elements_an_image;  // for the sizes that are left
  for (const std::int64_t size : sizes) room = size > 0 ? room / size : 0;
  return room > 0;
}

inline bool is_closed(std::vector<std::int64_t> const& sizes) {
  return std::find(sizes.begin(), sizes.end(), 0) == sizes.end();
}

/// [C, ...] of x for one sample, 0 where any size will do; empty where it is not stated how many dimensions there are.
inline std::vector<std::int64_t> shape_of(NetworkInfo const& info) {
  if (!info.shape.empty() || !info.channels || !info.height || !info.width) return info.shape;
  return {info.channels, info.height, info.width};
}

}  // namespace detail

namespace words {

/// What to say behind a size that a network refuses: how there is a file of it that takes others; empty where it takes
/// any, or nobody knows how.
inline std::string advice_on_sizes(NetworkInfo const& info) {
  std::string const& kind = info.architecture.kind;
  const bool has_option = kind == "dit" || kind == "dit_diffusers" || kind == "sit";
  return has_option && detail::is_closed(detail::shape_of(info)) ? " (export_dit.py --interpolate makes a file for any)"
                                                                 : "";
}

}  // namespace words

/// Gives a shape the sizes that it leaves open and the network states. Where networks disagree it keeps what it has.
/// @param shape [C, ...] of x for one sample, 0 where any size will do; an empty one is left open whole
inline void take_shape(std::vector<std::int64_t>& shape, NetworkInfo const& info) {
  const std::vector<std::int64_t> stated = detail::shape_of(info);
  if (shape.empty()) shape = stated;
  for (std::size_t d = 0; d < shape.size() && shape.size() == stated.size(); ++d) {
    if (shape[d] == 0) shape[d] = stated[d];
  }
}

namespace detail {

/// Gives a network that states its shape the channels, height and width of that.
/// @throws std::invalid_argument for sizes that no x has, and where both are stated and differ
inline void fill_in_sizes(NetworkInfo& info) {
  std::vector<std::int64_t> const& shape = info.shape;
  if (shape.empty()) return;
  if (shape[0] < 1 || *std::min_element(shape.begin(), shape.end()) < 0) {
    refuse("Network", "shape must be [C, ...], with channels from 1 on and 0 for any size", shape_text(shape));
  }
  const std::size_t dims = shape.size();
  for (auto [name, stated, size] : {std::tuple{"channels", &info.channels, shape[0]},
                                    std::tuple{"height", &info.height, dims > 2 ? shape[dims - 2] : 0},
                                    std::tuple{"width", &info.width, dims > 2 ? shape[dims - 1] : 0}}) {
    if (*stated != 0 && *stated != size) {
      refuse("Network", std::string(name) + " must be what the shape " + sizes_text(shape) + " says, or not stated",
             std::to_string(*stated));
    }
    *stated = size;
  }
}

/// Whether x is [n, C, ...] of what the network states.
inline bool has_shape_of(NetworkInfo const& info, at::IntArrayRef sizes) {
  if (sizes.empty()) return false;
  if (!info.shape.empty()) return sizes_fit(info.shape, sizes.slice(1));
  const auto fits = [](std::int64_t stated, std::int64_t size) { return stated == 0 || stated == size; };
  const std::size_t dims = sizes.size();
  if (dims < 2 || !fits(info.channels, sizes[1])) return false;
  if (info.height == 0 && info.width == 0) return true;
  return dims >= 4 && fits(info.height, sizes[dims - 2]) && fits(info.width, sizes[dims - 1]);
}

/// Whether x or a condition may have any size.
inline bool has_open_sizes(NetworkInfo const& info) {
  const std::vector<std::int64_t> shape = shape_of(info);
  return shape.empty() || !is_closed(shape) ||
         std::any_of(info.conditions.begin(), info.conditions.end(),
                     [](ConditionInfo const& wanted) { return !is_closed(wanted.shape); });
}

/// The network's sizes, with those that it leaves open as they are given.
/// @param place for messages
/// @returns info with a shape and conditions that leave nothing open
/// @throws std::invalid_argument for what is open and not given, for what is given and is not what is stated, and for
///         more than 2^34 elements an image
inline NetworkInfo closed(std::string const& place, NetworkInfo info, InputSizes const& given) {
  const std::string name = "'" + printable(info.name) + "'";
  const auto must_give = [&](std::string const& what, std::vector<std::int64_t> const& sizes) {
    refuse(place, "the input sizes must give " + what, sizes.empty() ? "none" : sizes_text(sizes));
  };
  const auto positive = [](std::vector<std::int64_t> const& all) {
    return std::all_of(all.begin(), all.end(), [](std::int64_t size) { return size > 0; });
  };
  constexpr auto few = "at most 2^34 elements an image";
  std::vector<std::int64_t> sizes = given.shape.empty() ? shape_of(info) : given.shape;
  std::vector<std::int64_t> with_rows = sizes;
  with_rows.insert(with_rows.begin(), 1);
  if (sizes.empty() || !positive(sizes) || !has_shape_of(info, with_rows)) {
    must_give("x of " + name + " a shape of " + (info.shape.empty() ? "[C, ...]" : sizes_text(info.shape)),
              given.shape);
  }
  if (!has_room(sizes)) must_give("x of " + name + " " + few, sizes);
  info.shape = std::move(sizes);
  for (ConditionInfo& wanted : info.conditions) {
    const auto is_it = [&](ConditionInfo const& each) { return each.name == wanted.name; };
    const auto found = std::find_if(given.conditions.begin(), given.conditions.end(), is_it);
    const bool is_given = found != given.conditions.end();
    if (!is_given && is_closed(wanted.shape)) continue;
    const std::string what = "'" + printable(wanted.name) + "' of " + name + " ";
    if (!is_given || !positive(found->shape) || !sizes_fit(wanted.shape, found->shape)) {
      must_give(what + "sizes of " + text_of(wanted), is_given ? found->shape : std::vector<std::int64_t>());
    }
    if (!has_room(found->shape)) must_give(what + few, found->shape);
    wanted.shape = found->shape;
  }
  return info;
}

}  // namespace detail
}  // namespace tstitch
