/// @file
/// Has moved, to study/fastest_batch.hpp.
#pragma once
#pragma message("this header is tstitch/study/fastest_batch.hpp now, this path is removed in 0.3")

#include "../study/fastest_batch.hpp"
