/// @file
/// Has moved.
#pragma once
#pragma message("this header is tstitch/study/fastest_batch.hpp now, this path goes with version 0.3")

#include "../study/fastest_batch.hpp"
