/// @file
/// The random numbers of Python programs: torch's generator, drawn in their order. Opt-in; for reproducing their runs.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "noise.hpp"

namespace tstitch {

/// In which order a program draws. The numbers of a batch depend on its size and on everything drawn before.
struct NoiseOrder {
  /// Rows drawn in a step for each image; 2 where the program keeps both halves of classifier-free guidance in x, as
  /// DiT's does. Images take the first half.
  int rows_per_image = 1;
  /// Whether the initial noise comes from the same generator, before the steps.
  bool initial_first = true;
};

/// What `torch.manual_seed(seed)` and then `torch.randn` for x and for every step give on the CPU, float32.
///
/// Steps are drawn in order whether they use noise or not, once each. Asked for an earlier step again it begins anew,
/// so that the same address always has the same noise; a fork of a run is safe and slow. The seeds of images change no
/// number, but say which batch is asked for: it is for one batch, whose seeds are those of the first call, because
/// another batch would have its noise.
class TorchNoise {
 public:
  explicit TorchNoise(std::uint64_t seed, NoiseOrder order = {}) : state_(std::make_shared<State>(seed, order)) {}

  std::uint64_t seed() const { return state_->seed; }
  NoiseOrder order() const { return state_->order; }

  at::Tensor operator()(std::vector<std::uint64_t> const& seeds, NoiseAddress address, at::IntArrayRef image_shape,
                        at::TensorOptions options) const {
    const std::int64_t images = std::int64_t(seeds.size());
    const std::lock_guard lock(state_->mutex);
    if (state_->seeds.empty()) state_->seeds = seeds;
    if (seeds != state_->seeds) {
      const auto text = [](std::vector<std::uint64_t> const& of) {
        return std::to_string(of.size()) + " images" +
               (of.empty() ? "" : " from seed " + std::to_string(of[0]) + " on");
      };
      detail::refuse("TorchNoise", "is for one batch, which had " + text(state_->seeds) + "; each needs its own",
                     text(seeds));
    }
    return state_->draw(images, address, image_shape).to(options.device(), at::typeMetaToScalarType(options.dtype()));
  }

 private:
  struct State {
    State(std::uint64_t seed_, NoiseOrder order_) : seed(seed_), order(order_) { restart(); }

    void restart() {
      generator = at::detail::createCPUGenerator(seed);
      next = order.initial_first ? 0 : 1;
    }

    at::Tensor draw(std::int64_t images, NoiseAddress address, at::IntArrayRef image_shape) {
      if (address.draw != 0) detail::refuse("TorchNoise", "has one draw a step", double(address.draw));
      if (address.step < next) restart();
      if (address.step < next) detail::refuse("TorchNoise", "draws no initial noise with initial_first off", 0);
      at::Tensor noise;
      for (; next <= address.step; ++next) {
        std::vector<std::int64_t> shape{next == 0 ? images : images * order.rows_per_image};
        shape.insert(shape.end(), image_shape.begin(), image_shape.end());
        noise = detail::host_tensor(shape, at::kFloat).normal_(0, 1, generator);
      }
      return noise.narrow(0, 0, images);
    }

    const std::uint64_t seed;
    const NoiseOrder order;
    at::Generator generator;
    std::vector<std::uint64_t> seeds;  // of the images that it is for
    std::uint32_t next = 0;            // the address that the generator gives next
    std::mutex mutex;
  };

  std::shared_ptr<State> state_;
};

}  // namespace tstitch
