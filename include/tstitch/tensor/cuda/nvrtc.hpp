/// @file
/// CUDA kernels that are compiled at their first use.
///
/// By NVRTC rather than nvcc, because it is where every CUDA build of torch runs (torch's own fuser needs it), asks
/// nothing of the program's build, and makes code for the very GPU.
#pragma once

#include <dlfcn.h>

#include <cstddef>
#include <stdexcept>
#include <string>
#include <vector>

#include "driver.hpp"

namespace tstitch::detail {

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

}  // namespace tstitch::detail
