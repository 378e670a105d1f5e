/// @file
/// What the arguments mean for these networks.
#pragma once

#include <tstitch/file/condition_file.hpp>
#include <tstitch/file/fingerprint.hpp>
#include <tstitch/file/pipeline.hpp>
#include <tstitch/file/prompt_cache.hpp>
#include <tstitch/file/text_encoder.hpp>
#include <tstitch/load.hpp>
#include <tstitch/model/class_mixture.hpp>
#include <tstitch/peer/by_name.hpp>
#include <tstitch/tstitch.hpp>

#include <ATen/ops/cat.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "arguments.hpp"
#include "classes.hpp"
#include "device.hpp"
#include "notes.hpp"
#include "text.hpp"

using Json = nlohmann::ordered_json;

/// The first of a name's synonyms, or of its words as many as suit the name of a file.
inline std::string file_word(std::string const& name) {
  const std::vector<std::string> words = synonyms(name);
  const std::string_view text = words.empty() ? std::string_view(name) : std::string_view(words[0]);
  std::string word;
  for (std::size_t i = 0; i < text.size() && word.size() < 60;) {
    const std::size_t size = tstitch::words::printable_character(text.substr(i));
    const char c = text[i];
    const bool plain = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '-';
    word += plain || size > 1 ? std::string(text.substr(i, size)) : "_";
    i += std::max<std::size_t>(size, 1);
  }
  return word;
}

/// The first words of a prompt as part of the name of a file: letters and digits of ASCII, "_" for what is between.
inline std::string file_words(std::string_view prompt) {
  constexpr std::size_t most = 40;
  std::string words;
  for (const char c : prompt) {
    const bool plain = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
    if (plain) {
      words += c;
    } else if (!words.empty() && words.back() != '_') {
      words += '_';
    }
    if (words.size() > most) break;
  }
  // Whole words, unless there is but one.
  if (words.size() > most) words.resize(std::min(words.rfind('_', most), most));
  while (words.ends_with('_')) words.pop_back();
  return words;
}

/// What --interpolate goes between.
enum class Between { nothing, seeds, classes, prompts };

/// Between two noises on the great circle (slerp), whose middle has the norm of noise; float64 sums. The ends are the
/// noises themselves.
/// @param a, b [1, ...]
inline at::Tensor between_noises(at::Tensor const& a, at::Tensor const& b, double share) {
  if (share == 0 || share == 1) return share == 0 ? a : b;
  const at::Tensor left = a.to(at::kDouble), right = b.to(at::kDouble);
  const double cosine =
      left.mul(right).sum().item<double>() / (left.norm().item<double>() * right.norm().item<double>());
  const double angle = std::acos(std::clamp(cosine, -1.0, 1.0));
  if (!(std::sin(angle) > 1e-6)) return left.lerp(right, share).to(a.scalar_type());  // the same noise again
  const at::Tensor sum = left.mul(std::sin((1 - share) * angle)).add(right, std::sin(share * angle));
  return sum.div(std::sin(angle)).to(a.scalar_type());
}

/// What the arguments mean for these networks.
struct Job {
  Arguments arguments;
  at::Device device = at::kCPU;
  std::vector<tstitch::NetworkInfo> infos;
  std::vector<std::string> names;         ///< of networks, as they are shown
  std::vector<std::string> fingerprints;  ///< of their files
  std::vector<std::int64_t> labels;       ///< of pictures, which take them in turn; empty without classes
  Between between = Between::nothing;
  std::vector<tstitch::ClassMixture> mixtures;      ///< whose labels follow those of the networks
  std::vector<tstitch::NamedCondition> conditions;  ///< with a row for each prompt, or one for all
  std::int64_t prompts = 1;                         ///< likewise taken in turn
  std::vector<std::string> texts;                   ///< of the prompts, or one for all; empty where no file has them
  std::int64_t image_count = 0;
  std::vector<std::int64_t> shape;  ///< [C, ...] of one; empty where only the plan is shown
  tstitch::Guidance guidance;
  std::optional<tstitch::AnyProfile> way;  ///< how pictures are drawn: the profile, or what the arguments say
  Notes notes;
  double predicted_seconds = 0;                                  ///< of a batch, where there is a budget
  at::Tensor initial_image = {}, mask = {}, initial_noise = {};  ///< [1 or n, ...] of Request; undefined: none
  at::Tensor to_invert = {};                                     ///< [1, C, ...]; its noise is the initial one

