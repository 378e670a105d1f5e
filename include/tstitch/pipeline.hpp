/// @file
/// From a prompt to a picture: a folder that export_pipeline.py wrote, loaded whole. Opt-in; costs what load.hpp costs.
///
///     const tstitch::Pipeline pipeline = tstitch::load_pipeline("stable-diffusion-3.5");
///     const at::Tensor pictures = pipeline.draw({.prompts = {"a fox in the snow"}, .seed = 7});
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "file/pipeline.hpp"
#include "file/prompt_cache.hpp"
#include "file/text_encoder.hpp"
#include "load.hpp"
#include "peer/by_name.hpp"
#include "sampler/any_sampler.hpp"

namespace tstitch {

/// What to draw, and what of the pipeline's own ways is to be another.
struct PipelineRequest {
  std::vector<std::string> prompts = {};     ///< none for networks that draw without a text
  std::vector<std::int64_t> labels = {};     ///< classes, for networks that have them
  std::int64_t count = 1;                    ///< pictures of each prompt or class
  std::uint64_t seed = 0;                    ///< of picture i it is seed + i
  std::optional<std::string> negative = {};  ///< what guidance leads away from
  std::optional<double> ratio = {};          ///< share of the steps for the first of two networks, in [0, 1]
  std::optional<int> steps = {};
  std::optional<GuidanceScale> guidance = {};
  std::int64_t height = 0, width = 0;  ///< in pixels, where networks leave it open; 0: the pipeline's own
  std::int64_t frames = 0;             ///< of a video, likewise
  std::int64_t batch_size = 0;         ///< as in Request
  std::string profile = {};            ///< as profile_by_name has it; empty: the pipeline's own
  /// Those that the pipeline's text calls given, one row for all pictures or one for each prompt or class.
  std::vector<NamedCondition> conditions = {};
};

/// How a pipeline is loaded.
struct PipelineOptions {
  LoadOptions networks = {};  ///< and the device of all
  /// Whether text encoders stay in memory; else each is loaded when prompts are encoded, and dropped behind them.
  bool keep_text_encoders = true;
  /// Folder of a PromptCache, which keeps what prompts were encoded to; then the weights of text encoders are not
  /// loaded before there is another prompt. Empty: none.
  std::string prompt_cache = {};
};

/// Networks, text encoders and a decoder that belong together. A value that is cheap to copy; threads may use one at
/// the same time.
class Pipeline {
 public:
  /// @throws std::runtime_error naming the folder or file and what is wrong with it, before weights are read where it
  ///         can be known then
  explicit Pipeline(std::string const& folder, PipelineOptions options = {})
      : self_(std::make_shared<Self>(folder, std::move(options))) {}

  PipelineInfo const& info() const { return self_->info; }
  std::vector<Network> const& networks() const { return self_->networks; }
  std::optional<Decoder> const& decoder() const { return self_->decoder; }

  /// What the networks take, a row for each prompt.
  /// @param height, width of the picture in pixels
  /// @throws std::invalid_argument for prompts that TextEncoder refuses, and for any where there is no text encoder
  std::vector<NamedCondition> conditions(std::vector<std::string> const& prompts,
                                         std::optional<std::string> const& negative, std::int64_t height,
                                         std::int64_t width) const {
    std::vector<NamedCondition> found = self_->encode(prompts, negative ? negative : info().negative);
    for (NamedCondition& each : size_conditions(info(), height, width)) found.push_back(std::move(each));
    return found;
  }

