/// @file
/// Has moved, to file/aot_inductor.hpp.
#pragma once
#pragma message("this header is tstitch/file/aot_inductor.hpp now, this path is removed in 0.3")

#include "../file/aot_inductor.hpp"
