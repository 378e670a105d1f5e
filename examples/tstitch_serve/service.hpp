/// @file
/// Draws what requests ask for, all together.
#pragma once

#include <tstitch/base/diagnostics.hpp>
#include <tstitch/output/decode_queue.hpp>
#include <tstitch/output/image.hpp>
#include <tstitch/scale/batcher.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "../common/diagnostics.hpp"
#include "../common/drawing.hpp"
#include "../common/moment.hpp"
#include "../common/parameters.hpp"
#include "../common/small_picture.hpp"
#include "arguments.hpp"
#include "fields.hpp"
#include "metrics.hpp"

/// How many steps a request has taken; the batcher tells it.
class StepCount {
 public:
  void tell(int done) {
    {
      const std::lock_guard lock(mutex_);
      done_ = done;
    }
    changed_.notify_all();
  }

  /// Until there are more than so many, or the time is over.
  int wait(int known, std::chrono::milliseconds time) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, time, [&] { return done_ > known; });
    return done_;
  }

 private:
  std::mutex mutex_ = {};
  std::condition_variable changed_ = {};
  int done_ = 0;
};

/// A client hung up.
struct HungUp {};

/// A request that is being drawn, or waits for that.
struct Drawing {
  Job job;
  std::int64_t preview_every = 0;
  bool png = false;
  std::shared_ptr<StepCount> steps = std::make_shared<StepCount>();
  std::optional<tstitch::BatcherTicket> ticket = {};
  Clock::time_point begun = Clock::now();
};

class Service {
 public:
  Service(ServiceArguments arguments, std::vector<GivenOption> drawing)
      : arguments_(std::move(arguments)), drawing_(std::move(drawing)) {
    read_files();
  }

  ServiceArguments const& arguments() const { return arguments_; }
  Metrics& metrics() { return metrics_; }
  tstitch::Batcher const& batcher() const { return *batcher_; }
  std::int64_t batch() const { return batch_; }
  std::int64_t most_pictures() const {
    return std::min(arguments_.most_pictures ? arguments_.most_pictures : batch_, batch_);
  }
  Job const& usual() const { return *usual_; }

  /// Loads the networks; from then on it draws.
  void load() {
    Job& job = *usual_;
    tstitch::require_device(job.device);
    const tstitch::Plan plan = plan_by(job, routing(job, job.arguments.routing));
    if (const std::string note = require_fitting_decoder(job); !note.empty()) job.notes.push_back(note);
    tstitch::LoadOptions options = load_options(job, plan);
    std::vector<std::function<void()>> others;
    if (!job.arguments.decoder.empty()) {
      others.push_back([&] { decoder_ = tstitch::load_decoder(job.arguments.decoder, {.device = job.device}); });
    }
    std::vector<tstitch::Network> networks =
        load_networks(job.arguments.models, options, job.arguments.backends, others);
    const tstitch::BatcherOptions batching{.batch_size = batch_,
                                           .pad_batches = job.arguments.pad_batches,
                                           .most_waiting = std::size_t(arguments_.most_waiting)};
    batcher_ = std::make_unique<tstitch::Batcher>(std::move(networks), batching);
    if (job.device.is_cuda()) warm_up();
  }

  /// Takes no more requests.
  void stop_taking() { taking_ = false; }
  bool takes() const { return taking_; }
  /// Ends the requests that there are.
  void abandon() { abandoned_ = true; }
  std::int64_t drawings() const { return drawings_; }

  /// Counts a request as long as it lasts.
  class Counted {
   public:
    explicit Counted(Service& service) : service_(service) { ++service_.drawings_; }
    Counted(Counted const&) = delete;
    Counted& operator=(Counted const&) = delete;
    ~Counted() { --service_.drawings_; }

   private:
    Service& service_;
  };

