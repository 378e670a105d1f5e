/// @file
/// Has moved, to tensor/philox.hpp.
#pragma once
#pragma message("this header is tstitch/tensor/philox.hpp now, this path is removed in 0.3")

#include "../tensor/philox.hpp"