  std::int64_t images() const { return image_count; }
  /// How many there are of one seed where several are given: one of each class or prompt.
  std::int64_t of_one_seed() const { return std::max<std::int64_t>({1, std::int64_t(labels.size()), prompts}); }
  /// How many stand beside one another on the way from seed to seed, class to class or prompt to prompt, and how many
  /// of one seed and one variation there are.
  std::int64_t beside() const {
    return between == Between::classes || between == Between::prompts ? arguments.count : of_one_seed();
  }
  /// Where a picture is on the way from one of several to the next.
  struct Place {
    std::int64_t from;  ///< which of them it comes from
    double share;       ///< of the next, below 1
  };
  Place place(std::int64_t image) const {
    const std::int64_t at = image / beside(), steps = arguments.interpolate + 1;
    return {at / steps, double(at % steps) / double(steps)};
  }
  /// Which variation of its seed's picture it is; 0: that picture.
  std::int64_t variation(std::int64_t image) const { return image / beside() % (arguments.variations + 1); }
  /// Of the picture that it is a variation of.
  std::uint64_t varied_seed(std::int64_t image) const {
    return arguments.seeds[std::size_t(image / beside() / (arguments.variations + 1))];
  }
  std::uint64_t seed(std::int64_t image) const {
    std::vector<std::uint64_t> const& seeds = arguments.seeds;
    // Of the noise that steps add, which is to be the same in all.
    if (between == Between::seeds) return seeds[0];
    if (between != Between::nothing) return seeds[0] + std::uint64_t(image % beside());
    if (arguments.variations > 0) {
      const bool another = arguments.variation_strength == 1;
      return varied_seed(image) + (another ? std::uint64_t(variation(image)) : 0);
    }
    return seeds.size() == 1 ? seeds[0] + std::uint64_t(image) : seeds[std::size_t(image / of_one_seed())];
  }
  /// The noise that a seed's own picture begins with.
  /// @returns [1, C, ...]
  at::Tensor noise_of(std::uint64_t of) const {
    return tstitch::noise({of}, tstitch::NoiseAddress::initial(), shape, at::kFloat);
  }
  /// Noise between those of two seeds, or of a picture and of one that it is to be a little like.
  /// @returns [1, C, ...]
  at::Tensor own_noise(std::int64_t image) const {
    if (arguments.variations > 0) {
      const std::uint64_t from = varied_seed(image), other = from + std::uint64_t(variation(image));
      const at::Tensor whole = initial_noise.defined() ? initial_noise.cpu().to(at::kFloat) : noise_of(from);
      return other == from ? whole : between_noises(whole, noise_of(other), arguments.variation_strength);
    }
    const auto [from, share] = place(image);
    const at::Tensor a = noise_of(arguments.seeds[std::size_t(from)]);
    return share == 0 ? a : between_noises(a, noise_of(arguments.seeds[std::size_t(from) + 1]), share);
  }
  /// Class after class, as the columns of a sweep: every class once, then again. Behind those of the networks are the
  /// labels of mixtures.
  std::int64_t label(std::int64_t image) const {
    if (between == Between::classes) return labels[std::size_t(image / beside())];
    return labels[std::size_t(image) % labels.size()];
  }
  /// The classes that a picture is between; null where it is of one.
  tstitch::ClassMixture const* mixture(std::int64_t image) const {
    if (mixtures.empty()) return nullptr;
    const std::int64_t index = label(image) - tstitch::ClassMixtures::first_label(infos.back());
    return index >= 0 ? &mixtures[std::size_t(index)] : nullptr;
  }

  /// Pictures [first, first + count) of the job.
  tstitch::Request request(std::int64_t first, std::int64_t count) const {
    tstitch::Request request{.guidance = guidance, .shape = shape};
    for (std::int64_t i = first; i < first + count; ++i) {
      request.seeds.push_back(seed(i));
      if (!labels.empty()) request.labels.push_back(label(i));
    }
    for (tstitch::NamedCondition const& each : conditions) {
      request.conditions.push_back(
          {each.name, prompt_rows(each.value, first, count), prompt_rows(each.null, first, count)});
    }
    request.initial_image = initial_image;
    request.mask = mask;
    request.strength = arguments.strength;
    if (between == Between::seeds || arguments.variations > 0) {
      std::vector<at::Tensor> own;
      for (std::int64_t i = first; i < first + count; ++i) own.push_back(own_noise(i));
      request.initial_noise = at::cat(own).to(device);
    } else if (initial_noise.defined()) {
      const bool one = initial_noise.size(0) == 1;
      std::vector<std::int64_t> all(std::size_t(initial_noise.dim()), -1);
      all[0] = count;
      request.initial_noise = one ? initial_noise.expand(all) : initial_noise.narrow(0, first, count);
    }
    if (arguments.pad_batches) {
      request.batch_size = arguments.batch;
      request.pad_batches = true;
    }
    return request;
  }

  /// Of prompts, those of pictures [first, first + count): every prompt once, then again; or between each and the next.
  at::Tensor prompt_rows(at::Tensor const& all, std::int64_t first, std::int64_t count) const {
    if (!all.defined() || all.size(0) == 1) return all;
    const bool goes = between == Between::prompts;
    const at::Tensor which = all.new_empty({count}, at::kLong), next = which.clone();
    std::vector<std::int64_t> sizes(std::size_t(all.dim()), 1);
    sizes[0] = count;
    const at::Tensor shares = all.new_empty(sizes, at::kFloat);
    for (std::int64_t i = 0; i < count; ++i) {
      const Place at = goes ? place(first + i) : Place{(first + i) % all.size(0), 0};
      which.mutable_data_ptr<std::int64_t>()[i] = at.from;
      next.mutable_data_ptr<std::int64_t>()[i] = std::min(at.from + 1, all.size(0) - 1);
      shares.mutable_data_ptr<float>()[i] = float(at.share);
    }
    const at::Tensor from = all.index_select(0, which);
    return goes && all.is_floating_point() ? from.lerp(all.index_select(0, next), shares.to(all.scalar_type())) : from;
  }

