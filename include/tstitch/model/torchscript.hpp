/// @file
/// Networks from TorchScript files. Opt-in: it costs six seconds of compile time where the rest costs two.
///
/// What a network is travels inside the file, as flat key/value extra files (`_extra_files` of torch.jit.save), each a
/// line of UTF-8 text; required keys are marked *:
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
///
/// and for the two halves of an autoencoder, whose forward takes and gives one tensor: format *, kind *, name *,
/// latent_channels *, picture_channels (3), upsampling *, latent_scale *, latent_shift (0), license.
///
/// Files are not frozen, and parameters keep their names, so that other engines can take the weights from the same
/// file; freezing happens here.
#pragma once

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/GradMode.h>
#include <caffe2/serialize/inline_container.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <istream>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "autoencoder.hpp"
#include "file.hpp"
#include "host_tensor.hpp"
#include "network.hpp"

namespace tstitch {

struct TorchScriptOptions {
  at::Device device = at::kCPU;
  /// float32, float16 or bfloat16. Not stated: float32 on the CPU, the file's own type elsewhere.
  std::optional<at::ScalarType> dtype = {};
  /// Batch sizes to run before the network is handed out: the first runs of each are slow, because TorchScript compiles
  /// then. Guidance doubles the rows of a batch. On a GPU other batch sizes are warmed up when they first come.
  std::vector<std::int64_t> warm_up_rows = {};
  /// What the network is, for files without metadata; files that have it are believed instead.
  std::optional<NetworkInfo> info = {};
};

namespace detail {

inline constexpr FileKind torchscript_file{"load_torchscript", "a TorchScript file"};

/// Reads the metadata of one file; every failure names the file, the key and the value.
class MetadataReader {
 public:
  MetadataReader(caffe2::serialize::PyTorchStreamReader& archive, std::string source)
      : archive_(archive), source_(std::move(source)) {}

  bool has(std::string const& key) const { return archive_.hasRecord("extra/tstitch/" + key); }

  std::string text(std::string const& key) const {
    if (!has(key)) fail(key, "is required", "nothing");
    const auto [data, size] = archive_.getRecord("extra/tstitch/" + key);
    return {static_cast<char const*>(data.get()), size};
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
  caffe2::serialize::PyTorchStreamReader& archive_;
  std::string source_;
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
                       file.number<double>("mlp_ratio", 0)};
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
inline NetworkInfo read_network_info(caffe2::serialize::PyTorchStreamReader& archive, std::string const& source,
                                     std::optional<NetworkInfo> const& otherwise = {}) {
  const MetadataReader file(archive, source);
  if (!file.has("format")) {
    if (otherwise) return *otherwise;
    throw std::runtime_error("tstitch::read_network_info: " + source +
                             ": must carry tstitch metadata (see torchscript.hpp), got a TorchScript file without any");
  }
  return read_network_info(file);
}

inline void require_device(at::Device device) {
  if (device.is_cpu() || !device.is_cuda()) return;
  const int count = at::detail::getCUDAHooks().hasCUDA() ? at::detail::getCUDAHooks().deviceCount() : 0;
  if (count == 0 || device.index() >= count) {
    throw std::runtime_error("tstitch::load_torchscript: device " + device.str() + " must exist, got a machine with " +
                             std::to_string(count) + " CUDA devices");
  }
}

/// Runs a network of a new shape twice before its first result counts.
///
/// On a GPU TorchScript's first two runs of a shape, profiled and half optimised, round differently from all later
/// ones. Without this a picture has other last bits when it is the first to be drawn.
class WarmUp {
 public:
  template <class Run>
  void before(at::IntArrayRef shape, Run run) {
    const std::lock_guard lock(mutex_);
    if (shapes_.contains(shape.vec())) return;
    run();
    run();
    shapes_.insert(shape.vec());
  }

