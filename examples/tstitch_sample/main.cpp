// tstitch_sample: pictures from the command line. Exit codes: 0 done, 1 failed, 2 bad arguments, 128 + N stopped by
// signal N (130 for Ctrl-C).
#include <tstitch/file/condition_file.hpp>
#include <tstitch/file/torchscript.hpp>
#include <tstitch/output/decode_queue.hpp>
#include <tstitch/output/image.hpp>
#include <tstitch/output/npy.hpp>
#include <tstitch/output/progress.hpp>
#include <tstitch/study/fastest_batch.hpp>
#include <tstitch/tstitch.hpp>

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <exception>
#include <filesystem>
#include <functional>
#include <future>
#include <iostream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "../common/device.hpp"
#include "../common/diagnostics.hpp"
#include "../common/moment.hpp"
#include "../common/signals.hpp"
#include "../common/text.hpp"
#include "arguments.hpp"
#include "classes.hpp"
#include "notes.hpp"

namespace {

using Json = nlohmann::ordered_json;

/// The first of a name's synonyms, or of its words as many as suit the name of a file.
std::string file_word(std::string const& name) {
  const std::vector<std::string> words = synonyms(name);
  const std::string_view text = words.empty() ? std::string_view(name) : std::string_view(words[0]);
  std::string word;
  for (std::size_t i = 0; i < text.size() && word.size() < 60;) {
    const std::size_t size = tstitch::detail::printable_character(text.substr(i));
    const char c = text[i];
    const bool plain = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '-';
    word += plain || size > 1 ? std::string(text.substr(i, size)) : "_";
    i += std::max<std::size_t>(size, 1);
  }
  return word;
}

/// The first words of a prompt as part of the name of a file: letters and digits of ASCII, "_" for what is between.
std::string file_words(std::string_view prompt) {
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

/// What the arguments mean for these networks.
struct Job {
  Arguments arguments;
  at::Device device = at::kCPU;
  std::vector<tstitch::NetworkInfo> infos;
  std::vector<std::string> names;                   ///< of networks, as they are shown
  std::vector<std::int64_t> labels;                 ///< of pictures, which take them in turn; empty without classes
  std::vector<tstitch::NamedCondition> conditions;  ///< with a row for each prompt, or one for all
  std::int64_t prompts = 1;                         ///< likewise taken in turn
  std::vector<std::string> texts;                   ///< of the prompts, or one for all; empty where no file has them
  std::int64_t image_count = 0;
  tstitch::Guidance guidance;
  std::optional<tstitch::AnyProfile> way;  ///< how pictures are drawn: the profile, or what the arguments say
  Notes notes;

  std::int64_t images() const { return image_count; }
  std::uint64_t seed(std::int64_t image) const { return arguments.seed + std::uint64_t(image); }
  /// Class after class, as the columns of a sweep: every class once, then again.
  std::int64_t label(std::int64_t image) const { return labels[std::size_t(image) % labels.size()]; }

  /// Pictures [first, first + count) of the job.
  tstitch::Request request(std::int64_t first, std::int64_t count) const {
    tstitch::Request request{.guidance = guidance};
    for (std::int64_t i = first; i < first + count; ++i) {
      request.seeds.push_back(seed(i));
      if (!labels.empty()) request.labels.push_back(label(i));
    }
    for (tstitch::NamedCondition const& each : conditions) {
      request.conditions.push_back({each.name, rows(each.value, first, count), rows(each.null, first, count)});
    }
    if (arguments.pad_batches) {
      request.batch_size = arguments.batch;
      request.pad_batches = true;
    }
    return request;
  }

  /// Of prompts, those of pictures [first, first + count): every prompt once, then again.
  static at::Tensor rows(at::Tensor const& prompts, std::int64_t first, std::int64_t count) {
    if (!prompts.defined() || prompts.size(0) == 1) return prompts;
    std::vector<std::int64_t> which;
    for (std::int64_t i = first; i < first + count; ++i) which.push_back(i % prompts.size(0));
    return prompts.index_select(0, tstitch::detail::to_device(which, at::kCPU));
  }

  std::string class_name(std::int64_t image) const {
    if (labels.empty()) return "";
    auto const& all = infos.back().class_names;
    return all.empty() ? std::to_string(label(image)) : all[std::size_t(label(image))];
  }

  /// Of the picture's prompt; empty where it is not known.
  std::string text(std::int64_t image) const { return texts.empty() ? "" : texts[std::size_t(image) % texts.size()]; }

  /// What was asked for, in the words of a report: the class, and which of several prompts.
  void describe(std::int64_t image, Json& json) const {
    if (!labels.empty()) json["class"] = class_name(image);
    if (prompts > 1) json["prompt"] = image % prompts;
  }

  /// 000012-horse-seed12.png, 000003-prompt1-a_fox_in_the_snow-seed3.png
  std::string file_name(std::int64_t image) const {
    char number[32];
    std::snprintf(number, sizeof number, "%06lld-", static_cast<long long>(image));
    std::string name = number;
    if (!labels.empty()) name += file_word(class_name(image)) + "-";
    if (prompts > 1) name += "prompt" + std::to_string(image % prompts) + "-";
    if (const std::string words = file_words(text(image)); !words.empty()) name += words + "-";
    return name + "seed" + std::to_string(seed(image)) + ".png";
  }
};

/// Samples as the network's makers do, where the arguments say nothing else.
void take_recommended(Arguments& arguments, tstitch::NetworkInfo const& info, Notes& notes) {
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
}

/// @throws std::invalid_argument where no network that takes a condition of this name takes one of this shape
void require_rows(std::string const& path, std::string const& name, at::Tensor const& given,
                  std::vector<tstitch::NetworkInfo> const& infos) {
  for (tstitch::NetworkInfo const& info : infos) {
    for (tstitch::ConditionInfo const& wanted : info.conditions) {
      if (wanted.name != name || tstitch::detail::fits(wanted, given.sizes())) continue;
      std::string sizes = tstitch::detail::text_of(wanted);
      sizes = "[n" + std::string(wanted.shape.empty() ? "" : ", ") + sizes.substr(1);
      throw std::invalid_argument("--condition: " + in_quotes(path) + ": " + in_quotes(name) + " must be " + sizes +
                                  " for " + in_quotes(info.name) + ", a row for each prompt, got " +
                                  tstitch::detail::shape_text(given.sizes()) + ", which is read as " +
                                  std::to_string(given.size(0)) + " prompts");
    }
  }
}

/// Takes the texts of a file's prompts. Of several files that have texts the one with the most is taken, and of these
/// the first.
/// @param source the file that the job's texts are from
void take_texts(Job& job, std::string& source, std::string const& path) {
  std::vector<std::string> texts = tstitch::load_prompts(path);
  if (texts.size() == job.texts.size() && texts != job.texts) {
    job.notes.push_back("--condition: " + in_quotes(path) + " has other prompts than " + in_quotes(source) +
                        ", which are those that the pictures are named after");
  }
  if (texts.size() <= job.texts.size()) return;
  job.texts = std::move(texts);
  source = path;
}

Job prepare(Arguments arguments) {
  Job job;
  job.device = device_of(arguments.device);
  for (std::string const& path : arguments.models) {
    job.infos.push_back(tstitch::read_network_info(path));
    job.names.push_back(tstitch::detail::printable(job.infos.back().name, 60));
  }
  tstitch::NetworkInfo const& info = job.infos.back();
  note_order(job.notes, job.infos);
  take_recommended(arguments, info, job.notes);
  job.labels = labels_of(arguments.classes, info);
  note_classes(job.notes, arguments, info, job.labels.size());
  std::int64_t& prompts = job.prompts;
  std::string source_of_texts;
  for (std::string const& path : arguments.conditions) {
    for (tstitch::NamedCondition& each : tstitch::load_conditions(path)) {
      for (at::Tensor const& tensor : {each.value, each.null}) {
        if (!tensor.defined()) continue;
        const std::int64_t rows = tensor.dim() ? tensor.size(0) : 0;
        if (rows < 1 || (rows > 1 && prompts > 1 && rows != prompts)) {
          throw std::invalid_argument("--condition: " + in_quotes(path) + ": " + in_quotes(each.name) +
                                      " must have 1 row or the " + std::to_string(prompts) + " of the others, got " +
                                      std::to_string(rows));
        }
        require_rows(path, each.name, tensor, job.infos);
        prompts = std::max(prompts, rows);
      }
      for (tstitch::NamedCondition const& other : job.conditions) {
        if (other.name != each.name) continue;
        throw std::invalid_argument("--condition: each must have other names, got " + in_quotes(each.name) +
                                    " again in " + in_quotes(path));
      }
      job.conditions.push_back(std::move(each));
    }
    take_texts(job, source_of_texts, path);
  }
  if (info.decoding == tstitch::Decoding::none && info.channels != 1 && info.channels != 3 &&
      arguments.decoder.empty() && !arguments.plan &&
      (arguments.latents.empty() || !arguments.output.empty() || !arguments.grid.empty())) {
    throw std::invalid_argument("--decoder: is needed by networks that make latents, got none for " +
                                std::to_string(info.channels) + " channels");
  }
  if (info.decoding == tstitch::Decoding::pixels && !arguments.decoder.empty()) {
    throw std::invalid_argument("--decoder: is for networks that make latents, got " + in_quotes(arguments.decoder));
  }
  const std::int64_t each = std::max<std::int64_t>({1, std::int64_t(job.labels.size()), prompts});
  if (arguments.count > 100'000'000 / each) {
    throw std::invalid_argument("--count: must give at most 100000000 pictures, got " +
                                std::to_string(arguments.count));
  }
  const std::int64_t images = arguments.count * each;
  if (std::uint64_t(images - 1) > std::numeric_limits<std::uint64_t>::max() - arguments.seed) {
    throw std::invalid_argument("--seed: must leave room for one seed more a picture below 18446744073709551616, got " +
                                std::to_string(arguments.seed) + " and " + std::to_string(images) + " pictures");
  }
  job.image_count = images;
  if (arguments.batch == 0) arguments.batch = job.device.is_cpu() ? 16 : 256;
  if (!arguments.pad_batches) arguments.batch = std::min(arguments.batch, images);

  const std::vector<double> interval = numbers_of("--guidance-interval", arguments.guidance_interval, ':', 2);
  std::string with_null;  // a condition that the network takes and that has what guidance needs
  for (tstitch::NamedCondition const& given : job.conditions) {
    for (tstitch::ConditionInfo const& wanted : info.conditions) {
      if (given.name == wanted.name && given.null.defined()) with_null = given.name;
    }
  }
  const bool guidable = info.null_class.has_value() || !with_null.empty();
  job.guidance = {.scale = arguments.guidance.empty() ? tstitch::GuidanceScale(guidable ? info.guidance_scale : 1.0)
                                                      : tstitch::GuidanceScale(arguments.guidance),
                  .begin = interval[0],
                  .end = interval[1]};
  note_guidance(job.notes, arguments, job.guidance, with_null);
  tstitch::NoiseSchedule const& noise = info.noise_schedule.value();
  if (arguments.spacing.empty()) arguments.spacing = noise.is_flow() ? "shifted" : "linspace";
  if (arguments.profile.empty()) {
    const tstitch::Spacing spacing = !arguments.timesteps.empty() ? tstitch::Spacing::list(arguments.timesteps)
                                     : !arguments.sigmas.empty()
                                         ? tstitch::Spacing::sigmas(arguments.sigmas)
                                         : tstitch::spacing_by_name(arguments.spacing, "--spacing");
    job.way = {noise, {.steps = arguments.steps, .spacing = spacing}, rule_of(arguments)};
  } else {
    job.way = tstitch::profile_by_name(arguments.profile, noise, arguments.steps);
  }
  job.guidance.channels = job.way->guidance_channels;
  if (arguments.output.empty() && arguments.grid.empty() && arguments.latents.empty()) arguments.grid = "samples.png";
  job.arguments = std::move(arguments);
  return job;
}

/// The sampler that the arguments name.
tstitch::AnySampler sampler_of(Job const& job, tstitch::AnyModelSchedule schedule) {
  return tstitch::make_sampler(*job.way, std::move(schedule));
}

/// Which network takes which step.
/// @param rule of --routing
tstitch::AnyModelSchedule routing(Job const& job, std::string const& rule) {
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
  return tstitch::detail::find_named("--routing", tstitch::routing::named(), rule)
      .make({.ratio = arguments.ratio,
             .fractions = arguments.fractions,
             .boundaries = arguments.boundaries,
             .num_train_timesteps = timesteps,
             .seed = std::uint32_t(arguments.seed)});
}

/// "20 steps of 'small', 30 of 'large'".
std::string steps_text(Job const& job, tstitch::Plan const& plan) {
  const std::vector<int> calls = plan.calls(job.names.size());
  std::string text;
  for (std::size_t k = 0; k < calls.size(); ++k) {
    text += (k ? ", " + std::to_string(calls[k]) : counted(calls[k], "step")) + " of '" + job.names[k] + "'";
  }
  return text;
}

/// Seconds that each network took.
class NetworkClock {
 public:
  NetworkClock(tstitch::Plan const& plan, at::Device device, std::size_t networks)
      : plan_(plan), device_(device), seconds_(networks) {}

  /// A batch begins, and the one before is finished.
  void start() {
    settle();
    began_.emplace(device_);
  }

  void operator()(tstitch::StepReport const& report) {
    const std::size_t next = std::size_t(report.step.index) + 1;
    if (next < plan_.steps.size() && plan_.steps[next].network == report.network) return;
    changes_.emplace_back(report.network, Moment(device_));
  }

  /// Of the steps that are done.
  std::vector<double> const& seconds() {
    settle();
    return seconds_;
  }

 private:
  void settle() {
    for (auto& [network, moment] : changes_) {
      seconds_[network] += began_->seconds_until(moment);
      began_ = std::move(moment);
    }
    changes_.clear();
  }

  tstitch::Plan const& plan_;
  at::Device device_;
  std::vector<double> seconds_;
  std::optional<Moment> began_;
  std::vector<std::pair<std::size_t, Moment>> changes_;  ///< where a network's steps end
};

Json parameters(Job const& job) {
  Arguments const& a = job.arguments;
  Json json{{"networks", job.names}};
  if (a.profile.empty()) {
    json["sampler"] = a.sampler;
    if (takes(a, "order")) json["order"] = a.order;
    if (takes(a, "eta")) json["eta"] = eta_of(a);
    if (!a.timesteps.empty()) {
      json["timesteps"] = a.timesteps;
    } else if (!a.sigmas.empty()) {
      json["sigmas"] = a.sigmas;
    } else {
      json["spacing"] = a.spacing;
    }
  } else {
    json["profile"] = a.profile;
  }
  json["sampler_name"] = job.way->rule.name();
  if (!a.fractions.empty())
    json["fractions"] = a.fractions;
  else if (!a.sweep.empty())
    json["sweep"] = a.sweep;
  else if (job.infos.size() == 2 && a.boundaries.empty())
    json["ratio"] = a.ratio;
  if (job.infos.size() > 1) json["routing"] = a.routing;
  if (!a.boundaries.empty()) json["boundaries"] = a.boundaries;
  json["steps"] = a.steps;
  json["guidance"] = job.guidance.scale.values();
  json["guidance_interval"] = a.guidance_interval;
  json["seed"] = a.seed;
  json["images"] = job.images();
  if (!a.conditions.empty()) json["conditions"] = a.conditions;
  if (!a.decoder.empty()) json["decoder"] = a.decoder;
  if (a.tile) json["tile"] = a.tile;
  json["batch"] = a.batch;
  if (a.pad_batches) json["pad_batches"] = true;
  json["device"] = job.device.str();
  json["dtype"] = a.dtype;
  json["backend"] = a.backends;
  json["version"] = TSTITCH_VERSION;
  return json;
}

/// Names come from files, which may hold bytes that are not UTF-8.
std::string text_of(Json const& json, int indent = -1) {
  return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

tstitch::PngText png_text(Json const& parameters) {
  return {{"Software", "tstitch " TSTITCH_VERSION}, {"parameters", text_of(parameters)}};
}

void write_report(Job const& job, Json report) {
  if (job.arguments.report.empty()) return;
  report["notes"] = job.notes;
  report["diagnostics"] = tstitch::diagnostics();
  tstitch::detail::write_file(job.arguments.report, text_of(report, 2) + "\n");
}

/// For what describes all pictures; each by itself says which of them is its own.
void list_texts(Job const& job, Json& json) {
  if (!job.texts.empty()) json["prompts"] = job.texts;
}

using Flags = std::vector<char>;  ///< of pictures; threads write them, which no vector of bool allows

constexpr int grid_gap = 2;  ///< pixels between the pictures of a grid

/// Every picture as a file of its own.
/// @param made_with the parameters of all of them
/// @param written the job's pictures; becomes true for each that is on the disk
void write_pictures(Job const& job, Json const& made_with, std::string const& folder,
                    std::vector<tstitch::Picture> const& pictures, std::int64_t first, Flags& written) {
  at::parallel_for(0, std::int64_t(pictures.size()), 16, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      Json text = made_with;
      text["image_seed"] = job.seed(first + i);
      job.describe(first + i, text);
      if (!job.texts.empty()) text["prompt_text"] = job.text(first + i);
      tstitch::detail::write_file(folder + "/" + job.file_name(first + i),
                                  tstitch::encode_png(pictures[std::size_t(i)], png_text(text)),
                                  tstitch::detail::Sync::later);
      written[std::size_t(first + i)] = true;
    }
  });
}

/// Takes back that pictures are on the disk which are not there any more.
/// @throws std::runtime_error for those
void forget_missing(Job const& job, std::string const& folder, Flags& written) {
  std::string first;
  std::int64_t missing = 0;
  for (std::int64_t i = 0; i < job.images(); ++i) {
    const std::string path = folder + "/" + job.file_name(i);
    std::error_code error;
    if (!written[std::size_t(i)] || std::filesystem::exists(path, error)) continue;
    written[std::size_t(i)] = false;
    if (missing++ == 0) first = path;
  }
  if (missing) {
    throw std::runtime_error("'" + folder + "': must keep the pictures that are written into it, got " +
                             std::to_string(missing) + " that are gone, the first '" + first + "'");
  }
}

/// Writes what is finished behind the sampling of what comes next.
class BackgroundWriter {
 public:
  /// Begins to write once all that came before is written.
  /// @throws what an earlier `write` threw, with this one begun all the same
  void operator()(std::function<void()> write) {
    std::future<void> earlier = std::move(writing_);
    if (earlier.valid()) earlier.wait();
    writing_ = std::async(std::launch::async, std::move(write));
    if (earlier.valid()) earlier.get();
  }

