/// @file
/// What may never return, for those who cannot wait for ever.
#pragma once

#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <thread>
#include <utility>

namespace tstitch::detail {

/// Does something on a thread of its own, and waits for it so long.
/// @param action owns what it uses, for it may go on when this returns
/// @returns whether it is done
/// @throws what it throws in this time
inline bool within(double seconds, std::function<void()> action) {
  std::packaged_task<void()> task(std::move(action));
  std::future<void> done = task.get_future();
  std::thread(std::move(task)).detach();
  if (done.wait_for(std::chrono::duration<double>(seconds)) != std::future_status::ready) return false;
  done.get();
  return true;
}

}  // namespace tstitch::detail
