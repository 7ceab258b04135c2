"""Peak memory of the ranks of a command, private and shared told apart:

    benches/peers/memory.py --ranks hpml -- mpirun -n 2 hpml train ...
    benches/peers/memory.py --ranks ddp.py -- torchrun --nproc_per_node=2 benches/peers/ddp.py ...

A rank is a process under the command whose command line holds the word, and none of its children. Ten times a second
/proc/PID/smaps_rollup gives its resident bytes: private (of this process alone) and shared (mapped by several, such as
libraries, and shared windows between ranks). Prints, per rank, the greatest resident bytes seen and the parts at that moment.
"""
import argparse
import subprocess
import time
from pathlib import Path


def parents():
    """Parent of each process."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
            found[int(status.parent.name)] = int(lines["PPid"])
        except (OSError, KeyError, ValueError):
            pass  # it has ended
    return found


def ranks_under(root, word):
    """Processes under `root` whose command line holds `word` and not `--ranks`, without the launchers above them."""
    tree = parents()

    def is_under(pid):
        while pid in tree and pid != root:
            pid = tree[pid]
        return pid == root

    def is_named(pid):
        try:
            text = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return False
        return word in text

    named = {pid for pid in tree if pid != root and is_under(pid) and is_named(pid)}
    return sorted(named - {tree[pid] for pid in named})


def resident(pid):
    """(resident, private, shared) bytes; None if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return None
    kib = {name: int(rest.split()[0]) for name, rest in (line.split(":", 1) for line in lines)}
    private = kib["Private_Clean"] + kib["Private_Dirty"]
    return tuple(1024 * value for value in (kib["Rss"], private, kib["Rss"] - private))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", required=True, metavar="WORD", help="word in the command line of a rank")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    running = subprocess.Popen(args.command, stdout=subprocess.DEVNULL)
    peaks = {}
    while running.poll() is None:
        for pid in ranks_under(running.pid, args.ranks):
            now = resident(pid)
            if now and now > peaks.get(pid, (0,)):
                peaks[pid] = now
        time.sleep(0.1)
    if running.returncode != 0:
        raise SystemExit(f"memory.py: {' '.join(args.command)} ended with status {running.returncode}")
    if not peaks:
        raise SystemExit(f"memory.py: no process under the command has {args.ranks!r} in its command line")
    print("resident_mb private_mb shared_mb")
    for peak in peaks.values():
        print(*(f"{value / 1e6:.0f}" for value in peak))


if __name__ == "__main__":
    main()