  /// Whether x becomes videos, which are written each by itself.
  bool draws_videos() const { return shape.size() == 4 && !arguments.decoder.empty(); }

  /// What is drawn, as lines call it.
  std::string noun() const { return shape.size() == 3 ? "picture" : draws_videos() ? "video" : "sample"; }

  /// For what must know them before there is a request.
  tstitch::InputSizes input_sizes() const {
    tstitch::InputSizes sizes{.shape = shape};
    for (tstitch::NamedCondition const& each : conditions) {
      sizes.conditions.push_back({.name = each.name, .shape = each.value.sizes().slice(1).vec()});
    }
    return sizes;
  }

  /// "horse"; where it has no name, its number.
  std::string name_of_class(std::int64_t of) const {
    auto const& all = infos.back().class_names;
    return all.empty() ? std::to_string(of) : all[std::size_t(of)];
  }
  /// Of the picture, or the first of the two that it is between.
  std::string class_name(std::int64_t image) const {
    if (labels.empty()) return "";
    tstitch::ClassMixture const* const of = mixture(image);
    return name_of_class(of ? of->first : label(image));
  }
  /// Which of several prompts it is, or the first of the two that it is between.
  std::int64_t prompt(std::int64_t image) const {
    return between == Between::prompts ? place(image).from : image % prompts;
  }

  /// Of the picture's prompt; empty where it is not known.
  std::string text(std::int64_t image) const {
    if (texts.empty()) return "";
    std::string text = texts[std::size_t(prompt(image)) % texts.size()];
    if (between == Between::prompts && place(image).share > 0) {
      text += " to " + texts[std::size_t(prompt(image) + 1) % texts.size()];
    }
    return text;
  }

  /// What was asked for, in the words of a report: the class, and which of several prompts; of those between two also
  /// the other and its share; and which variation.
  void describe(std::int64_t image, Json& json) const {
    if (!labels.empty()) json["class"] = class_name(image);
    if (tstitch::ClassMixture const* const of = mixture(image)) {
      json["to_class"] = name_of_class(of->second);
      json["share"] = of->share;
    }
    if (prompts > 1) json["prompt"] = prompt(image);
    if (between == Between::prompts && place(image).share > 0) {
      json["to_prompt"] = prompt(image) + 1;
      json["share"] = place(image).share;
    }
    if (arguments.variations > 0) json["variation"] = variation(image);
  }

  /// 000012-horse-seed12.png, 000003-prompt1-a_fox_in_the_snow-seed3.png, 000002-cat-to-dog-0.25-seed0.png,
  /// 000001-cat-seed3-variation1.png; of videos with another ending, or with none where it is a folder of frames
  std::string file_name(std::int64_t image) const {
    char number[32];
    std::snprintf(number, sizeof number, "%06lld-", static_cast<long long>(image));
    std::string name = number;
    const auto share = [](double of) { return tstitch::words::text(std::round(100 * of) / 100) + "-"; };
    if (!labels.empty()) name += file_word(class_name(image)) + "-";
    if (tstitch::ClassMixture const* const of = mixture(image)) {
      name += "to-" + file_word(name_of_class(of->second)) + "-" + share(of->share);
    }
    if (prompts > 1) name += "prompt" + std::to_string(prompt(image)) + "-";
    if (between == Between::prompts && place(image).share > 0) {
      name += "to-prompt" + std::to_string(prompt(image) + 1) + "-" + share(place(image).share);
    }
    if (const std::string words = file_words(text(image)); !words.empty()) name += words + "-";
    const std::string ending = !draws_videos() || arguments.video == "apng" ? ".png"
                               : arguments.video == "mp4"                   ? ".mp4"
                                                                            : "";
    if (arguments.variations == 0) return name + "seed" + std::to_string(seed(image)) + ending;
    name += "seed" + std::to_string(varied_seed(image));
    return name + (variation(image) > 0 ? "-variation" + std::to_string(variation(image)) : "") + ending;
  }
};

