/// @file
/// Has moved.
#pragma once
#pragma message("tstitch/model/cuda_graph.hpp is tstitch/engine/cuda_graph.hpp now; this path goes with version 0.3")

#include "../engine/cuda_graph.hpp"
