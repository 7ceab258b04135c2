#!/usr/bin/env bash
# Builds hpml against each MPI of a folder that get.sh filled: DIR/target-NAME/release/hpml. Begins with a copy of target/, so
# that only hpml and the crates that hold MPI's header are compiled.
#   tests/mpi_matrix/build.sh DIR [NAME...]
# HPML_MATRIX_CARGO has more arguments for cargo; --config profile.release.package.hpml.opt-level=1 halves the time.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 2; }
dir=$(cd "$1" && pwd)
shift
cd "$(dirname "$0")/../.."
[ $# -gt 0 ] || set -- $(cd "$dir" && ls -d */bin | cut -d/ -f1)
for name; do
    to=$dir/target-$name
    if [ ! -e "$to" ] && [ -d target/release/deps ]; then
        mkdir -p "$to/release"
        cp -a target/release/{build,deps,.fingerprint} "$to/release/"
    fi
    status=0
    env MPICC="$dir/$name/bin/mpicc" PATH="$dir/$name/bin:$PATH" CARGO_TARGET_DIR="$to" \
        bash -c 'scripts/setup && source .hpml-env && exec cargo build --release "$@"' build ${HPML_MATRIX_CARGO:-} >"$dir/build-$name.log" 2>&1 || status=$?
    echo "$name: status $status: $(tail -n 1 "$dir/build-$name.log")"
done