  /// What samplers take. Picture i is of prompt or class i modulo their number.
  /// @throws std::invalid_argument for numbers that make no sense, and prompts or classes that the networks do not take
  Request request(PipelineRequest const& wanted) const {
    const std::size_t things = std::max<std::size_t>({1, wanted.prompts.size(), wanted.labels.size()});
    if (wanted.count < 1) detail::refuse("Pipeline", "count must be at least 1", std::to_string(wanted.count));
    if (wanted.count > (std::int64_t(1) << 24) / std::int64_t(things)) {
      detail::refuse("Pipeline", "count must give at most 2^24 pictures",
                     std::to_string(wanted.count) + " of each of " + std::to_string(things));
    }
    if (!wanted.prompts.empty() && !wanted.labels.empty() && wanted.prompts.size() != wanted.labels.size()) {
      detail::refuse("Pipeline", "prompts must be as many as classes where both are given",
                     std::to_string(wanted.prompts.size()) + " and " + std::to_string(wanted.labels.size()));
    }
    require_given(wanted.conditions, std::int64_t(things));
    const std::int64_t images = wanted.count * std::int64_t(things);
    Request request;  // whole before anything throws: g++ 12 frees members of half-made aggregates twice
    request.count = images;
    request.seed = wanted.seed;
    request.batch_size = wanted.batch_size;
    request.shape = shape(wanted);
    request.guidance.scale = wanted.guidance ? *wanted.guidance : self_->guidance();
    request.guidance.channels = profile(wanted).guidance_channels;
    for (std::int64_t i = 0; i < images && !wanted.labels.empty(); ++i) {
      request.labels.push_back(wanted.labels[std::size_t(i) % wanted.labels.size()]);
    }
    const std::int64_t pixels = self_->decoder_info().upsampling;
    std::vector<std::int64_t> const& sizes = request.shape;
    std::vector<NamedCondition> given =
        sizes.size() < 3
            ? self_->encode(wanted.prompts, wanted.negative ? wanted.negative : info().negative)
            : conditions(wanted.prompts, wanted.negative, pixels * sizes[sizes.size() - 2], pixels * sizes.back());
    given.insert(given.end(), wanted.conditions.begin(), wanted.conditions.end());
    for (NamedCondition& each : given) {
      if (each.value.size(0) > 1) each.value = each.value.index_select(0, rows(images, each.value));
      if (each.null.defined() && each.null.size(0) > 1) each.null = each.null.index_select(0, rows(images, each.null));
      request.conditions.push_back(std::move(each));
    }
    return request;
  }

  /// What draws the pictures of `request`.
  /// @throws std::invalid_argument for a ratio, steps or a profile that make no sense
  AnySampler sampler(PipelineRequest const& wanted = {}) const {
    const AnyProfile how = profile(wanted);
    if (networks().size() == 1) return tstitch::make_sampler(how, AnyModelSchedule(SingleNetwork{}));
    const bool by_ratio = wanted.ratio && info().has_boundaries();
    return tstitch::make_sampler(
        how, model_schedule_by_name(by_ratio ? "stitch" : info().routing,
                                    {.ratio = wanted.ratio.value_or(info().ratio),
                                     .num_train_timesteps = how.noise_schedule.num_train_timesteps()}));
  }

  /// Draws.
  /// @returns [n, channels, height, width] in [-1, 1], of videos [n, channels, frames, height, width]; of networks
  ///          without a decoder what they make
  /// @throws what `request`, `sampler`, Sampler::sample and the decoder throw; std::runtime_error where the observer
  ///         ended the run
  at::Tensor draw(PipelineRequest const& wanted, Observer const& observer = {}) const {
    const c10::AutoGradMode no_gradients(false);
    const AnySampler sampler = this->sampler(wanted);
    const Samples samples = sampler.sample(networks(), request(wanted), observer);
    if (!samples.finished) throw std::runtime_error("tstitch::Pipeline: draw must run to its end, got a stop");
    return decoder() ? (*decoder())(samples.images, {.rows = 1}) : samples.images;
  }

 private:
  struct Self {
    PipelineInfo info;
    PipelineOptions options;
    std::vector<Network> networks;
    std::optional<Decoder> decoder = {};
    std::optional<PromptCache> cache = {};
    std::vector<TextEncoder> encoders = {};
    std::mutex mutex = {};  ///< of the encoders

