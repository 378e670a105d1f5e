/// @file
/// Has moved.
#pragma once
#pragma message("this header is tstitch/study/variational_bound.hpp now, this path goes with version 0.3")

#include "../study/variational_bound.hpp"
