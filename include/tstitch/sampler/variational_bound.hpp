/// @file
/// Has moved.
#pragma once
#pragma message( \
    "tstitch/sampler/variational_bound.hpp is tstitch/study/variational_bound.hpp now; this path goes with version 0.3")

#include "../study/variational_bound.hpp"