  /// Submits what a client asks for.
  /// @throws Refusal for what is none of the things that may be asked for; BatcherFull
  std::shared_ptr<Drawing> begin(Asked const& asked) {
    const auto drawing = std::make_shared<Drawing>(
        Drawing{.job = job_of(asked), .preview_every = asked.preview_every, .png = asked.png});
    Job& job = drawing->job;
    try {
      if (job.infos.size() > 1) note_routing(job, plan_by(job, routing(job, job.arguments.routing)));
      const auto told = [steps = drawing->steps](tstitch::BatcherProgress const& now) { steps->tell(now.done); };
      drawing->ticket =
          batcher_->submit(sampler_of(job, routing(job, job.arguments.routing)), job.request(0, job.images()),
                           {.priority = int(asked.priority), .on_step = told});
    } catch (std::invalid_argument const& error) {
      throw refusal_of(422, error.what());
    }
    return drawing;
  }

  /// Waits for a drawing and tells of each of its steps.
  /// @param gone whether its client has hung up
  /// @param tell is given how many steps are done, and how many there are
  /// @throws HungUp and Refusal where it was cancelled; what the drawing threw
  tstitch::Samples follow(Drawing const& drawing, std::function<bool()> const& gone,
                          std::function<void(int, int)> const& tell) {
    constexpr std::chrono::milliseconds look(50);
    const int all = drawing.ticket->progress().steps;
    int told = 0;
    bool ended = false;
    while (!ended) {
      // Another step comes, or the end; what ends early is seen a little later.
      int done = told < all ? drawing.steps->wait(told, look) : told;
      ended = drawing.ticket->wait_for(done < all ? std::chrono::milliseconds(0) : look);
      if (ended) done = drawing.steps->wait(done, std::chrono::milliseconds(0));
      while (tell && told < done) tell(++told, all);
      told = done;
      if (gone()) {
        drawing.ticket->cancel();
        throw HungUp();
      }
      if (abandoned_ && !ended) {
        drawing.ticket->cancel();
        throw Refusal(503, "service", "must be running until the pictures are there, was told to stop");
      }
    }
    tstitch::Samples samples = drawing.ticket->wait();
    if (!samples.finished) throw Refusal(503, "service", "must be running until the pictures are there, stops");
    return samples;
  }

  /// @param images x_0, as the networks make it
  std::vector<tstitch::Picture> pictures_of(at::Tensor const& images) {
    const c10::AutoGradMode no_gradients(false);
    if (!decoder_) return tstitch::to_pictures(images);
    const std::lock_guard one_by_one(decoding_);  // for its memory
    tstitch::DecodeQueue queue(*decoder_, {.rows = 1, .tile = usual_->arguments.tile});
    queue.push(images);
    return queue.pop();
  }

  /// The picture as far as it is, PNG files in base64; empty before the first step.
  Json preview(Drawing const& drawing) {
    Json list = Json::array();
    const at::Tensor x_0 = drawing.ticket->preview();
    if (!x_0.defined()) return list;
    for (tstitch::Picture const& picture : pictures_of(x_0)) {
      const int most = arguments_.preview_size, longer = std::max(picture.width, picture.height);
      const auto scaled = [&](int size) { return longer <= most ? size : std::max(1, size * most / longer); };
      list.push_back(
          base64(tstitch::encode_png(resized_picture(picture, scaled(picture.width), scaled(picture.height)))));
    }
    return list;
  }

  /// The parameters of a drawing, in which files have no folders.
  static Json parameters_of(Job const& job) {
    Json json = parameters(job);
    const auto name = [](std::string const& path) { return std::filesystem::path(path).filename().string(); };
    for (char const* const key : {"decoder", "encoder", "prompt_cache", "conditions", "text_encoders"}) {
      if (!json.contains(key)) continue;
      if (json[key].is_string()) {
        json[key] = name(json[key].get<std::string>());
      } else {
        for (Json& each : json[key]) each = name(each.get<std::string>());
      }
    }
    return json;
  }

  /// PNG files of a drawing's pictures.
  std::vector<std::string> files_of(Drawing const& drawing, tstitch::Samples const& samples) {
    const Json made_with = parameters_of(drawing.job);
    std::vector<std::string> files;
    for (tstitch::Picture const& picture : pictures_of(samples.images)) {
      files.push_back(
          tstitch::encode_png(picture, png_text(about_picture(drawing.job, made_with, std::int64_t(files.size())))));
    }
    return files;
  }

