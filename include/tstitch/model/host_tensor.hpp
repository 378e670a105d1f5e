/// @file
/// Has moved, to tensor/host_tensor.hpp.
#pragma once
#pragma message("this header is tstitch/tensor/host_tensor.hpp now, this path is removed in 0.3")

#include "../tensor/host_tensor.hpp"