  /// @throws what the last `write` threw
  void wait() {
    if (writing_.valid()) writing_.get();
  }

 private:
  std::future<void> writing_;
};

/// The first thing that goes wrong, while what can still be saved is.
class FirstFailure {
 public:
  template <class Action>
  void watch(Action action) {
    try {
      action();
    } catch (...) {
      if (!failure_) failure_ = std::current_exception();
    }
  }

  void rethrow() const {
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  std::exception_ptr failure_;
};

/// Below a folder that is there.
void make_folder_in_folder(std::string const& folder) {
  std::error_code error;
  std::filesystem::create_directory(folder, error);
  if (error)
    throw std::runtime_error("'" + folder + "': must be a folder that can be made, got '" + error.message() + "'");
}

/// Fails now rather than after the work.
void require_writable(Job const& job) {
  const auto make_folder = [&](std::filesystem::path const& folder, std::string const& path, char const* rule) {
    std::error_code error;
    if (!folder.empty()) std::filesystem::create_directories(folder, error);
    if (error) throw std::runtime_error("'" + path + "': must be a " + rule + ", got '" + error.message() + "'");
  };
  for (std::string const& file : {job.arguments.grid, job.arguments.report, job.arguments.latents}) {
    if (file.empty()) continue;
    make_folder(std::filesystem::path(file).parent_path(), file, "file that can be written");
    tstitch::NetworkInfo const& info = job.infos.back();
    const std::int64_t numbers =
        file == job.arguments.latents ? job.images() * info.channels * info.height * info.width : 0;
    tstitch::detail::require_writable(file, std::uint64_t(numbers) * sizeof(float));
  }
  if (std::string const& folder = job.arguments.output; !folder.empty()) {
    constexpr auto rule = "folder that can be written to";
    make_folder(folder, folder, rule);
    if (access(folder.c_str(), W_OK | X_OK) != 0) {
      throw std::runtime_error("'" + folder + "': must be a " + rule + ", got '" + std::strerror(errno) + "'");
    }
  }
}

/// How many pictures stand side by side in the grid; 0 for about a square.
std::int64_t grid_columns(Job const& job) {
  if (!job.arguments.sweep.empty()) return job.images();
  return job.arguments.count > 1 && !job.labels.empty() ? job.images() / job.arguments.count : 0;
}

/// Refuses a grid that cannot be written, before its pictures are drawn.
void require_grid(Job const& job, std::optional<tstitch::Decoder> const& decoder) {
  if (job.arguments.grid.empty()) return;
  tstitch::NetworkInfo const& info = job.infos.back();
  const std::int64_t pixels = decoder ? decoder->info().upsampling : 1;
  const std::int64_t channels = decoder ? decoder->info().picture_channels : info.channels;
  const std::int64_t scale = job.arguments.scale * pixels;
  const bool sweep = !job.arguments.sweep.empty();
  const std::int64_t rows = sweep ? std::int64_t(sweep_ratios(job.arguments.sweep).size()) : 1;
  try {
    const tstitch::detail::GridSize size =
        tstitch::detail::grid_size("make_grid", job.images() * rows, info.width * scale, info.height * scale, channels,
                                   grid_columns(job), grid_gap);
    if (sweep) tstitch::detail::require_encodable("make_grid", size.width + caption_margin, size.height, channels);
  } catch (std::invalid_argument const& error) {
    throw std::invalid_argument("--grid: " + std::string(error.what()) + "; --output writes each picture by itself");
  }
}

std::string location(std::string const& path) {
  return std::filesystem::absolute(path).lexically_normal().string();
}

template <class... Parts>
void say(Job const& job, Parts const&... parts) {
  if (!job.arguments.quiet) (std::cout << ... << parts) << std::endl;
}

void write_latents(Job const& job, std::vector<at::Tensor> const& batches) {
  std::vector<std::int64_t> shape = batches[0].sizes().vec();
  shape[0] = 0;
  for (at::Tensor const& batch : batches) shape[0] += batch.size(0);
  const at::Tensor all = tstitch::detail::host_tensor(shape, at::kFloat);
  std::int64_t first = 0;
  for (at::Tensor const& batch : batches) {
    all.narrow(0, first, batch.size(0)).copy_(batch);
    first += batch.size(0);
  }
  tstitch::write_npy(job.arguments.latents, all);
}

/// Says it now, shortly, and in the report.
void note(Job& job, std::string const& sentence) {
  job.notes.push_back(sentence);
  if (!job.arguments.quiet) std::cerr << "tstitch_sample: note: " << in_a_note(sentence) << std::endl;
}

/// What turns the networks' x_0 into pictures; nothing where it is the picture.
std::optional<tstitch::Decoder> load_decoder(Job& job) {
  if (job.arguments.decoder.empty()) return {};
  // Some decoders need float32; the file knows.
  tstitch::Decoder decoder = tstitch::load_decoder(job.arguments.decoder, {.device = job.device});
  tstitch::NetworkInfo const& info = job.infos.back();
  tstitch::AutoencoderInfo const& known = decoder.info();
  const auto fail = [&](std::string const& rule, std::string const& got) {
    throw std::runtime_error(in_quotes(job.arguments.decoder) + ": " + rule + " for " + in_quotes(info.name) +
                             ", got " + got);
  };
  if (known.latent_channels != info.channels) {
    fail("must take " + std::to_string(info.channels) + " channels", std::to_string(known.latent_channels));
  }
  if (info.latent_scale != 0 && (info.latent_scale != known.latent_scale || info.latent_shift != known.latent_shift)) {
    const auto text = [](double scale, double shift) {
      return "scale " + tstitch::detail::text(scale) + " and shift " + tstitch::detail::text(shift);
    };
    // Tiny autoencoders are trained on latents as diffusion networks know them, and say a scale of 1.
    if (known.latent_scale == 1 && known.latent_shift == 0) {
      if (!known.scaled_latents) {
        note(job, "--decoder: " + in_quotes(known.name) + " has latents of scale 1, so it is given what " +
                      in_quotes(info.name) + " makes as it is, of " + text(info.latent_scale, info.latent_shift));
      }
      return decoder;
    }
    fail("must have latents of " + text(info.latent_scale, info.latent_shift),
         text(known.latent_scale, known.latent_shift));
  }
  return decoder;
}

int run(Job const& job, std::vector<tstitch::Network> const& networks, std::optional<tstitch::Decoder> const& decoder) {
  const tstitch::AnySampler sampler = sampler_of(job, routing(job, job.arguments.routing));
  const tstitch::Plan plan = sampler.plan(job.guidance);
  NetworkClock clock(plan, job.device, networks.size());
  const std::vector<int> calls = plan.calls(networks.size());
  std::optional<tstitch::ProgressBar> progress;
  if (!job.arguments.quiet) progress.emplace(job.images(), job.names).begin();
  std::vector<tstitch::Picture> for_grid;
  const Clock::time_point start = Clock::now();
  std::vector<at::Tensor> latents;
  std::int64_t sampled = 0, drawn = 0;
  const bool files = !job.arguments.output.empty(), pictured = files || !job.arguments.grid.empty();
  Flags done(std::size_t(job.images()));  // what is where it is to be
  BackgroundWriter writer;
  const auto finish = [&](auto draw) {  // the next batch
    const std::int64_t first = drawn, count = std::min(job.arguments.batch, sampled - drawn);
    drawn += count;
    std::vector<tstitch::Picture> pictures = draw();
    if (!job.arguments.grid.empty()) for_grid.insert(for_grid.end(), pictures.begin(), pictures.end());
    if (files) {
      writer([&job, &done, first, pictures = std::move(pictures)] {
        write_pictures(job, parameters(job), job.arguments.output, pictures, first, done);
      });
    } else {
      std::fill_n(done.begin() + first, count, true);
    }
  };
  // Latents are decoded, and their pictures written, behind the sampling of the next batch.
  std::optional<tstitch::DecodeQueue> queue;
  if (decoder) queue.emplace(*decoder, tstitch::Tiling{.rows = 1, .tile = job.arguments.tile});
  FirstFailure failure;  // what is finished by then is still written
  failure.watch([&] {
    while (sampled < job.images() && !stopped_by) {
      const std::int64_t first = sampled, count = std::min(job.arguments.batch, job.images() - first);
      clock.start();
      const tstitch::Samples samples =
          sampler.sample(networks, job.request(first, count), [&](tstitch::StepReport report) {
            clock(report);
            report.first += first;
            if (progress) (*progress)(report);
            return stopped_by ? tstitch::Control::cancel : tstitch::Control::proceed;
          });
      if (!samples.finished) break;
      sampled += count;
      if (!job.arguments.latents.empty()) latents.push_back(samples.images.cpu());
      if (!pictured) {
        std::fill_n(done.begin() + first, count, true);
      } else if (queue) {
        queue->push(samples.images);
        if (queue->size() > 1) finish([&] { return queue->pop(); });
      } else {
        finish([&] { return tstitch::to_pictures(samples.images); });
      }
    }
  });
  while (queue && queue->size() > 0) failure.watch([&] { finish([&] { return queue->pop(); }); });
  failure.watch([&] { writer.wait(); });
  if (files) failure.watch([&] { forget_missing(job, job.arguments.output, done); });
  const std::int64_t finished = std::count(done.begin(), done.end(), true);
  if (finished == 0 && latents.empty()) failure.rethrow();
  const double seconds = seconds_since(start);
  if (progress) progress->finish();
  if (files) failure.watch([&] { tstitch::detail::sync_disk(job.arguments.output); });

  Json json = parameters(job);
  list_texts(job, json);
  const tstitch::PngText text = png_text(json);
  std::vector<std::string> left;  // what there is now
  if (!latents.empty()) {
    failure.watch([&] {
      write_latents(job, latents);
      left.push_back("latents: " + location(job.arguments.latents));
    });
  }
  json["calls"] = calls;
  json["seconds_by_network"] = clock.seconds();
  json["seconds"] = seconds;
  json["images_per_second"] = double(finished) / seconds;
  json["finished_images"] = finished;
  json["pictures"] = Json::array();
  for (std::int64_t i = 0; pictured && i < job.images(); ++i) {
    if (!done[std::size_t(i)]) continue;
    Json entry{{"seed", job.seed(i)}};
    job.describe(i, entry);
    if (!job.arguments.output.empty()) entry["file"] = job.file_name(i);
    json["pictures"].push_back(entry);
  }
  failure.watch([&] { write_report(job, json); });
  if (!for_grid.empty()) {  // last, for it may be too large
    failure.watch([&] {
      for (tstitch::Picture& picture : for_grid) picture = tstitch::enlarge(picture, job.arguments.scale);
      tstitch::write_png(job.arguments.grid, tstitch::make_grid(for_grid, int(grid_columns(job)), grid_gap), text);
      left.push_back("grid: " + location(job.arguments.grid));
    });
  }

  say(job, counted(finished, "picture"), " in ", tstitch::detail::text(std::round(seconds * 100) / 100), " s, ",
      tstitch::detail::text(std::round(double(finished) / seconds * 100) / 100), " images/s on ", job.device.str());
  for (std::size_t k = 0; k < job.names.size(); ++k) {
    say(job, "  ", job.names[k], ": ", counted(calls[k], "step"), ", ",
        tstitch::detail::text(std::round(clock.seconds()[k] * 100) / 100), " s");
  }
  if (files && finished) say(job, "pictures: ", location(job.arguments.output));
  for (std::string const& each : left) say(job, each);
  failure.rethrow();
  return stopped_by ? 128 + stopped_by : 0;
}

/// Many ratios from the same noise. The steps of the small network are shared: its run is forked where each ratio
/// switches to the large one.
int run_sweep(Job const& job, std::vector<tstitch::Network> const& networks,
              std::optional<tstitch::Decoder> const& decoder) {
  const std::vector<double> ratios = sweep_ratios(job.arguments.sweep);
  const std::vector<std::string> ratio_texts = ratio_names(ratios);
  const auto wait = [&] {
    if (job.device.is_cuda()) at::detail::getCUDAHooks().deviceSynchronize(job.device.index());
  };
  // What is wrong with the large network is said before the small one's work. This fork has most of the large one's.
  sampler_of(job, tstitch::Stitch{ratios.front()}).begin(networks, job.request(0, 1));
  std::vector<std::vector<double>> seconds(ratios.size());  // of each batch
  std::vector<std::vector<tstitch::Picture>> rows(ratios.size());
  std::int64_t done = 0;
  std::vector<Flags> finished(ratios.size(), Flags(std::size_t(job.images())));
  std::vector<std::string> folders(ratios.size());  // of those that have one
  std::optional<tstitch::detail::ProgressLine> progress;
  if (!job.arguments.quiet) progress.emplace();
  const tstitch::AnySampler small_only = sampler_of(job, tstitch::SingleNetwork{0});
  const int steps = small_only.options().steps;
  std::int64_t most_shared = 0, unshared = 0;
  for (const double ratio : ratios) {
    const int shared = tstitch::share_of_steps("Stitch", "ratio", ratio, steps);
    most_shared = std::max<std::int64_t>(most_shared, shared);
    unshared += steps - shared;
  }
  const std::int64_t steps_a_picture = most_shared + unshared;
  std::int64_t picture_steps = 0;
  const auto show = [&](double ratio, std::size_t network, tstitch::Trajectory const& run) {
    picture_steps += run.x.size(0);
    if (!progress) return;
    progress->show(picture_steps, job.images() * steps_a_picture,
                   {"ratio " + tstitch::detail::text(ratio),
                    "step " + std::to_string(run.next) + "/" + std::to_string(run.count), job.names[network]});
  };
  BackgroundWriter writer;
  FirstFailure failure;  // what is finished by then is still written
  failure.watch([&] {
    while (done < job.images() && !stopped_by) {
      const std::int64_t count = std::min(job.arguments.batch, job.images() - done);
      const tstitch::Request request = job.request(done, count);
      tstitch::Trajectory shared = small_only.begin(networks, request);
      double shared_seconds = 0;
      for (std::size_t r = 0; r < ratios.size() && !stopped_by; ++r) {
        const tstitch::AnySampler stitched = sampler_of(job, tstitch::Stitch{ratios[r]});
        const int small_steps = tstitch::share_of_steps("Stitch", "ratio", ratios[r], steps);
        Clock::time_point start = Clock::now();
        while (shared.next < small_steps && !stopped_by) {
          small_only.advance(networks, shared);
          show(ratios[r], 0, shared);
        }
        wait();
        shared_seconds += seconds_since(start);
        start = Clock::now();
        tstitch::Trajectory fork = shared;
        while (!fork.finished() && !stopped_by) {
          stitched.advance(networks, fork);
          show(ratios[r], 1, fork);
        }
        wait();
        if (stopped_by) break;
        const double fork_seconds = seconds_since(start);
        // sample() says which step made values that are not numbers.
        if (!fork.x.isfinite().all().item<bool>()) stitched.sample(networks, request);
        std::vector<tstitch::Picture> pictures =
            tstitch::to_pictures(decoder ? (*decoder)(fork.x, {.rows = 1, .tile = job.arguments.tile}) : fork.x);
        if (!job.arguments.grid.empty()) rows[r].insert(rows[r].end(), pictures.begin(), pictures.end());
        writer([&, r, count, first = done, elapsed = shared_seconds + fork_seconds,
                folder = job.arguments.output + "/ratio-" + ratio_texts[r], pictures = std::move(pictures)] {
          seconds[r].push_back(elapsed);
          if (job.arguments.output.empty()) {
            std::fill_n(finished[r].begin() + first, count, true);
          } else {
            Json made_with = parameters(job);
            folders[r] = folder;
            make_folder_in_folder(folder);
            made_with["ratio"] = ratios[r];
            write_pictures(job, made_with, folder, pictures, first, finished[r]);
          }
        });
        char line[256];
        std::snprintf(line, sizeof line, "ratio %-5s  %s %3d steps, %s %3d steps  %8.3f s  %8.3g images/s",
                      ratio_texts[r].c_str(), job.names[0].c_str(), small_steps, job.names[1].c_str(),
                      steps - small_steps, shared_seconds + fork_seconds,
                      double(count) / (shared_seconds + fork_seconds));
        if (progress) progress->clear();
        say(job, line);
      }
      if (!stopped_by) done += count;
    }
  });
  failure.watch([&] { writer.wait(); });
  if (progress) progress->finish();
  for (std::size_t r = 0; r < ratios.size(); ++r) {
    if (!folders[r].empty()) failure.watch([&] { forget_missing(job, folders[r], finished[r]); });
  }
  if (!job.arguments.output.empty()) failure.watch([&] { tstitch::detail::sync_disk(job.arguments.output); });
  std::vector<std::int64_t> images;
  for (Flags const& each : finished) images.push_back(std::count(each.begin(), each.end(), true));
  if (std::all_of(images.begin(), images.end(), [](std::int64_t count) { return count == 0; })) failure.rethrow();
  Json json = parameters(job);
  list_texts(job, json);
  Json by_ratio = Json::array();
  std::vector<tstitch::Picture> all;
  std::vector<std::string> captions;
  for (std::size_t r = 0; r < ratios.size(); ++r) {
    if (images[r] == 0) continue;
    const double total = std::accumulate(seconds[r].begin(), seconds[r].end(), 0.0);
    by_ratio.push_back({{"ratio", ratios[r]},
                        {"finished_images", images[r]},
                        {"seconds", total},
                        {"seconds_by_batch", seconds[r]},
                        {"images_per_second", double(images[r]) / total}});
    if (images[r] < job.images()) continue;  // the grid shows whole rows
    char caption[64];
    std::snprintf(caption, sizeof caption, "r = %s\n%.3g s", ratio_texts[r].c_str(), total);
    captions.push_back(caption);
    all.insert(all.end(), rows[r].begin(), rows[r].end());
  }
  const tstitch::PngText text = png_text(json);
  json["ratios"] = by_ratio;
  failure.watch([&] { write_report(job, json); });
  if (!all.empty()) {
    failure.watch([&] {
      for (tstitch::Picture& picture : all) picture = tstitch::enlarge(picture, job.arguments.scale);
      tstitch::write_png(job.arguments.grid,
                         with_captions(tstitch::make_grid(all, int(grid_columns(job)), grid_gap), captions), text);
      say(job, "grid: ", location(job.arguments.grid));
    });
  }
  if (!job.arguments.output.empty() && !by_ratio.empty()) say(job, "pictures: ", location(job.arguments.output));
  failure.rethrow();
  return stopped_by ? 128 + stopped_by : 0;
}

/// The batch sizes that networks will see.
std::vector<std::int64_t> batch_rows(Job const& job, tstitch::Plan const& plan) {
  const std::int64_t images = job.arguments.pad_batches ? (job.arguments.batch + 7) / 8 * 8 : job.arguments.batch;
  std::vector<std::int64_t> rows;
  for (tstitch::PlannedStep const& planned : plan.steps) {
    const std::int64_t these = planned.guidance_scale == 1 ? images : 2 * images;
    if (std::find(rows.begin(), rows.end(), these) == rows.end()) rows.push_back(these);
  }
  return rows;
}

/// Where pictures will be.
std::vector<std::filesystem::path> picture_folders(Job const& job) {
  const std::filesystem::path output = place_of(job.arguments.output);
  if (job.arguments.sweep.empty()) return {output};
  std::vector<std::filesystem::path> folders;
  for (std::string const& ratio : ratio_names(sweep_ratios(job.arguments.sweep))) {
    folders.push_back(output / ("ratio-" + ratio));
  }
  return folders;
}

/// Whether a file is where a folder of pictures will be, or a folder around it.
bool is_folder_of_pictures(Job const& job, std::string const& path) {
  const std::filesystem::path place = place_of(path);
  return std::ranges::any_of(picture_folders(job), [&](std::filesystem::path const& folder) {
    return std::mismatch(place.begin(), place.end(), folder.begin(), folder.end()).first == place.end();
  });
}

/// Whether a file is where a picture will be.
bool is_picture(Job const& job, std::string const& path) {
  const std::filesystem::path place = place_of(path);
  const bool in_folder = std::ranges::count(picture_folders(job), place.parent_path()) > 0;
  const std::string name = place.filename().string();
  const std::int64_t image = number_of<std::int64_t>(name.substr(0, name.find('-'))).value_or(-1);
  return in_folder && image >= 0 && image < job.images() && name == job.file_name(image);
}

/// @throws std::invalid_argument for two files of one name, of which one is written, and for a file where a folder is
void require_apart(Job const& job) {
  Arguments const& arguments = job.arguments;
  std::vector<std::pair<std::string, std::string>> read{{"--decoder", arguments.decoder}};
  for (std::string const& path : arguments.models) read.emplace_back("--model", path);
  for (std::string const& path : arguments.conditions) read.emplace_back("--condition", path);
  const std::vector<std::pair<std::string, std::string>> written{
      {"--grid", arguments.grid}, {"--report", arguments.report}, {"--latents", arguments.latents}};
  require_different(written, read);
  for (auto const& [option, path] : written) {
    if (path.empty() || arguments.output.empty()) continue;
    if (is_folder_of_pictures(job, path)) {
      throw std::invalid_argument(option + ": must be a file and no folder that --output needs, got " +
                                  in_quotes(path));
    }
    if (!is_picture(job, path)) continue;
    throw std::invalid_argument(option + ": must be another file than the pictures of --output, got " +
                                in_quotes(path));
  }
}

/// What is drawn how, in a line.
std::string summary(Job const& job, tstitch::Plan const& plan) {
  std::string text = "drawing " + counted(job.images(), "picture");
  const std::int64_t drawn = std::int64_t(job.labels.size()), classes = job.infos.back().num_classes;
  if (drawn > 0) {
    if (drawn < classes) text += " of " + std::to_string(drawn);
    text += " of " + std::to_string(classes) + (classes == 1 ? " class" : " classes");
  }
  if (job.prompts > 1) text += " of " + std::to_string(job.prompts) + " prompts";
  constexpr std::size_t most = 3;  // of the prompts, for the line is to be read
  for (std::size_t i = 0; i < std::min(job.texts.size(), most); ++i) {
    text += (i ? ", " : job.prompts > 1 ? " (" : " of ") + in_quotes(job.texts[i]);
  }
  if (job.texts.size() > most) text += ", ...";
  if (!job.texts.empty() && job.prompts > 1) text += ")";
  if (!job.arguments.sweep.empty()) {
    const std::size_t ratios = sweep_ratios(job.arguments.sweep).size();
    return text + " at " + (ratios == 1 ? "" : "each of ") + counted(ratios, "ratio") + ", " +
           counted(plan.steps.size(), "step");
  }
  text += ", " + steps_text(job, plan);
  if (job.arguments.routing != "stitch") text += " by the routing " + job.arguments.routing;
  std::string scales;
  for (const double scale : job.guidance.scale.values()) {
    scales += (scales.empty() ? "" : ",") + tstitch::detail::text(scale);
  }
  return text + ", guidance " + scales;
}

int tstitch_sample(Arguments arguments) {
  Job job = prepare(std::move(arguments));
  const bool sweep = !job.arguments.sweep.empty();
  // The plan, of a sweep's first ratio, checks ratios, steps and guidance before any weights are read.
  const auto plan_by = [&](tstitch::AnyModelSchedule const& schedule) {
    return sampler_of(job, schedule).plan(job.guidance);
  };
  std::string const& rule = job.arguments.routing;
  const tstitch::Plan plan =
      plan_by(sweep ? tstitch::Stitch{sweep_ratios(job.arguments.sweep)[0]} : routing(job, rule));
  if (!sweep && job.infos.size() > 1) {
    const double ratio = job.arguments.ratio;
    const bool shares = job.arguments.boundaries.empty();
    note_shares(job.notes,
                !shares                           ? std::vector<double>{}
                : job.arguments.fractions.empty() ? std::vector<double>{ratio, 1 - ratio}
                                                  : job.arguments.fractions,
                plan, job.infos);
    const std::string published = job.way->routing;
    if (rule == "stitch" && !published.empty() && job.arguments.fractions.empty()) {
      const tstitch::Plan theirs = plan_by(routing(job, published));
      if (theirs.calls(job.infos.size()) != plan.calls(job.infos.size())) {
        job.notes.push_back("--routing: stitch gives " + steps_text(job, plan) +
                            "; the code that came with T-Stitch gives " + steps_text(job, theirs) + " (--routing " +
                            published + ")");
      }
    }
  }
  for (std::string const& sentence : std::exchange(job.notes, {})) note(job, sentence);
  if (job.arguments.plan) {
    std::cout << plan << std::flush;
    if (!std::cout) throw std::runtime_error("--plan: must be able to print, got an output that takes nothing");
    return 0;
  }
  require_apart(job);
  // Who no longer reads what is printed gets the pictures all the same.
  for (const int signal : {SIGPIPE, SIGXFSZ}) std::signal(signal, SIG_IGN);
  tstitch::detail::require_device(job.device);
  require_writable(job);
  say(job, summary(job, plan));

  tstitch::LoadOptions options{.device = job.device, .dtype = tstitch::dtype_named(job.arguments.dtype)};
  // Else torch lets convolutions round to 10 bits.
  if (options.dtype == at::kFloat) at::globalContext().setAllowTF32CuDNN(false);
  // TorchScript compiles for a GPU in its first runs of a shape; they are kept out of the figures.
  if (job.device.is_cuda() && !job.arguments.fastest_batch) options.warm_up_rows = batch_rows(job, plan);
  const std::optional<tstitch::Decoder> decoder = load_decoder(job);
  require_grid(job, decoder);
  const std::vector<tstitch::Network> networks = load_networks(job.arguments.models, options, job.arguments.backends);
  if (job.arguments.fastest_batch) {
    const std::vector<tstitch::BatchTime> times = tstitch::time_batches(plan, networks, job.arguments.batch);
    job.arguments.batch = tstitch::fastest_batch(times);
    std::string found;
    for (tstitch::BatchTime const& time : times) {
      char text[64];
      std::snprintf(text, sizeof text, "%s%lld: %.4g", found.empty() ? "" : ", ", static_cast<long long>(time.batch),
                    time.seconds);
      found += text;
    }
    say(job, "seconds a picture by batch: ", found, "; drawing in batches of ", job.arguments.batch);
  }
  has_begun = true;
  return sweep ? run_sweep(job, networks, decoder) : run(job, networks, decoder);
}

}  // namespace

int main(int count, char** values) {
  watch_for_signals();
  try {
    Arguments arguments;
    if (const std::optional<int> code = parse(count, values, arguments)) return *code;
    const DiagnosticsAtEnd diagnostics("tstitch_sample", arguments.quiet);
    return tstitch_sample(std::move(arguments));
  } catch (std::invalid_argument const& error) {
    std::cerr << "tstitch_sample: " << error.what() << "\n";
    return 2;
  } catch (c10::Error const& error) {  // what() would add pages of stack trace
    std::cerr << "tstitch_sample: " << error.what_without_backtrace() << "\n";
    return 1;
  } catch (std::exception const& error) {
    std::cerr << "tstitch_sample: " << error.what() << "\n";
    return 1;
  }
}
