#!/usr/bin/env bash
# Builds the pages of examples/docs and the reference of the headers into build/site, installing what is missing:
#   bash examples/site/build.sh
set -euo pipefail
# An environment of its own: what builds pages is not what builds programs.
export TSTITCH_VENV=${TSTITCH_DOCS_VENV:-$(dirname "${BASH_SOURCE[0]}")/../../build/site-venv}
# shellcheck source-path=SCRIPTDIR source=../setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

if ! command -v doxygen >/dev/null; then
  apt_install Doxygen doxygen
fi
make_venv
wanted="site $(sha256sum <"$repo/examples/site/requirements.txt")"
if ! grep -qxF "$wanted" "$made"; then
  say "MkDocs: installing into $venv"
  pip_install --requirement "$repo/examples/site/requirements.txt"
  say "$wanted" >>"$made"
fi
"$venv/bin/python" "$repo/examples/site/build.py" "$repo/build/site"
say "the pages are in $repo/build/site, begin with index.html"
