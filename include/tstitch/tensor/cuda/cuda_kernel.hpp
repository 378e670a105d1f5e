/// @file
/// CUDA kernels that are compiled at their first use, and started through the driver.
///
/// By NVRTC rather than nvcc, because it is where every CUDA build of torch runs (torch's own fuser needs it), asks
/// nothing of the program's build, and makes code for the very GPU. What it made is kept in the folder that
/// TSTITCH_KERNEL_CACHE names, else $XDG_CACHE_HOME/tstitch/kernels or ~/.cache/tstitch/kernels, where it and they are
/// the user's own and nobody else may write to them; an empty TSTITCH_KERNEL_CACHE keeps
/// nothing. It is code: what others own or may write to is not taken from there.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../../base/diagnostics.hpp"
#include "../../base/error.hpp"
#include "../../base/write_file.hpp"

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

/// CUDA C++, which includes nothing, and what to compile it with.
struct CudaSource {
  char const* name;  ///< of files in the cache
  std::string text;
  std::vector<std::string> options = {};  ///< of NVRTC
  bool architecture_alone = false;        ///< it has instructions that no later architecture has
};

/// As compilers call it: sm_90, or sm_90a.
inline std::string architecture_name(CudaSource const& source, int architecture) {
  return "sm_" + std::to_string(architecture) + (source.architecture_alone ? "a" : "");
}

/// Machine code by NVRTC; needs no GPU.
/// @param architecture 90 for compute capability 9.0
/// @throws std::runtime_error when there is no NVRTC or it refuses
inline std::string compile_cuda(CudaSource const& source, int architecture) {
  // Of torch's version of CUDA first: another's code may be too new for the driver.
  static const bool is_12 = dlopen("libcudart.so.12", RTLD_LAZY | RTLD_NOLOAD);
  static const SharedLibrary nvrtc(
      {is_12 ? "libnvrtc.so.12" : "libnvrtc.so.13", "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"});
  if (!nvrtc) throw std::runtime_error("tstitch: must find NVRTC (libnvrtc.so), got none");
  using Program = void*;
  const auto check = [&](int error, std::string const& log) {
    if (error == 0) return;
    throw std::runtime_error(std::string("tstitch: NVRTC must compile the kernel '") + source.name + "', got " +
                             nvrtc.get<char const*(int)>("nvrtcGetErrorString")(error) + "\n" + log);
  };
  Program program = nullptr;
  check(nvrtc.get<int(Program*, char const*, char const*, int, char const* const*, char const* const*)>(
            "nvrtcCreateProgram")(&program, source.text.c_str(), source.name, 0, nullptr, nullptr),
        "");
  std::vector<std::string> options{"-arch=" + architecture_name(source, architecture), "-std=c++17", "-lineinfo"};
  options.insert(options.end(), source.options.begin(), source.options.end());
  std::vector<char const*> words;
  for (std::string const& option : options) words.push_back(option.c_str());
  const int error =
      nvrtc.get<int(Program, int, char const* const*)>("nvrtcCompileProgram")(program, int(words.size()), words.data());
  std::string log, code;
  std::size_t size = 0;
  nvrtc.get<int(Program, std::size_t*)>("nvrtcGetProgramLogSize")(program, &size);
  log.resize(size);
  nvrtc.get<int(Program, char*)>("nvrtcGetProgramLog")(program, log.data());
  if (error == 0) {
    check(nvrtc.get<int(Program, std::size_t*)>("nvrtcGetCUBINSize")(program, &size), "");
    code.resize(size);
    check(nvrtc.get<int(Program, char*)>("nvrtcGetCUBIN")(program, code.data()), "");
  }
  nvrtc.get<int(Program*)>("nvrtcDestroyProgram")(&program);
  check(error, log);
  return code;
}

/// Where compiled kernels are kept; empty: nowhere.
inline std::string kernel_cache_folder() {
  if (char const* const named = std::getenv("TSTITCH_KERNEL_CACHE")) return named;
  if (char const* const cache = std::getenv("XDG_CACHE_HOME"); cache && *cache)
    return cache + std::string("/tstitch/kernels");
  char const* const home = std::getenv("HOME");
  return home && *home ? home + std::string("/.cache/tstitch/kernels") : "";
}

