# Finds what the build needs and installs what is missing. Sourced by quickstart.sh and ../tests/run.sh, which call
#
#   set_up stb Catch2 ...             what the build needs: compiler, CMake, PyTorch, CUDA and the libraries named
#   add_programs clang++:clang ...    programs (and their packages) without which some tests skip
#   add_packages requirements.txt     Python packages without which some tests skip
#   configure build/tests -DX=Y ...   CMake in that folder, with the `cmake_arguments` of set_up and these
#
# What is already there is used and left as it is: a compiler ($CXX), headers (CPATH, CMAKE_PREFIX_PATH), PyTorch
# (CMAKE_PREFIX_PATH, an active virtual environment, python3) and the CUDA toolkit (nvcc on PATH, CUDA_HOME, CUDA_PATH,
# /usr/local/cuda).
# What is missing comes from apt-get, and PyTorch and the CUDA compiler from pip into a virtual environment, .venv.
# TSTITCH_VENV names another one, which is then the only place where PyTorch is looked for.
# shellcheck shell=bash
set -euo pipefail

torch_wanted=2.11.0
torch_oldest=2.11.0  # an older one is passed over

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$(realpath -m "${TSTITCH_VENV:-$repo/.venv}")
made=$venv/made-by-tstitch  # only in an environment made here: lists what is complete in it
IFS=':;' read -ra prefixes <<<"${CMAKE_PREFIX_PATH:-}"

say() { printf '%s\n' "$*"; }
stop() {
  printf 'Stopped: %s\n' "$*" >&2
  exit 1
}
at_least() { printf '%s\n' "$1" "$2" | sort -VC; }  # at_least 3.24 3.25.1
joined() { printf -v REPLY ', %s' "$@" && printf '%s' "${REPLY:2}"; }

set_up() {
  exec 9<"${BASH_SOURCE[0]}"  # one run at a time installs
  if command -v flock >/dev/null && ! flock -n 9; then
    say "waiting for another run to finish installing"
    flock 9 || true
  fi
  cmake_arguments=(-DCMAKE_BUILD_TYPE=Release)
  [ -z "${CPATH:-}" ] || cmake_arguments+=("-DCMAKE_INCLUDE_PATH=${CPATH//:/;}")
  PATH=$venv/tools:$PATH

  find_torch || torch=
  install_packages "$@"
  [ -n "$torch" ] || install_torch
  install_build_tools
  use_cuda
  exec 9<&-
  limit_jobs
}

# One compiler for each core, where there is memory for them: 1.5 GB each.
limit_jobs() {
  local cores room
  cores=$(nproc)
  room=$(awk '/^MemAvailable/ { print int($2 / 1500000) + 1 }' /proc/meminfo)
  export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$((room < cores ? room : cores))}
}

configure() {
  local build=$repo/$1 log=$repo/$1/configure.log wanted fresh=()
  wanted=$(printf '%s\n' "$CXX" "${cmake_arguments[@]}" "${@:2}")
  # CMake remembers where it found things, which is wrong once one of them has moved.
  [ "$(cat "$build/configured-with" 2>/dev/null)" = "$wanted" ] || fresh=(--fresh)
  say "configuring $build"
  mkdir -p "$build"
  rm -f "$build/configured-with"
  cmake "${fresh[@]}" -S "$repo" -B "$build" "${cmake_arguments[@]}" "${@:2}" &>"$log" || {
    cat "$log" >&2
    stop "CMake failed, see above or $log"
  }
  printf '%s\n' "$wanted" >"$build/configured-with"
}

# ---- compiler, CMake, libraries -----------------------------------------------------------------------------------------------

# Sets `headers`, any of which shows that the library is there, and `package`, which has it.
describe() {
  case $1 in
    stb) headers=(stb_image_write.h stb/stb_image_write.h) package=libstb-dev ;;
    CLI11) headers=(CLI/CLI.hpp) package=libcli11-dev ;;
    nlohmann-json) headers=(nlohmann/json.hpp) package=nlohmann-json3-dev ;;
    httplib) headers=(httplib.h) package=libcpp-httplib-dev ;;
    Catch2) headers=(catch2/catch_test_macros.hpp catch2/catch.hpp) package=catch2 ;;
    *) stop "setup.sh does not know the library $1" ;;
  esac
}

# Is the preprocessor condition true for `compiler`?
compiler_says() {
  local folders=("${prefixes[@]/%//include}")
  "${compiler[@]}" -std=c++20 "${folders[@]/#/-I}" -x c++ -E - &>/dev/null <<<$'#if !('"$1"$')\n#error\n#endif'
}

