# Two processes draw the same pictures in padded batches of 3 and of 8, which are filled up to 8 alike, and make the same
# bits: cmake -DTOOL=tstitch_sample -DBACKEND=native -DDTYPE=float32 -P padded_batches.cmake
foreach(batch IN ITEMS 3 8)
  execute_process(COMMAND ${TOOL} --device cpu --steps 3 --seed 7 --pad-batches --batch ${batch} --backend ${BACKEND}
                          --dtype ${DTYPE} --quiet --latents padded-${BACKEND}-${DTYPE}-${batch}.npy COMMAND_ERROR_IS_FATAL ANY)
  list(APPEND files padded-${BACKEND}-${DTYPE}-${batch}.npy)
endforeach()
execute_process(COMMAND ${CMAKE_COMMAND} -E compare_files ${files} COMMAND_ERROR_IS_FATAL ANY)
