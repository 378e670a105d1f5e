# Where something that Torch asks for is missing, such as the CUDA toolkit, Torch's package stops whoever looks for it. A
# caller that does not require tstitch must be able to go on without, so for them another CMake looks first, until Torch
# was found where it is looked for now.
if(NOT TARGET torch AND NOT tstitch_FIND_REQUIRED
   AND NOT "${Torch_DIR}|${CMAKE_PREFIX_PATH}" STREQUAL "${tstitch_torch_was_found}")
  set(_tstitch_trial ${CMAKE_BINARY_DIR}/CMakeFiles/tstitch_trial)
  set(_tstitch_text "cmake_minimum_required(VERSION 3.24)\nproject(trial LANGUAGES CXX)\n")
  foreach(_tstitch_name IN ITEMS CMAKE_CUDA_COMPILER CMAKE_CUDA_HOST_COMPILER CMAKE_DISABLE_FIND_PACKAGE_Torch
                                 CMAKE_FIND_ROOT_PATH CMAKE_PREFIX_PATH CUDAToolkit_ROOT CUDA_TOOLKIT_ROOT_DIR Torch_DIR Torch_ROOT)
    if(${_tstitch_name})
      string(APPEND _tstitch_text "set(${_tstitch_name} [==[${${_tstitch_name}}]==])\n")
    endif()
  endforeach()
  string(APPEND _tstitch_text "include([==[${CMAKE_CURRENT_LIST_DIR}/find_torch.cmake]==])\nif(NOT TARGET torch)\n"
                              "  message(FATAL_ERROR \"\${tstitch_torch_missing}\")\nendif()\n")
  file(WRITE ${_tstitch_trial}/CMakeLists.txt "${_tstitch_text}")
  execute_process(COMMAND ${CMAKE_COMMAND} --fresh -G ${CMAKE_GENERATOR} -S ${_tstitch_trial} -B ${_tstitch_trial}/build
                          -DCMAKE_MAKE_PROGRAM=${CMAKE_MAKE_PROGRAM} -DCMAKE_CXX_COMPILER=${CMAKE_CXX_COMPILER}
                          -DCMAKE_TOOLCHAIN_FILE=${CMAKE_TOOLCHAIN_FILE}
                  RESULT_VARIABLE _tstitch_result OUTPUT_QUIET ERROR_VARIABLE _tstitch_error)
  if(NOT _tstitch_result EQUAL 0)
    string(REGEX REPLACE ".*CMake Error[^\n]*:\n" "" _tstitch_error "${_tstitch_error}")
    string(REGEX REPLACE "\n(Call Stack|\n\n).*" "" _tstitch_error "${_tstitch_error}")
    string(REGEX REPLACE "[ \n]+" " " _tstitch_error "${_tstitch_error}")
    string(STRIP "${_tstitch_error}" _tstitch_error)
    set(tstitch_NOT_FOUND_MESSAGE "${_tstitch_error}")
    if(NOT _tstitch_error MATCHES "^tstitch: ")
      set(tstitch_NOT_FOUND_MESSAGE "tstitch: Torch's package says: ${_tstitch_error}")
    endif()
    set(tstitch_FOUND FALSE)
    return()
  endif()
endif()

include(${CMAKE_CURRENT_LIST_DIR}/find_torch.cmake)
if(TARGET torch)
  set(tstitch_torch_was_found "${Torch_DIR}|${CMAKE_PREFIX_PATH}" CACHE INTERNAL "")
  include(${CMAKE_CURRENT_LIST_DIR}/tstitchTargets.cmake)
else()
  set(tstitch_NOT_FOUND_MESSAGE "${tstitch_torch_missing}")
  set(tstitch_FOUND FALSE)
endif()
