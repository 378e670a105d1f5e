/// @file
/// What a data set is: which pictures, and as which files.
#pragma once

#include <tstitch/base/crc32.hpp>
#include <tstitch/output/image.hpp>
#include <tstitch/output/npy.hpp>
#include <tstitch/output/npz.hpp>
#include <tstitch/output/tar.hpp>
#include <tstitch/scale/ranges.hpp>

#include <ATen/Parallel.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "../common/drawing.hpp"
#include "arguments.hpp"
#include "folder.hpp"

inline std::string checksum(std::string_view bytes) {
  tstitch::detail::Crc32 crc;
  crc.add(bytes.data(), bytes.size());
  char digits[16];
  std::snprintf(digits, sizeof digits, "%08x", crc.value());
  return digits;
}

/// Of the numbers that networks are conditioned on, wherever they are from.
inline std::string checksum_of(std::vector<tstitch::NamedCondition> const& conditions) {
  std::vector<std::string> texts;
  for (tstitch::NamedCondition const& each : conditions) {
    texts.push_back(each.name);
    for (at::Tensor const& tensor : {each.value, each.null}) {
      if (!tensor.defined()) continue;
      const at::Tensor host = tensor.cpu().contiguous();
      texts.push_back(tstitch::words::shape_text(host.sizes()) + at::toString(host.scalar_type()) +
                      checksum({static_cast<char const*>(host.const_data_ptr()), host.nbytes()}));
    }
  }
  return tstitch::detail::digest(texts);
}

/// A job whose pictures are a data set.
struct DataSet {
  Job const& job;
  DataSetArguments const& arguments;
  std::string plan = {};  ///< its fingerprint
  std::int64_t height = 0, width = 0, channels = 0;
  Json description = {};
  std::string fingerprint = {};  ///< of the description

  DataSet(Job const& of, DataSetArguments const& as, tstitch::Plan const& planned) : job(of), arguments(as) {
    plan = tstitch::detail::hexadecimal(tstitch::fingerprint(planned));
    const tstitch::AutoencoderInfo decoder = decoder_info(job.arguments);
    height = job.shape[1] * decoder.upsampling;
    width = job.shape[2] * decoder.upsampling;
    channels = job.arguments.decoder.empty() ? job.shape[0] : decoder.picture_channels;
    describe();
  }

  std::int64_t images() const { return job.images(); }
  std::uint64_t picture_bytes() const { return std::uint64_t(height * width * channels); }
  bool is_npz() const { return arguments.format == "npz"; }
  /// Of names of pictures.
  int digits() const { return std::max(6, int(std::to_string(images() - 1).size())); }

 private:
  void describe() {
    Json& d = description;
    d["format"] = arguments.format;
    d["images"] = images();
    d["picture"] = {height, width, channels};
    if (arguments.format == "webdataset") d["shard"] = arguments.shard;
    d["batch"] = job.arguments.batch;
    Json with = parameters(job);
    // What says where something is, and not what it is.
    for (char const* const key : {"images", "batch", "pad_batches", "device", "decoder", "conditions", "text_encoders",
                                  "prompt_cache", "pipeline", "negative"}) {
      with.erase(key);
    }
    d.update(with);
    d["device"] = job.device.is_cpu() ? "cpu" : "cuda";
    d["torch"] = TORCH_VERSION;
    if (!job.labels.empty()) {
      std::vector<std::int64_t> each(std::size_t(job.infos.back().num_classes));
      std::iota(each.begin(), each.end(), std::int64_t(0));
      d["classes"] = job.labels == each ? Json("all") : Json(job.labels);
    }
    if (!job.texts.empty()) d["prompts"] = tstitch::detail::digest(job.texts);
    if (!job.conditions.empty()) d["conditions"] = checksum_of(job.conditions);
    if (!job.arguments.decoder.empty()) d["decoder"] = tstitch::fingerprint_text(job.arguments.decoder);
    d["plan"] = plan;  // behind what it follows from, for the first that differs is named
    fingerprint = fingerprint_of(d);
  }
};

/// Where a picture lies in the file of its part.
struct Placed {
  std::uint64_t offset, bytes;
  std::string checksum;
};

/// A part that is finished: its file, and where its pictures lie in it.
struct Part {
  std::string bytes;
  std::vector<Placed> pictures;

  std::string_view picture(std::size_t i) const {
    return std::string_view(bytes).substr(pictures[i].offset, pictures[i].bytes);
  }
};