# The first compiler that is new enough, as `compiler`: an array, because $CXX may hold "ccache g++".
find_compiler() {
  local candidate candidates=(c++ g++ clang++ g++-{15,14,13,12})
  [ -z "${CXX:-}" ] || candidates=("$CXX")
  for candidate in "${candidates[@]}"; do
    read -ra compiler <<<"$candidate"
    if compiler_says '__has_include(<concepts>) && (__clang_major__ >= 14 || __GNUC__ >= 12)'; then
      export CXX=$candidate
      return
    fi
  done
  return 1
}

has_library() {
  local headers package header
  describe "$1"
  for header in "${headers[@]}"; do
    ! compiler_says "__has_include(<$header>)" || return 0
  done
  return 1
}

has_cmake() { command -v cmake >/dev/null && at_least 3.24 "$(cmake --version | sed -n 's/^cmake version //p')"; }
has_generator() { command -v ninja >/dev/null || command -v make >/dev/null; }
has_python() { python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }
can_apt() { command -v apt-get >/dev/null && { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }; }

# What apt-get has to bring, as `missing` (names for people) and `packages`.
find_missing() {
  local headers package library
  missing=() packages=()
  if ! find_compiler; then
    [ -z "${CXX:-}" ] || stop "CXX=$CXX is not a C++20 compiler that works here: g++ 12 or newer, or clang++ 14"
    missing+=("a C++ compiler (g++ 12 or newer)")
    if command -v g++ >/dev/null; then packages+=(g++-12); else packages+=(g++); fi
    compiler=(cpp)
  fi
  for library in "$@"; do
    if ! has_library "$library"; then
      describe "$library"
      missing+=("$library") packages+=("$package")
    fi
  done
  if [ -z "$torch" ] && ! has_python; then
    missing+=("Python 3.10 or newer with venv") packages+=(python3 python3-venv)
  fi
  if can_apt && ! command -v cmake >/dev/null; then  # without apt-get they come from pip
    missing+=(CMake) packages+=(cmake)
  fi
  if can_apt && ! has_generator; then
    missing+=(Ninja) packages+=(ninja-build)
  fi
}

