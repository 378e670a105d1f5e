/// @file
/// The random numbers of Python programs, beside what else of theirs is here.
#pragma once

#include "../tensor/torch_noise.hpp"