inline std::string part_ending(DataSet const& set) {
  return set.is_npz() ? ".npy" : ".tar";
}

/// Writes a part: its pictures as .npy or as PNG files in a tar archive, then what says that they are whole.
inline void write_part(DataSet const& set, Folder const& folder, tstitch::IndexRange const& range,
                       std::vector<tstitch::Picture> const& pictures) {
  const std::string path = folder.part(range.number, part_ending(set));
  std::vector<Placed> placed;
  if (set.is_npz()) {
    std::string bytes = tstitch::npy_header("|u1", {range.count, set.height, set.width, set.channels});
    for (tstitch::Picture const& each : pictures) {
      const std::string_view pixels{reinterpret_cast<char const*>(each.pixels.data()), each.pixels.size()};
      placed.push_back({bytes.size(), pixels.size(), checksum(pixels)});
      bytes += pixels;
    }
    tstitch::write_file(path, bytes);
  } else {
    std::vector<std::string> files(pictures.size());
    at::parallel_for(0, std::int64_t(pictures.size()), 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) files[std::size_t(i)] = tstitch::encode_png(pictures[std::size_t(i)]);
    });
    tstitch::TarWriter tar(path);
    for (std::size_t i = 0; i < files.size(); ++i) {
      const std::string name = Folder::digits(range.first + std::int64_t(i), set.digits()) + ".png";
      placed.push_back({tar.add(name, files[i]), files[i].size(), checksum(files[i])});
    }
    tar.finish();
  }
  Json json{{"part", range.number}, {"first", range.first}, {"count", range.count}, {"data_set", set.fingerprint}};
  for (Placed const& each : placed) json["pictures"].push_back({each.offset, each.bytes, each.checksum});
  write_sealed(folder.part(range.number, ".json"), json);
}

/// Reads a part, and checks each picture.
/// @throws std::runtime_error for one of another data set, and one that was edited or is damaged
inline Part read_part(DataSet const& set, Folder const& folder, tstitch::IndexRange const& range) {
  const std::string path = folder.part(range.number, part_ending(set)), about = folder.part(range.number, ".json");
  const Json json = read_sealed(about, "the description of a part");
  const auto is = [&](char const* key, Json const& value) { return json.contains(key) && json[key] == value; };
  if (!is("data_set", set.fingerprint) || !is("part", range.number) || !is("first", range.first) ||
      !is("count", range.count)) {
    throw std::runtime_error("'" + about + "': must be of this data set, got another one's");
  }
  const auto fail = [&](std::string const& got) {
    throw std::runtime_error("'" + path + "': must be a part as it was written, got " + got +
                             "; without it and the .json beside it it is drawn again");
  };
  Part part;
  if (!is_there(path)) fail("none");
  part.bytes = tstitch::detail::read_text({"generate", "a part"}, path, std::size_t(1) << 40);
  for (Json const& each : json["pictures"])
    part.pictures.push_back({each[0].get<std::uint64_t>(), each[1].get<std::uint64_t>(), each[2].get<std::string>()});
  if (std::int64_t(part.pictures.size()) != range.count) fail("another number of pictures");
  for (std::size_t i = 0; i < part.pictures.size(); ++i) {
    Placed const& at = part.pictures[i];
    const bool inside = at.offset <= part.bytes.size() && at.bytes <= part.bytes.size() - at.offset;
    if (inside && checksum(part.picture(i)) == at.checksum) continue;
    fail("picture " + std::to_string(range.first + std::int64_t(i)) + " edited or damaged");
  }
  return part;
}

/// The finished files, written part after part.
class Assembly {
 public:
  Assembly(DataSet const& set, Folder const& folder)
      : set_(set), folder_(folder), manifest_(folder.file("manifest.jsonl")) {
    if (!set.is_npz()) return;
    npz_.emplace(folder.file("images.npz"));
    npz_->begin("arr_0", "|u1", {set.images(), set.height, set.width, set.channels});
  }

  /// The parts come in order.
  void add(tstitch::IndexRange const& range, Part const& part) {
    for (std::int64_t i = 0; i < range.count; ++i) {
      add(range.first + i, part.picture(std::size_t(i)), part.pictures[std::size_t(i)].checksum);
    }
  }