/// 16 digits that are others for other texts (FNV-1a).
inline std::string digest(std::vector<std::string> const& texts) {
  std::uint64_t hash = 0xcbf29ce484222325;
  for (std::string const& text : texts) {
    for (const char c : text + '\n') hash = (hash ^ std::uint64_t(static_cast<unsigned char>(c))) * 0x100000001b3;
  }
  char digits[17];
  std::snprintf(digits, sizeof digits, "%016llx", static_cast<unsigned long long>(hash));
  return digits;
}

/// Keeps a file there, with the folders above it; by its name others see all of it or nothing.
/// @throws std::runtime_error
inline void keep_in_cache(std::string const& path, std::string const& bytes) {
  for (std::size_t end = path.find('/', 1); end != std::string::npos; end = path.find('/', end + 1)) {
    mkdir(path.substr(0, end).c_str(), 0700);  // where one cannot be made, the file cannot either
  }
  // Others may compile it too, in this process or on another machine that has the folder.
  const auto now = std::chrono::steady_clock::now().time_since_epoch().count();
  const std::string own = path + "." + std::to_string(getpid()) + "-" + std::to_string(now);
  write_file(own, bytes);
  chmod(own.c_str(), 0600);  // whatever the umask: what others may write to is not trusted
  if (std::rename(own.c_str(), path.c_str()) != 0) std::remove(own.c_str());
}

/// Whether nobody but this user may have written it.
inline bool is_own(struct stat const& status) {
  return status.st_uid == geteuid() && (status.st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

/// The bytes of a regular file in a cache; empty where there is none, or one that others may have written, which is
/// diagnosed.
inline std::string read_from_cache(std::string const& folder, std::string const& path) {
  const int directory = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory < 0) return "";
  const std::string name = path.substr(folder.size() + 1);
  // What is opened is what is looked at, whatever takes its name meanwhile.
  const int file = openat(directory, name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  const bool is_link = file < 0 && errno == ELOOP;
  struct stat of_folder {
  }, of_file{};
  const bool known = file >= 0 && fstat(directory, &of_folder) == 0 && fstat(file, &of_file) == 0;
  std::string bytes;
  if (is_link || (known && !(is_own(of_folder) && is_own(of_file)))) {
    diagnose("cached_cuda",
             "compiles what is kept in '" + printable(path) +
                 "' anew, because it is a link, or it or its folder is of another user, or others may write to it");
  } else if (known && S_ISREG(of_file.st_mode)) {
    bytes.resize(std::size_t(of_file.st_size));
    std::size_t done = 0;
    for (ssize_t part = 1; part > 0 && done < bytes.size(); done += std::size_t(std::max<ssize_t>(part, 0))) {
      part = read(file, bytes.data() + done, bytes.size() - done);
    }
    bytes.resize(done);
  }
  if (file >= 0) close(file);
  close(directory);
  return bytes;
}

/// The same, from the cache where it is there. A cache that cannot be read or written is as good as none.
/// @param again the driver would not have what is there
inline std::string cached_cuda(CudaSource const& source, int architecture, bool again = false) {
  const std::string folder = kernel_cache_folder();
  if (folder.empty()) return compile_cuda(source, architecture);
  std::vector<std::string> texts{source.text};
  texts.insert(texts.end(), source.options.begin(), source.options.end());
  const std::string path =
      folder + "/" + source.name + "-" + architecture_name(source, architecture) + "-" + digest(texts) + ".cubin";
  // Behind the code is its digest: the driver believes what it is given, and reads on behind half a file.
  if (std::string code = again ? "" : read_from_cache(folder, path); !code.empty()) {
    const std::size_t size = code.size() - std::min<std::size_t>(code.size(), 16);
    const std::string ending = code.substr(size);
    code.resize(size);
    if (ending == digest({code})) return code;
  }
  std::string code = compile_cuda(source, architecture);
  try {
    keep_in_cache(path, code + digest({code}));
  } catch (std::exception const& error) {
    diagnose("cached_cuda", std::string("keeps no kernels, and compiles them in every process: ") + error.what());
  }
  return code;
}

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
