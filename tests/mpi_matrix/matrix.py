#!/usr/bin/env python3
"""Runs hpml under several MPI libraries and prints a table: MPI x what.

    tests/mpi_matrix/get.sh DIR && tests/mpi_matrix/build.sh DIR
    tests/mpi_matrix/matrix.py DIR [NAME...] [--data CIFAR10] > table.md

NAME is a folder of DIR with an MPI, or `system`: the MPI on the PATH and target/release/hpml. Every run has a time-out, and
what a run leaves behind is ended. The launcher is scripts/mpirun, as in the tests.
"""

import argparse
import csv
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = ["--set", "data.test_samples=40", "--set", "launch.threads=1"]
LIMIT = 120


class Run:
    """A started command: its output, its status and its processes."""

    def __init__(self, command, env):
        self.output = tempfile.TemporaryFile()
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [str(word) for word in command],
            env=env, stdin=subprocess.DEVNULL, stdout=self.output, stderr=self.output, start_new_session=True,
        )

    def wait(self, limit=LIMIT):
        try:
            self.status = self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.status = f"none in {limit} s"
        self.seconds = time.monotonic() - self.started
        for _ in range(2):  # what is left of the group: a stopped rank, for one
            try:
                os.killpg(self.process.pid, signal.SIGCONT)
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                break
        for pid in self.ranks():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
        if isinstance(self.status, int) and self.status < 0:
            self.status = 128 - self.status
        self.output.seek(0)
        self.text = self.output.read().decode(errors="replace")
        return self

    def messages(self):
        return [line for line in self.text.splitlines() if line.startswith("hpml: ")]

    def ranks(self):
        """Processes of this run's ranks, by the variable that marks them."""
        mark = f"HPML_MATRIX={os.getpid()}".encode()
        found = []
        for entry in os.scandir("/proc"):
            try:
                if entry.name.isdigit() and os.readlink(f"/proc/{entry.name}/exe").endswith("/release/hpml"):
                    environment = pathlib.Path(f"/proc/{entry.name}/environ").read_bytes().split(b"\0")
                    if mark in environment:
                        rank = [int(v.split(b"=")[1]) for v in environment if v.startswith((b"OMPI_COMM_WORLD_RANK=", b"PMI_RANK="))]
                        found.append((rank[0] if rank else 0, int(entry.name)))
            except OSError:
                pass
        return [pid for _, pid in sorted(found)]


