/// @file
/// The metadata of a network's file. TorchScript files and AOTInductor packages use the same keys.
///
/// Each key is an extra file inside the network's file (`_extra_files` of torch.jit.save, `extra/` of a .pt2 package).
/// Its value is one line of UTF-8 text without control characters, of at most 200 bytes unless said otherwise. Required
/// keys are marked *. Keys that are not listed here are ignored.
///
///     tstitch/format *                  1
///     tstitch/kind                      network (default), or what autoencoder.hpp describes: decoder or encoder; or
///                                       text_encoder, see text_encoder.hpp
///     tstitch/name *                    shown in messages and plans
///     tstitch/input_shape               the sizes of x for one sample, channels first, then * for any size: "4 32 32",
///                                       a video "4 8 16 16", a signal "1 *"; it or the next three are required
///     tstitch/input_channels, input_height, input_width
///                                       the same for x of [n, C, H, W] of one size, in its place or beside it; version
///                                       0.1 reads these alone, so exporters write them where they can
///     tstitch/prediction *              epsilon | sample | v_prediction | flow
///     tstitch/variance                  fixed (default) | learned_range: twice the channels come out
///     tstitch/num_classes               0 (default): the network takes (x, t); else (x, t, labels)
///     tstitch/null_class                the label of "no class", or none (default)
///     tstitch/class_names               one a line, of at most 200 bytes
///     tstitch/conditions                the tensors that forward takes after those, one a line: name, type (float for
///                                       the network's own type, or int64), and the sizes for one image, * for any
///                                       size: "text_embedding float 77 768"
///     tstitch/timestep_type *           int64 | float32
///     tstitch/noise_schedule *          linear | scaled_linear | cosine | flow | alphas_cumprod
///     tstitch/num_train_timesteps *     for all schedules but alphas_cumprod
///     tstitch/flow_shift                for flow, NoiseSchedule::flow's shift, 1 without
///     tstitch/beta_start *, beta_end *  for linear and scaled_linear
///     tstitch/alphas_cumprod *          for alphas_cumprod: one number a line
///     tstitch/decoding                  pixels | none (default)
///     tstitch/latent_scale, latent_shift  where x is a latent and no picture: x = scale (latent - shift); each is one
///                                       number, or one a line for each channel
///     tstitch/guidance_scale            the scale that the network's makers recommend, in [0, 1000]
///     tstitch/profile                   the profile that they sample with, by its name in tstitch_sample --profile
///     tstitch/steps                     the number of steps that they take, in [1, 1000000]
///     tstitch/training_data, license    at most 64 KiB each
///     tstitch/images_seen
///     tstitch/architecture, width, depth, heads, patch_size, mlp_ratio
///     tstitch/e4m3_inputs               one number a line, see NetworkInfo::Architecture
///     tstitch/e4m3_weight_scales        one number a line, a float32 in 9 digits, for the same layers in the same
///                                       order: weight = scale * code; 0 where the layer has no codes
///     tstitch/e4m3_weights              binary, in TorchScript files only: the codes (e4m3fn, one byte each) of the
///                                       weights [out, in] of the layers that have them, in row-major order, one
///                                       layer after another
///     tstitch/forecast                  of networks in parts (SplitNetwork), what a forecast extrapolates: residual
///                                       (default), what the blocks add to the first tensor that they get, or feature,
///                                       all that they return
///
/// The encoder and the decoder of an autoencoder, whose forward takes and returns one tensor, have the keys format *,
/// kind *, name *, latent_channels *, picture_channels (default 3), upsampling *, latent_scale *, latent_shift (default
/// 0), license, and
///
///     tstitch/temporal_upsampling       of videos: a latent of F frames is a video of so many times F - 1, and one; of
///                                       pictures it is left out
///     tstitch/latents                   unscaled (default): forward takes or returns the latent, which networks know
///                                       as scale (latent - shift); scaled: forward takes or returns x as networks
///                                       know it, whatever their scale, as tiny autoencoders do, and latent_scale is
///                                       1 or left out
///
/// Text encoders, whose forward and tokenize take a list of texts, have the keys format *, kind *, name *,
/// architecture, license, and
///
///     tstitch/outputs *                 what forward returns in a dictionary, one a line as in tstitch/conditions
///     tstitch/text_tokens *             tokens of a text, in [1, 65536]
///     tstitch/no_text                   encoded (default): no text is the empty one; zeros: it is all zeros (SDXL)
///     tstitch/instruction               what forward puts before every text, at most 64 KiB, of any lines; the method
///                                       encode_negative then takes texts without it
///
/// AOTInductor packages have more keys, listed in aot_inductor.hpp.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "../base/text.hpp"
#include "../model/autoencoder.hpp"
#include "../model/network.hpp"
#include "../model/text_encoder.hpp"
#include "archive.hpp"
#include "file.hpp"
#include "metadata_reader.hpp"
#include "parallel_file.hpp"