    Self(std::string const& folder, PipelineOptions how) : info(read_pipeline_info(folder)), options(std::move(how)) {
      require_texts(folder);
      if (!info.decoder.empty()) {
        const std::string mismatch = latents_mismatch(load_network_info(info.networks.back(), options.networks),
                                                      read_autoencoder_info(info.decoder, "decoder"), /*decodes=*/true);
        if (!mismatch.empty()) {
          throw std::runtime_error("tstitch::load_pipeline: " + detail::quoted(info.decoder) + ": " + mismatch);
        }
      }
      if (!options.prompt_cache.empty()) cache.emplace(options.prompt_cache);
      std::vector<std::function<void()>> others;
      if (!info.decoder.empty()) {
        others.push_back([this] { decoder.emplace(load_decoder(info.decoder, {.device = options.networks.device})); });
      }
      std::vector<std::optional<TextEncoder>> loaded(options.keep_text_encoders ? info.text_encoders.size() : 0);
      for (std::size_t k = 0; k < loaded.size(); ++k) {
        if (!same_text_encoder(info, k)) others.push_back([&, k] { loaded[k].emplace(load_encoder(k)); });
      }
      networks = load_networks(info.networks, {options.networks}, others);
      for (std::size_t k = 0; k < loaded.size(); ++k) {
        encoders.push_back(*loaded[same_text_encoder(info, k).value_or(k)]);
      }
    }

    /// That the networks are given what they take, by what the files say of themselves.
    void require_texts(std::string const& folder) const {
      std::vector<std::vector<NamedCondition>> parts;
      for (PipelineInfo::TextEncoder const& each : info.text_encoders) {
        std::vector<NamedCondition>& part = parts.emplace_back();
        for (ConditionInfo const& output : read_text_encoder_info(each.file).outputs) {
          std::vector<std::int64_t> sizes{1};
          sizes.insert(sizes.end(), output.shape.begin(), output.shape.end());
          part.push_back({output.name, detail::host_tensor(sizes, output.floating ? at::kFloat : at::kLong)});
        }
      }
      const std::string place = "tstitch::load_pipeline: " + detail::quoted(folder) + ": ";
      std::vector<NamedCondition> given;
      try {
        given = text_conditions(info, parts);
      } catch (std::invalid_argument const& error) {
        throw std::runtime_error(place + "its text encoders must go together, got '" + error.what() + "'");
      }
      for (NamedCondition& each : size_conditions(info, 1, 1)) given.push_back(std::move(each));
      for (std::string const& path : info.networks) {
        const NetworkInfo network = load_network_info(path, options.networks);
        for (ConditionInfo const& wanted : network.conditions) {
          if (std::find(info.given.begin(), info.given.end(), wanted.name) != info.given.end()) continue;
          const auto is_it = [&](NamedCondition const& each) { return each.name == wanted.name; };
          const auto found = std::find_if(given.begin(), given.end(), is_it);
          if (found != given.end() && fits(wanted, found->value.sizes())) continue;
          throw std::runtime_error(
              place + "its text encoders must give '" + detail::printable(wanted.name) + "' of " + text_of(wanted) +
              ", which " + detail::in_quotes(network.name) + " takes, got " +
              (found == given.end() ? "none" : detail::sizes_text(found->value.sizes().slice(1).vec())));
        }
      }
    }

    TextEncoder load_encoder(std::size_t k) const {
      const TorchScriptOptions how{.device = options.networks.device};
      std::string const& file = info.text_encoders[k].file;
      return cache ? cache->load(file, how) : load_text_encoder(file, how);
    }