class Mpi:
    """An MPI library, the hpml that was built for it, and the cells of its row."""

    def __init__(self, folder, name, data):
        self.name, self.data = name, data
        self.env = dict(os.environ, HPML_MATRIX=str(os.getpid()), OMP_WAIT_POLICY="passive")
        if name == "system":
            self.hpml = ROOT / "target/release/hpml"
            other = folder / "mpich-5.0.2"
        else:
            self.hpml = folder / f"target-{name}" / "release/hpml"
            self.env["PATH"] = f"{folder / name / 'bin'}:{self.env['PATH']}"
            if name.startswith("impi"):
                # The wheel has no libfabric's path set; ranks of one host need shared memory alone.
                self.env.update(I_MPI_ROOT=str(folder / name), I_MPI_FABRICS="shm")
            other = folder / ("mpich-5.0.2" if name.startswith("openmpi") else "openmpi-5.0.11")
        self.other = other / "bin"
        places = {"system": "/usr/lib/x86_64-linux-gnu", "mpich-4.0.2": folder / name / "usr/lib/x86_64-linux-gnu"}
        self.library_folder = pathlib.Path(places.get(name, folder / name.removesuffix("-abi") / "lib"))
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="hpml-matrix"))

    def launch(self, ranks, *args, env=None):
        return Run([ROOT / "scripts/mpirun", "-n", ranks, self.hpml, *args], env or self.env)

    def train(self, ranks, out, *more):
        return self.launch(ranks, "train", "--force", "--out", self.folder / out, *SMALL, *more)

    def endless(self, ranks, *more):
        """A training in the midst of its epochs."""
        file = self.folder / f"endless-{time.monotonic_ns()}.h5"
        more = ["--set", "train.epochs=100000", "--set", "data.train_samples=200", *more]
        run = self.train(ranks, file.name, *more)
        while not file.exists() and time.monotonic() - run.started < LIMIT and run.process.poll() is None:
            time.sleep(0.02)
        time.sleep(0.5)
        return run, file

    def file_status(self, file):
        shown = subprocess.run([self.hpml, "inspect", file], capture_output=True, text=True, timeout=LIMIT, env=self.env)
        found = re.search(r"^ +status +(\w+)", shown.stdout, re.M)
        return found.group(1) if found else "no file"

    def table(self, file, name):
        command = [self.hpml, "report", file, "--csv", "--table", name]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=self.env, check=True).stdout
        return list(csv.DictReader(shown.splitlines()))

    # Cells: each returns a short text.

    def library(self):
        shown = subprocess.run([self.hpml, "devices"], capture_output=True, text=True, timeout=LIMIT, env=self.env).stdout
        return dict(re.findall(r"^(MPI|built for) +(.*)$", shown, re.M)).get("MPI", "-")

    def build(self):
        if not self.hpml.exists():
            return "no"
        linked = subprocess.run(["ldd", self.hpml], capture_output=True, text=True, timeout=LIMIT, env=self.env).stdout
        found = re.search(r"(libmpi\S*) => (\S+)", linked)
        if not found or found.group(2) == "not":
            return "links, but finds no libmpi"
        is_own = self.name == "system" or str(self.library_folder.parents[1]) in found.group(2)
        return f"yes, {found.group(1)}" if is_own else f"yes, but takes {found.group(2)}"

    def ranks(self, ranks):
        run = self.train(ranks, "few.h5", "--set", "train.max_steps=20").wait()
        if run.status != 0 or f"world_size {ranks}" not in run.text:
            return f"status {run.status}"
        return self.table(self.folder / "few.h5", "epochs")[-1]["parameter_checksum"][:8]

    def verify(self):
        found = []
        for ranks in [1, 2, 4]:
            parity = ROOT / "tests/fixtures/parity.h5"
            run = self.launch(ranks, "verify", parity, "--data", self.data).wait() if self.data else None
            found.append("-" if run is None else "PASSED" if run.status == 0 and "PASSED" in run.text else f"status {run.status}")
        return " ".join(dict.fromkeys(found)) if len(set(found)) == 1 else " ".join(found)

    def allreduce(self):
        found = []
        for ranks in [2, 4]:
            file = self.folder / f"allreduce{ranks}.h5"
            run = self.launch(ranks, "allreduce", *ALLREDUCE, "--out", file, "--force").wait()
            if run.status != 0:
                found.append(f"{ranks} ranks: status {run.status}")
                continue
            rows = self.table(file, "allreduce")
            wrong = sum(float(row["wrong"]) for row in rows)
            found.append(f"{wrong:.0f} wrong of {len(rows)}")
        return ", ".join(dict.fromkeys(found))

    def killed(self):
        run, _ = self.endless(2)
        pid = run.ranks()[1]
        at = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        run.wait(60)
        return f"{run.status}, {time.monotonic() - at:.1f} s"

    def signalled(self, number):
        found = []
        for _ in range(5):
            run, file = self.endless(2)
            run.process.send_signal(number)
            run.wait(60)
            found.append(f"{run.status}")
            assert self.file_status(file) == "unfinished"
        return " ".join(found) if len(set(found)) > 1 else f"{found[0]}, 5 of 5"

    def stopped(self):
        run, _ = self.endless(2, "--set", "launch.comm_timeout_s=3")
        os.kill(run.ranks()[1], signal.SIGSTOP)
        run.wait(60)
        named = [line for line in run.messages() if "rank 1 of this host is stopped" in line and line.endswith("sets the limit")]
        return f"{run.status}, {len(named)} message" + ("s" if len(named) != 1 else "")

    def wrong(self):
        whole, statuses = 0, set()
        for _ in range(10):
            run = self.launch(4, "train", "--set", "train.batch_per_rank=0").wait()
            lines = run.messages()
            whole += len(lines) == 1 and lines[0].endswith("must be at least 1")
            statuses.add(str(run.status))
        return f"{'/'.join(sorted(statuses))}, {whole} of 10 whole"

    def with_library_of(self, other):
        """This program with the library and the launcher of another MPI."""
        env = dict(other.env, LD_LIBRARY_PATH=f"{other.library_folder}:{os.environ.get('LD_LIBRARY_PATH', '')}")
        file = self.folder / "pair.h5"
        run = self.launch(2, "train", "--force", "--out", file, "--set", "train.max_steps=20", *SMALL, env=env).wait()
        if run.status == 0:
            version = re.search(r"libtorch \S+ +(.*?) +world_size (\d)", run.text)
            return f"{version.group(1)}, {version.group(2)} ranks, {self.table(file, 'epochs')[-1]['parameter_checksum'][:8]}"
        missing = re.search(r"(libmpi\S*): cannot open", run.text)
        named = [line for line in run.messages() if "built for" in line or "start them with the mpirun of that MPI" in line or "if MPI does not start now" in line]
        return f"refused, {run.status}" if named else f"no {missing.group(1)}" if missing else f"status {run.status}: {run.text[-200:]!r}"

    def singleton(self):
        env = dict(self.env, PATH=f"{self.other}:{os.environ['PATH']}")
        run = self.launch(2, "train", "--out", self.folder / "single.h5", "--set", "train.max_steps=2", *SMALL, env=env).wait()
        named = [line for line in run.messages() if "start them with the mpirun of that MPI" in line]
        kept = (self.folder / "single.h5").exists()
        return f"{'refused' if run.status != 0 and not kept else 'NOT refused'}, {run.status}, {len(named)} message"


