/// @file
/// Has moved, to engine/cuda_graph.hpp.
#pragma once
#pragma message("this header is tstitch/engine/cuda_graph.hpp now, this path is removed in 0.3")

#include "../engine/cuda_graph.hpp"
