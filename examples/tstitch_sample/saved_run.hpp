/// @file
/// A run that goes on after it was stopped: the file of --save-run and --resume.
#pragma once

#include <tstitch/file/trajectory_file.hpp>

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../common/job.hpp"
#include "../common/signals.hpp"
#include "output.hpp"

/// Another number for other numbers. Of one program: the standard library does not say which.
inline std::uint64_t number_of_contents(at::Tensor const& tensor) {
  if (!tensor.defined()) return 0;
  const at::Tensor host = tensor.cpu().contiguous();
  return std::hash<std::string_view>()({static_cast<char const*>(host.const_data_ptr()), host.nbytes()});
}

/// All that tells one run from another, but for the device and the version of the program.
inline Json begun_with(Job const& job) {
  Arguments const& a = job.arguments;
  Json json = parameters(job);
  for (char const* const may_differ : {"device", "version"}) json.erase(may_differ);
  json["x"] = job.shape;
  json["class"] = job.labels;
  json["prompts"] = job.texts;
  json["guidance_scale"] = job.guidance.scale.values();
  for (auto const& [name, file] : {std::pair{"output", &a.output}, std::pair{"grid", &a.grid},
                                   std::pair{"latents", &a.latents}, std::pair{"animation", &a.animation}}) {
    json[name] = *file;
  }
  for (auto const& [name, tensor] :
       {std::pair{"contents of --init-image", &job.initial_image}, std::pair{"contents of --mask", &job.mask},
        std::pair{"contents of --initial-noise", &job.initial_noise},
        std::pair{"contents of --invert", &job.to_invert}}) {
    json[name] = number_of_contents(*tensor);
  }
  for (tstitch::NamedCondition const& each : job.conditions) {
    json["contents of the condition '" + each.name + "'"] = {number_of_contents(each.value),
                                                             number_of_contents(each.null)};
  }
  return Json::parse(text_of(json));  // as it is read again
}

/// The file that keeps a run, where there is to be one.
class SavedRun {
 public:
  /// Reads what the file of --resume says.
  /// @throws std::invalid_argument for a file of --save-run that is there, and for options that are not those of the
  /// run
  /// @throws std::runtime_error for a file that holds no run of this program
  explicit SavedRun(Job const& job) : job_(job), path_(job.arguments.save_run + job.arguments.resume) {
    if (!wanted()) return;
    begun_with_ = begun_with(job);
    if (job.arguments.resume.empty()) {
      if (!std::filesystem::exists(path_)) return;
      throw std::invalid_argument("--save-run: must be a file that is not there yet, for a run of its own (--resume " +
                                  std::string("goes on with one), got ") + in_quotes(path_));
    }
    file_.emplace(path_);
    const tstitch::TrajectoryNotes notes = file_->notes();
    const Json said = Json::parse(notes.text, nullptr, /*allow_exceptions=*/false);
    const auto whole = [&](char const* name) {
      const auto found = said.find(name);
      return found != said.end() && found->is_number_integer() ? found->get<std::int64_t>() : -1;
    };
    first_ = said.is_object() ? whole("first") : -1;
    written_ = said.is_object() ? whole("written") : -1;
    if (first_ < 0 || written_ < 0 || written_ > first_ || !said.contains("begun_with")) {
      throw std::runtime_error(in_quotes(path_) + ": must be a file of --save-run, got a run of another program");
    }
    require_same(said["begun_with"]);
    for (auto const& [name, images] : notes.tensors) kept_.push_back({written_, images});
    if (first_ >= job.images() || (kept_.empty() ? 0 : kept_[0].images.size(0)) != first_ - written_) {
      throw std::runtime_error(in_quotes(path_) + ": must hold the pictures that were drawn, got others");
    }
    saved_written_ = written_;
  }

  bool wanted() const { return !path_.empty(); }
  bool resumes() const { return file_.has_value(); }

  /// Of the batch that goes on.
  std::int64_t first() const { return first_; }
  /// How many pictures were on the disk.
  std::int64_t written() const { return written_; }
  /// What was sampled of those that were not, in batches.
  std::vector<at::Tensor> kept() const {
    std::vector<at::Tensor> batches;
    for (Kept const& each : kept_) {
      for (at::Tensor const& batch : each.images.to(job_.device).split(job_.arguments.batch)) batches.push_back(batch);
    }
    return batches;
  }
  tstitch::Trajectory trajectory(tstitch::AnySampler const& sampler,
                                 std::vector<tstitch::Network> const& networks) const {
    return file_->trajectory(sampler, networks, {.fingerprints = job_.fingerprints, .guidance = job_.guidance});
  }

