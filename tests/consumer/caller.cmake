# The project of a caller around the line that takes the library in: what it had set before must be so afterwards.
#
#   CALLER_SETS  whether it sets anything at all
#   CALLER_CUDA  when it enables CUDA for its own code: "before" or "after" that line, or empty for never

set(caller_variables CMAKE_BUILD_TYPE CMAKE_CXX_FLAGS CMAKE_CXX_STANDARD CMAKE_CUDA_ARCHITECTURES CMAKE_CUDA_FLAGS
                     CMAKE_CUDA_HOST_COMPILER CMAKE_CUDA_STANDARD CMAKE_CUDA_STANDARD_REQUIRED CMAKE_MODULE_PATH
                     CUDAToolkit_ROOT TORCH_CUDA_ARCH_LIST)

# Macros and no functions: the variables and languages meant are those of the caller's directory.
macro(caller_begin)
  if(CALLER_SETS)
    set(CMAKE_CXX_FLAGS "${CMAKE_CXX_FLAGS} -DCALLER_CXX_FLAGS")
    set(CMAKE_CXX_STANDARD 17)  # less than the library needs: its target must raise it for those who link it
    set(CMAKE_CUDA_ARCHITECTURES 80)
    set(CMAKE_CUDA_FLAGS "-DCALLER_SETS -DCALLER_CUDA_FLAGS")
    set(CMAKE_CUDA_STANDARD 17)
    set(CMAKE_MODULE_PATH ${CMAKE_CURRENT_SOURCE_DIR}/modules)
  endif()
  if("${CALLER_CUDA}" STREQUAL "before")
    enable_language(CUDA)
  endif()
  foreach(name IN LISTS caller_variables)
    set(before_${name} "${${name}}")
  endforeach()
  set(before_environment "$ENV{TORCH_CUDA_ARCH_LIST}")
endmacro()

macro(caller_end)
  foreach(name IN LISTS caller_variables)
    # What a caller left open may come from the cache now, where CMake puts a language's defaults.
    if(NOT "${${name}}" STREQUAL "${before_${name}}" AND
       NOT ("${before_${name}}" STREQUAL "" AND "${${name}}" STREQUAL "$CACHE{${name}}"))
      message(FATAL_ERROR "tstitch changed ${name} of its caller from '${before_${name}}' to '${${name}}'")
    endif()
  endforeach()
  if(NOT "$ENV{TORCH_CUDA_ARCH_LIST}" STREQUAL "${before_environment}")
    message(FATAL_ERROR "tstitch changed the environment variable TORCH_CUDA_ARCH_LIST of its caller")
  endif()

  enable_testing()
  add_executable(consumer ../main.cpp)
  target_link_libraries(consumer PRIVATE tstitch::tstitch)
  add_test(NAME consumer COMMAND consumer)
  # A library of the caller's that is exported, which CMake refuses where something that it links cannot be.
  add_library(wrapper INTERFACE)
  target_link_libraries(wrapper INTERFACE tstitch::tstitch)
  install(TARGETS wrapper EXPORT wrapper)
  install(EXPORT wrapper NAMESPACE caller:: DESTINATION share/cmake/wrapper)
  if(CALLER_CUDA)
    enable_language(CUDA)
    add_library(kernel STATIC ../kernel.cu)
    target_link_libraries(consumer PRIVATE kernel)
  endif()
endmacro()
