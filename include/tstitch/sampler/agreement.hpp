/// @file
/// Has moved, to study/agreement.hpp.
#pragma once
#pragma message("this header is tstitch/study/agreement.hpp now, this path is removed in 0.3")

#include "../study/agreement.hpp"