namespace tstitch {
namespace detail {

inline constexpr FileKind network_file{"read_network_info", "a TorchScript file or an AOTInductor package"};

inline NoiseSchedule read_noise_schedule(MetadataReader const& file) {
  enum class Kind { linear, scaled_linear, cosine, flow, alphas_cumprod };
  const Kind kind = file.choice<Kind>("noise_schedule", file.text("noise_schedule"),
                                      {{"linear", Kind::linear},
                                       {"scaled_linear", Kind::scaled_linear},
                                       {"cosine", Kind::cosine},
                                       {"flow", Kind::flow},
                                       {"alphas_cumprod", Kind::alphas_cumprod}});
  if (kind == Kind::alphas_cumprod) {
    std::vector<double> values;
    for (std::string const& line : file.lines("alphas_cumprod", 1'000'000)) {
      values.push_back(file.parse<double>("alphas_cumprod", line));
    }
    return NoiseSchedule::from_alphas_cumprod(std::move(values));
  }
  const int count = file.in_range<int>("num_train_timesteps", 1, 1'000'000);
  if (kind == Kind::cosine) return NoiseSchedule::cosine(count);
  if (kind == Kind::flow) {
    const double shift = file.has("flow_shift") ? file.number<double>("flow_shift") : 1;
    if (!(shift > 0 && shift <= 1000)) file.fail("flow_shift", "must be above 0 and at most 1000", text(shift));
    return NoiseSchedule::flow(count, shift);
  }
  const double start = file.number<double>("beta_start"), end = file.number<double>("beta_end");
  NoiseSchedule schedule =
      kind == Kind::linear ? NoiseSchedule::linear(count, start, end) : NoiseSchedule::scaled_linear(count, start, end);
  // Samplers divide by the square root of this.
  if (const double signal = schedule.alphas_cumprod().back(); !(signal >= 1e-12)) {
    file.fail("beta_end", "must leave 1e-12 of the variance of the signal", text(signal));
  }
  return schedule;
}

/// The most elements that a tensor may have for one image. Products with a batch size then stay far from overflow.
inline constexpr std::int64_t most_elements = std::int64_t(1) << 32;

/// Sizes for one sample: numbers, or * for any, which is 0.
/// @param rule what the line must be, for messages
/// @param words of the line, from `first` on sizes
inline std::vector<std::int64_t> read_sizes(MetadataReader const& file, std::string const& key, std::string const& rule,
                                            std::string const& line, std::vector<std::string> const& words,
                                            std::size_t first) {
  std::vector<std::int64_t> sizes;
  std::int64_t elements = 1;
  for (std::size_t i = first; i < words.size(); ++i) {
    const std::int64_t size = words[i] == "*" ? 0 : file.parse<std::int64_t>(key, words[i]);
    if (size < 0 || (size == 0 && words[i] != "*")) file.fail(key, rule, file.quote(line));
    if (size > most_elements / elements) {
      file.fail(key, "must have at most " + std::to_string(most_elements) + " elements an image", file.quote(line));
    }
    elements *= std::max<std::int64_t>(size, 1);
    sizes.push_back(size);
  }
  return sizes;
}

inline constexpr std::size_t most_dimensions = 16;  // of a tensor for one image

/// @param key conditions or outputs
inline std::vector<ConditionInfo> read_conditions(MetadataReader const& file, char const* key = "conditions") {
  constexpr auto rule = "must be lines of a name, float or int64, and sizes";
  std::vector<ConditionInfo> conditions;
  for (std::string const& line : file.lines(key, 64)) {
    file.require_line(key, line);
    const std::vector<std::string> words = split(line, ' ');
    if (words.size() < 2 || words.size() > 2 + most_dimensions || words[0].empty()) {
      file.fail(key, rule, file.quote(line));
    }
    ConditionInfo condition{.name = words[0]};
    condition.floating = file.choice<bool>(key, words[1], {{"float", true}, {"int64", false}});
    condition.shape = read_sizes(file, key, rule, line, words, 2);
    for (ConditionInfo const& other : conditions) {
      if (other.name == condition.name) file.fail(key, "must have different names", file.quote(other.name) + " twice");
    }
    conditions.push_back(std::move(condition));
  }
  return conditions;
}

/// [C, ...] of x for one sample, by its key or by the three of pictures.
inline std::vector<std::int64_t> read_shape(MetadataReader const& file) {
  constexpr std::array old_keys{"input_channels", "input_height", "input_width"};
  const auto has = [&](char const* key) { return file.has(key); };
  if (!file.has("input_shape") && std::any_of(old_keys.begin(), old_keys.end(), has)) {
    std::vector<std::int64_t> shape;
    for (char const* const key : old_keys) shape.push_back(file.in_range<std::int64_t>(key, 1, 65536));
    if (const std::int64_t elements = shape[0] * shape[1] * shape[2]; elements > most_elements) {
      file.fail("input_channels", "times height and width must be at most " + std::to_string(most_elements),
                std::to_string(elements));
    }
    return shape;
  }
  constexpr auto key = "input_shape", rule = "must be 1 to 16 sizes, the number of channels and then numbers or *";
  const std::string line = file.require_line(key, file.text(key));
  const std::vector<std::string> words = split(line, ' ');
  if (words.size() > most_dimensions || words[0] == "*") file.fail(key, rule, file.quote(line));
  const std::vector<std::int64_t> shape = read_sizes(file, key, rule, line, words, 0);
  for (std::size_t d = 0; d < old_keys.size(); ++d) {
    if (!file.has(old_keys[d])) continue;
    const std::int64_t size = file.in_range<std::int64_t>(old_keys[d], 1, 65536);
    if (shape.size() == old_keys.size() && shape[d] == size) continue;
    file.fail(old_keys[d], "must be what tstitch/input_shape says, " + file.quote(line), std::to_string(size));
  }
  return shape;
}

/// One number, or one a line for each of the channels, each in [least, most].
/// @param channels at least 1
inline PerChannel read_channels(MetadataReader const& file, std::string const& key, double least, double most,
                                double otherwise, std::int64_t channels) {
  std::vector<double> each;
  for (std::string const& line : file.lines(key, 65536)) {
    each.push_back(file.parse<double>(key, line));
    if (!(each.back() >= least && each.back() <= most)) {
      file.fail(key, "must be in [" + text(least) + ", " + text(most) + "]", text(each.back()));
    }
  }
  if (!file.has(key)) return otherwise;
  if (each.size() != 1 && std::int64_t(each.size()) != channels) {
    file.fail(key, "must be one number, or one a line for each of the " + std::to_string(channels) + " channels",
              std::to_string(each.size()) + " lines");
  }
  return PerChannel(std::move(each));
}

/// @param kind network, decoder or encoder
inline void require_kind(MetadataReader const& file, std::string const& kind) {
  if (const std::string got = file.text("kind", "network"); got != kind) {
    file.fail("kind", "must be " + kind, file.quote(got));
  }
}

inline void require_format(MetadataReader const& file) {
  if (const std::string format = file.text("format"); format != "1") {
    file.fail("format", "must be 1, the format that this version reads", file.quote(format));
  }
}

inline NetworkInfo::Architecture read_architecture(MetadataReader const& file) {
  NetworkInfo::Architecture architecture{.kind = file.line("architecture", ""),
                                         .width = file.in_range<std::int64_t>("width", 0, 65536, 0),
                                         .depth = file.in_range<std::int64_t>("depth", 0, 1000, 0),
                                         .heads = file.in_range<std::int64_t>("heads", 0, 65536, 0),
                                         .patch_size = file.in_range<std::int64_t>("patch_size", 0, 65536, 0),
                                         .mlp_ratio = file.in_range<double>("mlp_ratio", 0, 1000, 0)};
  for (auto [key, numbers] : {std::pair{"e4m3_inputs", &architecture.e4m3_inputs},
                              std::pair{"e4m3_weight_scales", &architecture.e4m3_weight_scales}}) {
    for (std::string const& line : file.lines(key, 10'000)) {
      const double value = file.parse<double>(key, line);
      if (!(value >= 0 && std::isfinite(value))) file.fail(key, "must be finite numbers of at least 0", line);
      numbers->push_back(value);
    }
    // An MMDiT does not say here how many of its blocks have dual attention, with two layers more.
    const bool joint = architecture.kind == "sd3";
    const std::int64_t lines = std::int64_t(numbers->size()), depth = architecture.depth,
                       fewest = joint ? std::max<std::int64_t>(8 * depth - 3, 0) : 4 * depth,
                       most = joint ? fewest + 2 * depth : fewest;
    if (lines != 0 && (lines < fewest || lines > most || (lines - fewest) % 2)) {
      file.fail(key,
                "must have one line for each of the " + std::to_string(fewest) +
                    (joint ? " to " + std::to_string(most) : "") + " layers",
                std::to_string(lines) + " lines");
    }
  }
  return architecture;
}

inline NetworkInfo read_network_info(MetadataReader const& file) {
  require_format(file);
  require_kind(file, "network");
  NetworkInfo info;
  info.name = file.require_line("name", file.text("name"));
  info.prediction_type = file.choice<PredictionType>("prediction", file.text("prediction"),
                                                     {{"epsilon", PredictionType::epsilon},
                                                      {"sample", PredictionType::sample},
                                                      {"v_prediction", PredictionType::v_prediction},
                                                      {"flow", PredictionType::flow}});
  info.learned_variance =
      file.choice<bool>("variance", file.text("variance", "fixed"), {{"fixed", false}, {"learned_range", true}});
  info.shape = read_shape(file);
  fill_in_sizes(info);
  info.num_classes = file.in_range<std::int64_t>("num_classes", 0, 1'000'000, 0);
  if (file.text("null_class", "none") != "none") {
    info.null_class = file.number<std::int64_t>("null_class");
    // Embedding tables have one row for each class and one for no class. Beyond them CUDA fails for good.
    if (*info.null_class < 0 || *info.null_class > info.num_classes) {
      file.fail("null_class", "must be in [0, " + std::to_string(info.num_classes) + "] or none",
                std::to_string(*info.null_class));
    }
  }
  info.class_names = file.lines("class_names", 1'000'000);
  for (std::string const& name : info.class_names) {
    file.require_line("class_names", name);
    if (name.size() > 200) file.fail("class_names", "must have at most 200 bytes a line", file.quote(name));
  }
  if (!info.class_names.empty() && std::int64_t(info.class_names.size()) != info.num_classes) {
    file.fail("class_names", "must have one line for each of the " + std::to_string(info.num_classes) + " classes",
              std::to_string(info.class_names.size()) + " lines");
  }
  info.conditions = read_conditions(file);
  info.timestep_type = file.choice<TimestepType>("timestep_type", file.text("timestep_type"),
                                                 {{"int64", TimestepType::int64}, {"float32", TimestepType::float32}});
  try {
    info.noise_schedule = read_noise_schedule(file);
  } catch (std::invalid_argument const& error) {
    file.fail("noise_schedule", "must be a schedule that makes sense", error.what());
  }
  info.decoding = file.choice<Decoding>("decoding", file.text("decoding", "none"),
                                        {{"pixels", Decoding::pixels}, {"none", Decoding::none}});
  info.latent_scale = read_channels(file, "latent_scale", 0, 1e6, 0, info.channels);
  for (double const scale : info.latent_scale.values()) {
    if (scale == 0 && info.latent_scale != 0) file.fail("latent_scale", "must be above 0 in each channel", "0");
  }
  info.latent_shift = read_channels(file, "latent_shift", -1e6, 1e6, 0, info.channels);
  info.guidance_scale = file.in_range<double>("guidance_scale", 0, 1000, 1);
  info.profile = file.line("profile", "");
  if (file.has("steps")) info.steps = file.in_range<int>("steps", 1, 1'000'000);
  info.training_data = file.line("training_data", "");
  info.license = file.line("license", "");
  info.images_seen = file.in_range<std::int64_t>("images_seen", 0, std::numeric_limits<std::int64_t>::max(), 0);
  info.architecture = read_architecture(file);
  info.forecasts_residual =
      file.choice<bool>("forecast", file.text("forecast", "residual"), {{"residual", true}, {"feature", false}});
  return info;
}

/// @param kind decoder or encoder
inline AutoencoderInfo read_autoencoder_info(MetadataReader const& file, std::string const& kind) {
  require_format(file);
  require_kind(file, kind);
  AutoencoderInfo info;
  info.name = file.require_line("name", file.text("name"));
  info.latent_channels = file.in_range<std::int64_t>("latent_channels", 1, 4096);
  info.picture_channels = file.in_range<std::int64_t>("picture_channels", 1, 4096, 3);
  info.upsampling = file.in_range<std::int64_t>("upsampling", 1, 4096);
  if (file.has("temporal_upsampling")) {
    info.temporal_upsampling = file.in_range<std::int64_t>("temporal_upsampling", 1, 4096);
  }
  info.scaled_latents =
      file.choice<bool>("latents", file.text("latents", "unscaled"), {{"unscaled", false}, {"scaled", true}});
  if (!info.scaled_latents && !file.has("latent_scale")) file.fail("latent_scale", "is required", "nothing");
  info.latent_scale = read_channels(file, "latent_scale", 0, 1e6, 1, info.latent_channels);
  for (double const scale : info.latent_scale.values()) {
    if (!(scale > 0)) file.fail("latent_scale", "must be above 0", text(scale));
  }
  info.latent_shift = read_channels(file, "latent_shift", -1e6, 1e6, 0, info.latent_channels);
  if (info.scaled_latents && (info.latent_scale != 1 || info.latent_shift != 0)) {
    file.fail("latents", "must be unscaled where latent_scale is not 1 or latent_shift not 0", "'scaled'");
  }
  info.license = file.line("license", "");
  return info;
}

inline TextEncoderInfo read_text_encoder_info(MetadataReader const& file) {
  require_format(file);
  require_kind(file, "text_encoder");
  TextEncoderInfo info;
  info.name = file.require_line("name", file.text("name"));
  info.architecture = file.line("architecture", "");
  info.text_tokens = file.in_range<std::int64_t>("text_tokens", 1, 65536);
  info.outputs = read_conditions(file, "outputs");
  if (info.outputs.empty()) file.fail("outputs", "must be at least one line", "none");
  info.zeros_for_no_text =
      file.choice<bool>("no_text", file.text("no_text", "encoded"), {{"encoded", false}, {"zeros", true}});
  info.instruction = file.text("instruction", "");
  if (!is_utf8(info.instruction)) file.fail("instruction", "must be UTF-8", "other bytes");
  info.license = file.line("license", "");
  return info;
}

/// Whether this is a package of torch.export, which is what AOTInductor writes.
inline bool is_package(Archive const& archive) {
  return archive.has("archive_format");
}

/// @param source the file's name in error messages
/// @param otherwise what to return if the file has no metadata
inline NetworkInfo read_network_info(Archive const& archive, std::string const& source,
                                     std::optional<NetworkInfo> const& otherwise = {}) {
  const MetadataReader file(archive, source);
  if (!file.has("format")) {
    if (otherwise) return *otherwise;
    throw std::runtime_error("tstitch::read_network_info: " + source +
                             ": must carry tstitch metadata (see metadata.hpp), got a file without any, which looks "
                             "like " +
                             (is_package(archive) ? "any package of torch.export" : "any TorchScript"));
  }
  return read_network_info(file);
}

}  // namespace detail

/// Reads the description of a network from its file, without the weights.
/// @param path a TorchScript file or an AOTInductor package
/// @param otherwise what to return for a file without metadata
/// @throws std::runtime_error for a file that cannot be read, or whose metadata is wrong, or missing and not given
inline NetworkInfo read_network_info(std::string const& path, std::optional<NetworkInfo> const& otherwise = {}) {
  const std::string source = detail::quoted(path);
  const auto archive =
      detail::open_network(detail::network_file, source, detail::open_file(detail::network_file, path));
  return detail::reading(detail::network_file, source,
                         [&] { return detail::read_network_info(*archive, source, otherwise); });
}

/// The same from a file of another kind, by who reads it.
/// @param texts by the keys that are listed above: {"format", "1"}, {"name", "mine"}; others are ignored
/// @param source the file's name in error messages
/// @throws std::runtime_error naming the key that is wrong or missing
inline NetworkInfo read_network_info(std::map<std::string, std::string> const& texts, std::string const& source) {
  return detail::read_network_info(detail::MetadataReader(texts, detail::quoted(source)));
}

/// What a file is: "network", "decoder" or "encoder", as its metadata say; without metadata a network.
/// @param path a TorchScript file or an AOTInductor package
/// @throws std::runtime_error for a file that cannot be read, and for another word
inline std::string read_kind(std::string const& path) {
  const std::string source = detail::quoted(path);
  const auto archive =
      detail::open_network(detail::network_file, source, detail::open_file(detail::network_file, path));
  return detail::reading(detail::network_file, source, [&] {
    const detail::MetadataReader file(*archive, source);
    return file.choice<std::string>("kind", file.text("kind", "network"),
                                    {{"network", "network"}, {"decoder", "decoder"}, {"encoder", "encoder"}});
  });
}

/// Reads the description of a half of an autoencoder from its file, without the weights.
/// @param kind decoder or encoder
/// @throws std::runtime_error for a file that cannot be read, is another half, or whose metadata is wrong or missing
inline AutoencoderInfo read_autoencoder_info(std::string const& path, std::string const& kind) {
  const std::string source = detail::quoted(path);
  const auto archive =
      detail::open_network(detail::network_file, source, detail::open_file(detail::network_file, path));
  return detail::reading(detail::network_file, source,
                         [&] { return detail::read_autoencoder_info(detail::MetadataReader(*archive, source), kind); });
}

}  // namespace tstitch
