// Catch2 3 brings its own main; version 2 is asked for it in one place, because it takes long to compile.
#if !__has_include(<catch2/catch_all.hpp>)
#define CATCH_CONFIG_MAIN
#include <catch2/catch.hpp>
#endif
