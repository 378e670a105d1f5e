/// @file
/// Networks whose weights lie in safetensors files, as they are published, for the native engine. Opt-in: it needs
/// nlohmann-json, and costs what file/dit.hpp costs and a little more.
///
///     const auto network = tstitch::load_safetensors("small.txt");
///     const auto networks = tstitch::load_networks({"small.txt", "large.txt"}, {.readers =
///     {tstitch::safetensors_reader()}});
///
/// What a network is comes from a text that the exporters write with `--format in-place` (network_description.hpp), or
/// from the files' own `__metadata__`, under the keys of metadata.hpp: "tstitch/name". No code is in such files.
///
/// Everything that a file says of itself is checked before memory is taken for its numbers. That takes at most ten
/// times the size of its header, which is at most 100 MB. What the numbers are is not looked at.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "../base/text.hpp"
#include "../model/network.hpp"
#include "../tensor/host_tensor.hpp"
#include "dit.hpp"
#include "file.hpp"
#include "load_options.hpp"
#include "loading.hpp"
#include "metadata.hpp"
#include "network_description.hpp"
#include "onto_device.hpp"
#include "parallel_file.hpp"
#include "safetensors_header.hpp"
#include "text_file.hpp"
#include "torchscript.hpp"
#include "transformer_tensors.hpp"

namespace tstitch {
namespace detail {

inline constexpr FileKind safetensors_file{"load_safetensors", "a safetensors file"};
inline constexpr FileKind safetensors_index{"load_safetensors", "an index of safetensors files"};
inline constexpr FileKind safetensors_folder{"load_safetensors",
                                             "a folder with one .safetensors file, or one index of them"};
inline constexpr std::uint64_t most_header_bytes = 100'000'000;  // of the format

/// "x.safetensors.index.json", "x.safetensors.index.fp16.json"
inline bool is_index_name(std::string_view name) {
  return name.find(".safetensors.") != std::string_view::npos && name.find(".index.") != std::string_view::npos &&
         name.ends_with(".json");
}

/// The one file of weights in a folder, or the one index. Shards are left to their index.
inline std::string weights_of_folder(std::string const& folder) {
  std::vector<std::string> found;
  std::error_code error;
  for (std::filesystem::directory_iterator each(folder, error), end; !error && each != end; each.increment(error)) {
    const std::string name = each->path().filename().string();
    const bool shard = name.find("-of-") != std::string::npos;
    if (is_index_name(name) || (name.ends_with(".safetensors") && !shard)) found.push_back(name);
  }
  if (error) refuse_file(safetensors_folder, quoted(folder), "'" + error.message() + "'");
  std::sort(found.begin(), found.end());
  if (found.size() != 1) {
    const std::string got = found.empty() ? "one without" : "one with " + printable(joined(found)) + "; name one";
    refuse_file(safetensors_folder, quoted(folder), got);
  }
  return (std::filesystem::path(folder) / found[0]).string();
}

/// One file, its header read.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(std::string const& path)
      : source_(quoted(path)), file_(safetensors_file, path), header_(read_header()) {}

  SafetensorsHeader const& header() const { return header_; }

  /// To a device, in its own type.
  at::Tensor read(SafetensorsEntry const& entry, at::Device device) const {
    return reading(safetensors_file, source_, [&] {
      const at::ScalarType type = *entry.type->read_as;
      const std::size_t count = std::size_t(entry.end - entry.begin);
      if (count > 0 && !device.is_cpu()) {
        std::uint32_t checksum = 0;  // of which the format knows nothing
        return onto_gpu(file_, data_ + entry.begin, count, device, checksum).view(type).view(entry.sizes);
      }
      const at::Tensor tensor = host_tensor(entry.sizes, type);
      if (count > 0) file_.read(data_ + entry.begin, tensor.mutable_data_ptr(), count);
      return tensor.to(device);
    });
  }

 private:
  SafetensorsHeader read_header() {
    return reading(safetensors_file, source_, [&] {
      constexpr std::uint64_t prefix = 8;
      unsigned char bytes[prefix] = {};
      if (file_.size() < prefix) refuse_file(safetensors_file, source_, std::to_string(file_.size()) + " bytes");
      file_.read(0, bytes, prefix);
      std::uint64_t size = 0;
      for (std::size_t k = prefix; k-- > 0;) size = size << 8 | bytes[k];
      if (size > most_header_bytes || size > file_.size() - prefix) {
        refuse_file(safetensors_file, source_,
                    "a header of " + std::to_string(size) + " bytes in a file of " + std::to_string(file_.size()));
      }
      std::string text(std::size_t(size), '\0');
      file_.read(prefix, text.data(), text.size());
      data_ = prefix + size;
      return SafetensorsHeader(source_, text, file_.size() - data_);
    });
  }

