# A header leaves no macro of stb behind: cmake -DHEADER=... -P macros.cmake -- compiler arguments
include(${CMAKE_CURRENT_LIST_DIR}/../after_dashes.cmake)
execute_process(COMMAND ${arguments_after_dashes} -std=c++20 -dM -E -x c++ ${HEADER} OUTPUT_VARIABLE macros COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "#define [^ (]*[Ss][Tt][Bb][Ii]?[Ww]?_[^ (]*" left "${macros}")
if(left OR NOT macros)
  message(FATAL_ERROR "left behind: ${left}")
endif()
