#!/usr/bin/env bash
# Compiles and runs a user's first program with every compiler that is here, as C++20 and C++23, with and without the
# standard library's assertions, and as two shared libraries in one program. Prints a line for each.
#
#   bash tests/consumer/matrix.sh [python]    against the torch of this Python (python3)
#
# In Debian, apt-get install clang-14 clang-15 clang-16 clang-19 brings more compilers. Ends with 1 where one line failed.
set -uo pipefail

python=${1:-python3}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
torch=$("$python" -c 'import torch; print(torch.__path__[0])') || exit 1
version=$("$python" -c 'import torch; print(torch.__version__)')
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

include=(-I "$here/../../include" -isystem "$torch/include" -isystem "$torch/include/torch/csrc/api/include")
link=(-L "$torch/lib" "-Wl,-rpath,$torch/lib" -ltorch -ltorch_cpu -lc10)
failed=0

report() {  # report <what> <compiler> <standard> <flags> <exit code>
  printf '%-8s %-12s %-6s %-24s torch %s\n' "$([ "$5" = 0 ] && echo passed || echo FAILED)" "$2" "$3" "$1${4:+, $4}" "$version"
  [ "$5" = 0 ] || { failed=1 && sed 's/^/    /' "$scratch/log" | head -20; }
}

compilers=()
seen=" "  # where they lead: g++ is one of the others
for name in g++-{12..20} clang++-{14..25} g++ clang++; do
  command -v "$name" >/dev/null || continue
  path=$(realpath "$(command -v "$name")")
  [[ $seen == *" $path "* ]] && continue
  seen+="$path "
  compilers+=("$name")
done

for compiler in "${compilers[@]}"; do
  name=$compiler
  for standard in c++20 c++23; do
    [[ $standard == c++23 ]] && ! "$compiler" -std=c++23 -x c++ -fsyntax-only - </dev/null 2>/dev/null && standard=c++2b
    for flags in "" -D_GLIBCXX_ASSERTIONS; do
      "$compiler" "-std=$standard" -O0 -Wall -Wextra -Werror ${flags:+"$flags"} "${include[@]}" "$here/main.cpp" \
        -o "$scratch/main" "${link[@]}" &>"$scratch/log" && "$scratch/main" &>"$scratch/log"
      report program "$name" "$standard" "$flags" $?
    done
  done
  (
    set -e
    for library in one two; do
      "$compiler" -std=c++20 -O0 -fPIC -shared "-DLIBRARY=$library" "${include[@]}" "$here/shared/library.cpp" \
        -o "$scratch/lib$library.so" "${link[@]}"
    done
    "$compiler" -std=c++20 "$here/shared/main.cpp" -o "$scratch/shared" -L "$scratch" "-Wl,-rpath,$scratch" -lone -ltwo "${link[@]}"
    "$scratch/shared"
  ) &>"$scratch/log"
  report "two shared libraries" "$name" c++20 "" $?
done
[ ${#compilers[@]} -gt 0 ] || { echo "no compiler was found" >&2 && failed=1; }
exit $failed
