/// @file
/// CUDA's driver, which is asked for by name: a program is not linked with it, and runs without.
#pragma once

#include <dlfcn.h>

#include <stdexcept>
#include <string>
#include <vector>

namespace tstitch::detail {

/// A library that the program need not be linked with.
class SharedLibrary {
 public:
  /// @param names tried in turn: first those that the process has already, then those that are installed
  explicit SharedLibrary(std::vector<std::string> const& names) {
    for (const int only_loaded : {RTLD_NOLOAD, 0}) {
      for (std::string const& name : names) {
        // Its symbols are looked up by `get` alone, and must not be what other libraries find.
        if (!handle_) handle_ = dlopen(name.c_str(), RTLD_LAZY | RTLD_LOCAL | only_loaded);
      }
    }
  }

  explicit operator bool() const { return handle_; }

  template <class Function>
  Function* get(char const* name) const {
    void* const found = handle_ ? dlsym(handle_, name) : nullptr;
    if (!found) throw std::runtime_error(std::string("tstitch: must find ") + name + ", got no such function");
    return reinterpret_cast<Function*>(found);
  }

 private:
  void* handle_ = nullptr;  // for the life of the program
};

/// CUDA's driver, which is there where a GPU is.
inline SharedLibrary const& cuda_driver() {
  static const SharedLibrary driver({"libcuda.so.1"});
  return driver;
}

/// A number that the driver knows of a GPU, a CUdevice_attribute; 0 where there is no such GPU.
/// @param index in CUDA's order
inline int gpu_attribute(int index, int attribute) {
  int device = 0, value = 0;
  if (!cuda_driver() || cuda_driver().get<int(unsigned)>("cuInit")(0) ||
      cuda_driver().get<int(int*, int)>("cuDeviceGet")(&device, index) ||
      cuda_driver().get<int(int*, int, int)>("cuDeviceGetAttribute")(&value, attribute, device)) {
    return 0;
  }
  return value;
}

/// 90 for compute capability 9.0; 0 where there is no such GPU.
inline int compute_capability(int index) {
  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
  constexpr int capability_major = 75, capability_minor = 76;
  return 10 * gpu_attribute(index, capability_major) + gpu_attribute(index, capability_minor);
}

}  // namespace tstitch::detail
