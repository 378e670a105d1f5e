/// @file
/// Several networks at once. Apart from loading.hpp because ThreadLocalState.h takes longer to compile than all of
/// that.
#pragma once

#include <ATen/ThreadLocalState.h>
#include <c10/core/Device.h>
#include <c10/core/Stream.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cstddef>
#include <future>
#include <optional>
#include <type_traits>
#include <vector>

#include "loading.hpp"

namespace tstitch {

/// Does several things at once, such as loading networks: one in this thread, each other in one of its own, which has this one's
/// modes and, on a GPU, its stream, so that what comes after may use what they queued.
/// @param count of things
/// @param action takes the index of one
/// @returns what it returned for each, in order
/// @throws the first exception in order, when all have ended
template <class Action>
std::vector<std::invoke_result_t<Action const&, std::size_t>> at_once(at::Device device, std::size_t count,
                                                                      Action const& action) {
  using Result = std::invoke_result_t<Action const&, std::size_t>;
  std::vector<Result> results;
  if (count == 0) return results;
  const at::ThreadLocalState modes;
  std::optional<c10::Stream> stream;
  // The action will refuse a GPU that is not there.
  if (device.is_cuda() && detail::cuda_device_count() > std::max(0, int(device.index()))) {
    stream = c10::impl::VirtualGuardImpl(device.type()).getStream(device);
  }
  std::vector<std::future<Result>> others;  // waits for them at its end
  for (std::size_t k = 1; k < count; ++k) {
    others.push_back(std::async(std::launch::async, [&, k] {
      const at::ThreadLocalStateGuard with_modes(modes);
      const c10::OptionalStreamGuard on_stream(stream);
      return action(k);
    }));
  }
  results.push_back(action(0));
  for (std::future<Result>& other : others) results.push_back(other.get());
  return results;
}

}  // namespace tstitch
