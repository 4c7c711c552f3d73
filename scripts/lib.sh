# shellcheck shell=bash
# For ./quickstart and ./test: packages, builds, progress. Sourced by bash with
# `set -euo pipefail`, in the repository's root directory.

began=$SECONDS
say() { printf '[%5d s] %s\n' "$((SECONDS - began))" "$*"; }
die() { printf '%s: %s\n' "$0" "$*" >&2; exit 1; }

need_root() { [ "$(id -u)" = 0 ] || die "needs root: it installs packages and makes namespaces"; }

# install_packages build demo: what scripts/packages.txt lists for any of these. Quick where all is there.
install_packages() {
  local wanted=" $* " package purposes purpose missing=()
  while read -r package purposes; do
    case $package in '' | '#'*) continue ;; esac
    for purpose in $purposes; do
      [[ $wanted == *" $purpose "* ]] || continue
      [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] ||
        missing+=("$package")
      break
    done
  done < scripts/packages.txt
  if [ ${#missing[@]} = 0 ]; then
    say "packages: all there"
    return
  fi
  say "packages: installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  local log
  log=$(mktemp)
  if ! { apt-get -o Acquire::Retries=3 update &&
         apt-get -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 install -y --no-install-recommends \
           "${missing[@]}"; } > "$log" 2>&1; then
    tail -n 40 "$log" >&2
    die "packages can't be installed; the whole log is $log"
  fi
  rm -f "$log"
  say "packages: installed"
}

# Each compiler may take about 1 GiB (gRPC's headers).
jobs_here() {
  local cores gib
  cores=$(nproc)
  gib=$(awk '/^MemAvailable:/ { print int($2 / 1048576) }' /proc/meminfo)
  echo $((gib < 1 ? 1 : gib < cores ? gib : cores))
}

# build all, or build TARGET...; a line of progress now and then.
build() {
  say "configure"
  local log
  log=$(mktemp)
  # From nothing it takes half the time if files are compiled together. Who works here wants the contrary:
  # cmake --preset release -DCMAKE_UNITY_BUILD=OFF
  local together=()
  [ -e build/release/CMakeCache.txt ] || together=(-DCMAKE_UNITY_BUILD=ON)
  cmake --preset release "${together[@]}" > "$log" 2>&1 || { cat "$log" >&2; die "cmake failed"; }
  rm -f "$log"
  say "build, $(jobs_here) jobs"
  NINJA_STATUS='[%f/%t] ' cmake --build --preset release -j "$(jobs_here)" --target "$@" 2>&1 |
    awk '
      /^\[[0-9]+\/[0-9]+\] / {
        split(substr($1, 2), step, /[\/\]]/)
        part = int(10 * step[1] / step[2])
        if (part > told) { told = part; printf "          %d of %d steps\n", step[1], step[2]; fflush() }
        next
      }
      { print; fflush() }' || die "the build failed"
  say "built"
}
