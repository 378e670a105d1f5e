/// @file
/// Networks as CUDA graphs: all launches of an evaluation in one. Opt-in; needs a CUDA build of torch and the CUDA
/// Toolkit's headers.
///
/// A small network leaves a GPU waiting for the host to launch its hundreds of kernels. Recorded once for each shape
/// and replayed, it does not. Replays give the same bits as plain calls.
#pragma once

#include <ATen/core/CachingHostAllocator.h>
#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/core/Event.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/version.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../base/diagnostics.hpp"
#include "../model/network.hpp"
#include "../tensor/cuda/kernels.hpp"
#include "../tensor/host_tensor.hpp"
#include "../tensor/torch_error.hpp"
#include "copy_kernel.hpp"

namespace tstitch {

/// How networks are captured.
struct CaptureOptions {
  /// Shapes that are kept; the one that was used least recently makes way. At least 1.
  std::size_t graphs = 16;
  /// Plain calls before a capture, in which libraries choose their kernels and TorchScript compiles. At least 1, which
  /// is what networks get that settle at once.
  int warm_ups = 6;
  /// Is told once for each shape that cannot be captured and is called plainly from then on, and why; see also
  /// `diagnostics`.
  std::function<void(std::string const& reason)> on_fallback = {};
};

namespace detail {

/// Whether a graph that ends takes the workspaces with it that cuBLAS has for the stream on which it was captured, as
/// from torch 2.12 on. Then every graph needs a stream of its own, lest it take those of others; before, they would
/// pile up, a workspace for every stream that there has been.
inline constexpr bool graphs_end_workspaces = TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR > 11;

/// Records work on a stream that torch's pool does not hand out. cuBLAS keeps a workspace for each stream, and one that
/// nobody else has keeps graphs of several networks apart.
class CaptureStream {
 public:
  /// Of the device that is current.
  CaptureStream() {
    C10_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    device_ = c10::cuda::current_device();
  }
  CaptureStream(CaptureStream const&) = delete;
  CaptureStream& operator=(CaptureStream const&) = delete;
  ~CaptureStream() { cudaStreamDestroy(stream_); }

  c10::cuda::CUDAStream get() const { return c10::cuda::getStreamFromExternal(stream_, device_); }

 private:
  cudaStream_t stream_ = nullptr;
  c10::DeviceIndex device_ = 0;
};

/// Begins a capture on the current stream without the default generator of random numbers.
///
/// A capture takes the generator's state with it, and one that fails leaves it unusable. So the graph gets a copy; a
/// function that draws random numbers finds the generator outside the capture, which is refused.
inline void begin_capture(at::cuda::CUDAGraph& graph, at::cuda::MempoolId_t pool) {
  static std::mutex one_at_a_time;  // else one thread would take another's copy for the state to go back to
  const std::lock_guard lock(one_at_a_time);
  at::Generator generator = at::cuda::detail::getDefaultCUDAGenerator(c10::cuda::current_device());
  auto* const own = generator.get<at::CUDAGeneratorImpl>();
  const at::Generator copy = generator.clone();
  const std::lock_guard undrawn(own->mutex_);  // who draws numbers meanwhile waits
  const c10::intrusive_ptr<c10::GeneratorImpl> state = own->graphsafe_get_state();
  own->graphsafe_set_state(copy.getIntrusivePtr());
  try {
    // Thread-local: what other threads do meanwhile is no part of it and does not break it.
    graph.capture_begin(pool, cudaStreamCaptureModeThreadLocal);
  } catch (...) {
    own->graphsafe_set_state(state);
    throw;
  }
  own->graphsafe_set_state(state);
}

/// Ends a capture that failed, so that the process is as it was before: torch's own end stops half-way.
inline void abandon_capture(at::cuda::CUDAGraph& graph, at::cuda::MempoolId_t pool) {
  try {
    graph.capture_end();
  } catch (std::exception const&) {}
  const auto give_back = [&](auto end, auto release) {
    try {
      end();  // throws where torch has done it
      release();
    } catch (std::exception const&) {}
  };
  namespace allocator = c10::cuda::CUDACachingAllocator;
  const c10::DeviceIndex device = c10::cuda::current_device();
  give_back([&] { allocator::endAllocateToPool(device, pool); }, [&] { allocator::releasePool(device, pool); });
  at::HostAllocator* const host = at::getHostAllocator(at::kCUDA);
  give_back([&] { host->end_allocate_to_pool(pool); }, [&] { host->release_pool(pool); });
  cudaGetLastError();  // the failure is told once
}

/// Replays a function of tensors, one graph for each set of shapes and types.
class CudaGraphs {
 public:
  CudaGraphs(TensorFunction function, CaptureOptions options)
      : function_(std::move(function)), options_(std::move(options)) {}
  CudaGraphs(CudaGraphs const&) = delete;
  CudaGraphs& operator=(CudaGraphs const&) = delete;
  ~CudaGraphs() {
    try {
      if (replayed_) replayed_->synchronize();  // it may still run, and read what other streams may be given
    } catch (std::exception const&) {}
  }

