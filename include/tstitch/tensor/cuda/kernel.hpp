/// @file
/// CUDA kernels, compiled or out of the cache, and started through the driver.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <cstdint>
#include <exception>
#include <map>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>

#include "../../base/diagnostics.hpp"
#include "driver.hpp"
#include "kernel_cache.hpp"
#include "nvrtc.hpp"

namespace tstitch::detail {

/// The kernels of a source on one GPU.
class CudaKernels {
 public:
  /// @throws std::runtime_error when they cannot be had there
  CudaKernels(CudaSource const& source, c10::Device device) : device_(device) {
    architecture_ = compute_capability(device.index());
    if (architecture_ < 80) {
      throw std::runtime_error("tstitch: the GPU must have compute capability 8.0 or more, got " +
                               std::to_string(architecture_ / 10) + "." + std::to_string(architecture_ % 10));
    }
    const Current current(*this);
    const auto load = [&](std::string const& code) {
      return cuda_driver().get<int(void**, void const*)>("cuModuleLoadData")(&module_, code.data());
    };
    // Another version of CUDA may have made what is in the cache.
    if (load(cached_cuda(source, architecture_)) != 0) {
      check("cuModuleLoadData", load(cached_cuda(source, architecture_, /*again=*/true)));
    }
    launch_ = cuda_driver().get<Launch>("cuLaunchKernel");
  }

  /// 90 for compute capability 9.0
  int architecture() const { return architecture_; }

  /// A kernel of the source, by the name that it has there.
  void* function(char const* name) const {
    const Current current(*this);
    void* found = nullptr;
    check("cuModuleGetFunction",
          cuda_driver().get<int(void**, void*, char const*)>("cuModuleGetFunction")(&found, module_, name));
    return found;
  }

  /// Lets starts of a kernel ask for so much shared memory.
  void allow_shared(void* function, int bytes) const {
    const Current current(*this);
    constexpr int largest_dynamic_shared = 8;  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    check("cuFuncSetAttribute",
          cuda_driver().get<int(void*, int, int)>("cuFuncSetAttribute")(function, largest_dynamic_shared, bytes));
  }

  /// Queues a kernel on the stream that is current there.
  /// @param arguments addresses of what the kernel takes
  /// @param shared bytes of shared memory that a block has beside what the kernel declares
  void start(void* function, std::int64_t blocks, int threads, void** arguments, int shared = 0) const {
    const Current current(*this);  // the default stream is that of the current device
    const c10::impl::VirtualGuardImpl streams(device_.type());
    check("cuLaunchKernel", launch_(function, unsigned(blocks), 1, 1, unsigned(threads), 1, 1, unsigned(shared),
                                    streams.getStream(device_).native_handle(), arguments, nullptr));
  }

 private:
  using Launch = int(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**,
                     void**);

  /// Makes the kernels' GPU and its context the current ones.
  struct Current {
    explicit Current(CudaKernels const& kernels) : guard(kernels.device_) { kernels.require_context(); }
    c10::DeviceGuard guard;
  };

  static void check(char const* what, int error) {
    if (error) {
      throw std::runtime_error(std::string("tstitch: ") + what + " must succeed, got CUDA error " +
                               std::to_string(error));
    }
  }

  /// A thread that has not called CUDA's runtime yet has no context, which the runtime would give it and the driver
  /// does not.
  void require_context() const {
    static const auto current = cuda_driver().get<int(void**)>("cuCtxGetCurrent");
    void* context = nullptr;
    check("cuCtxGetCurrent", current(&context));
    if (context) return;
    int device = 0;
    check("cuDeviceGet", cuda_driver().get<int(int*, int)>("cuDeviceGet")(&device, device_.index()));
    check("cuDevicePrimaryCtxRetain",
          cuda_driver().get<int(void**, int)>("cuDevicePrimaryCtxRetain")(&context, device));
    check("cuCtxSetCurrent", cuda_driver().get<int(void*)>("cuCtxSetCurrent")(context));
  }

  c10::Device device_;
  int architecture_ = 0;
  void* module_ = nullptr;  // stays loaded: graphs may hold its kernels
  Launch* launch_ = nullptr;
};

/// A kernel of the samplers on a GPU, or null where it cannot be had: on an old one, or without NVRTC. Torch's
/// operations or the host then do what it does.
/// @tparam Kernel is made of a device
template <class Kernel>
Kernel const* kernel_on(c10::Device device) {
  static std::mutex mutex;
  static std::map<int, std::optional<Kernel>> kernels;
  const std::lock_guard lock(mutex);
  const auto [found, is_new] = kernels.try_emplace(device.index());
  if (is_new) {
    try {
      found->second.emplace(device);
    } catch (std::exception const& error) {
      diagnose("kernel_on", std::string("torch's operations or the host do what a kernel would: ") + error.what());
    }
  }
  return found->second ? &*found->second : nullptr;
}

}  // namespace tstitch::detail
