/// @file
/// The version of the library; CMakeLists.txt reads it from here.
#pragma once

#define TSTITCH_VERSION_MAJOR 0
#define TSTITCH_VERSION_MINOR 2
#define TSTITCH_VERSION_PATCH 0
#define TSTITCH_VERSION "0.2.0"
