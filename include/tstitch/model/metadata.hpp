/// @file
/// What files of networks say about them, which is the same for TorchScript and AOTInductor.
///
/// It travels inside, as flat key/value extra files (`_extra_files` of torch.jit.save, `extra/` of a .pt2 package),
/// each a line of UTF-8 text unless said otherwise; required keys are marked *:
///
///     tstitch/format *                  1
///     tstitch/kind                      network (default), or what autoencoder.hpp describes: decoder or encoder
///     tstitch/name *                    shown in messages and plans
///     tstitch/input_channels *, input_height *, input_width *
///     tstitch/prediction *              epsilon | sample | v_prediction | flow
///     tstitch/variance                  fixed (default) | learned_range: twice the channels come out
///     tstitch/num_classes               0 (default): the network takes (x, t); else (x, t, labels)
///     tstitch/null_class                the label of "no class", or none (default)
///     tstitch/class_names               one a line
///     tstitch/conditions                the tensors that forward takes after those, one a line: name, type (float, the
///                                       network's own, or int64) and the sizes for one image, * for any:
///                                       "text_embedding float 77 768"
///     tstitch/timestep_type *           int64 | float32
///     tstitch/noise_schedule *          linear | scaled_linear | cosine | flow | alphas_cumprod
///     tstitch/num_train_timesteps *     but for the last; and beta_start *, beta_end * for the first two,
///     tstitch/alphas_cumprod *          one number a line, for the last
///     tstitch/decoding                  pixels | none (default)
///     tstitch/latent_scale, latent_shift  where x is not a picture: scale (latent - shift)
///     tstitch/guidance_scale            recommended by its makers
///     tstitch/training_data, license, images_seen
///     tstitch/architecture, width, depth, heads, patch_size, mlp_ratio
///     tstitch/e4m3_inputs               one number a line, see NetworkInfo::Architecture
///     tstitch/e4m3_weight_scales        one number a line, a float32 in 9 digits: of the same layers in that order,
///                                       what a code of the weight is multiplied by; 0: it has none
///     tstitch/e4m3_weights              binary, in TorchScript files: the codes (e4m3fn, one byte each) of these
///                                       weights [out, in], row by row and one layer after another
///
/// and for the two halves of an autoencoder, whose forward takes and gives one tensor: format *, kind *, name *,
/// latent_channels *, picture_channels (3), upsampling *, latent_scale *, latent_shift (0), license.
///
/// What packages of AOTInductor say besides stands in aot_inductor.hpp.
#pragma once

#include <caffe2/serialize/inline_container.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "autoencoder.hpp"
#include "file.hpp"
#include "network.hpp"
#include "parallel_file.hpp"

namespace tstitch {
namespace detail {

inline constexpr FileKind network_file{"read_network_info", "a TorchScript file or an AOTInductor package"};

/// The metadata of one file; every failure names the file, the key and the value.
class MetadataReader {
 public:
  /// @param archive of TorchScript or AOTInductor, whose extra/tstitch/ is read
  /// @param source how messages call the file
  MetadataReader(caffe2::serialize::PyTorchStreamReader& archive, std::string source) : source_(std::move(source)) {
    const std::string folder = "extra/tstitch/";
    for (std::string const& record : archive.getAllRecords()) {
      if (!record.starts_with(folder) || record == folder + "e4m3_weights") continue;  // bytes, and many of them
      const auto [data, size] = archive.getRecord(record);
      values_[record.substr(folder.size())] = {static_cast<char const*>(data.get()), size};
    }
  }

  bool has(std::string const& key) const { return values_.contains(key); }

  std::string text(std::string const& key) const {
    if (!has(key)) fail(key, "is required", "nothing");
    return values_.at(key);
  }

  template <class Number>
  Number number(std::string const& key) const {
    return parse<Number>(key, text(key));
  }

  template <class Number>
  Number number(std::string const& key, Number otherwise) const {
    return has(key) ? number<Number>(key) : otherwise;
  }

  std::string text(std::string const& key, std::string otherwise) const { return has(key) ? text(key) : otherwise; }

  std::vector<std::string> lines(std::string const& key) const {
    std::vector<std::string> lines;
    const std::string all = text(key, "");
    for (std::size_t begin = 0; begin < all.size();) {
      const std::size_t end = std::min(all.find('\n', begin), all.size());
      lines.push_back(all.substr(begin, end - begin));
      begin = end + 1;
    }
    return lines;
  }