    std::vector<NamedCondition> encode(std::vector<std::string> const& prompts,
                                       std::optional<std::string> const& negative) {
      if (prompts.empty() != info.text_encoders.empty()) {
        detail::refuse(
            "Pipeline",
            prompts.empty() ? "prompts must be at least one" : "prompts are for pipelines with text encoders",
            prompts.empty() ? "none" : detail::in_quotes(prompts[0]));
      }
      std::vector<std::vector<NamedCondition>> parts;
      for (std::size_t k = 0; k < info.text_encoders.size(); ++k) {
        if (const std::optional<std::size_t> same = same_text_encoder(info, k)) {
          parts.push_back(parts[*same]);
        } else if (options.keep_text_encoders) {
          parts.push_back(encoders[k].conditions(prompts, negative));
        } else {
          const std::lock_guard one_at_a_time(mutex);
          parts.push_back(load_encoder(k).conditions(prompts, negative));
        }
      }
      return text_conditions(info, parts);
    }

    GuidanceScale guidance() const {
      return info.guidance.empty() ? GuidanceScale(networks.back().info().guidance_scale)
                                   : GuidanceScale(info.guidance);
    }

    /// Of none that it makes a pixel of a pixel.
    AutoencoderInfo decoder_info() const {
      AutoencoderInfo none;
      none.upsampling = 1;
      return decoder ? decoder->info() : none;
    }
  };

  /// Which row of a condition is each picture's.
  static at::Tensor rows(std::int64_t images, at::Tensor const& of) {
    const at::Tensor which = detail::host_tensor({images}, at::kLong);
    for (std::int64_t i = 0; i < images; ++i) which.mutable_data_ptr<std::int64_t>()[i] = i % of.size(0);
    return which.to(of.device());
  }

  /// That a request brings what the pipeline asks for, once and no more, in rows for its things.
  void require_given(std::vector<NamedCondition> const& brought, std::int64_t things) const {
    std::vector<std::string> const& wanted = info().given;
    for (std::string const& name : wanted) {
      const auto is_it = [&](NamedCondition const& each) { return each.name == name; };
      const auto count = std::count_if(brought.begin(), brought.end(), is_it);
      if (count != 1) {
        detail::refuse("Pipeline", "conditions must have " + detail::in_quotes(detail::printable(name)) + " once",
                       count == 0 ? "none" : std::to_string(count) + " of it");
      }
    }
    for (NamedCondition const& each : brought) {
      if (std::find(wanted.begin(), wanted.end(), each.name) == wanted.end()) {
        detail::refuse("Pipeline", "conditions must be those that the pipeline calls given",
                       detail::in_quotes(detail::printable(each.name)));
      }
      const auto require_rows = [&](at::Tensor const& tensor) {
        const std::int64_t rows = tensor.defined() && tensor.dim() > 0 ? tensor.size(0) : 0;
        if (rows == 1 || rows == things) return;
        detail::refuse("Pipeline",
                       detail::in_quotes(each.name) + " must have 1 row or one for each of " + std::to_string(things),
                       std::to_string(rows));
      };
      require_rows(each.value);
      if (each.null.defined()) require_rows(each.null);
    }
  }

  AnyProfile profile(PipelineRequest const& wanted) const {
    NetworkInfo const& last = networks().back().info();
    const std::string name = !wanted.profile.empty()   ? wanted.profile
                             : !info().profile.empty() ? info().profile
                                                       : last.profile;
    const int steps = wanted.steps ? *wanted.steps : info().steps > 0 ? info().steps : last.steps > 0 ? last.steps : 20;
    return profile_by_name(name.empty() ? "recommended" : name, networks().back().noise_schedule(), steps);
  }

  /// [C, ...] of x.
  std::vector<std::int64_t> shape(PipelineRequest const& wanted) const {
    std::vector<std::int64_t> shape = info().shape;
    if (shape.empty()) {
      for (Network const& network : networks()) take_shape(shape, network.info());
    }
    take_picture_size(shape, self_->decoder_info(), wanted.height, wanted.width, wanted.frames);
    return shape;
  }

  std::shared_ptr<Self> self_;
};

/// Loads what export_pipeline.py wrote. Runs code of its files, so load what you trust.
/// @throws std::runtime_error naming the folder or file and what is wrong with it
inline Pipeline load_pipeline(std::string const& folder, PipelineOptions options = {}) {
  return Pipeline(folder, std::move(options));
}

}  // namespace tstitch
