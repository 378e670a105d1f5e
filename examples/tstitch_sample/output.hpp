/// @file
/// What is written and said.
#pragma once

#include <tstitch/base/diagnostics.hpp>
#include <tstitch/output/image.hpp>
#include <tstitch/output/npy.hpp>
#include <tstitch/output/video.hpp>

#include <ATen/Parallel.h>

#include <cstdint>
#include <exception>
#include <filesystem>
#include <functional>
#include <future>
#include <iostream>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "../common/job.hpp"
#include "../common/parameters.hpp"
#include "../common/text.hpp"

inline void write_report(Job const& job, Json report) {
  if (job.arguments.report.empty()) return;
  report["notes"] = job.notes;
  report["diagnostics"] = tstitch::diagnostics();
  tstitch::write_file(job.arguments.report, text_of(report, 2) + "\n");
}

/// What each network does, as counted in the plan.
inline void list_work(tstitch::Plan const& plan, std::size_t networks, Json& json) {
  json["calls"] = plan.calls(networks);
  if (!plan.has_forecasts()) return;
  for (tstitch::NetworkWork const& each : plan.work(networks)) {
    json["forecast_calls"].push_back(each.forecast);
    json["rows"].push_back(each.rows);
  }
}

/// For what describes all pictures; each by itself says which of them is its own.
inline void list_texts(Job const& job, Json& json) {
  if (!job.texts.empty()) json["prompts"] = job.texts;
}

using Flags = std::vector<char>;  ///< of pictures; threads write them, which no vector of bool allows

inline constexpr int grid_gap = 2;  ///< pixels between the pictures of a grid

/// Every picture as a file of its own.
/// @param made_with the parameters of all of them
/// @param written the job's pictures; becomes true for each that is on the disk
inline void write_pictures(Job const& job, Json const& made_with, std::string const& folder,
                           std::vector<tstitch::Picture> const& pictures, std::int64_t first, Flags& written) {
  at::parallel_for(0, std::int64_t(pictures.size()), 16, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const tstitch::PngText text = png_text(about_picture(job, made_with, first + i));
      tstitch::write_file(folder + "/" + job.file_name(first + i), tstitch::encode_png(pictures[std::size_t(i)], text),
                          tstitch::Sync::later);
      written[std::size_t(first + i)] = true;
    }
  });
}

/// The same of a video.
inline void write_video(Job const& job, Json const& made_with, tstitch::Video const& video, std::int64_t index,
                        Flags& written) {
  const Json about = about_picture(job, made_with, index);
  const std::string path = job.arguments.output + "/" + job.file_name(index);
  const double rate = job.arguments.frames_per_second;
  if (job.arguments.video == "mp4") {
    tstitch::write_mp4(path, video, rate, png_text(about));
  } else if (job.arguments.video == "apng") {
    tstitch::write_apng(path, video, rate, png_text(about));
  } else {
    tstitch::write_frames(path, video, png_text(about), tstitch::Sync::later);
  }
  written[std::size_t(index)] = true;
}

/// Takes back that pictures are on the disk which are not there any more.
/// @throws std::runtime_error for those
inline void forget_missing(Job const& job, std::string const& folder, Flags& written) {
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
inline void make_folder_in_folder(std::string const& folder) {
  std::error_code error;
  std::filesystem::create_directory(folder, error);
  if (error)
    throw std::runtime_error("'" + folder + "': must be a folder that can be made, got '" + error.message() + "'");
}

inline std::string location(std::string const& path) {
  return std::filesystem::absolute(path).lexically_normal().string();
}

template <class... Parts>
void say(Job const& job, Parts const&... parts) {
  if (!job.arguments.quiet) (std::cout << ... << parts) << std::endl;
}

inline void write_latents(Job const& job, std::vector<at::Tensor> const& batches) {
  std::vector<std::int64_t> shape = batches[0].sizes().vec();
  shape[0] = 0;
  for (at::Tensor const& batch : batches) shape[0] += batch.size(0);
  const at::Tensor all = batches[0].new_empty(shape, at::kFloat);
  std::int64_t first = 0;
  for (at::Tensor const& batch : batches) {
    all.narrow(0, first, batch.size(0)).copy_(batch);
    first += batch.size(0);
  }
  tstitch::write_npy(job.arguments.latents, all);
}

/// Says it now, shortly, and in the report.
inline void note(Job& job, std::string const& sentence) {
  job.notes.push_back(sentence);
  if (!job.arguments.quiet) std::cerr << "tstitch_sample: note: " << in_a_note(sentence) << std::endl;
}
