# The same pictures with both networks in memory and with one at a time, in two batches: cmake -DTOOL=tstitch_sample
# -P one_at_a_time.cmake
foreach(how IN ITEMS together one-at-a-time)
  set(option "")
  if(how STREQUAL "one-at-a-time")
    set(option --one-at-a-time)
  endif()
  execute_process(COMMAND ${TOOL} --device cpu --steps 2 --ratio 0.5 --class 3 --count 2 --batch 1 ${option} --quiet
                          --latents ${how}.npy COMMAND_ERROR_IS_FATAL ANY)
  list(APPEND files ${how}.npy)
endforeach()
execute_process(COMMAND ${CMAKE_COMMAND} -E compare_files ${files} COMMAND_ERROR_IS_FATAL ANY)