/// What --interpolate goes between, and its classes between classes.
/// @throws std::invalid_argument where there is nothing to go between, and where it is not clear between what
inline void take_between(Job& job, Arguments const& arguments) {
  if (arguments.interpolate == 0) return;
  if (arguments.seeds.size() > 1) {
    job.between = Between::seeds;
    return;
  }
  if (job.prompts > 1 && job.labels.size() > 1) {
    throw std::invalid_argument("--interpolate: must go between classes or between prompts, got " +
                                std::to_string(job.labels.size()) + " classes and " + std::to_string(job.prompts) +
                                " prompts; name one class with --class, or give one prompt");
  }
  if (job.prompts > 1) {
    for (tstitch::NamedCondition const& each : job.conditions) {
      for (at::Tensor const& of : {each.value, each.null}) {
        if (!of.defined() || of.is_floating_point() || of.size(0) == 1) continue;
        if (of.eq(of.narrow(0, 0, 1)).all().item<bool>()) continue;
        throw std::invalid_argument(
            "--interpolate: must have prompts of fractions to go between, got whole numbers in " +
            in_quotes(each.name));
      }
    }
    job.between = Between::prompts;
    return;
  }
  if (arguments.classes.empty() || job.labels.size() < 2) {
    throw std::invalid_argument(
        "--interpolate: must have two seeds, two classes that --class names, or two prompts at least, got one" +
        std::string(arguments.classes.empty() && job.labels.size() > 1 ? " seed and no --class" : " of each"));
  }
  job.between = Between::classes;
  const std::vector<std::int64_t> ends = std::exchange(job.labels, {});
  const std::int64_t steps = arguments.interpolate + 1, first = tstitch::ClassMixtures::first_label(job.infos.back());
  for (std::size_t i = 0; i + 1 < ends.size(); ++i) {
    job.labels.push_back(ends[i]);
    for (std::int64_t k = 1; k < steps; ++k) {
      job.labels.push_back(first + std::int64_t(job.mixtures.size()));
      job.mixtures.push_back({ends[i], ends[i + 1], double(k) / double(steps)});
    }
  }
  job.labels.push_back(ends.back());
  job.notes.push_back(
      "--interpolate: a picture between two classes costs a row more in each evaluation of a network than --plan says, "
      "for the other class");
}

/// Samples as the network's makers do, where the arguments say nothing else.
inline void take_recommended(Arguments& arguments, tstitch::NetworkInfo const& info, Notes& notes) {
  if (arguments.sampling_given) return;
  std::string taken, profile = info.profile;
  std::replace(profile.begin(), profile.end(), '_', '-');
  if (!profile.empty() && std::ranges::count(names_in(tstitch::profiles()), profile) == 0) {
    notes.push_back(in_quotes(info.name) + " recommends the profile " + in_quotes(info.profile) +
                    ", which is none of this version; draws with --sampler " + arguments.sampler);
    return;
  }
  if (!profile.empty()) {
    arguments.profile = profile;
    taken += " --profile " + profile;
  }
  if (info.steps > 0 && !arguments.steps_given) {
    arguments.steps = info.steps;
    taken += " --steps " + std::to_string(info.steps);
  }
  if (!taken.empty()) notes.push_back(in_quotes(info.name) + " recommends" + taken + ", which is taken");
  if (arguments.pipeline.empty() || !arguments.profile.empty()) return;
  // As tstitch::Pipeline draws where nobody says how.
  arguments.profile = "recommended";
  if (!arguments.steps_given && arguments.parts.steps == 0 && info.steps == 0) arguments.steps = 20;
  notes.push_back("--pipeline: " + in_quotes(arguments.pipeline) +
                  " says no profile; draws with --profile recommended" + " --steps " + std::to_string(arguments.steps));
}

/// @throws std::invalid_argument where no network that takes a condition of this name takes one of this shape
inline void require_rows(std::string const& option, std::string const& path, std::string const& name,
                         at::Tensor const& given, std::vector<tstitch::NetworkInfo> const& infos) {
  for (tstitch::NetworkInfo const& info : infos) {
    for (tstitch::ConditionInfo const& wanted : info.conditions) {
      if (wanted.name != name || tstitch::fits(wanted, given.sizes())) continue;
      std::string sizes = tstitch::text_of(wanted);
      sizes = "[n" + std::string(wanted.shape.empty() ? "" : ", ") + sizes.substr(1);
      throw std::invalid_argument(option + ": " + in_quotes(path) + ": " + in_quotes(name) + " must be " + sizes +
                                  " for " + in_quotes(info.name) + ", a row for each prompt, got " +
                                  tstitch::words::shape_text(given.sizes()) + ", which is read as " +
                                  std::to_string(given.size(0)) + " prompts");
    }
  }
}

/// Takes the texts of a file's prompts. Of several files that have texts the one with the most is taken, and of these
/// the first.
/// @param source the file that the job's texts are from
inline void take_texts(Job& job, std::string& source, std::string const& path) {
  std::vector<std::string> texts = tstitch::load_prompts(path);
  if (texts.size() == job.texts.size() && texts != job.texts) {
    job.notes.push_back("--condition: " + in_quotes(path) + " has other prompts than " + in_quotes(source) +
                        ", which are those that the pictures are named after");
  }
  if (texts.size() <= job.texts.size()) return;
  job.texts = std::move(texts);
  source = path;
}

