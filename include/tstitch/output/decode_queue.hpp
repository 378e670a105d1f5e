/// @file
/// Decodes finished latents behind the sampling of the next batch.
#pragma once

#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <cstddef>
#include <deque>
#include <optional>
#include <utility>
#include <vector>

#include "../model/autoencoder.hpp"
#include "image.hpp"
#include "video.hpp"

namespace tstitch {

/// On a GPU batches are decoded on a stream of their own and sent to the host, while the stream that samples goes on;
/// on a CPU they are decoded at once. For one thread.
class DecodeQueue {
 public:
  explicit DecodeQueue(Decoder decoder, Tiling tiling = {}) : decoder_(std::move(decoder)), tiling_(tiling) {}

  /// Begins to decode, without a wait.
  /// @param latents [n, C, h, w], or [n, C, F, h, w] of videos, as the sampler made them; not to be changed in place
  ///        afterwards
  /// @throws as the decoder does
  void push(at::Tensor const& latents) {
    if (!latents.is_cuda()) {
      const at::Tensor images = decoder_(latents, tiling_);
      batches_.push_back({to_bytes(images), detail::are_finite(images), {}});
      return;
    }
    const c10::impl::VirtualGuardImpl device(latents.device().type());
    if (!stream_ || stream_->device() != latents.device()) stream_ = device.getStreamFromGlobalPool(latents.device());
    c10::Event sampled(latents.device().type());
    sampled.record(device.getStream(latents.device()));
    sampled.block(*stream_);
    latents.record_stream(*stream_);  // its memory is not used again before the decoder is done
    const c10::StreamGuard guard(*stream_);
    const at::Tensor images = decoder_(latents, tiling_);
    const auto sent = [](at::Tensor const& tensor) {
      const at::Tensor host = detail::host_tensor(tensor.sizes(), tensor.scalar_type(), /*pinned=*/true);
      return host.copy_(tensor, /*non_blocking=*/true);
    };
    const at::Tensor bytes = sent(to_bytes(images)), finite = sent(detail::are_finite(images));
    c10::Event done(latents.device().type());
    done.record(*stream_);
    batches_.push_back({bytes, finite, std::move(done)});
  }

  /// How many batches were pushed and not popped.
  std::size_t size() const { return batches_.size(); }

  /// The pictures of the oldest batch; waits for them.
  /// @throws std::invalid_argument when there is none, and where they are videos
  /// @throws std::runtime_error when the decoder made values that are not finite; the batch is gone then, too
  std::vector<Picture> pop() { return to_pictures(pop_bytes()); }

  /// The same of a decoder of videos.
  std::vector<Video> pop_videos() { return to_videos(pop_bytes()); }

 private:
  at::Tensor pop_bytes() {
    if (batches_.empty()) detail::refuse("DecodeQueue", "a batch must have been pushed", 0);
    const Batch batch = std::move(batches_.front());
    batches_.pop_front();
    if (batch.done) batch.done->synchronize();
    detail::require_finite("DecodeQueue", batch.finite);
    return batch.bytes;
  }

  struct Batch {
    at::Tensor bytes;                ///< [n, H, W, C] or [n, F, H, W, C] uint8 on the host
    at::Tensor finite;               ///< [n] bool on the host
    std::optional<c10::Event> done;  ///< when they are there; none: now
  };

  Decoder decoder_;
  Tiling tiling_;
  std::optional<c10::Stream> stream_;
  std::deque<Batch> batches_;
};

}  // namespace tstitch
