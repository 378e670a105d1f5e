/// @file
/// The linear layers of a transformer's blocks, in the type of the network or in 8 bits.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/_addmm_activation.h>
#include <ATen/ops/_scaled_mm.h>
#include <ATen/ops/addmm.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "cublas_lt.hpp"
#include "dit_kernels.hpp"
#include "dit_options.hpp"
#include "dit_weights.hpp"
#include "e4m3.hpp"

namespace tstitch::detail {

/// Gives layers 8 bits where the options want that, and else oneDNN's form where it is faster.
/// @param place for messages
/// @param rows that their inputs will have, about
/// @throws std::invalid_argument for e4m3_inputs that are not theirs
inline void prepare_layers(char const* place, std::vector<DiTLinear*> const& layers, DiTOptions const& options,
                           std::int64_t rows) {
  std::vector<double> const& inputs = options.e4m3_inputs;
  if (!inputs.empty() && inputs.size() != layers.size()) {
    refuse(place, "e4m3_inputs must be one for each of the " + std::to_string(layers.size()) + " layers",
           std::to_string(inputs.size()));
  }
  for (std::size_t k = 0; k < layers.size(); ++k) {
    const double input = inputs.empty() ? 0 : inputs[k];
    // Scales and one over them are float32.
    if (!(input == 0 || (input >= 1e-30 && input <= 1e30))) {
      refuse(place, "e4m3_inputs must be 0 or in [1e-30, 1e30]", input);
    }
    DiTLinear& layer = *layers[k];
    if (layer.scales.defined() || layer.packed.defined()) continue;  // of another engine's weights
    if (input > 0) {
      quantise(place, layer, input);
      continue;
    }
    layer.eighth.reset();
    if (!options.plain) pack(layer, rows);
  }
}

/// An even number of rows always as two halves, which may be the same one: one shape for a graph.
/// @param x [n or n / 2, channels, height, width]
/// @returns [1 or 2, rows, channels, height, width]
inline at::Tensor in_halves(at::Tensor const& x, std::int64_t n) {
  const at::Tensor once = x.unsqueeze(0);
  if (x.size(0) != n) return once.expand({2, -1, -1, -1, -1});
  const std::int64_t halves = n % 2 ? 1 : 2;
  return once.reshape({halves, n / halves, x.size(1), x.size(2), x.size(3)});
}

/// Runs the layers that DiTOptions::e4m3_inputs numbers.
class DiTLayers {
 public:
  /// @param options outlive this
  /// @param like a tensor of the network's type on its device, [.., .., width]
  DiTLayers(DiTOptions const& options, at::Tensor like)
      : options_(options), like_(std::move(like)), in_8_bits_(multiplies_e4m3(like_.device())) {}

  /// @param x [a, b, in]; e4m3 where the layer is and what came before made it so
  /// @returns [a, b, out]
  at::Tensor operator()(at::Tensor const& x, DiTLinear const& by, std::size_t index) const {
    observe(x, index);
    if (!by.eighth.defined()) return linear(x, by);
    const at::Tensor out = like_.new_empty({x.size(0) * x.size(1), by.eighth.size(0)});
    linear_e4m3(out, input_e4m3(x, by).flatten(0, 1), by, in_8_bits_);
    return like_shape(out, x);
  }

  /// The same.
  /// @param out [a b, out], contiguous, is filled
  void into(at::Tensor out, at::Tensor const& x, DiTLinear const& by, std::size_t index) const {
    observe(x, index);
    if (by.eighth.defined()) {
      linear_e4m3(out, input_e4m3(x, by).flatten(0, 1), by, in_8_bits_);
    } else if (by.packed.defined()) {
      out.copy_(packed_linear(x, by, false).flatten(0, 1));
    } else {
      at::addmm_out(out, by.bias, x.flatten(0, 1), by.weight.t());
    }
  }

  /// fc2(GELU(fc1(x))), GELU in its tanh form.
  /// @param first the number of fc1; fc2 is the next
  at::Tensor mlp(at::Tensor const& x, DiTLinear const& fc1, DiTLinear const& fc2, std::size_t first) const {
    if (fc2.eighth.defined() && !options_.observer) {
      if (x.is_cuda() && fc1.eighth.defined() && !options_.plain) {
        const at::Tensor input = input_e4m3(x, fc1).flatten(0, 1);
        const at::Tensor hidden = input.new_empty({input.size(0), fc1.eighth.size(0)});
        if (product_e4m3({input, fc1.eighth, fc1.bias, fc1.scale(0), fc1.scale(1), fc2.scale(2)}, hidden)) {
          return (*this)(like_shape(hidden, x), fc2, first + 1);
        }
      }
      return (*this)(to_e4m3((*this)(x, fc1, first), fc2.input_scale, true), fc2, first + 1);
    }
    const auto second = [&](at::Tensor const& hidden) { return (*this)(hidden, fc2, first + 1); };
    if (fc1.eighth.defined()) return second(gelu_tanh((*this)(x, fc1, first)));
    observe(x, first);
    if (fc1.packed.defined()) return second(packed_linear(x, fc1, true));
    if (x.is_cuda() && !options_.plain) {
      // cuBLASLt adds the bias and takes GELU, in its tanh form, while it writes the product.
      return second(
          like_shape(at::_addmm_activation(fc1.bias, x.flatten(0, 1), fc1.weight.t(), 1, 1, /*use_gelu=*/true), x));
    }
    return second(gelu_tanh(linear(x, fc1)));
  }

 private:
  /// [a b, out] as [a, b, out]
  static at::Tensor like_shape(at::Tensor const& product, at::Tensor const& x) {
    return product.view({x.size(0), x.size(1), product.size(1)});
  }

  void observe(at::Tensor const& x, std::size_t index) const {
    if (options_.observer) options_.observer(index, x);
  }

  /// What a layer in 8 bits is given, unless what came before has made it so.
  at::Tensor input_e4m3(at::Tensor const& x, DiTLinear const& by) const {
    return x.scalar_type() == at::kFloat8_e4m3fn ? x : to_e4m3(x, by.input_scale, false);
  }

  at::Tensor to_e4m3(at::Tensor const& x, double scale, bool gelu) const {
    // The kernels are those of the network's width, and this one looks at no width.
    return detail::to_e4m3(x, scale, gelu, options_.plain ? nullptr : dit_kernels(like_));
  }

  DiTOptions const& options_;
  at::Tensor like_;
  bool in_8_bits_;  ///< whether the device multiplies so
};

}  // namespace tstitch::detail