/// Takes a condition, and how many prompts it is of.
/// @param option that brings it
/// @param path the file that it is from
inline void take_condition(Job& job, std::string const& option, std::string const& path,
                           tstitch::NamedCondition condition) {
  for (at::Tensor const& tensor : {condition.value, condition.null}) {
    if (!tensor.defined()) continue;
    const std::int64_t rows = tensor.dim() ? tensor.size(0) : 0;
    if (rows < 1 || (rows > 1 && job.prompts > 1 && rows != job.prompts)) {
      throw std::invalid_argument(option + ": " + in_quotes(path) + ": " + in_quotes(condition.name) +
                                  " must have 1 row or the " + std::to_string(job.prompts) + " of the others, got " +
                                  std::to_string(rows));
    }
    require_rows(option, path, condition.name, tensor, job.infos);
    job.prompts = std::max(job.prompts, rows);
  }
  for (tstitch::NamedCondition const& other : job.conditions) {
    if (other.name != condition.name) continue;
    throw std::invalid_argument(option + ": each must have other names, got " + in_quotes(condition.name) +
                                " again in " + in_quotes(path));
  }
  job.conditions.push_back(std::move(condition));
}

/// What a text encoder makes of the prompts, on the host.
struct EncodedPrompts {
  std::vector<tstitch::NamedCondition> conditions = {};
  std::vector<std::string> notes = {};
};

/// The text encoder of a file, behind the folder of --prompt-cache where there is one.
/// @param warn is told what is wrong with that, as long as the encoder is used
inline tstitch::TextEncoder load_text_encoder(std::string const& path, Arguments const& arguments, at::Device device,
                                              std::function<void(std::string const&)> warn) {
  if (arguments.prompt_cache.empty()) return tstitch::load_text_encoder(path, {.device = device});
  return tstitch::PromptCache(arguments.prompt_cache, {.warn = std::move(warn)}).load(path, {.device = device});
}

/// @param path the encoder's file
inline EncodedPrompts encode_prompts(tstitch::TextEncoder const& encoder, std::string const& path,
                                     Arguments const& arguments) {
  EncodedPrompts encoded;
  encoded.conditions = encoder.conditions(arguments.prompts, arguments.negative);
  for (tstitch::NamedCondition& each : encoded.conditions) {
    each.value = each.value.cpu();
    if (each.null.defined()) each.null = each.null.cpu();
  }
  const at::Tensor cut = encoder.tokenize(arguments.prompts).cut;
  for (std::size_t i = 0; i < arguments.prompts.size(); ++i) {
    const std::int64_t tokens = cut.const_data_ptr<std::int64_t>()[i];
    if (tokens == 0) continue;
    encoded.notes.push_back("--prompt: " + in_quotes(tstitch::words::printable(arguments.prompts[i], 60)) +
                            " is cut: there is no room for " + std::to_string(tokens) + " of its tokens in " +
                            in_quotes(path));
  }
  return encoded;
}

/// Loads a text encoder, encodes the prompts, and drops it.
inline EncodedPrompts encode_prompts(std::string const& path, Arguments const& arguments, at::Device device) {
  std::vector<std::string> warnings;
  const auto warn = [&](std::string const& line) { warnings.push_back("--prompt-cache: " + line); };
  EncodedPrompts encoded = encode_prompts(load_text_encoder(path, arguments, device, warn), path, arguments);
  encoded.notes.insert(encoded.notes.begin(), warnings.begin(), warnings.end());
  return encoded;
}

/// What is the same in all jobs of the same files.
struct JobFiles {
  std::vector<tstitch::NetworkInfo> infos = {};
  std::vector<std::string> names = {}, fingerprints = {};  ///< see Job
  /// Encodes the arguments' prompts by the text encoder of this file.
  std::function<EncodedPrompts(std::string const& path, Arguments const& arguments, at::Device device)> encode =
      [](std::string const& path, Arguments const& arguments, at::Device device) {
        return encode_prompts(path, arguments, device);
      };
};

inline JobFiles read_job_files(Arguments const& arguments) {
  JobFiles files;
  for (std::string const& path : arguments.models) {
    files.infos.push_back(load_network_info(path));
    files.names.push_back(tstitch::words::printable(files.infos.back().name, 60));
    files.fingerprints.push_back(tstitch::fingerprint_text(path));
  }
  return files;
}

/// Encodes the prompts, by all text encoders at once.
inline void take_prompts(Job& job, Arguments const& arguments, JobFiles const& files) {
  if (arguments.prompts.empty()) return;
  std::vector<std::string> const& paths = arguments.text_encoders;
  std::vector<EncodedPrompts> encoded = tstitch::at_once(job.device, paths.size(), [&](std::size_t k) {
    const bool again = tstitch::same_text_encoder(arguments.parts, k).has_value();
    return again ? EncodedPrompts() : files.encode(paths[k], arguments, job.device);
  });
  std::vector<std::vector<tstitch::NamedCondition>> parts;
  for (std::size_t k = 0; k < paths.size(); ++k) {
    parts.push_back(encoded[tstitch::same_text_encoder(arguments.parts, k).value_or(k)].conditions);
    job.notes.insert(job.notes.end(), encoded[k].notes.begin(), encoded[k].notes.end());
  }
  for (tstitch::NamedCondition& each : tstitch::text_conditions(arguments.parts, parts)) {
    take_condition(job, arguments.pipeline.empty() ? "--text-encoder" : "--pipeline",
                   arguments.pipeline.empty() ? paths.front() : arguments.pipeline, std::move(each));
  }
  job.texts = arguments.prompts;
}

