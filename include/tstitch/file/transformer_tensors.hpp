/// @file
/// The tensors of transformers in files, by name and shape.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/jit/api/module.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "../base/error.hpp"
#include "../engine/dit_weights.hpp"
#include "../model/network_info.hpp"
#include "../tensor/shape.hpp"
#include "stored_module.hpp"

namespace tstitch::detail {

/// A tensor that may still be in its file.
struct StoredTensor {
  std::vector<std::int64_t> sizes;
  std::function<at::Tensor(at::Device)> read;  ///< to a device, in the type that it has in the file; may throw
};

/// Tensors of a module by name.
inline std::map<std::string, StoredTensor> tensors_of(std::shared_ptr<StoredModule> const& stored) {
  std::map<std::string, StoredTensor> found;
  const auto add = [&](std::string const& name, at::Tensor const& tensor) {
    found.emplace(name, StoredTensor{tensor.sizes().vec(), [stored, tensor](at::Device device) {
                                       return stored->onto(device, tensor).detach();
                                     }});
  };
  for (auto const& each : stored->module().named_parameters()) add(each.name, each.value);
  for (auto const& each : stored->module().named_buffers()) add(each.name, each.value);
  return found;
}

/// The tensors of a transformer in one type on one device. Each is read when it is asked for.
struct TransformerTensors {
  std::map<std::string, StoredTensor> all;
  at::Device device;
  at::ScalarType type;
  std::string source;  ///< for messages
  char const* place = "load_dit";
  mutable std::set<std::string> taken = {};

  [[noreturn]] void fail(std::string const& rule, std::string const& got) const {
    throw std::runtime_error("tstitch::" + std::string(place) + ": " + source + ": " + rule + ", got " + got);
  }

  bool has(std::string const& name) const { return all.contains(name); }

  /// @throws std::runtime_error where there is none of that shape
  at::Tensor get(std::string const& name, std::vector<std::int64_t> const& shape) const {
    const auto found = all.find(name);
    const std::string rule = "must hold " + name + " of shape " + shape_text(shape);
    if (found == all.end()) fail(rule, "none");
    if (found->second.sizes != shape) fail(rule, shape_text(found->second.sizes));
    taken.insert(name);
    return found->second.read(device).to(device, type).contiguous();
  }

  DiTLinear linear(std::string const& name, std::int64_t out, std::int64_t in) const {
    return {get(name + ".weight", {out, in}), get(name + ".bias", {out})};
  }

  /// Patches a side of a square table of positions, [1, side * side, width].
  /// @throws std::runtime_error where there is none
  std::int64_t side_of(std::string const& name, std::int64_t width) const {
    const auto found = all.find(name);
    const std::int64_t places = found != all.end() && found->second.sizes.size() == 3 ? found->second.sizes[1] : 0;
    const std::int64_t side = std::llround(std::sqrt(double(places)));
    if (side < 1 || side * side != places) {
      fail("must hold " + name + " of shape [1, a square, " + std::to_string(width) + "]",
           found == all.end() ? "none" : shape_text(found->second.sizes));
    }
    return side;
  }

  /// The channels of an MLP's middle.
  /// @throws std::runtime_error for sizes that no DiT has
  std::int64_t hidden_width(NetworkInfo const& info) const {
    NetworkInfo::Architecture const& a = info.architecture;
    const std::int64_t width = a.width, p = a.patch_size;
    const bool in_range = width >= 4 && width <= 65536 && a.depth >= 1 && a.depth <= 1000 && a.heads >= 1 && p >= 1 &&
                          p <= 65536 && a.mlp_ratio > 0 && a.mlp_ratio <= 1000;
    const std::int64_t hidden = in_range ? std::int64_t(double(width) * a.mlp_ratio) : 0;
    if (!in_range || hidden < 1 || width % a.heads || info.height % p || info.width % p) {
      fail("must state the width, depth, heads, patch_size and mlp_ratio of a DiT",
           "width " + std::to_string(width) + ", depth " + std::to_string(a.depth) + ", heads " +
               std::to_string(a.heads) + ", patch_size " + std::to_string(p) + ", mlp_ratio " + text(a.mlp_ratio));
    }
    return hidden;
  }
};

/// A constant of a module, which other programs' files may lack.
inline double constant_of(torch::jit::Module const& module, char const* name, double otherwise) {
  if (!module.hasattr(name) && !module.type()->findConstantSlot(name)) return otherwise;
  const c10::IValue value = module.attr(name);
  return value.isBool() ? double(value.toBool()) : value.toScalar().toDouble();
}

}  // namespace tstitch::detail