  template <class Number>
  Number parse(std::string const& key, std::string const& value) const {
    Number number{};
    const char* const end = value.data() + value.size();
    const auto [rest, error] = std::from_chars(value.data(), end, number);
    if (error != std::errc{} || rest != end) fail(key, "must be a number", "'" + value + "'");
    return number;
  }

  /// The entry of `choices` that stands beside the value.
  template <class Value>
  Value choice(std::string const& key, std::string const& value,
               std::vector<std::pair<char const*, Value>> const& choices) const {
    std::string names;
    for (auto const& [name, meaning] : choices) {
      if (value == name) return meaning;
      names += (names.empty() ? "" : ", ") + std::string(name);
    }
    fail(key, "must be one of " + names, "'" + value + "'");
  }

  [[noreturn]] void fail(std::string const& key, std::string const& rule, std::string const& got) const {
    throw std::runtime_error("tstitch::read_network_info: " + source_ + ": tstitch/" + key + " " + rule + ", got " +
                             got);
  }

 private:
  std::string source_;
  std::map<std::string, std::string> values_ = {};
};

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
    for (std::string const& line : file.lines("alphas_cumprod")) {
      values.push_back(file.parse<double>("alphas_cumprod", line));
    }
    return NoiseSchedule::from_alphas_cumprod(std::move(values));
  }
  const int count = file.number<int>("num_train_timesteps");
  if (count < 1 || count > 1'000'000) {
    file.fail("num_train_timesteps", "must be in [1, 1000000]", std::to_string(count));
  }
  if (kind == Kind::cosine) return NoiseSchedule::cosine(count);
  if (kind == Kind::flow) return NoiseSchedule::flow(count);
  const double start = file.number<double>("beta_start"), end = file.number<double>("beta_end");
  return kind == Kind::linear ? NoiseSchedule::linear(count, start, end)
                              : NoiseSchedule::scaled_linear(count, start, end);
}

inline std::vector<ConditionInfo> read_conditions(MetadataReader const& file) {
  constexpr auto key = "conditions", rule = "must be lines of a name, float or int64, and sizes";
  std::vector<ConditionInfo> conditions;
  for (std::string const& line : file.lines(key)) {
    std::vector<std::string> words;
    for (std::size_t begin = 0; begin <= line.size();) {
      const std::size_t end = std::min(line.find(' ', begin), line.size());
      words.push_back(line.substr(begin, end - begin));
      begin = end + 1;
    }
    if (words.size() < 2 || words[0].empty()) file.fail(key, rule, "'" + line + "'");
    ConditionInfo condition{.name = words[0]};
    condition.floating = file.choice<bool>(key, words[1], {{"float", true}, {"int64", false}});
    for (std::size_t i = 2; i < words.size(); ++i) {
      const std::int64_t size = words[i] == "*" ? 0 : file.parse<std::int64_t>(key, words[i]);
      if (size < 0 || (size == 0 && words[i] != "*")) file.fail(key, rule, "'" + line + "'");
      condition.shape.push_back(size);
    }
    for (ConditionInfo const& other : conditions) {
      if (other.name == condition.name) file.fail(key, "must have different names", "'" + other.name + "' twice");
    }
    conditions.push_back(std::move(condition));
  }
  return conditions;
}

/// @param kind network, decoder or encoder
inline void require_kind(MetadataReader const& file, std::string const& kind) {
  if (const std::string got = file.text("kind", "network"); got != kind) {
    file.fail("kind", "must be " + kind, "'" + got + "'");
  }
}

