/// @file
/// Clocks and memory. Nothing here waits for a GPU but `wait`.
#pragma once

#include <malloc.h>
#include <sys/resource.h>
#include <tstitch/model/network_wrapper.hpp>

#include <algorithm>
#include <cstdint>
#include <deque>
#include <fstream>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "../common/device.hpp"
#include "../common/machine.hpp"
#include "../common/moment.hpp"

#ifdef TSTITCH_WITH_CUDA
#include <c10/cuda/CUDACachingAllocator.h>
#include <cuda_runtime_api.h>
#endif

/// Seconds of wall time from an idle device to an idle device.
template <class Action>
double timed(at::Device device, Action action) {
  wait(device);
  const Clock::time_point start = Clock::now();
  action();
  wait(device);
  return seconds_since(start);
}

/// The mean of the two in the middle where there is an even number; 0 of none.
inline double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 ? values[half] : (values[half - 1] + values[half]) / 2;
}

/// How long networks work while others do too.
///
/// On the CPU this is the time in their calls. On a GPU it is the time on its stream between events that are recorded
/// before and after each call: the work itself, and where the GPU waits for the host the time to give the work out.
class ForwardClock {
 public:
  explicit ForwardClock(at::Device device) : state_(std::make_shared<State>(State{device})) {}

  /// The same networks, watched.
  std::vector<tstitch::Network> watch(std::vector<tstitch::Network> const& networks) const {
    std::vector<tstitch::Network> watched;
    for (tstitch::Network const& network : networks) {
      watched.push_back(Watched(network, state_).network());
    }
    return watched;
  }

  /// Since the clock was made. The device must be idle.
  double seconds() const {
    double seconds = 0;
    for (auto const& [begin, end] : state_->calls) seconds += begin.seconds_until(end);
    return seconds;
  }

 private:
  struct State {
    at::Device device;
    std::deque<std::pair<Moment, Moment>> calls = {};
  };

  struct Watched : tstitch::NetworkWrapper<Watched> {
    Watched(tstitch::Network network, std::shared_ptr<State> shared)
        : NetworkWrapper(std::move(network)), state(std::move(shared)) {}

    at::Tensor operator()(at::Tensor const& x, at::Tensor const& t, tstitch::Condition const& condition,
                          tstitch::Evaluation const& evaluation) const {
      Moment begin(state->device);
      at::Tensor output = inner()(x, t, condition, evaluation);
      state->calls.emplace_back(std::move(begin), Moment(state->device));
      return output;
    }

    void prepare(std::span<const double> timesteps, tstitch::Condition const& condition) const {
      Moment begin(state->device);
      inner().prepare(timesteps, condition);
      state->calls.emplace_back(std::move(begin), Moment(state->device));
    }

    std::shared_ptr<State> state;
  };

  std::shared_ptr<State> state_;
};

/// The most memory that was in use at once.
struct PeakMemory {
  std::int64_t bytes = 0;     ///< on a GPU what tensors took; on the CPU what was resident of the process
  std::int64_t reserved = 0;  ///< on a GPU what the allocator had taken from it; 0 on the CPU
  bool restarted = false;     ///< since `restart_peak_memory`; else since the process began
};

/// Gives back what the allocators keep for later, so that it does not count as used.
inline void give_back_memory([[maybe_unused]] at::Device device) {
  malloc_trim(0);
#ifdef TSTITCH_WITH_CUDA
  if (device.is_cuda()) c10::cuda::CUDACachingAllocator::emptyCache();
#endif
}

/// Begins to look for the peak.
/// @returns whether the peak before is forgotten; not every kernel allows that
inline bool restart_peak_memory([[maybe_unused]] at::Device device) {
#ifdef TSTITCH_WITH_CUDA
  if (device.is_cuda()) {
    c10::cuda::CUDACachingAllocator::resetPeakStats(device.index());
    return true;
  }
#endif
  std::ofstream file("/proc/self/clear_refs");
  file << "5" << std::flush;
  return device.is_cpu() && bool(file);
}

/// Since `restart_peak_memory`; nothing on a GPU that this program was not compiled for.
inline std::optional<PeakMemory> peak_memory([[maybe_unused]] at::Device device, bool restarted) {
#ifdef TSTITCH_WITH_CUDA
  if (device.is_cuda()) {
    const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(device.index());
    constexpr auto all = std::size_t(c10::CachingAllocator::StatType::AGGREGATE);
    return PeakMemory{stats.allocated_bytes[all].peak, stats.reserved_bytes[all].peak, restarted};
  }
#endif
  if (!device.is_cpu()) return {};
  std::ifstream status("/proc/self/status");
  for (std::string line; restarted && std::getline(status, line);) {
    if (line.rfind("VmHWM:", 0) == 0) return PeakMemory{std::stoll(line.substr(6)) * 1024, 0, true};
  }
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return PeakMemory{std::int64_t(usage.ru_maxrss) * 1024, 0, false};
}
