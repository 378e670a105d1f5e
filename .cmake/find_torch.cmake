# Finds Torch, by CMake files of this project and of its installed package alike; without the target torch afterwards,
# tstitch_torch_missing says what to do. At file scope, because enable_language has no effect in a function.
#
# find_package(Torch) of a CUDA build enables CUDA and rewrites the caller's CUDA settings, so they are put back after it.
if(NOT TARGET torch)
  set(_tstitch_settings CMAKE_CUDA_ARCHITECTURES CMAKE_CUDA_FLAGS CMAKE_CUDA_HOST_COMPILER CMAKE_CUDA_STANDARD
                        CMAKE_CUDA_STANDARD_REQUIRED CMAKE_MODULE_PATH CUDAToolkit_ROOT TORCH_CUDA_ARCH_LIST)
  foreach(_tstitch_name IN LISTS _tstitch_settings)
    unset(_tstitch_${_tstitch_name})
    if(DEFINED ${_tstitch_name})
      set(_tstitch_${_tstitch_name} "${${_tstitch_name}}")
    endif()
  endforeach()
  # Torch would ask a GPU what to compile for, and fail where there is none. Nothing here is compiled for one.
  set(_tstitch_arch_asked FALSE)
  if(NOT DEFINED TORCH_CUDA_ARCH_LIST AND NOT DEFINED ENV{TORCH_CUDA_ARCH_LIST})
    set(_tstitch_arch_asked TRUE)
    set(ENV{TORCH_CUDA_ARCH_LIST} 9.0)
  endif()
  find_package(Torch QUIET GLOBAL)
  if(_tstitch_arch_asked)
    unset(ENV{TORCH_CUDA_ARCH_LIST})
  endif()
  foreach(_tstitch_name IN LISTS _tstitch_settings)
    if(DEFINED _tstitch_${_tstitch_name})
      set(${_tstitch_name} "${_tstitch_${_tstitch_name}}")
    else()
      unset(${_tstitch_name})
    endif()
  endforeach()
endif()
# CMake leaves lines as they are that begin with spaces.
set(tstitch_torch_missing "tstitch: LibTorch was not found. Where Python has torch, CMake finds it with
  -DCMAKE_PREFIX_PATH=$(python3 -c 'import torch; print(torch.utils.cmake_prefix_path)')
and the archive from pytorch.org with
  -DCMAKE_PREFIX_PATH=/path/to/libtorch")