/// What the decoder says of itself; of none that it makes a pixel of a pixel.
inline tstitch::AutoencoderInfo decoder_info(Arguments const& arguments) {
  if (arguments.known_decoder) return *arguments.known_decoder;
  tstitch::AutoencoderInfo none;
  none.upsampling = 1;
  return arguments.decoder.empty() ? none : tstitch::read_autoencoder_info(arguments.decoder, "decoder");
}

/// The shape that --size and --frames say.
inline void take_size(Arguments& arguments, std::vector<tstitch::NetworkInfo> const& infos) {
  if (arguments.size.empty() && arguments.frames == 0) return;
  std::vector<std::int64_t>& shape = arguments.shape;
  if (shape.empty()) {
    for (tstitch::NetworkInfo const& info : infos) tstitch::take_shape(shape, info);
  }
  const bool sized = !arguments.size.empty();
  tstitch::take_picture_size(shape, decoder_info(arguments), sized ? arguments.size[0] : 0,
                             sized ? arguments.size[1] : 0, arguments.frames);
}

/// Takes what a pipeline's networks are told of the picture's size, where no file says it; the shape is known.
inline void take_size_conditions(Job& job, Arguments const& arguments) {
  if (arguments.parts.conditions.empty() || job.shape.size() < 3) return;
  const std::int64_t pixels = decoder_info(arguments).upsampling;
  const std::int64_t height = pixels * job.shape[job.shape.size() - 2], width = pixels * job.shape.back();
  for (tstitch::NamedCondition& each : tstitch::size_conditions(arguments.parts, height, width)) {
    const auto is_it = [&](tstitch::NamedCondition const& other) { return other.name == each.name; };
    if (std::ranges::any_of(job.conditions, is_it)) continue;
    take_condition(job, "--pipeline", arguments.pipeline, std::move(each));
  }
}

/// Takes the tensors of all files of conditions, and how many prompts they are.
inline void take_conditions(Job& job, std::vector<std::string> const& paths) {
  std::string source_of_texts = job.texts.empty() ? "" : "--prompt";
  for (std::string const& path : paths) {
    for (tstitch::NamedCondition& each : tstitch::load_conditions(path)) {
      take_condition(job, "--condition", path, std::move(each));
    }
    take_texts(job, source_of_texts, path);
  }
}

/// The first condition that the network takes and no file of --condition has; empty where they have all.
inline std::string missing_condition(Job const& job, tstitch::NetworkInfo const& info) {
  for (tstitch::ConditionInfo const& wanted : info.conditions) {
    const auto is_it = [&](tstitch::NamedCondition const& each) { return each.name == wanted.name; };
    if (std::none_of(job.conditions.begin(), job.conditions.end(), is_it)) return wanted.name;
  }
  return "";
}

/// What the networks of the plan take is given, before their weights are read.
inline void require_conditions(Job const& job, tstitch::Plan const& plan) {
  const std::vector<int> calls = plan.calls(job.infos.size());
  for (std::size_t k = 0; k < calls.size(); ++k) {
    const std::string missing = missing_condition(job, job.infos[k]);
    if (calls[k] == 0 || missing.empty()) continue;
    const bool encodes = !job.arguments.text_encoders.empty() && job.arguments.prompts.empty();
    throw std::invalid_argument((encodes ? "--prompt" : "--condition") + std::string(": must give ") +
                                in_quotes(missing) + ", which network " + std::to_string(k) + " (" +
                                in_quotes(job.names[k]) + ") takes, got none");
  }
}

/// Of x that is no picture there are latents only, and of what a decoder makes videos of these.
/// @param shape [C, ...] of one
inline void require_picture(Arguments const& arguments, std::vector<std::int64_t> const& shape) {
  if (arguments.video_given && (shape.size() != 4 || arguments.decoder.empty())) {
    throw std::invalid_argument(
        "--video: goes, as --frames-per-second does, with --decoder and networks whose x is a video, [C, F, H, W], got "
        "x of " +
        tstitch::words::shape_text(shape) + (arguments.decoder.empty() ? " and no decoder" : ""));
  }
  if (shape.size() == 3) return;
  if (shape.size() == 4 && !arguments.decoder.empty()) {
    const bool others = !arguments.grid.empty() || !arguments.animation.empty() || arguments.preview != "none" ||
                        !arguments.sweep.empty();
    if ((!arguments.output.empty() || !arguments.latents.empty()) && !others) return;
    throw std::invalid_argument(
        "--output: must be given, or --latents, without --grid, --animation, --preview and --sweep, for networks whose "
        "x is a video, "
        "[C, F, H, W], got x of " +
        tstitch::words::shape_text(shape));
  }
  const std::string got = ", got x of " + tstitch::words::shape_text(shape);
  if (!arguments.sweep.empty()) {
    throw std::invalid_argument("--sweep: is for networks whose x is a picture, [C, H, W]" + got);
  }
  if (!arguments.latents.empty() && arguments.output.empty() && arguments.grid.empty() && arguments.decoder.empty() &&
      arguments.animation.empty() && arguments.preview == "none")
    return;
  throw std::invalid_argument(
      "--latents: must be given, without --output, --grid, --animation, --preview and --decoder, for networks whose x "
      "is no "
      "picture, [C, H, W]" +
      got);
}