  /// @returns a tensor of its own, which later calls leave alone
  at::Tensor operator()(std::vector<at::Tensor> const& inputs) {
    if (inputs.empty() || !inputs[0].is_cuda() || wants_gradients(inputs)) return function_(inputs);
    std::optional<std::string> reason;
    if (at::Tensor output = replayed(inputs, reason); output.defined()) return output;
    if (reason) {
      diagnose("cuda_graphs", "calls plainly what cannot be captured: " + *reason);
      if (options_.on_fallback) options_.on_fallback(*reason);  // without the lock: it may ask this very network
    }
    return function_(inputs);
  }

 private:
  using Key = std::vector<std::int64_t>;

  /// @param reason why these shapes cannot be captured, when that has been found out now
  /// @returns undefined for shapes that cannot be captured
  at::Tensor replayed(std::vector<at::Tensor> const& inputs, std::optional<std::string>& reason) {
    const std::lock_guard lock(mutex_);
    const c10::cuda::CUDAGuard device(inputs[0].device());
    Entry& entry = entry_for(inputs, reason);
    if (!entry.graph) return {};
    const c10::cuda::CUDAStream stream = c10::cuda::getCurrentCUDAStream();
    // Graphs share one pool of memory, so that they run one after another, also from several streams.
    if (replayed_) replayed_->block(stream.unwrap());
    copy_all(entry.inputs, inputs, inputs[0].device());
    entry.graph->replay();
    at::Tensor output = entry.output.clone();
    if (!replayed_) replayed_.emplace(c10::DeviceType::CUDA);
    replayed_->record(stream.unwrap());
    return output;
  }

  struct Entry {
    Key key;
    std::shared_ptr<CaptureStream> stream = {};
    std::vector<at::Tensor> inputs = {};              ///< where the graph reads
    at::Tensor output = {};                           ///< where it writes, in its pool
    std::unique_ptr<at::cuda::CUDAGraph> graph = {};  ///< none: it fell back
  };

  /// Which a replay has none of.
  static bool wants_gradients(std::vector<at::Tensor> const& inputs) {
    return c10::GradMode::is_enabled() &&
           std::any_of(inputs.begin(), inputs.end(), [](at::Tensor const& input) { return input.requires_grad(); });
  }

  static Key key_of(std::vector<at::Tensor> const& inputs) {
    Key key;
    for (at::Tensor const& input : inputs) {
      key.push_back(std::int64_t(input.scalar_type()));
      key.push_back(input.device().index());
      key.push_back(input.dim());
      for (const std::int64_t size : input.sizes()) key.push_back(size);
    }
    return key;
  }

