/// @file
/// Has moved.
#pragma once
#pragma message("this header is tstitch/engine/cuda_graph.hpp now, this path goes with version 0.3")

#include "../engine/cuda_graph.hpp"