  std::string source_;
  ParallelFile file_;
  std::uint64_t data_ = 0;  // where the numbers begin
  SafetensorsHeader header_;
};

/// The tensors of several files as those of one network.
class SafetensorsFiles {
 public:
  /// @param paths of files, of indices with their files beside them, and of folders with one of either
  /// @throws std::runtime_error naming the file and what is wrong with it
  explicit SafetensorsFiles(std::vector<std::string> const& paths) {
    for (std::string const& path : paths) {
      std::error_code error;
      const bool folder = std::filesystem::is_directory(path, error);
      const std::string file = folder ? weights_of_folder(path) : path;
      if (is_index_name(std::filesystem::path(file).filename().string())) {
        add_index(file);
      } else {
        add(file);
      }
    }
  }

  struct Place {
    std::size_t file;
    SafetensorsEntry entry;
  };

  std::map<std::string, Place> const& tensors() const { return tensors_; }

  /// What the files say of the network, by keys without "tstitch/".
  std::map<std::string, std::string> const& metadata() const { return metadata_; }

  at::Tensor read(Place const& place, at::Device device) const { return files_[place.file]->read(place.entry, device); }

 private:
  void add(std::string const& path) {
    files_.push_back(std::make_unique<SafetensorsFile>(path));
    SafetensorsHeader const& header = files_.back()->header();
    for (auto const& [name, entry] : header.tensors()) {
      if (!tensors_.try_emplace(name, Place{files_.size() - 1, entry}).second) {
        fail(path, "must hold tensors that no file before it has", in_quotes(name));
      }
    }
    constexpr std::string_view prefix = "tstitch/";
    for (auto const& [key, value] : header.metadata()) {
      if (!key.starts_with(prefix)) continue;
      const auto [found, first] = metadata_.emplace(key.substr(prefix.size()), value);
      if (!first && found->second != value) {
        fail(path, "must say the same of the network as the files before it", "another " + printable(key));
      }
    }
  }

  void add_index(std::string const& path) {
    const SafetensorsIndex index = reading(safetensors_index, quoted(path), [&] {
      return SafetensorsIndex(quoted(path), read_text(safetensors_index, path, std::size_t(most_header_bytes)));
    });
    std::map<std::string, std::size_t> numbers;  // of files, by their names
    for (auto const& [tensor, name] : index.files()) numbers.emplace(name, 0);
    for (auto& [name, number] : numbers) {
      const std::filesystem::path file = std::filesystem::path(path).parent_path() / name;
      std::error_code error;
      if (!std::filesystem::exists(file, error)) fail(path, "must have all its files beside it", "no " + name);
      number = files_.size();
      add(file.string());
      for (auto const& [tensor, entry] : files_.back()->header().tensors()) {
        const auto listed = index.files().find(tensor);
        if (listed != index.files().end() && listed->second == name) continue;
        fail(path, "must list every tensor of its files", "none called " + in_quotes(tensor) + " in " + name);
      }
    }
    for (auto const& [tensor, name] : index.files()) {
      const auto found = tensors_.find(tensor);
      if (found != tensors_.end() && found->second.file == numbers.at(name)) continue;
      fail(path, "must list tensors that its files have", in_quotes(tensor) + " of " + name);
    }
  }

  [[noreturn]] static void fail(std::string const& path, std::string const& rule, std::string const& got) {
    throw std::runtime_error("tstitch::load_safetensors: " + quoted(path) + ": " + rule + ", got " + got);
  }

