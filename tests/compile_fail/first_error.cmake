# cmake -D BUILD=<directory> -D CONFIG=<configuration> -D TARGET=<target> -D SENTENCE=<text> -P first_error.cmake
#
# Builds a target. It must fail, and SENTENCE must be in the first error; without a SENTENCE it must succeed.
cmake_minimum_required(VERSION 3.24)

set(configuration "")
if(CONFIG)
  set(configuration --config ${CONFIG})
endif()
set(ENV{LC_ALL} C)  # messages in English
execute_process(COMMAND ${CMAKE_COMMAND} --build ${BUILD} --target ${TARGET} ${configuration}
                RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
message("${output}")

if(NOT SENTENCE)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "this must compile")
  endif()
  return()
endif()

if(result EQUAL 0)
  message(FATAL_ERROR "this must not compile")
endif()
# "error: " of GCC and Clang, "error C2338: " of MSVC; to the end of its line.
string(REGEX MATCH "error( [A-Z0-9]+)?: [^\n]*" first_error "${output}")
string(FIND "${first_error}" "${SENTENCE}" position)
if(position EQUAL -1)
  message(FATAL_ERROR "the first error must say\n  ${SENTENCE}\ngot\n  ${first_error}")
endif()
