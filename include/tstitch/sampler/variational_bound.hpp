/// @file
/// Has moved, to study/variational_bound.hpp.
#pragma once
#pragma message("this header is tstitch/study/variational_bound.hpp now, this path is removed in 0.3")

#include "../study/variational_bound.hpp"
