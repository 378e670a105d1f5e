/// @file
/// How the native engine runs a transformer. Opt-in.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace tstitch {

/// How a DiT or an MMDiT is run.
struct DiTOptions {
  /// Bytes on the device for modulations that are kept, by timestep and class; what does not fit is computed in each
  /// step. DiT-XL/2 in 16 bits has 0.39 MB for each pair of a timestep and a class.
  std::int64_t modulation_bytes = std::int64_t(1) << 30;
  /// With torch's operations one after another instead of the fused kernels.
  bool plain = false;
  /// The largest absolute input of each linear layer (qkv, proj, fc1 and fc2 of the first block, then of the next; of
  /// an MMDiT as NetworkInfo::Architecture has them) along trajectories, as `largest_inputs` of study/calibration.hpp
  /// finds them. Given, these layers compute in 8 bits (e4m3, one scale a tensor), but for those of 0: on GPUs of
  /// compute capability 8.9 and above faster, elsewhere slower. Their weights are the e4m3 ones of the file where it
  /// has them, else the nearest to its others. For proj that is faster only where the attention before it is by a
  /// kernel of ours; others leave the rounding to a pass of its own.
  std::vector<double> e4m3_inputs = {};
  /// Sees the input of each of those layers, by the same order.
  std::function<void(std::size_t, at::Tensor const&)> observer = {};
};

}  // namespace tstitch
