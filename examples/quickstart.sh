#!/usr/bin/env bash
# Builds the sampler and draws pictures with it, installing what is missing:
#   bash examples/quickstart.sh [arguments for tstitch_sample, instead of the ones below]
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

pictures=$repo/samples
arguments=(--sweep 0:1:0.1 --sampler dpm-solver++ --steps 15 --seed 150 --grid "$pictures/sweep.png")

set_up stb CLI11 nlohmann-json
configure build/quickstart -DTSTITCH_BUILD_TESTS=OFF -DTSTITCH_BUILD_EXAMPLES=ON
say "building tstitch_sample in $repo/build/quickstart"
cmake --build "$repo/build/quickstart" --target tstitch_sample

sampler=$repo/build/quickstart/examples/tstitch_sample
if [ $# -gt 0 ]; then
  exec "$sampler" "$@"
fi
mkdir -p "$pictures"
"$sampler" "${arguments[@]}"
say "the pictures are in $pictures"