inline NetworkInfo read_network_info(MetadataReader const& file) {
  if (const std::string format = file.text("format"); format != "1") {
    file.fail("format", "must be 1, the format that this version reads", "'" + format + "'");
  }
  require_kind(file, "network");
  NetworkInfo info;
  info.name = file.text("name");
  info.prediction_type = file.choice<PredictionType>("prediction", file.text("prediction"),
                                                     {{"epsilon", PredictionType::epsilon},
                                                      {"sample", PredictionType::sample},
                                                      {"v_prediction", PredictionType::v_prediction},
                                                      {"flow", PredictionType::flow}});
  info.learned_variance =
      file.choice<bool>("variance", file.text("variance", "fixed"), {{"fixed", false}, {"learned_range", true}});
  for (auto [key, value] : {std::pair{"input_channels", &info.channels}, std::pair{"input_height", &info.height},
                            std::pair{"input_width", &info.width}}) {
    *value = file.number<std::int64_t>(key);
    if (*value < 1 || *value > 65536) file.fail(key, "must be in [1, 65536]", std::to_string(*value));
  }
  info.num_classes = file.number<std::int64_t>("num_classes", 0);
  if (info.num_classes < 0 || info.num_classes > 1'000'000) {
    file.fail("num_classes", "must be in [0, 1000000]", std::to_string(info.num_classes));
  }
  if (file.text("null_class", "none") != "none") {
    info.null_class = file.number<std::int64_t>("null_class");
    // Embedding tables have a row for each class and one for none; a GPU does not survive an index beyond.
    if (*info.null_class < 0 || *info.null_class > info.num_classes) {
      file.fail("null_class", "must be in [0, " + std::to_string(info.num_classes) + "] or none",
                std::to_string(*info.null_class));
    }
  }
  info.class_names = file.lines("class_names");
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
  info.latent_scale = file.number<double>("latent_scale", 0.0);
  info.latent_shift = file.number<double>("latent_shift", 0.0);
  info.guidance_scale = file.number<double>("guidance_scale", 1.0);
  info.training_data = file.text("training_data", "");
  info.license = file.text("license", "");
  info.images_seen = file.number<std::int64_t>("images_seen", 0);
  info.architecture = {file.text("architecture", ""),
                       file.number<std::int64_t>("width", 0),
                       file.number<std::int64_t>("depth", 0),
                       file.number<std::int64_t>("heads", 0),
                       file.number<std::int64_t>("patch_size", 0),
                       file.number<double>("mlp_ratio", 0),
                       {},
                       {}};
  for (auto [key, numbers] : {std::pair{"e4m3_inputs", &info.architecture.e4m3_inputs},
                              std::pair{"e4m3_weight_scales", &info.architecture.e4m3_weight_scales}}) {
    for (std::string const& line : file.lines(key)) {
      const double value = file.parse<double>(key, line);
      if (!(value >= 0 && std::isfinite(value))) file.fail(key, "must be finite numbers of at least 0", line);
      numbers->push_back(value);
    }
    const std::int64_t layers = 4 * info.architecture.depth, lines = std::int64_t(numbers->size());
    if (lines != 0 && lines != layers) {
      file.fail(key, "must have one line for each of the " + std::to_string(layers) + " layers",
                std::to_string(lines) + " lines");
    }
  }
  return info;
}

/// @param kind decoder or encoder
inline AutoencoderInfo read_autoencoder_info(MetadataReader const& file, std::string const& kind) {
  if (const std::string format = file.text("format"); format != "1") {
    file.fail("format", "must be 1, the format that this version reads", "'" + format + "'");
  }
  require_kind(file, kind);
  AutoencoderInfo info;
  info.name = file.text("name");
  for (auto [key, value] :
       {std::pair{"latent_channels", &info.latent_channels}, std::pair{"picture_channels", &info.picture_channels},
        std::pair{"upsampling", &info.upsampling}}) {
    *value =
        std::string(key) == "picture_channels" ? file.number<std::int64_t>(key, 3) : file.number<std::int64_t>(key);
    if (*value < 1 || *value > 4096) file.fail(key, "must be in [1, 4096]", std::to_string(*value));
  }
  info.latent_scale = file.number<double>("latent_scale");
  if (!(info.latent_scale > 0)) file.fail("latent_scale", "must be above 0", text(info.latent_scale));
  info.latent_shift = file.number<double>("latent_shift", 0.0);
  info.license = file.text("license", "");
  return info;
}

/// @param source how messages call the file
/// @param otherwise what the network is if the file does not say
inline NetworkInfo read_network_info(caffe2::serialize::PyTorchStreamReader& archive, std::string const& source,
                                     std::optional<NetworkInfo> const& otherwise = {}) {
  const MetadataReader file(archive, source);
  if (!file.has("format")) {
    if (otherwise) return *otherwise;
    throw std::runtime_error("tstitch::read_network_info: " + source +
                             ": must carry tstitch metadata (see metadata.hpp), got a file without any");
  }
  return read_network_info(file);
}

/// Whether this is a package of torch.export, which is what AOTInductor writes.
inline bool is_package(caffe2::serialize::PyTorchStreamReader& archive) {
  return archive.hasRecord("archive_format");
}

}  // namespace detail

/// Reads what a network is without loading its weights.
/// @param path a TorchScript file or an AOTInductor package
/// @throws std::runtime_error for files that cannot be read or say nothing
inline NetworkInfo read_network_info(std::string const& path) {
  const auto file = detail::open_file(detail::network_file, path);
  return detail::reading(detail::network_file, detail::quoted(path), [&] {
    caffe2::serialize::PyTorchStreamReader archive(file);
    return detail::read_network_info(archive, detail::quoted(path));
  });
}

}  // namespace tstitch
