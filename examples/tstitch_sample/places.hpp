/// @file
/// Where files go, checked before anything is drawn.
#pragma once

#include <tstitch/base/write_file.hpp>
#include <tstitch/model/autoencoder.hpp>
#include <tstitch/output/image.hpp>

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "../common/job.hpp"
#include "output.hpp"

/// Fails now rather than after the work.
inline void require_writable(Job const& job) {
  const auto make_folder = [&](std::filesystem::path const& folder, std::string const& path, char const* rule) {
    std::error_code error;
    if (!folder.empty()) std::filesystem::create_directories(folder, error);
    if (error) throw std::runtime_error("'" + path + "': must be a " + rule + ", got '" + error.message() + "'");
  };
  for (std::string const& file : {job.arguments.grid, job.arguments.report, job.arguments.latents,
                                  job.arguments.animation, job.arguments.save_run, job.arguments.resume}) {
    if (file.empty()) continue;
    make_folder(std::filesystem::path(file).parent_path(), file, "file that can be written");
    std::int64_t numbers = file == job.arguments.latents ? job.images() : 0;
    for (const std::int64_t size : job.shape) numbers *= size;
    tstitch::require_writable(file, std::uint64_t(numbers) * sizeof(float));
  }
  if (std::string const& folder = job.arguments.output; !folder.empty()) {
    constexpr auto rule = "folder that can be written to";
    make_folder(folder, folder, rule);
    if (access(folder.c_str(), W_OK | X_OK) != 0) {
      throw std::runtime_error("'" + folder + "': must be a " + rule + ", got '" + std::strerror(errno) + "'");
    }
  }
}

/// How many pictures stand side by side in the grid: those of a sweep, or one of each class; 0 for about a square.
inline std::int64_t grid_columns(Job const& job) {
  if (!job.arguments.sweep.empty()) return job.images();
  if (const std::int64_t row = job.arguments.interpolate + job.arguments.variations; row > 0) {
    if (job.beside() > 1) return job.beside();
    const bool one_way = job.arguments.interpolate > 0 && job.images() == row + 2;
    return one_way ? row + 2 : row + 1;  // else a seed, class or prompt a row
  }
  return job.arguments.count > 1 && job.labels.size() > 1 ? job.images() / job.arguments.count : 0;
}

/// Refuses a grid that cannot be written, before its pictures are drawn.
inline void require_grid(Job const& job) {
  if (job.arguments.grid.empty()) return;
  const tstitch::AutoencoderInfo decoder = decoder_info(job.arguments);
  const std::int64_t pixels = decoder.upsampling;
  const std::int64_t channels = job.arguments.decoder.empty() ? job.shape[0] : decoder.picture_channels;
  if (channels != 1 && channels != 3) return;  // what is wrong with the networks is said where they are loaded
  const std::int64_t scale = job.arguments.scale * pixels;
  const bool sweep = !job.arguments.sweep.empty();
  const std::int64_t rows = sweep ? std::int64_t(sweep_ratios(job.arguments.sweep).size()) : 1;
  try {
    const tstitch::GridSize size = tstitch::grid_size(job.images() * rows, job.shape[2] * scale, job.shape[1] * scale,
                                                      channels, grid_columns(job), grid_gap);
    if (sweep) tstitch::grid_size(1, size.width + caption_margin, size.height, channels, 1, 0);
  } catch (std::invalid_argument const& error) {
    throw std::invalid_argument("--grid: " + std::string(error.what()) + "; --output writes each picture by itself");
  }
}

/// Where pictures will be.
inline std::vector<std::filesystem::path> picture_folders(Job const& job) {
  const std::filesystem::path output = place_of(job.arguments.output);
  if (job.arguments.sweep.empty()) return {output};
  std::vector<std::filesystem::path> folders;
  for (std::string const& ratio : ratio_names(sweep_ratios(job.arguments.sweep))) {
    folders.push_back(output / ("ratio-" + ratio));
  }
  return folders;
}

/// Whether a file is where a folder of pictures will be, or a folder around it.
inline bool is_folder_of_pictures(Job const& job, std::string const& path) {
  const std::filesystem::path place = place_of(path);
  return std::ranges::any_of(picture_folders(job), [&](std::filesystem::path const& folder) {
    return std::mismatch(place.begin(), place.end(), folder.begin(), folder.end()).first == place.end();
  });
}

/// Whether a file is where a picture will be.
inline bool is_picture(Job const& job, std::string const& path) {
  const std::filesystem::path place = place_of(path);
  const bool in_folder = std::ranges::count(picture_folders(job), place.parent_path()) > 0;
  const std::string name = place.filename().string();
  const std::int64_t image = number_of<std::int64_t>(name.substr(0, name.find('-'))).value_or(-1);
  return in_folder && image >= 0 && image < job.images() && name == job.file_name(image);
}

/// @throws std::invalid_argument for two files of one name, of which one is written, and for a file where a folder is
inline void require_apart(Job const& job) {
  Arguments const& arguments = job.arguments;
  std::vector<std::pair<std::string, std::string>> read{{"--decoder", arguments.decoder}};
  for (std::string const& path : arguments.models) read.emplace_back("--model", path);
  for (auto const& [option, path] :
       {std::pair{"--init-image", &arguments.init_image}, std::pair{"--mask", &arguments.mask},
        std::pair{"--invert", &arguments.invert}, std::pair{"--initial-noise", &arguments.initial_noise},
        std::pair{"--encoder", &arguments.encoder}}) {
    read.emplace_back(option, *path);
  }
  for (std::string const& path : arguments.conditions) read.emplace_back("--condition", path);
  for (std::string const& path : arguments.text_encoders) read.emplace_back("--text-encoder", path);
  read.emplace_back("--prompts", arguments.prompts_file);
  if (!arguments.pipeline.empty()) read.emplace_back("--pipeline", arguments.pipeline + "/pipeline.txt");
  const std::vector<std::pair<std::string, std::string>> written{
      {"--grid", arguments.grid},           {"--report", arguments.report},     {"--latents", arguments.latents},
      {"--animation", arguments.animation}, {"--save-run", arguments.save_run}, {"--resume", arguments.resume}};
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