  /// What a client is told of a drawing that is done.
  Json answer(Drawing const& drawing, std::vector<std::string> const& files) const {
    Job const& job = drawing.job;
    Json json{{"pictures", Json::array()}};
    for (std::size_t i = 0; i < files.size(); ++i) {
      Json entry{{"seed", job.seed(std::int64_t(i))}};
      job.describe(std::int64_t(i), entry);
      if (!job.texts.empty()) entry["prompt_text"] = job.text(std::int64_t(i));
      entry["png"] = base64(files[i]);
      json["pictures"].push_back(std::move(entry));
    }
    json["parameters"] = parameters_of(job);
    if (!job.texts.empty()) json["prompts"] = job.texts;
    json["notes"] = in_fields(job.notes);
    json["seconds"] = seconds_since(drawing.begun);
    return json;
  }

  /// What there is to draw with.
  Json describe() const {
    Json json{{"networks", Json::array()}};
    for (std::size_t k = 0; k < usual_->infos.size(); ++k) {
      tstitch::NetworkInfo const& info = usual_->infos[k];
      Json each{{"name", usual_->names[k]},
                {"fingerprint", usual_->fingerprints[k]},
                {"shape", usual_->shape},
                {"classes", info.num_classes}};
      if (!info.class_names.empty()) each["class_names"] = info.class_names;
      json["networks"].push_back(std::move(each));
    }
    json["prompts"] = !encoders_.empty();
    json["limits"] = {{"pictures", most_pictures()},
                      {"steps", arguments_.most_steps},
                      {"size", arguments_.most_size},
                      {"body", arguments_.most_body},
                      {"waiting", arguments_.most_waiting}};
    Json defaults = parameters_of(*usual_);
    for (char const* const key : {"seed", "images"}) defaults.erase(key);
    json["defaults"] = std::move(defaults);
    json["fields"] = field_names();
    std::vector<std::string> samplers = names_in(tstitch::update_rules());
    std::erase_if(samplers,
                  [](std::string const& name) { return name.ends_with("adaptive"); });  // which a Batcher refuses
    json["samplers"] = samplers;
    json["profiles"] = names_in(tstitch::profiles());
    return json;
  }

 private:
  static std::vector<std::string> in_fields(Notes notes) {
    for (std::string& note : notes) note = in_words_of_fields(note);
    return notes;
  }

  /// What files say of themselves, before weights are read.
  void read_files() {
    const Arguments first = arguments_of(drawing_, {}, {}, {}, {}, placeholder);
    batch_ = first.batch > 0 ? first.batch : device_of(first.device).is_cpu() ? 8 : 32;
    if (first.pad_batches) batch_ = (batch_ + 7) / 8 * 8;  // as a Batcher does
    std::erase_if(drawing_, [](GivenOption const& each) { return each.name == "--batch"; });
    drawing_.push_back({"--batch", {std::to_string(batch_)}});
    files_ = read_job_files(first);
    if (!first.pipeline.empty()) known_.parts = first.parts;
    const at::Device device = device_of(first.device);
    for (std::string const& path : first.text_encoders) {
      if (encoders_.contains(path)) continue;
      const auto warn = [](std::string const& line) {
        std::cerr << "tstitch_serve: note: --prompt-cache: " + in_a_note(line) + "\n";
      };
      encoders_.emplace(path, load_text_encoder(path, first, device, warn));
    }
    files_.encode = [this](std::string const& path, Arguments const& asked, at::Device) {
      const std::lock_guard one_by_one(encoding_);
      return encode_prompts(encoders_.at(path), path, asked);
    };
    if (!first.decoder.empty()) known_.known_decoder = decoder_info(first);
    known_.scale = 1;
    known_.quiet = true;
    Asked usual;
    if (files_.infos.back().num_classes > 0) usual.classes = {"0"};
    if (!encoders_.empty() && !has_prompt(usual)) usual.prompts = {placeholder};
    usual_ = prepared(usual);
    require_pictures(*usual_);
  }

  static constexpr char const* placeholder = "a picture";

  /// Whether the request has a prompt, or the command line.
  bool has_prompt(Asked const& asked) const {
    return !asked.prompts.empty() ||
           std::ranges::any_of(drawing_, [](GivenOption const& each) { return each.name == "--prompt"; });
  }