  /// Takes what was sampled, in case that it is not on the disk when the run is saved.
  /// @param written how many of the first pictures are files of --output
  void sampled(at::Tensor const& images, std::int64_t first, std::int64_t written) {
    if (!wanted()) return;
    forget(written);
    kept_.push_back({first, goes_into_one_file() ? images.cpu() : images});
  }

  /// Whether the run is to be saved as it is now.
  /// @param begins its batch
  bool is_due(tstitch::Trajectory const& run, bool begins) {
    if (!wanted() || run.finished()) return false;
    if (stopped_by) return true;
    if (job_.arguments.save_every == 0 || (!begins && run.next == run.first)) return false;
    if (!begins && run.next == last_saved_) return false;  // evaluations inside of a step
    return begins || (run.next - run.first) % job_.arguments.save_every == 0;
  }

  /// @param count pictures of the batch, from `first` on
  /// @param written how many of the first pictures are files of --output
  void save(tstitch::AnySampler const& sampler, tstitch::Trajectory const& run, std::int64_t first, std::int64_t count,
            std::int64_t written) {
    forget(written);
    written = kept_.empty() ? first : kept_[0].first;
    if (written > saved_written_) tstitch::sync_disk(job_.arguments.output);
    saved_written_ = written;
    tstitch::TrajectoryNotes notes;
    notes.text = text_of(Json{{"begun_with", begun_with_}, {"first", first}, {"written", written}});
    std::vector<at::Tensor> images;
    for (Kept const& each : kept_) images.push_back(each.images.cpu());
    if (!images.empty()) notes.tensors.emplace_back("images", at::cat(images));
    tstitch::save_trajectory(path_, sampler, run, job_.fingerprints, notes);
    last_saved_ = run.next;
    place_ = "step " + std::to_string(run.next) + " of " + std::to_string(run.count) + " of pictures " +
             std::to_string(first + 1) + " to " + std::to_string(first + count) + " of " +
             std::to_string(job_.images()) + " in " + location(path_) + ", go on with --resume";
  }

  /// Where the run is in its file; empty where it was not saved.
  std::string const& place() const { return place_; }

  /// All is drawn.
  void remove() const {
    if (wanted()) std::remove(path_.c_str());
  }

 private:
  struct Kept {
    std::int64_t first;
    at::Tensor images;  ///< x_0 of the pictures from it on
  };

  /// Such pictures are kept until the end.
  bool goes_into_one_file() const {
    Arguments const& a = job_.arguments;
    return a.output.empty() || !a.grid.empty() || !a.latents.empty() || !a.animation.empty();
  }

  /// What is on the disk.
  void forget(std::int64_t written) {
    if (goes_into_one_file()) return;
    std::erase_if(kept_, [&](Kept const& each) { return each.first + each.images.size(0) <= written; });
  }

  /// @throws std::invalid_argument naming the first that differs
  void require_same(Json const& of_run) const {
    const auto refuse = [&](std::string const& name, std::string const& expected, std::string const& got) {
      throw std::invalid_argument("--resume: " + name + " must be what the run of " + in_quotes(path_) +
                                  " was begun with, " + expected + ", got " + got);
    };
    const auto shown = [](Json const& json, std::string const& name) {
      return json.contains(name) ? tstitch::words::printable(text_of(json[name])) : std::string("none");
    };
    for (Json const* side : {&of_run, &begun_with_}) {
      for (auto const& [name, value] : side->items()) {
        if (shown(of_run, name) != shown(begun_with_, name) || of_run.contains(name) != begun_with_.contains(name) ||
            of_run[name] != begun_with_[name]) {
          refuse(name, shown(of_run, name), shown(begun_with_, name));
        }
      }
    }
  }

  Job const& job_;
  std::string path_;
  Json begun_with_ = {};
  std::optional<tstitch::TrajectoryFile> file_ = {};
  std::int64_t first_ = 0, written_ = 0, saved_written_ = 0;
  int last_saved_ = -1;
  std::vector<Kept> kept_ = {};
  std::string place_ = {};
};
