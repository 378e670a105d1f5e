#!/usr/bin/env bash
# Builds everything and runs the tests, installing what is missing: bash tests/run.sh [arguments for ctest]
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../examples/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/../examples/setup.sh"

set_up stb CLI11 nlohmann-json httplib Catch2
add_programs clang++:clang aarch64-linux-gnu-g++:g++-aarch64-linux-gnu qemu-aarch64-static:qemu-user-static pkg-config:pkg-config doxygen:doxygen
add_packages tests/requirements.txt
# Programs take longer to compile with -O3 than their tests take to run; quickstart.sh compiles them as Release says.
configure build/tests -DCMAKE_CXX_FLAGS_RELEASE="-O1 -DNDEBUG" -DTSTITCH_BUILD_TESTS=ON -DTSTITCH_BUILD_EXAMPLES=ON -DTSTITCH_WARNINGS_AS_ERRORS="${CI:-OFF}"
say "building in $repo/build/tests"
cmake --build "$repo/build/tests"
# Two tests at a time, of one thread each: threads that wait for one another would take the cores from the other test.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
ctest --test-dir "$repo/build/tests" --output-on-failure --no-tests=error -j 2 "$@"
