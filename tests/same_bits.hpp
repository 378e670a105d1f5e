/// @file
/// Random requests, in which an image must have the same bits whatever is drawn before and beside it.
#pragma once

#include <tstitch/method/ddim.hpp>
#include <tstitch/model/network.hpp>

#include <cstdint>
#include <map>
#include <mutex>
#include <random>
#include <tuple>
#include <vector>

#include "catch.hpp"

namespace same_bits {

/// What is known of the images of some networks.
class Images {
 public:
  /// Draws images of random classes and seeds, in random order and batches of 3 to 8 that are filled up to 8, by a
  /// random sampler. May be called from several threads.
  /// @param networks a pair, which takes classes 0, 1 and 2 and has a null class
  /// @returns how many images have other bits than when they were drawn for the first time
  int draw(std::vector<tstitch::Network> const& networks, std::mt19937& random) {
    const auto below = [&](int end) { return int(random() % unsigned(end)); };
    const int steps = 2 + below(2), small = below(3);
    const double scale = below(2) ? 1.5 : 1;
    tstitch::Request request{.guidance = {.scale = scale}, .batch_size = 3 + below(6), .pad_batches = true};
    for (int left = 1 + below(10); left > 0; --left) {
      request.labels.push_back(below(3));
      request.seeds.push_back(std::uint64_t(below(4)));
    }
    const tstitch::DDIM sampler{networks[0].noise_schedule(), tstitch::Stitch{small / 2.0}, {.steps = steps}};
    const at::Tensor images = sampler.sample(networks, request).images.cpu();
    int others = 0;
    const std::lock_guard lock(mutex_);
    for (std::size_t i = 0; i < request.seeds.size(); ++i) {
      const at::Tensor image = images.select(0, std::int64_t(i));
      const auto [first, is_new] =
          known_.try_emplace({steps, small, scale, request.labels[i], request.seeds[i]}, image);
      others += !first->second.equal(image);
    }
    return others;
  }

 private:
  using Key = std::tuple<int, int, double, std::int64_t, std::uint64_t>;
  std::map<Key, at::Tensor> known_;
  std::mutex mutex_;
};

}  // namespace same_bits
