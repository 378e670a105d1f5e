/// @file
/// Tensors that are written on one stream of a GPU and read on others.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <optional>

namespace tstitch::detail {

/// The stream that is current on the GPU of a tensor.
inline c10::Stream current_stream(at::Tensor const& on) {
  return c10::impl::VirtualGuardImpl(on.device().type()).getStream(on.device());
}

/// Who wrote a tensor last. On a CPU all of it does nothing.
class Writer {
 public:
  /// Remembers that the stream that is current has written it.
  void mark_written(at::Tensor const& tensor) {
    if (!tensor.is_cuda()) return;
    stream_ = current_stream(tensor);
    written_.emplace(tensor.device().type());
    written_->record(*stream_);
  }

  /// Lets the stream that is current use it, whichever has written it.
  void wait(at::Tensor const& tensor) const {
    if (!stream_) return;
    if (const c10::Stream now = current_stream(tensor); now != *stream_) {
      written_->block(now);
      tensor.record_stream(now);
    }
  }

 private:
  std::optional<c10::Stream> stream_ = {};
  std::optional<c10::Event> written_ = {};
};

}  // namespace tstitch::detail