/// Latents need a decoder, and pictures none.
inline void require_decoder(Arguments const& arguments, tstitch::NetworkInfo const& info) {
  const bool draws = arguments.latents.empty() || !arguments.output.empty() || !arguments.grid.empty() ||
                     !arguments.animation.empty() || arguments.preview != "none";
  if (info.decoding == tstitch::Decoding::none && info.channels != 1 && info.channels != 3 &&
      arguments.decoder.empty() && !arguments.plan && draws) {
    throw std::invalid_argument("--decoder: is needed by networks that make latents, got none for " +
                                std::to_string(info.channels) + " channels");
  }
  if (info.decoding == tstitch::Decoding::pixels && !arguments.decoder.empty()) {
    throw std::invalid_argument("--decoder: is for networks that make latents, got " + in_quotes(arguments.decoder));
  }
}

/// How many pictures there are; labels, prompts and what is interpolated are known.
inline std::int64_t count_pictures(Job const& job, Arguments const& arguments) {
  constexpr std::int64_t most = 100'000'000;
  const bool on_the_way = job.between == Between::classes || job.between == Between::prompts;
  const std::int64_t places = job.between == Between::classes ? std::int64_t(job.labels.size())
                                                              : (job.prompts - 1) * (arguments.interpolate + 1) + 1;
  const std::int64_t each = on_the_way ? places : job.of_one_seed();
  if (arguments.count > most / each) {
    throw std::invalid_argument("--count: must give at most " + std::to_string(most) + " pictures, got " +
                                std::to_string(arguments.count));
  }
  const std::int64_t images = arguments.images > 0 ? arguments.images : arguments.count * each;
  std::vector<std::uint64_t> const& seeds = arguments.seeds;
  const std::int64_t following = arguments.variations > 0 ? arguments.variations
                                 : seeds.size() > 1       ? 0
                                                          : (on_the_way ? arguments.count : images) - 1;
  const std::uint64_t largest = *std::max_element(seeds.begin(), seeds.end());
  if (std::uint64_t(following) > std::numeric_limits<std::uint64_t>::max() - largest) {
    throw std::invalid_argument(
        "--seed: must leave room for one seed more a " +
        std::string(arguments.variations > 0 ? "variation" : "picture") + " below 18446744073709551616, got " +
        std::to_string(largest) + " and " +
        (arguments.variations > 0 ? counted(following, "variation") : std::to_string(following + 1) + " pictures"));
  }
  return images;
}

/// @param numbers of --guidance-projection, at most three
inline std::optional<tstitch::ProjectedGuidance> projection_of(std::vector<double> const& numbers) {
  if (numbers.empty()) return {};
  tstitch::ProjectedGuidance projection{.eta = numbers[0]};
  if (numbers.size() > 1) projection.norm_threshold = numbers[1];
  if (numbers.size() > 2) projection.momentum = numbers[2];
  return projection;
}

/// How the job is guided, but for the channels; conditions are known.
inline tstitch::Guidance guidance_of(Job& job, Arguments const& arguments) {
  tstitch::NetworkInfo const& info = job.infos.back();
  const std::vector<double> interval = numbers_of("--guidance-interval", arguments.guidance_interval, ':', 2);
  std::string with_null;  // a condition that the network takes and that has what guidance needs
  for (tstitch::NamedCondition const& given : job.conditions) {
    for (tstitch::ConditionInfo const& wanted : info.conditions) {
      if (given.name == wanted.name && given.null.defined()) with_null = given.name;
    }
  }
  const bool guidable = info.null_class.has_value() || !with_null.empty();
  const tstitch::Guidance guidance{.scale = arguments.guidance.empty()
                                                ? tstitch::GuidanceScale(guidable ? info.guidance_scale : 1.0)
                                                : tstitch::GuidanceScale(arguments.guidance),
                                   .begin = interval[0],
                                   .end = interval[1],
                                   .rescale = arguments.guidance_rescale,
                                   .projected = projection_of(arguments.guidance_projection),
                                   .guide_network = arguments.guidance_network,
                                   .forecast = forecast_of_guidance(arguments.forecast_guidance)};
  note_guidance(job.notes, arguments, guidance, with_null);
  return guidance;
}

/// The sampler with its options, or the profile.
inline tstitch::AnyProfile way_of(Arguments& arguments, tstitch::NoiseSchedule const& noise) {
  if (arguments.spacing.empty()) arguments.spacing = noise.is_flow() ? "shifted" : "linspace";
  if (!arguments.profile.empty()) return tstitch::profile_by_name(arguments.profile, noise, arguments.steps);
  const tstitch::Spacing spacing = !arguments.timesteps.empty() ? tstitch::Spacing::list(arguments.timesteps)
                                   : !arguments.sigmas.empty()
                                       ? tstitch::Spacing::sigmas(arguments.sigmas)
                                       : tstitch::spacing_by_name(arguments.spacing, "--spacing");
  return {noise, {.steps = arguments.steps, .spacing = spacing}, rule_of(arguments)};
}

