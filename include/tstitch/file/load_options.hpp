/// @file
/// How files become networks: what load.hpp is told, and who reads kinds of files that it does not know.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "../model/network.hpp"
#include "loading.hpp"

namespace tstitch {

/// How a network is run.
enum class Backend {
  automatic,     ///< aot_inductor for packages, native for DiTs and MMDiTs (Stable Diffusion 3), else torchscript
  torchscript,   ///< as the file says
  native,        ///< a DiT or an MMDiT by the library's own engine
  native_e4m3,   ///< the same with the layers of its blocks in 8 bits
  aot_inductor,  ///< as it was compiled; the file is a package
};

/// Whether a GPU replays what it was asked before, which saves the time to give out the work.
enum class Graphs {
  automatic,  ///< on a GPU, where the program was built for CUDA
  never,
  always,  ///< a program without CUDA refuses
};

struct LoadOptions;

/// Which networks of a run are in memory.
enum class Residency {
  all,
  one_at_a_time,  ///< the one that was asked last; another one is loaded from its file when it is asked
};

/// A kind of file that load_network does not know by itself.
struct FileReader {
  std::function<bool(std::string const& path)> reads;        ///< whether it is of this kind; throws for none
  std::function<NetworkInfo(std::string const& path)> info;  ///< what it says of itself, without the weights
  std::function<Network(std::string const& path, LoadOptions const&)> load;
  std::vector<Backend> backends = {Backend::automatic};  ///< with which it is asked
};

/// How files become networks.
struct LoadOptions {
  at::Device device = default_device();
  /// float32, float16 or bfloat16. Not stated: float32 on the CPU, the file's own type elsewhere and in packages.
  std::optional<at::ScalarType> dtype = {};
  Backend backend = Backend::automatic;
  Graphs graphs = Graphs::automatic;
  /// Batch sizes to run before a network is handed out, so that what is done once for a shape is done. Guidance doubles
  /// the rows of a batch.
  std::vector<std::int64_t> warm_up_rows = {};
  /// Sizes that networks leave open, which warming up must know.
  InputSizes warm_up_sizes = {};
  /// Whether forecast steps (SamplingOptions::forecast) are warmed up too, where a network can forecast.
  bool warm_up_forecasts = false;
  /// What a network is, for TorchScript files without metadata; files that have it are believed instead.
  std::optional<NetworkInfo> info = {};
  /// These are asked in their order before anything else is tried, each for the backends that it names.
  std::vector<FileReader> readers = {};
  /// Of load_networks: networks whose latents or noise schedule are not those of the last one are bridged to it
  /// (`bridged`); else they are refused.
  bool bridge = false;
  /// Of load_networks, the same for all: see `one_at_a_time` (model/one_at_a_time.hpp).
  Residency residency = Residency::all;
};

}  // namespace tstitch