  std::vector<std::unique_ptr<SafetensorsFile>> files_ = {};
  std::map<std::string, Place> tensors_ = {};
  std::map<std::string, std::string> metadata_ = {};
};

/// What a path of weights, or of a text that describes a network, leads to.
struct SafetensorsNetwork {
  NetworkInfo info;
  std::shared_ptr<SafetensorsFiles> files;
  std::optional<at::ScalarType> type;  ///< that it asks for
};

inline std::optional<at::ScalarType> type_in(std::map<std::string, std::string> const& texts,
                                             std::string const& source) {
  const auto stated = texts.find("dtype");
  if (stated == texts.end()) return {};
  constexpr std::array types{std::pair{"float32", at::kFloat}, std::pair{"float16", at::kHalf},
                             std::pair{"bfloat16", at::kBFloat16}};
  for (auto const& [name, type] : types) {
    if (stated->second == name) return type;
  }
  throw std::runtime_error("tstitch::load_safetensors: " + source +
                           ": dtype must be float32, float16 or bfloat16, got " + in_quotes(stated->second));
}

/// @param otherwise what it is where nothing says so
inline SafetensorsNetwork open_safetensors(std::string const& path, std::optional<NetworkInfo> const& otherwise) {
  std::map<std::string, std::string> texts;
  std::shared_ptr<SafetensorsFiles> files;
  if (is_network_description(path)) {
    NetworkDescription description = read_network_description(path);
    files = std::make_shared<SafetensorsFiles>(description.weights);
    texts = std::move(description.texts);
  } else {
    files = std::make_shared<SafetensorsFiles>(std::vector<std::string>{path});
    texts = files->metadata();
    if (texts.empty() && otherwise) return {*otherwise, files, {}};
    if (!texts.contains("format")) {
      throw std::runtime_error("tstitch::load_safetensors: " + quoted(path) +
                               ": must say what network it is under \"tstitch/format\" and so on in its __metadata__ "
                               "(see metadata.hpp), got a file that does not: write a description of it with an "
                               "exporter's --format in-place");
    }
  }
  NetworkInfo info = tstitch::read_network_info(texts, path);
  require_of_engine(info, safetensors_file.place, quoted(path));
  return {std::move(info), std::move(files), type_in(texts, quoted(path))};
}

/// float32, float16 or bfloat16: as the largest tensor is stored.
inline at::ScalarType stored_type(SafetensorsFiles const& files) {
  std::uint64_t most = 0;
  at::ScalarType type = at::kFloat;
  for (auto const& [name, place] : files.tensors()) {
    const std::uint64_t bytes = place.entry.end - place.entry.begin;
    if (bytes <= most || !place.entry.type->read_as) continue;
    most = bytes;
    type = *place.entry.type->read_as;
  }
  return type == at::kDouble ? at::kFloat : type;
}

inline at::ScalarType type_of(SafetensorsNetwork const& network, TorchScriptOptions const& options) {
  if (options.dtype) require_type(safetensors_file.place, *options.dtype);
  if (options.dtype || options.device.is_cpu()) return options.dtype.value_or(at::kFloat);
  return network.type ? *network.type : stored_type(*network.files);
}

/// @throws std::runtime_error, when it is read, for a tensor of another type than F64, F32, F16 and BF16
inline std::map<std::string, StoredTensor> tensors_of(std::shared_ptr<SafetensorsFiles> const& files,
                                                      std::string const& source) {
  std::map<std::string, StoredTensor> found;
  for (auto const& [name, place] : files->tensors()) {
    const auto read = [files, &place = place, name = name, source](at::Device device) {
      if (!place.entry.type->read_as) {
        throw std::runtime_error("tstitch::load_safetensors: " + source + ": " + printable(name) +
                                 " must be F32, F16, BF16 or F64, got " + std::string(place.entry.type->name));
      }
      const at::Tensor tensor = files->read(place, device);
      // Types that are narrower still are rounded to in two steps, as exporters do.
      return tensor.scalar_type() == at::kDouble ? tensor.to(at::kFloat) : tensor;
    };
    found.emplace(name, StoredTensor{place.entry.sizes, read});
  }
  return found;
}

/// @throws std::runtime_error for tensors that the network does not have
inline void require_all_taken(TransformerTensors const& tensors) {
  std::vector<std::string> left;
  for (auto const& [name, tensor] : tensors.all) {
    if (!tensors.taken.contains(name)) left.push_back(printable(name));
  }
  if (left.empty()) return;
  const std::size_t count = left.size();
  left.resize(std::min<std::size_t>(count, 4));
  tensors.fail("must hold the tensors of this network only",
               "also " + joined(left) + (count > left.size() ? " and others" : ""));
}

}  // namespace detail

