/// @file
/// Has moved.
#pragma once
#pragma message( \
    "tstitch/model/weighted_sum.hpp is tstitch/tensor/weighted_sum.hpp now; this path goes with version 0.3")

#include "../tensor/weighted_sum.hpp"
