# The README quotes quickstart.cpp and a plan; both must be what they are in the repository.
file(READ ${SOURCE}/README.md readme)
file(READ ${SOURCE}/examples/quickstart.cpp program)
execute_process(COMMAND ${TOOL} --plan --steps 10 OUTPUT_VARIABLE plan COMMAND_ERROR_IS_FATAL ANY)
string(REGEX REPLACE "^//[^\n]*\n" "" program "${program}")  # the comment that says how to call it
foreach(quote IN ITEMS program plan)
  string(FIND "${readme}" "```cpp\n${${quote}}```" as_code)
  string(FIND "${readme}" "```\n${${quote}}```" as_text)
  if(as_code EQUAL -1 AND as_text EQUAL -1)
    message(FATAL_ERROR "README.md does not have this ${quote}:\n${${quote}}")
  endif()
endforeach()