  /// @returns the files with their sizes
  Json finish() {
    if (npz_) {
      if (!set_.job.labels.empty()) {
        npz_->begin("arr_1", "<i8", {set_.images()});
        for (std::int64_t i = 0; i < set_.images(); ++i) {
          const std::int64_t label = set_.job.label(i);
          npz_->write({reinterpret_cast<char const*>(&label), sizeof label});
        }
      }
      npz_->finish();
      keep("images.npz");
    }
    finish_shard();
    if (set_.arguments.format == "png") tstitch::sync_disk(folder_.path());
    manifest_.finish();
    keep("manifest.jsonl");
    return files_;
  }

 private:
  void add(std::int64_t image, std::string_view bytes, std::string const& sum) {
    Json line{{"index", image}, {"seed", set_.job.seed(image)}};
    if (!set_.job.labels.empty()) {
      line["label"] = set_.job.label(image);
      line["class"] = set_.job.class_name(image);
    }
    if (set_.job.prompts > 1) line["prompt"] = set_.job.prompt(image);
    if (!set_.job.texts.empty()) line["text"] = set_.job.text(image);
    line["plan"] = set_.plan;
    std::string file;
    const std::uint64_t offset = npz_                             ? to_npz(bytes, file)
                                 : set_.arguments.format == "png" ? to_folder(image, bytes, file)
                                                                  : to_shard(image, bytes, file);
    line["file"] = file;
    line["offset"] = offset;
    line["bytes"] = bytes.size();
    line["crc32"] = sum;
    manifest_.write(text_of(line) + "\n");
  }

  std::uint64_t to_npz(std::string_view bytes, std::string& file) {
    file = "images.npz";
    const std::uint64_t offset = npz_->data_begin() + std::uint64_t(added_++) * bytes.size();
    npz_->write(bytes);
    return offset;
  }

  std::uint64_t to_folder(std::int64_t image, std::string_view bytes, std::string& file) {
    constexpr std::int64_t in_a_folder = 1000;
    const std::string name = Folder::digits(image / in_a_folder * in_a_folder, set_.digits());
    if (image % in_a_folder == 0) {
      std::error_code error;
      std::filesystem::create_directory(folder_.file(name), error);
      if (error) {
        throw std::runtime_error("'" + folder_.file(name) + "': must be a folder that can be made, got '" +
                                 error.message() + "'");
      }
    }
    file = name + "/" + Folder::digits(image, set_.digits()) + ".png";
    tstitch::write_file(folder_.file(file), bytes, tstitch::Sync::later);
    files_.push_back({file, bytes.size()});
    return 0;
  }

  std::uint64_t to_shard(std::int64_t image, std::string_view bytes, std::string& file) {
    if (image % set_.arguments.shard == 0) {
      finish_shard();
      shard_ = Folder::digits(image / set_.arguments.shard, 6) + ".tar";
      tar_.emplace(folder_.file(shard_));
    }
    file = shard_;
    const std::string name = Folder::digits(image, set_.digits());
    const std::uint64_t offset = tar_->add(name + ".png", bytes);
    if (!set_.job.labels.empty()) tar_->add(name + ".cls", std::to_string(set_.job.label(image)));
    if (!set_.job.texts.empty()) tar_->add(name + ".txt", set_.job.text(image));
    return offset;
  }

  void finish_shard() {
    if (!tar_) return;
    tar_->finish();
    tar_.reset();
    keep(shard_);
  }

  void keep(std::string const& file) { files_.push_back({file, std::filesystem::file_size(folder_.file(file))}); }

  DataSet const& set_;
  Folder const& folder_;
  tstitch::FileWriter manifest_;
  std::optional<tstitch::NpzWriter> npz_ = {};
  std::optional<tstitch::TarWriter> tar_ = {};
  std::string shard_ = {};
  std::int64_t added_ = 0;
  Json files_ = Json::array();
};

/// That a data set which was finished still is.
/// @throws std::runtime_error for files that are gone, or of other sizes
inline void require_finished(Folder const& folder) {
  const Json finished = read_sealed(folder.file("finished.json"), "the list of the files of a data set");
  for (Json const& each : finished["files"]) {
    const std::string path = folder.file(each[0].get<std::string>());
    std::error_code error;
    const std::uintmax_t bytes = std::filesystem::file_size(path, error);
    if (!error && bytes == each[1].get<std::uintmax_t>()) continue;
    throw std::runtime_error("'" + path + "': must be there with " + text_of(each[1]) + " bytes, got " +
                             (error ? "none" : std::to_string(bytes)));
  }
}