/// How the job is drawn; its guidance is known.
inline void take_way(Job& job, Arguments& arguments) {
  tstitch::NoiseSchedule const& noise = job.infos.back().noise_schedule.value();
  if (arguments.preset.empty()) {
    job.way = way_of(arguments, noise);
    job.way->options.forecast = forecast_of_steps(arguments.forecast, job.infos.size());
  } else {
    const tstitch::Preset preset = tstitch::preset_by_name(arguments.preset, noise);
    job.way = tstitch::any_profile(preset.profile);
    job.guidance.forecast = preset.guidance;
    arguments.steps = preset.profile.options.steps;
    if (!arguments.ratio_given) arguments.ratio = preset.ratio;
  }
  job.guidance.channels = job.way->guidance_channels;
}

/// @param files of the arguments' models
inline Job prepare(Arguments arguments, JobFiles const& files) {
  Job job;
  job.device = device_of(arguments.device);
  job.infos = files.infos;
  job.names = files.names;
  job.fingerprints = files.fingerprints;
  tstitch::NetworkInfo const& info = job.infos.back();
  note_order(job.notes, job.infos);
  if (arguments.preset.empty() && arguments.parts.profile.empty()) take_recommended(arguments, info, job.notes);
  take_size(arguments, job.infos);
  job.labels = labels_of(arguments.classes, info);
  note_classes(job.notes, arguments, info, job.labels.size());
  take_prompts(job, arguments, files);
  take_conditions(job, arguments.conditions);
  take_between(job, arguments);
  if (!arguments.plan || !arguments.shape.empty()) job.shape = shape_for(job.infos, arguments.shape);
  take_size_conditions(job, arguments);
  if (!arguments.plan) require_picture(arguments, job.shape);
  require_decoder(arguments, info);
  job.image_count = count_pictures(job, arguments);
  if (arguments.batch == 0) arguments.batch = job.device.is_cpu() ? 16 : 256;
  if (!arguments.pad_batches) arguments.batch = std::min(arguments.batch, job.image_count);
  job.guidance = guidance_of(job, arguments);
  take_way(job, arguments);
  if (arguments.output.empty() && arguments.grid.empty() && arguments.latents.empty() && arguments.animation.empty()) {
    arguments.grid = "samples.png";
  }
  if (arguments.scale == 0) {
    const std::int64_t narrow = 100;  // pixels, of which three make a picture that one can look at
    arguments.scale = job.shape.empty() || decoder_info(arguments).upsampling * job.shape.back() > narrow ? 1 : 3;
  }
  job.arguments = std::move(arguments);
  return job;
}

inline Job prepare(Arguments arguments) {
  const JobFiles files = read_job_files(arguments);
  return prepare(std::move(arguments), files);
}

/// The sampler that the arguments name.
inline tstitch::AnySampler sampler_of(Job const& job, tstitch::AnyModelSchedule schedule) {
  return tstitch::make_sampler(*job.way, std::move(schedule));
}

/// Which network takes which step.
/// @param rule of --routing
inline tstitch::AnyModelSchedule routing(Job const& job, std::string const& rule) {
  Arguments const& arguments = job.arguments;
  const std::size_t networks = job.infos.size();
  const int timesteps = job.infos.back().noise_schedule.value().num_train_timesteps();
  if (!arguments.fractions.empty()) {
    if (arguments.fractions.size() != networks) {
      throw std::invalid_argument("--fractions: must be one for each of the " + std::to_string(networks) +
                                  " networks, got " + std::to_string(arguments.fractions.size()));
    }
  }
  const bool shares = arguments.fractions.empty() && arguments.boundaries.empty();
  if (networks == 1 && shares) return tstitch::SingleNetwork{};
  if (networks > 2 && shares) {
    throw std::invalid_argument("--fractions: must be given for more than two networks, got none");
  }
  return tstitch::model_schedule_by_name(rule,
                                         {.ratio = arguments.ratio,
                                          .fractions = arguments.fractions,
                                          .boundaries = arguments.boundaries,
                                          .num_train_timesteps = timesteps,
                                          .seed = std::uint32_t(arguments.seeds[0])},
                                         tstitch::routing::named());
}

/// "20 steps of 'small', 30 of 'large'".
inline std::string steps_text(Job const& job, tstitch::Plan const& plan) {
  const std::vector<tstitch::NetworkWork> work = plan.work(job.names.size());
  std::string text;
  for (std::size_t k = 0; k < work.size(); ++k) {
    const int computed = work[k].computed;
    text += (k ? ", " + std::to_string(computed) : counted(computed, "step")) + " of '" + job.names[k] + "'";
    if (work[k].forecast > 0) text += " and " + std::to_string(work[k].forecast) + " forecast";
  }
  return text;
}