ALLREDUCE = ["--min", "4K", "--max", "1M", "--factor", "16", "--iters", "3",
    "--algorithm", "shared", "--algorithm", "ring", "--algorithm", "mpi", "--type", "float32", "--type", "bf16"]
COLUMNS = {
    "build": Mpi.build,
    "1 rank": lambda mpi: mpi.ranks(1),
    "2 ranks": lambda mpi: mpi.ranks(2),
    "4 ranks": lambda mpi: mpi.ranks(4),
    "verify (1, 2, 4)": Mpi.verify,
    "allreduce (2, 4)": Mpi.allreduce,
    "killed rank": Mpi.killed,
    "USR1 to the launcher": lambda mpi: mpi.signalled(signal.SIGUSR1),
    "TERM to the launcher": lambda mpi: mpi.signalled(signal.SIGTERM),
    "stopped rank": Mpi.stopped,
    "wrong configuration": Mpi.wrong,
    "another MPI's launcher": Mpi.singleton,
}


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=pathlib.Path)
    arguments.add_argument("names", nargs="*")
    arguments.add_argument("--pairs", action="store_true", help="every program with the library and launcher of every MPI")
    arguments.add_argument("--data", default=os.environ.get("HPML_CIFAR10"))
    given = arguments.parse_args()
    folder = given.folder.resolve()
    known = sorted(path.name.removeprefix("target-") for path in folder.glob("target-*"))
    if given.pairs:
        every = [Mpi(folder, name, given.data) for name in given.names or ["system", *known]]
        print("| built for | " + " | ".join(f"on {mpi.name}" for mpi in every) + " |\n|" + "---|" * (1 + len(every)), flush=True)
        for mpi in every:
            print(f"| {mpi.name} | " + " | ".join(mpi.with_library_of(other) for other in every) + " |", flush=True)
        return
    print("| MPI | " + " | ".join(COLUMNS) + " |\n|" + "---|" * (1 + len(COLUMNS)), flush=True)
    for name in given.names or ["system", *known]:
        mpi = Mpi(folder, name, given.data)
        cells = []
        for cell in COLUMNS.values():
            try:
                cells.append(cell(mpi))
            except Exception as error:  # one cell's failure is that cell's result
                cells.append(f"{type(error).__name__}: {error}")
        print(f"| {name}: {mpi.library() if mpi.hpml.exists() else '-'} | " + " | ".join(cells) + " |", flush=True)
        shutil.rmtree(mpi.folder)


if __name__ == "__main__":
    main()