 private:
  std::mutex mutex_;
  std::set<std::vector<std::int64_t>> shapes_;
};

inline at::ScalarType type_of(torch::jit::Module const& module, TorchScriptOptions const& options) {
  const at::ScalarType type = options.dtype.value_or(at::kFloat);
  if (type != at::kFloat && type != at::kHalf && type != at::kBFloat16) {
    refuse("load_torchscript", "dtype must be float32, float16 or bfloat16", at::toString(type));
  }
  if (options.dtype || options.device.is_cpu()) return type;
  for (at::Tensor const& parameter : module.parameters()) {
    if (parameter.is_floating_point()) return parameter.scalar_type();
  }
  return type;
}

inline Network make_network(torch::jit::Module module, NetworkInfo info, TorchScriptOptions const& options,
                            std::string const& source) {
  const c10::AutoGradMode no_gradients(false);
  const at::ScalarType type = type_of(module, options);
  std::string inputs = info.num_classes ? "(x, t, labels" : "(x, t";
  for (ConditionInfo const& condition : info.conditions) inputs += ", " + condition.name;
  const auto forward = module.find_method("forward");
  const std::size_t count = 2 + (info.num_classes ? 1 : 0) + info.conditions.size();
  if (!forward || forward->num_inputs() != count + 1) {  // one more for the module itself
    throw std::runtime_error("tstitch::load_torchscript: " + source + ": forward must take " + inputs + "), got " +
                             (forward ? std::to_string(forward->num_inputs() - 1) + " arguments" : "no forward"));
  }
  module.eval();
  module.to(options.device, type);
  const auto frozen = std::make_shared<torch::jit::Module>(torch::jit::freeze(module));
  const auto warm_up = options.device.is_cpu() ? nullptr : std::make_shared<WarmUp>();
  // The arguments of the constructor may be evaluated in any order, and one of them takes `info` away.
  const bool labelled = info.num_classes > 0;
  std::vector<ConditionInfo> conditions = info.conditions;
  const Network network(
      [frozen, type, warm_up, labelled, conditions = std::move(conditions)](at::Tensor const& x, at::Tensor const& t,
                                                                            Condition const& condition) {
        std::vector<c10::IValue> arguments{x.to(type), t};
        if (labelled) arguments.emplace_back(condition.labels);
        for (ConditionInfo const& wanted : conditions) {
          at::Tensor const& tensor = condition.at(wanted.name);
          arguments.emplace_back(wanted.floating ? tensor.to(type) : tensor);
        }
        if (warm_up) warm_up->before(x.sizes(), [&] { frozen->forward(arguments); });
        return frozen->forward(std::move(arguments)).toTensor();
      },
      std::move(info), options.device);
  NetworkInfo const& stated = network.info();
  // Sizes that may be anything are known when the network is asked; it warms up then.
  const auto any_size = [](ConditionInfo const& wanted) {
    return std::find(wanted.shape.begin(), wanted.shape.end(), 0) != wanted.shape.end();
  };
  if (std::any_of(stated.conditions.begin(), stated.conditions.end(), any_size)) return network;
  for (const std::int64_t rows : options.warm_up_rows) {
    const at::Tensor x =
        host_tensor({rows, stated.channels, stated.height, stated.width}, at::kFloat).zero_().to(options.device);
    const at::Tensor integers = to_device(std::vector<std::int64_t>(std::size_t(rows), 0), options.device);
    const at::Tensor t = stated.timestep_type == TimestepType::int64 ? integers : integers.to(at::kFloat);
    const int runs = warm_up ? 1 : 3;  // TorchScript has settled after three, two of which WarmUp makes
    Condition condition{.labels = stated.num_classes ? integers : at::Tensor()};
    for (ConditionInfo const& wanted : stated.conditions) {
      std::vector<std::int64_t> sizes{rows};
      for (const std::int64_t size : wanted.shape) sizes.push_back(size);
      const at::ScalarType kind = wanted.floating ? at::kFloat : at::kLong;
      condition.tensors.emplace_back(wanted.name, host_tensor(sizes, kind).zero_().to(options.device));
    }
    for (int run = 0; run < runs; ++run) network(x, t, condition);
  }
  return network;
}

}  // namespace detail

/// Reads what a network is without loading its weights.
/// @throws std::runtime_error for files that cannot be read or say nothing
inline NetworkInfo read_network_info(std::string const& path) {
  detail::require_readable(detail::torchscript_file, path);
  return detail::reading(detail::torchscript_file, detail::quoted(path), [&] {
    caffe2::serialize::PyTorchStreamReader archive(path);
    return detail::read_network_info(archive, detail::quoted(path));
  });
}

/// Loads a network, freezes it, and warms it up.
/// @throws std::runtime_error naming the file and what is wrong with it
inline Network load_torchscript(std::string const& path, TorchScriptOptions const& options = {}) {
  detail::require_readable(detail::torchscript_file, path);
  detail::require_device(options.device);
  return detail::reading(detail::torchscript_file, detail::quoted(path), [&] {
    caffe2::serialize::PyTorchStreamReader archive(path);
    NetworkInfo info = detail::read_network_info(archive, detail::quoted(path), options.info);
    return detail::make_network(torch::jit::load(path), std::move(info), options, detail::quoted(path));
  });
}

/// The same from a seekable stream that holds nothing but the file.
inline Network load_torchscript(std::istream& stream, TorchScriptOptions const& options = {}) {
  detail::require_device(options.device);
  return detail::reading(detail::torchscript_file, "the stream", [&] {
    caffe2::serialize::PyTorchStreamReader archive(&stream);
    NetworkInfo info = detail::read_network_info(archive, "the stream", options.info);
    stream.clear();
    stream.seekg(0);
    return detail::make_network(torch::jit::load(stream), std::move(info), options, "the stream");
  });
}

/// Loads the networks of one run, in the order of use, and refuses those that do not fit together before any weights
/// are read.
/// @throws std::runtime_error naming every mismatch
inline std::vector<Network> load_torchscript_networks(std::vector<std::string> const& paths,
                                                      TorchScriptOptions const& options = {}) {
  if (!options.info) {
    std::vector<Network> stated;
    for (std::string const& path : paths) {
      stated.emplace_back([](at::Tensor const& x, at::Tensor const&) { return x; }, read_network_info(path));
    }
    require_compatible(stated);
  }
  std::vector<Network> networks;
  for (std::string const& path : paths) networks.push_back(load_torchscript(path, options));
  require_compatible(networks);
  return networks;
}

namespace detail {

/// One half of an autoencoder, ready to run.
inline Autoencoder load_autoencoder(std::string const& path, std::string const& kind,
                                    TorchScriptOptions const& options) {
  require_readable(torchscript_file, path);
  require_device(options.device);
  return reading(torchscript_file, quoted(path), [&] {
    caffe2::serialize::PyTorchStreamReader archive(path);
    AutoencoderInfo info = read_autoencoder_info(MetadataReader(archive, quoted(path)), kind);
    torch::jit::Module module = torch::jit::load(path);
    const c10::AutoGradMode no_gradients(false);
    const at::ScalarType type = type_of(module, options);
    const auto forward = module.find_method("forward");
    if (!forward || forward->num_inputs() != 2) {
      throw std::runtime_error("tstitch::load_torchscript: " + quoted(path) + ": forward must take one tensor, got " +
                               (forward ? std::to_string(forward->num_inputs() - 1) + " arguments" : "no forward"));
    }
    module.eval();
    module.to(options.device, type);
    const auto frozen = std::make_shared<torch::jit::Module>(torch::jit::freeze(module));
    return Autoencoder{[frozen, type](at::Tensor const& x) { return frozen->forward({x.to(type)}).toTensor(); },
                       std::move(info), options.device};
  });
}

}  // namespace detail

/// Loads the decoder of an autoencoder: latents to pictures.
/// @throws std::runtime_error naming the file and what is wrong with it
inline Decoder load_decoder(std::string const& path, TorchScriptOptions const& options = {}) {
  return Decoder(detail::load_autoencoder(path, "decoder", options));
}

/// Loads the encoder of an autoencoder: pictures to latents.
/// @throws std::runtime_error naming the file and what is wrong with it
inline Encoder load_encoder(std::string const& path, TorchScriptOptions const& options = {}) {
  return Encoder(detail::load_autoencoder(path, "encoder", options));
}

}  // namespace tstitch