  /// @throws what preparing throws
  Job prepared(Asked const& asked) {
    const bool prompted = !encoders_.empty();
    if (!prompted && (!asked.prompts.empty() || asked.negative)) {
      throw std::invalid_argument(std::string(asked.prompts.empty() ? "--negative" : "--prompt") +
                                  ": is for networks that draw from text, got networks that do not");
    }
    if (prompted && !has_prompt(asked)) throw std::invalid_argument("--prompt: must be a text to draw, got none");
    Arguments arguments =
        arguments_of(with_request(drawing_, asked), known_, asked.classes, asked.prompts, asked.negative);
    if (arguments.classes.empty() && files_.infos.back().num_classes > 0) {
      throw std::invalid_argument("--class: must be a class by name or number, got none");
    }
    require_few(arguments);
    Job job = prepare(std::move(arguments), files_);
    if (job.images() > most_pictures()) {
      throw std::invalid_argument("--count: must give at most " + std::to_string(most_pictures()) + " pictures, got " +
                                  std::to_string(job.images()));
    }
    require_small(job);
    require_conditions(job, plan_by(job, routing(job, job.arguments.routing)));
    return job;
  }

  /// Before anything is encoded, or laid out in memory.
  void require_few(Arguments const& arguments) const {
    require_steps(arguments);
    const std::int64_t most = most_pictures();
    const auto require = [&](char const* option, std::size_t count) {
      if (std::int64_t(count) <= most) return;
      throw std::invalid_argument(std::string(option) + ": must be at most " + std::to_string(most) + ", got " +
                                  std::to_string(count));
    };
    require("--prompt", arguments.prompts.size());
    require("--class", arguments.classes.size());
    require("--seed", arguments.seeds.size());
  }

  void require_steps(Arguments const& arguments) const {
    if (arguments.steps >= 1 && arguments.steps <= arguments_.most_steps) return;
    throw std::invalid_argument("--steps: must be in " + range_text(1, arguments_.most_steps) + ", got " +
                                std::to_string(arguments.steps));
  }

  void require_small(Job const& job) const {
    require_steps(job.arguments);  // they may be what the last network recommends
    if (job.shape.size() != 3) return;
    const std::int64_t pixels = decoder_info(job.arguments).upsampling;
    const std::int64_t height = pixels * job.shape[1], width = pixels * job.shape[2];
    if (std::max(height, width) <= arguments_.most_size) return;
    throw std::invalid_argument("--size: must be at most " + std::to_string(arguments_.most_size) + " a side, got " +
                                std::to_string(height) + "x" + std::to_string(width));
  }

  Job job_of(Asked asked) {
    if (!asked.has("--seed")) {
      thread_local std::random_device random;
      asked.options.push_back({"--seed", {std::to_string(random())}});
    }
    try {
      Job job = prepared(asked);
      if (asked.png && job.images() != 1) {
        throw Refusal(400, "format",
                      "must be \"json\" for more than one picture, got \"png\" for " + std::to_string(job.images()));
      }
      return job;
    } catch (std::invalid_argument const& error) {
      throw refusal_of(422, error.what());
    }
  }

  /// Captures what is captured for each size of a call, before requests would wait for that.
  void warm_up() {
    tstitch::AnySampler const sampler = sampler_of(*usual_, routing(*usual_, usual_->arguments.routing));
    for (const std::int64_t images : batcher_->call_sizes()) {
      tstitch::Request request = usual_->request(0, 1);
      request.count = images;
      request.seeds.clear();
      request.pad_batches = false;
      request.batch_size = images;
      sampler.sample(batcher_->networks(), request);
    }
  }

  ServiceArguments arguments_;
  std::vector<GivenOption> drawing_;
  Arguments known_ = {};  // what does not change from request to request
  JobFiles files_ = {};
  std::int64_t batch_ = 0;
  std::map<std::string, tstitch::TextEncoder> encoders_ = {};
  std::mutex encoding_ = {}, decoding_ = {};
  std::optional<Job> usual_ = {};  // of a request that says no more than it must
  std::optional<tstitch::Decoder> decoder_ = {};
  Metrics metrics_ = {};
  std::atomic<bool> taking_ = true, abandoned_ = false;
  std::atomic<std::int64_t> drawings_ = 0;
  std::unique_ptr<tstitch::Batcher> batcher_ = {};
};