  /// The entry of these shapes, moved to the front.
  Entry& entry_for(std::vector<at::Tensor> const& inputs, std::optional<std::string>& reason) {
    const Key key = key_of(inputs);
    for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
      if (entry->key != key) continue;
      entries_.splice(entries_.begin(), entries_, entry);
      return entries_.front();
    }
    while (entries_.size() >= options_.graphs) {
      if (replayed_) replayed_->synchronize();  // it may still run
      entries_.pop_back();
    }
    entries_.push_front({key});
    try {
      capture(entries_.front(), inputs);
    } catch (std::exception const& error) {
      entries_.front() = {key};
      reason = detail::reason(error);
    }
    return entries_.front();
  }

  void capture(Entry& entry, std::vector<at::Tensor> const& inputs) {
    // What is made under InferenceMode could not be written to without.
    const c10::InferenceMode as_usual(false);
    const c10::AutoGradMode no_gradients(false);
    const c10::cuda::CUDAStream caller = c10::cuda::getCurrentCUDAStream();
    if (!stream_ || (graphs_end_workspaces && stream_.use_count() > 1)) stream_ = std::make_shared<CaptureStream>();
    entry.stream = stream_;
    const c10::cuda::CUDAStream stream = stream_->get();
    for (at::Tensor const& input : inputs) entry.inputs.push_back(input.clone());
    c10::Event ready(c10::DeviceType::CUDA);
    ready.record(caller.unwrap());
    ready.block(stream.unwrap());
    {
      const c10::cuda::CUDAStreamGuard guard(stream);
      for (int call = 0; call < options_.warm_ups; ++call) function_(entry.inputs);
      stream.synchronize();
      auto graph = std::make_unique<at::cuda::CUDAGraph>();
      // One whose last graph has ended, or which has had none, cannot be captured into again.
      const auto is_alive = [](Entry const& each) { return bool(each.graph); };
      if (std::none_of(entries_.begin(), entries_.end(), is_alive)) pool_ = at::cuda::graph_pool_handle();
      try {
        begin_capture(*graph, pool_);
        entry.output = function_(entry.inputs);
        graph->capture_end();
      } catch (...) {
        entry.output.reset();
        abandon_capture(*graph, pool_);
        throw;
      }
      entry.graph = std::move(graph);
    }
    c10::Event captured(c10::DeviceType::CUDA);
    captured.record(stream.unwrap());
    captured.block(caller.unwrap());
  }

  TensorFunction function_;
  CaptureOptions options_;
  std::mutex mutex_;
  std::shared_ptr<CaptureStream> stream_;  ///< of the newest capture
  std::list<Entry> entries_;               ///< newest use first
  at::cuda::MempoolId_t pool_ = {};
  std::optional<c10::Event> replayed_;
};

inline void require_capture_options(CaptureOptions const& options) {
  if (options.graphs < 1) throw std::invalid_argument("tstitch::cuda_graphs: graphs must be at least 1, got 0");
  if (options.warm_ups < 1) {
    throw std::invalid_argument("tstitch::cuda_graphs: warm_ups must be at least 1, got " +
                                std::to_string(options.warm_ups));
  }
}

}  // namespace detail

/// For Network::captured.
/// @throws std::invalid_argument for options that make no sense
inline Capture cuda_graphs(CaptureOptions options = {}) {
  detail::require_capture_options(options);
  return [options](TensorFunction function) -> TensorFunction {
    const auto graphs = std::make_shared<detail::CudaGraphs>(std::move(function), options);
    return [graphs](std::vector<at::Tensor> const& inputs) { return (*graphs)(inputs); };
  };
}

/// The network with its evaluations recorded and replayed: one graph for each shape that it is asked with, captured at
/// the first call after some warm-up on a stream of its own. What cannot be captured (a wait for the GPU inside, work
/// on another stream) is called plainly, and `on_fallback` told why; the process stays healthy. On the CPU it is as it
/// was.
///
/// Graphs of one network run one after another, also when several threads ask. What is to have gradients is called
/// plainly.
/// @throws std::invalid_argument for options that make no sense
inline Network captured(Network const& network, CaptureOptions options = {}) {
  detail::require_capture_options(options);
  if (network.settles_at_once()) options.warm_ups = 1;
  return network.device().is_cuda() ? network.captured(cuda_graphs(options)) : network;
}

}  // namespace tstitch
