# Every file here must come from make_golden.py as it stands: each names the SHA-256 of the script that wrote it.
file(SHA256 ${CMAKE_CURRENT_LIST_DIR}/make_golden.py script)
file(GLOB files ${CMAKE_CURRENT_LIST_DIR}/*.json)
if(NOT files)
  message(FATAL_ERROR "${CMAKE_CURRENT_LIST_DIR} has no JSON files")
endif()
set(stale "")
foreach(file IN LISTS files)
  file(READ ${file} text)
  string(JSON written_by ERROR_VARIABLE unreadable GET "${text}" script)
  if(NOT written_by STREQUAL script)
    cmake_path(GET file FILENAME name)
    string(APPEND stale "  ${name}\n")
  endif()
endforeach()
if(stale)
  message(FATAL_ERROR "These files were not written by make_golden.py (SHA-256 ${script}) as it stands:\n${stale}"
                      "README.md beside them says how to get the three folders; then run\n"
                      "  OMP_NUM_THREADS=1 python make_golden.py --dpm-solver dpm-solver --guided-diffusion "
                      "guided-diffusion --latent-diffusion latent-diffusion\n")
endif()