/// Whether load_safetensors is for this: a text that describes a network, a .safetensors file, an index of them, or a
/// folder. False for what is not there.
inline bool is_safetensors(std::string const& path) {
  std::error_code error;
  const std::string name = std::filesystem::path(path).filename().string();
  return name.ends_with(".safetensors") || detail::is_index_name(name) || std::filesystem::is_directory(path, error) ||
         is_network_description(path);
}

/// What load_safetensors would load. Of the weights only headers are read.
/// @param otherwise what to return where nothing says what the network is
/// @throws std::runtime_error naming the file and what is wrong with it
inline NetworkInfo read_safetensors_info(std::string const& path, std::optional<NetworkInfo> const& otherwise = {}) {
  return detail::open_safetensors(path, otherwise).info;
}

/// What the files of a network hold.
struct StoredWeights {
  std::int64_t count = 0;            ///< of numbers
  at::ScalarType type = at::kFloat;  ///< of the largest tensor; of float64 float32
};

/// From the headers of what load_safetensors would load.
/// @throws std::runtime_error naming the file and what is wrong with it
inline StoredWeights read_stored_weights(std::string const& path) {
  const auto files = detail::open_safetensors(path, NetworkInfo{}).files;
  StoredWeights found{.type = detail::stored_type(*files)};
  for (auto const& [name, place] : files->tensors()) found.count += c10::multiply_integers(place.entry.sizes);
  return found;
}

/// Loads a DiT or SiT in the official layout, or the MMDiT of Stable Diffusion 3 in that of diffusers, for the native
/// engine. It computes what it computes with the same weights from the exporter's file, to the bit.
///
/// A DiT must have its table of positions, pos_embed, in the file, and takes it as it is there. That of dit_diffusers
/// computes as diffusers does with norms of 1e-5. Each tensor is read, converted and moved by itself, so that the host
/// needs memory for the largest of them beside the network.
/// @param path of a description, a .safetensors file, an index of them, or a folder with one of these two
/// @param options as for load_dit. Not stated, dtype is float32 on the CPU, elsewhere what the description says, or the
///        type of the largest tensor
/// @param how e4m3_inputs: weights in 8 bits are the nearest to the others
/// @throws std::runtime_error naming the file and what is wrong with it; what is no network of the engine
inline Network load_safetensors(std::string const& path, TorchScriptOptions const& options = {},
                                DiTOptions const& how = {}) {
  require_device(options.device, detail::safetensors_file.place);
  const std::string source = detail::quoted(path);
  return detail::reading(detail::safetensors_file, source, [&] {
    const detail::SafetensorsNetwork opened = detail::open_safetensors(path, options.info);
    const c10::AutoGradMode no_gradients(false);
    const detail::TransformerTensors tensors{
        .all = detail::tensors_of(opened.files, source),
        .device = options.device,
        .type = detail::type_of(opened, options),
        .source = source,
        .place = detail::safetensors_file.place,
    };
    const std::string kind = opened.info.architecture.kind;
    const auto take_constants = [&](DiTWeights& weights) {
      weights.flow = kind == "sit";
      if (kind != "dit_diffusers") return;
      weights.frequency_steps = 127;
      weights.mlp_norm_eps = 1e-5;
    };
    const auto nearest = [](std::vector<DiTLinear*> const&) {};
    Network network = detail::network_of(tensors, opened.info, how, take_constants, nearest);
    detail::require_all_taken(tensors);
    return network;
  });
}

/// For LoadOptions::readers: what is_safetensors knows, by the native engine.
///
/// Backend::native_e4m3 takes the inputs of layers that the network states, and refuses one that states none.
inline FileReader safetensors_reader() {
  return {.reads = [](std::string const& path) { return is_safetensors(path); },
          .info = [](std::string const& path) { return read_safetensors_info(path); },
          .load =
              [](std::string const& path, LoadOptions const& options) {
                DiTOptions how;
                if (options.backend == Backend::native_e4m3) {
                  how.e4m3_inputs = read_safetensors_info(path, options.info).architecture.e4m3_inputs;
                  if (how.e4m3_inputs.empty()) {
                    throw std::runtime_error("tstitch::load_safetensors: " + detail::quoted(path) +
                                             ": must state e4m3_inputs to compute in 8 bits, got none");
                  }
                }
                return load_safetensors(path, {.device = options.device, .dtype = options.dtype, .info = options.info},
                                        how);
              },
          .backends = {Backend::automatic, Backend::native, Backend::native_e4m3}};
}

}  // namespace tstitch