install_packages() {
  find_missing "$@"
  if [ "${#packages[@]}" -gt 0 ]; then
    apt_install "$(joined "${missing[@]}")" "${packages[@]}"
    find_missing "$@"
  fi
  if [ "${packages[*]}" = g++-12 ]; then  # g++ is there now, and an older one
    apt_install "${missing[0]}" g++-12
    find_missing "$@"
  fi
  [ "${#packages[@]}" -eq 0 ] || stop "still missing after apt-get: $(joined "${missing[@]}")"
  say "compiler: $("${compiler[@]}" --version | sed -n 1p)"
  if [[ ${compiler[0]##*/} =~ ^s?ccache$ ]]; then  # CMake would take what follows for an argument of a compiler
    cmake_arguments+=("-DCMAKE_CXX_COMPILER_LAUNCHER=${compiler[0]}")
    CXX=${compiler[*]:1}
  fi
}

apt_install() {  # apt_install "names for people" package ...
  local output apt=(env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120)
  can_apt || stop "missing: $1. As root: apt-get install ${*:2}
For libraries that are somewhere else, name in CMAKE_PREFIX_PATH the folder that has their include folder."
  [ "$(id -u)" = 0 ] || apt=(sudo -n "${apt[@]}")
  say "$1: installing with apt-get"
  if [ -z "${apt_updated:-}" ]; then
    "${apt[@]}" update &>/dev/null </dev/null || true  # what is wrong shows below
    apt_updated=yes
  fi
  output=$("${apt[@]}" install --yes --no-install-recommends "${@:2}" 2>&1 </dev/null) ||
    stop "apt-get could not install ${*:2}: $(grep -m 1 '^E:' <<<"$output" || tail -n 1 <<<"$output")"
}

# For root and continuous integration alone: large programs, and no build needs them.
add_programs() {
  local program missing=() packages=()
  for program in "$@"; do
    command -v "${program%%:*}" >/dev/null || missing+=("${program%%:*}") packages+=("${program#*:}")
  done
  [ "${#packages[@]}" -gt 0 ] || return 0
  if { [ "$(id -u)" = 0 ] || [ -n "${CI:-}" ]; } && can_apt; then
    (apt_install "$(joined "${missing[@]}")" "${packages[@]}") || say "going on without $(joined "${missing[@]}")"
  else
    say "not here: $(joined "${missing[@]}"); what needs them is skipped"
  fi
}

install_build_tools() {
  has_cmake || install_tools CMake 'cmake==3.31.*' cmake ctest
  has_generator || install_tools Ninja ninja ninja
  if command -v ninja >/dev/null; then
    cmake_arguments+=(-G Ninja)
  else
    cmake_arguments+=(-G "Unix Makefiles")
  fi
}

install_tools() {  # install_tools name package program ...
  local program
  make_venv
  say "$1: installing into $venv"
  pip_install --ignore-installed "$2"
  mkdir -p "$venv/tools"
  for program in "${@:3}"; do
    ln -sf "../bin/$program" "$venv/tools/"
  done
  hash -r
}

# ---- PyTorch ------------------------------------------------------------------------------------------------------------------

# The folder in which CMake finds Torch/TorchConfig.cmake, as `torch`.
find_torch() {
  local prefix python pythons=(python3 "$venv/bin/python")
  [ -z "${VIRTUAL_ENV:-}" ] || pythons=("$VIRTUAL_ENV/bin/python" "${pythons[@]}")
  if [ -n "${TSTITCH_VENV:-}" ]; then
    pythons=("$venv/bin/python")
  else
    for prefix in "${prefixes[@]}"; do
      ! is_torch "$prefix" || return 0
      ! is_torch "$prefix/share/cmake" || return 0
      ! is_torch "$prefix/lib/cmake" || return 0
    done
  fi
  for python in "${pythons[@]}"; do
    # Importing torch would take seconds.
    prefix=$("$python" 2>/dev/null -c 'if True:
      import importlib.util, os, sys
      sys.path = [folder for folder in sys.path if folder]
      print(os.path.dirname(importlib.util.find_spec("torch").origin))') || continue
    ! is_torch "$prefix/share/cmake" || return 0
  done
  return 1
}

is_torch() {
  local version
  [ -e "$1/Torch/TorchConfig.cmake" ] || return 1
  [[ $(realpath "$1") != "$venv"/* ]] || [ ! -e "$made" ] || grep -qx "torch $torch_wanted" "$made" || return 1  # an unfinished one
  version=$(sed -n 's/^set(PACKAGE_VERSION "\(.*\)")/\1/p' "$1/Torch/TorchConfigVersion.cmake")
  if ! at_least "$torch_oldest" "$version"; then
    say "PyTorch $version in $1: not used, because it is older than $torch_oldest"
    return 1
  fi
  torch=$1
  cmake_arguments+=("-DCMAKE_PREFIX_PATH=$torch")
  say "PyTorch $version: found in ${torch%/share/cmake}"
}

install_torch() {
  local free
  if [ -e "$made" ]; then
    say "PyTorch: what is in $venv is unfinished or another version, starting again"
    rm -rf "$venv"
  fi
  make_venv
  free=$(df --output=avail -BG "$venv" | tr -dc 0-9)
  say "PyTorch $torch_wanted: installing into $venv (downloads 2.5 GB, takes 5 GB of disk; $free GB are free)"
  [ "$free" -ge 8 ] || stop "there is not enough space in $venv: it takes 7 GB while it installs"
  pip_install "torch==$torch_wanted"
  say "torch $torch_wanted" >>"$made"
  find_torch || stop "PyTorch was installed into $venv and is not there"
}

make_venv() {
  if [ -e "$made" ]; then
    ! grep -qx python "$made" || return 0
    rm -rf "$venv"
  fi
  [ ! -e "$venv" ] || stop "$venv was not made by this script, so nothing is installed into it. Set TSTITCH_VENV to a new folder."
  hash -r  # python3 may have been the one in it
  has_python || apt_install "Python 3.10 or newer with venv" python3 python3-venv
  mkdir -p "$venv"
  : >"$made"
  python3 -m venv "$venv" || stop "could not make a virtual environment in $venv"
  say python >>"$made"
}

# Into an environment that was made here, never into another one.
add_packages() {
  local file=$repo/$1 wanted
  if [[ $(realpath "$torch") != "$venv"/* ]] || [ ! -e "$made" ]; then
    say "PyTorch is not in an environment made here, so what $1 names is not installed; tests without it are skipped"
    return
  fi
  wanted="$1 $(sha256sum <"$file")"
  ! grep -qxF "$wanted" "$made" || return 0
  say "packages of $1: installing into $venv"
  if (pip_install --requirement "$file"); then
    say "$wanted" >>"$made"
  else
    say "going on without what $1 names; tests without it are skipped"
  fi
}

pip_install() {
  local errors options=(--disable-pip-version-check)
  [ -t 1 ] || options+=(--quiet)
  mkdir -p "$venv/tmp"  # /tmp may be small
  if { errors=$(TMPDIR=$venv/tmp "$venv/bin/python" -m pip install "${options[@]}" "$@" 2>&1 >&3); } 3>&1; then
    rm -rf "$venv/tmp"
    return
  fi
  case $errors in
    *"No space left"* | *"quota exceeded"*) stop "the disk is full, while pip was installing into $venv" ;;
    *Retrying*) stop "pip could not fetch ${*: -1}. Is there a network? It was $(grep -m 1 -o "broken by '.*'" <<<"$errors")" ;;
    *) stop "pip could not install ${*: -1}: $(grep -m 1 '^ERROR' <<<"${errors:=it was killed}" || tail -n 1 <<<"$errors")" ;;
  esac
}

# ---- CUDA ---------------------------------------------------------------------------------------------------------------------

# A PyTorch with CUDA needs the toolkit when CMake looks for it, also where there is no GPU.
use_cuda() {
  local root cuda capability toolkit
  root=$(realpath "$torch/../..")
  [ -e "$root/lib/libtorch_cuda.so" ] || return 0
  cuda=$(sed -n "s/^cuda.*'\(.*\)'/\1/p" "$root/version.py" 2>/dev/null) ||
    cuda=$(sed -n 's/.*+cu\(..\)\(.*\)/\1.\2/p' "$root/build-version" 2>/dev/null) ||
    cuda=  # any will do
  find_toolkit || install_toolkit
  PATH=$toolkit/bin:$PATH
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sed -n '1{/^[0-9.]*$/p}') || capability=
  # Without the list CMake would compile a program to ask the GPU.
  cmake_arguments+=(
    "-DCUDA_TOOLKIT_ROOT_DIR=$toolkit" "-DCUDAToolkit_ROOT=$toolkit" "-DCMAKE_CUDA_COMPILER=$toolkit/bin/nvcc"
    "-DCMAKE_CUDA_HOST_COMPILER=$(command -v "${compiler[-1]}")"
    "-DTORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-${capability:-9.0}}"
  )
}

# The folder of an installed toolkit of the CUDA that PyTorch is built for, as `toolkit`.
find_toolkit() {
  local nvcc release library tried=:
  for nvcc in "$(command -v nvcc)" "${CUDA_HOME:-}/bin/nvcc" "${CUDA_PATH:-}/bin/nvcc" /usr/local/cuda/bin/nvcc; do
    # It may be a link, or a script in another place: then it says itself where it belongs.
    nvcc=$(realpath "$nvcc" 2>/dev/null) || continue
    toolkit=$("$nvcc" -v any.cu 2>&1 | sed -n 's/^#\$ TOP=//p') || true
    toolkit=$(realpath "$toolkit" 2>/dev/null) || continue
    [[ $tried != *":$toolkit:"* ]] || continue
    tried+=$toolkit:
    release=$("$toolkit/bin/nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')
    if [ -n "$cuda" ] && [ "${release%.*}" != "${cuda%.*}" ]; then
      say "CUDA $release in $toolkit: not used, because PyTorch is built for CUDA $cuda"
      continue
    fi
    for library in cudart cublas cublasLt cufft curand nvrtc; do
      if [ ! -e "$toolkit/lib64/lib$library.so" ] && [ ! -e "$toolkit/lib/lib$library.so" ]; then
        say "CUDA $release in $toolkit: not used, because lib$library.so is not there"
        continue 2
      fi
    done
    say "CUDA $release: found in $toolkit"
    return
  done
  return 1
}

# The toolkit from pip: the compiler, and links to the libraries that came with PyTorch.
install_toolkit() {
  local parts=nvcc,crt,nvvm,cccl,cudart size=0.3 libraries library folder=$venv/cuda-$cuda
  toolkit=$folder/nvidia/cu${cuda%.*}
  libraries=$(realpath -m "$torch/../../../nvidia/cu${cuda%.*}")
  if [ "$(cat "$folder/complete" 2>/dev/null)" = "$libraries" ]; then
    say "CUDA $cuda: found in $toolkit"
    return
  fi
  at_least 13 "$cuda" || stop "PyTorch in ${torch%/share/cmake} needs the CUDA toolkit $cuda, which is not there.
Install it, or set TSTITCH_VENV to a new folder: a newer PyTorch and its toolkit are then installed there."
  make_venv
  rm -rf "$folder"
  if [ ! -e "$libraries/lib/libcublas.so.${cuda%.*}" ]; then
    parts+=,cublas,cufft,curand,nvrtc size=1.6
  fi
  say "CUDA $cuda compiler: installing into $folder ($size GB)"
  pip_install --target "$folder" "cuda-toolkit[$parts]==$cuda.*"
  if [[ $parts != *cublas* ]]; then
    cp -Rsf "$libraries/include" "$libraries/lib" "$toolkit/"
  fi
  ln -s lib "$toolkit/lib64"
  for library in "$toolkit"/lib/lib*.so.*; do
    [ -e "${library%%.so.*}.so" ] || ln -s "${library##*/}" "${library%%.so.*}.so"
  done
  say "$libraries" >"$folder/complete"
}
