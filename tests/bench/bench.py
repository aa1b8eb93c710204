#!/usr/bin/env python3
"""bench.py IMAGES - measures Coffer on the images of dataset.sh and prints tables.

Backup and restore beside restic and borg (encrypted and compressed, as each does it by default), and beside what the
machine could do at best (ceiling.rs: cutting, zstd at level 1 and expanding on all cores, with nothing else to do).
Then reads through FUSE and NBD beside the raw image itself, read directly or served by qemu-nbd; then forks over NBD
beside qemu-nbd and nbdkit on a raw file with the same content; then a fork over iSCSI beside tgtd on such a file. Then backups
into object stores on loopback beside one into a folder, and reads over a link with a latency of 50 ms (stores.rs).

Figures hold for this machine at this moment; what travels are the ratios, taken side by side in one run. Nothing is
asserted about time; what was restored is compared.

Environment: BENCH_RUNS (default 1): whole runs, of which each figure is the best; BENCH_PEERS (default "restic borg");
BENCH_TABLES (default "backup reads forks iscsi stores"); CARGO_TARGET_DIR; TMPDIR: a disk with room for the repositories and an
image.
"""

import contextlib
import dataclasses
import filecmp
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

MIB = 1 << 20
PROGRAMS = os.path.join(os.path.abspath(os.environ.get("CARGO_TARGET_DIR", "target")), "release")
IMAGES = ("A-gen0", "A-gen1", "B-gen0")
# What is done, in this order, with one repository: title, image, and whose disk it is said to be.
STEPS = {
    "new": ("A-gen0, all of it new", "A-gen0", "A"),
    "again": ("A-gen0 again, read again", "A-gen0", "A"),
    "other": ("A-gen0 as another machine's", "A-gen0", "C"),
    "next": ("A-gen1, a day later", "A-gen1", "A"),
    "similar": ("B-gen0, a similar machine", "B-gen0", "B"),
    "restore": ("restore of A-gen1 to a file", "A-gen1", "A"),
    "stream": ("restore of A-gen1 to nowhere", "A-gen1", "A"),
    "warm": ("the same, out of the page cache", "A-gen1", "A"),
}


@dataclasses.dataclass
class Cost:
    """What a program took: seconds of wall clock, seconds of CPU, peak resident memory in bytes."""

    wall: float
    cpu: float
    rss: int

    def best(self, other):
        return Cost(min(self.wall, other.wall), min(self.cpu, other.cpu), min(self.rss, other.rss))


def run(command, scratch, stdout=subprocess.PIPE, **options):
    """Runs a command to its end and returns its cost; what it says is shown only if it fails."""
    times = os.path.join(scratch, "times")
    timed = ["/usr/bin/time", "-o", times, "-f", "%e %U %S %M", *command]
    streams = {"stdin": subprocess.DEVNULL, "stdout": stdout, "stderr": subprocess.PIPE}
    done = subprocess.run(timed, **streams, text=True, check=False, **options)
    if done.returncode != 0:
        sys.exit(f"bench: failed with {done.returncode}: {' '.join(command)}\n{done.stdout or ''}{done.stderr}")
    with open(times, encoding="ascii") as file:
        wall, user, system, rss = file.read().split()
    return Cost(float(wall), float(user) + float(system), int(rss) << 10)


def size(top):
    """Bytes of the files below a folder."""
    return sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(top) for name in names)


def evict(top):
    """Takes a file, or all files below a folder, out of the page cache."""
    names = [top] if os.path.isfile(top) else [os.path.join(f, name) for f, _, names in os.walk(top) for name in names]
    for name in names:
        file = os.open(name, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def warm(path):
    """Reads a file into the page cache, so that no tool pays for being first."""
    with open(path, "rb", buffering=0) as file:
        while file.read(16 * MIB):
            pass


def table(title, head, rows):
    """Prints rows of text; the first column flush left, the others flush right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    print(f"\n{title}\n")
    for row in [head, ["-" * width for width in widths], *rows]:
        cells = [cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))]
        print("  ".join(cells).rstrip(), flush=True)


def take_out(folder, out):
    """Moves the one file of a folder out of it, and the folder away."""
    os.rename(os.path.join(folder, os.listdir(folder)[0]), out)
    os.rmdir(folder)


class Coffer:
    """The product."""

    name = "coffer"

    def __init__(self, scratch):
        self.scratch = scratch
        self.repository = os.path.join(scratch, "coffer")
        password = os.path.join(scratch, "password")
        with open(password, "w", encoding="ascii") as file:
            file.write("benchmark\n")
        self.command = [os.path.join(PROGRAMS, "coffer"), "-r", self.repository, "--password-file", password]
        folders = {"XDG_CACHE_HOME": "coffer-cache", "XDG_STATE_HOME": "coffer-state"}
        self.environment = os.environ | {name: os.path.join(scratch, folder) for name, folder in folders.items()}

    def run(self, *arguments, **options):
        return run([*self.command, *arguments], self.scratch, env=self.environment, **options)

    def init(self):
        self.run("init")

    def backup(self, image, machine):
        return self.run("backup", "-w", machine, f"disk={image}")

    def restore(self, out):
        """Restores the latest point of machine A."""
        return self.run("restore", "A@latest", "--to", out)

    def stream(self):
        """The same to standard output."""
        return self.run("restore", "A@latest", "--to", "-", stdout=subprocess.DEVNULL)


class Restic:
    """Reads the image again although its time has not changed: a virtual machine's disk always has. Debian's version
    cannot restore sparse files: it writes the zeroes."""

    name = "restic"

    def __init__(self, scratch):
        self.scratch = scratch
        self.repository = os.path.join(scratch, "restic")
        cache = os.path.join(scratch, "restic-cache")
        self.environment = os.environ | {"RESTIC_PASSWORD": "benchmark", "RESTIC_CACHE_DIR": cache}

    def run(self, *arguments, **options):
        command = ["restic", "-q", "-r", self.repository, *arguments]
        return run(command, self.scratch, env=self.environment, **options)

    def init(self):
        self.run("init", "--repository-version", "2")

    def backup(self, image, machine):
        folder, name = os.path.split(image)
        return self.run("backup", "--force", "--host", machine, name, cwd=folder)

    def restore(self, out):
        cost = self.run("restore", "latest", "--host", "A", "--target", out + ".d")
        take_out(out + ".d", out)
        return cost

    def stream(self):
        return self.run("dump", "--host", "A", "latest", "A-gen1.raw", stdout=subprocess.DEVNULL)


class Borg:
    """Likewise without its cache of files."""

    name = "borg"

    def __init__(self, scratch):
        self.scratch = scratch
        self.repository = os.path.join(scratch, "borg")
        base = os.path.join(scratch, "borg-base")
        self.environment = os.environ | {"BORG_PASSPHRASE": "benchmark", "BORG_BASE_DIR": base}
        self.archives = []

    def run(self, *arguments, **options):
        return run(["borg", *arguments], self.scratch, env=self.environment, **options)

    def init(self):
        self.run("init", "-e", "repokey-blake2", self.repository)

    def backup(self, image, machine):
        folder, name = os.path.split(image)
        self.archives.append(f"{machine}-{len(self.archives)}")
        archive = f"{self.repository}::{self.archives[-1]}"
        options = ["--sparse", "--files-cache", "disabled", "--compression", "zstd"]
        return self.run("create", *options, archive, name, cwd=folder)

    def latest(self):
        return f"{self.repository}::{[name for name in self.archives if name.startswith('A-')][-1]}"

    def restore(self, out):
        os.mkdir(out + ".d")
        cost = self.run("extract", "--sparse", self.latest(), cwd=out + ".d")
        take_out(out + ".d", out)
        return cost

    def stream(self):
        return self.run("extract", "--stdout", self.latest(), stdout=subprocess.DEVNULL)


TOOLS = {tool.name: tool for tool in (Coffer, Restic, Borg)}


def back_up(tool, images, scratch):
    """Every step with one tool: costs by step, and the repository's size after those that add content."""
    costs, sizes = {}, {}
    tool.init()
    for step, (_, name, machine) in STEPS.items():
        image = os.path.join(images, f"{name}.raw")
        warm(image)
        if step == "restore":
            out = os.path.join(scratch, "restored.raw")
            evict(tool.repository)
            costs[step] = tool.restore(out)
            if not filecmp.cmp(out, image, shallow=False):
                sys.exit(f"bench: what {tool.name} restored is not what it backed up")
            os.unlink(out)
        elif step in ("stream", "warm"):
            if step == "stream":
                evict(tool.repository)
            costs[step] = tool.stream()
        else:
            costs[step] = tool.backup(image, machine)
            sizes[step] = size(tool.repository)
    return costs, sizes


def ceiling(image, scratch):
    """What ceiling.rs prints, and what cp needs to make a durable copy: step to (bytes, seconds, CPU seconds)."""
    command = [os.path.join(PROGRAMS, "coffer-ceiling"), image]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    split = [line.split("\t") for line in lines]
    steps = {step: (int(count), float(wall), float(cpu)) for step, count, wall, cpu in split}
    out = os.path.join(scratch, "copy.raw")
    cost = run(["sh", "-c", 'cp --sparse=always "$0" "$1" && sync "$1"', image, out], scratch)
    os.unlink(out)
    return steps | {"write": (steps["cut"][0], cost.wall, cost.cpu)}


def backup_tables(images, tools, runs):
    """Backup and restore beside the peers and beside the ceiling. Prints three tables."""
    costs, sizes, ceilings = {}, {}, {name: {} for name in IMAGES}
    for _ in range(runs):
        for name in tools:
            with tempfile.TemporaryDirectory(prefix="coffer-bench.") as scratch:
                measured, sizes[name] = back_up(TOOLS[name](scratch), images, scratch)
                for step, cost in measured.items():
                    costs[name, step] = cost.best(costs.get((name, step), cost))
        with tempfile.TemporaryDirectory(prefix="coffer-bench.") as scratch:
            for name, best in ceilings.items():
                for step, (count, *seconds) in ceiling(os.path.join(images, f"{name}.raw"), scratch).items():
                    best[step] = (count, *map(min, seconds, best.get(step, (count, *seconds))[1:]))
    rows = []
    for step, (title, image, _) in STEPS.items():
        for name in tools:
            cost, ours = costs[name, step], costs["coffer", step]
            rate = f"{ceilings[image]['cut'][0] / cost.wall / 1e6:.0f}"
            ratio = "" if name == "coffer" else f"{cost.cpu / ours.cpu:.1f}"
            rows.append([title, name, f"{cost.wall:.1f}", f"{cost.cpu:.1f}", rate, f"{cost.rss / MIB:.0f}", ratio])
            title = ""
    head = ["Backup and restore", "with", "s", "CPU s", "MB/s of data", "RSS MiB", "CPU against coffer"]
    table(f"Side by side, images in the page cache, on {os.cpu_count()} cores", head, rows)

    rows = []
    for title, step in (("A-gen0", "new"), ("and A-gen1", "next"), ("and B-gen0", "similar")):
        ours = sizes["coffer"][step]
        cells = [f"{sizes[name][step] / MIB:.0f}" for name in tools]
        rows.append([title, *cells, *(f"{sizes[name][step] / ours:.2f}" for name in tools if name != "coffer")])
    against = [f"{name} against coffer" for name in tools if name != "coffer"]
    table("Size of the repository, MiB", ["After", *tools, *against], rows)

    rows = []
    for title, step, image, best in (
        ("new data, against zstd -1 of its distinct chunks", "new", "A-gen0", "compress"),
        ("stored data, against reading, cutting and naming it", "other", "A-gen0", "cut"),
        ("unchanged data, against the same", "again", "A-gen0", "cut"),
        ("restore to nowhere, against zstd expanding the distinct chunks in memory", "stream", "A-gen1", "expand"),
        ("the same, out of the page cache", "warm", "A-gen1", "expand"),
        ("restore to a file, against cp and sync", "restore", "A-gen1", "write"),
    ):
        cost, (_, wall, cpu) = costs["coffer", step], ceilings[image][best]
        rate = ceilings[image]["cut"][0] / cost.cpu / 1e9
        figures = (cost.wall, wall, wall / cost.wall, cpu / cost.cpu, rate)
        rows.append([title, *(f"{figure:.2f}" for figure in figures)])
    head = ["Coffer", "s", "ceiling s", "share of ceiling", "by CPU", "GB of data per CPU s"]
    table("Against what all cores could do at best", head, rows)


def densest(image, length):
    """Where in the image the stretch of that length with the most data begins, and what share of it is data."""
    held = [0] * (os.path.getsize(image) // MIB + 1)
    with open(image, "rb") as file:
        at = 0
        with contextlib.suppress(OSError):  # ENXIO: no data beyond
            while True:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
                at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
                for block in range(start // MIB, -(-at // MIB)):
                    held[block] += min(at, (block + 1) * MIB) - max(start, block * MIB)
    blocks = length // MIB
    starts = range(max(1, len(held) - blocks))
    best = max(starts, key=lambda start: sum(held[start : start + blocks]))
    return best * MIB, sum(held[best : best + blocks]) / length


@contextlib.contextmanager
def server(command, ready, environment=None):
    """A program in the background until the block ends; yields its process id once `ready()` is true."""
    with tempfile.TemporaryFile("w+") as said:
        streams = {"stdin": subprocess.DEVNULL, "stdout": said, "stderr": said}
        with subprocess.Popen(command, env=environment, **streams) as process:
            try:
                deadline = time.monotonic() + 60
                while not ready():
                    if process.poll() is not None or time.monotonic() > deadline:
                        said.seek(0)
                        sys.exit(f"bench: did not come up: {' '.join(command)}\n{said.read()}")
                    time.sleep(0.05)
                yield process.pid
            finally:
                process.send_signal(signal.SIGTERM)


def load(pid):
    """A process's CPU seconds so far and its peak memory in bytes."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        peak = next(line.split()[1] for line in file if line.startswith("VmHWM"))
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), int(peak) << 10


def resident(pid):
    """A process's memory now, in bytes."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return int(next(line.split()[1] for line in file if line.startswith("VmRSS"))) << 10


def fio(target, start, length, *options):
    """Reads once with fio; returns reads per second, bytes per second, and the number of reads."""
    command = ["fio", "--name=read", "--readonly", "--output-format=json", "--invalidate=0", "--thread"]
    command += ["--group_reporting", f"--offset={start}", f"--size={length}", *target, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"bench: fio failed: {' '.join(command)}\n{done.stdout}{done.stderr}")
    report = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["read"]
    return report["iops"], report["bw_bytes"], report["total_ios"]


WARM = 32 * MIB  # fits into the cache that a server has unless told otherwise
RANDOM = ["--rw=randread", "--bs=4k"]
SEQUENTIAL = ["--rw=read", "--bs=1m"]
FOR_A_WHILE = ["--time_based", "--runtime=4", "--norandommap"]


def read_tables(images):
    """Reads of A-gen1 through FUSE and NBD, cold and warm. Prints a table."""
    image = os.path.join(images, "A-gen1.raw")
    length = 512 * MIB
    start, share = densest(image, length)
    rows = []
    with tempfile.TemporaryDirectory(prefix="coffer-bench.") as scratch:
        coffer = Coffer(scratch)
        coffer.init()
        coffer.backup(image, "A")
        mnt = os.path.join(scratch, "mnt")
        os.mkdir(mnt)
        file = os.path.join(scratch, "socket")

        def nbd(name):
            return ["--ioengine=nbd", f"--uri=nbd+unix:///{name}?socket={file}"]

        def fuse():
            return [os.path.join(folder, name) for folder, _, names in os.walk(mnt) for name in names if ".raw" in name]

        doors = {
            "the raw image": (None, lambda: True, lambda: ["--ioengine=psync", f"--filename={image}"]),
            "coffer mount": (
                [*coffer.command, "mount", mnt],
                lambda: os.path.ismount(mnt) and len(fuse()) == 1,
                lambda: ["--ioengine=psync", f"--filename={fuse()[0]}"],
            ),
            "qemu-nbd of the raw image": (
                ["qemu-nbd", "-r", "-f", "raw", "-t", "-e", "16", "-k", file, image],
                lambda: os.path.exists(file),
                lambda: nbd(""),
            ),
            "coffer serve nbd": (
                [*coffer.command, "serve", "nbd", "--listen", f"unix:{file}", "disk=A@latest"],
                lambda: os.path.exists(file),
                lambda: nbd("disk"),
            ),
        }
        baseline = {}
        for door, (command, ready, target) in doors.items():
            deep = ["--iodepth=32"] if "nbd" in door else ["--numjobs=32"]
            few = [f"--number_ios={8192 if 'nbd' in door else 8192 // 32}"]
            patterns = {
                "cold, random 4 KiB, 32 at once": (True, [*RANDOM, *deep, *few]),
                "cold, in order, 1 MiB": (True, SEQUENTIAL),
                "cold, in order, 1 MiB, the whole disk": (True, [*SEQUENTIAL, *(["--iodepth=16"] if "nbd" in door else [])]),
            }
            if "nbd" in door:  # through FUSE the kernel's page cache would answer
                patterns |= {
                    "warm, random 4 KiB, 32 at once": (False, [*RANDOM, *deep, *FOR_A_WHILE]),
                    "warm, random 4 KiB, one at a time": (False, [*RANDOM, *FOR_A_WHILE]),
                    "warm, in order, 1 MiB": (False, [*SEQUENTIAL, "--iodepth=4", *FOR_A_WHILE]),
                }
            for pattern, (cold, options) in patterns.items():
                with contextlib.ExitStack() as stack:
                    evict(coffer.repository)
                    evict(image)
                    pid = stack.enter_context(server(command, ready, coffer.environment)) if command else os.getpid()
                    if "whole" in pattern:
                        where = (0, os.path.getsize(image))
                    else:
                        where = (start, length if cold else WARM)
                    if not cold:
                        fio(target(), *where, *SEQUENTIAL)
                    before = load(pid)[0]
                    iops, speed, reads = fio(target(), *where, *options)
                    cpu, rss = load(pid)
                measured = iops if "random" in pattern else speed
                base = baseline.setdefault((pattern, "nbd" in door), measured)
                shown = f"{iops:.0f}/s" if "random" in pattern else f"{speed / 1e6:.0f} MB/s"
                ratio = f"{measured / base:.2f}" if "coffer" in door else ""
                own = [f"{(cpu - before) / reads * 1e6:.0f}", f"{rss / MIB:.0f}"] if command else ["", ""]
                rows.append([pattern, door, shown, ratio, *own])
    order = list(dict.fromkeys(row[0] for row in rows))
    rows.sort(key=lambda row: order.index(row[0]))
    head = ["Reads", "through", "speed", "against the raw image", "server's CPU us a read", "RSS MiB"]
    title = f"The {length // MIB} MiB of A-gen1 with the most data ({share:.0%}); cold: no cache has any of it; "
    title += f"warm: {WARM // MIB} MiB, read before"
    table(title, head, rows)


def job(target, length, *options, program="fio"):
    """One fio job on the first bytes of a device or file: requests a second, bytes a second, 99th percentile in us."""
    command = [program, "--name=job", "--output-format=json", "--invalidate=0", "--thread", "--norandommap"]
    command += [f"--size={length}", *target, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"bench: fio failed: {' '.join(command)}\n{done.stdout}{done.stderr}")
    report = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    report = report["read"] if report["read"]["total_ios"] else report["write"]
    return report["iops"], report["bw_bytes"], report["clat_ns"]["percentile"]["99.000000"] / 1e3


FORK_BYTES = 512 * MIB
FORK_RUNS = 3
# What is done, in this order: title, whether also through the read-only point and by nbdkit, and fio's options.
FORK_STEPS = (
    ("random 4 KiB reads, one at a time", True, ["--rw=randread", "--bs=4k", "--iodepth=1"]),
    ("random 4 KiB reads, 32 at once", True, ["--rw=randread", "--bs=4k", "--iodepth=32"]),
    ("reads in order, 1 MiB", True, ["--rw=read", "--bs=1m", "--iodepth=4"]),
    ("random 4 KiB writes, 32 at once", False, ["--rw=randwrite", "--bs=4k", "--iodepth=32"]),
    ("writes in order, 1 MiB", False, ["--rw=write", "--bs=1m", "--iodepth=4"]),
    ("random 4 KiB reads of what was written, one at a time", False, ["--rw=randread", "--bs=4k", "--iodepth=1"]),
    ("random 4 KiB reads of what was written, 32 at once", False, ["--rw=randread", "--bs=4k", "--iodepth=32"]),
    ("random 4 KiB writes, each flushed", False, ["--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"]),
)


def cut(image, start, length, raw):
    """Makes a file of a part of an image."""
    with open(image, "rb", buffering=0) as file, open(raw, "wb", buffering=0) as out:
        file.seek(start)
        for _ in range(length // MIB):
            out.write(file.read(MIB))


def fork_table(images):
    """A point and its fork over NBD, beside qemu-nbd and nbdkit on a raw file, all warm. Prints a table."""
    image = os.path.join(images, "A-gen1.raw")
    start, share = densest(image, FORK_BYTES)
    best = {}
    with tempfile.TemporaryDirectory(prefix="coffer-bench.") as scratch, contextlib.ExitStack() as stack:
        raw, sockets = os.path.join(scratch, "raw"), {}
        cut(image, start, FORK_BYTES, raw)
        coffer = Coffer(scratch)
        coffer.init()
        coffer.backup(raw, "F")
        for name in ("own", "touched"):
            coffer.run("fork", "create", name, "F@latest")
        doors = {
            "qemu-nbd": ["qemu-nbd", "-f", "raw", "-t", "-e", "16", "-k", "SOCKET", raw],
            "nbdkit": ["nbdkit", "-f", "-U", "SOCKET", "file", raw],
            "coffer": [*coffer.command, "serve", "nbd", "--cache-size", "1G", "--listen", "unix:SOCKET"]
            + ["point=F@latest", "own=fork:own", "touched=fork:touched"],
        }
        for door, command in doors.items():
            path = sockets[door] = os.path.join(scratch, f"{door}.socket")
            command = [part.replace("SOCKET", path) for part in command]
            stack.enter_context(server(command, lambda path=path: os.path.exists(path), coffer.environment))

        def nbd(door, name=""):
            return ["--ioengine=nbd", f"--uri=nbd+unix:///{name}?socket={sockets[door]}"]

        def measure(step, through, target, options):
            """Keeps the best of what was measured."""
            measured = job(target, FORK_BYTES, *options)
            best[step, through] = max(best.get((step, through), measured), measured)

        targets = {"qemu-nbd": nbd("qemu-nbd"), "fork": nbd("coffer", "own")}
        readers = targets | {"nbdkit": nbd("nbdkit"), "point": nbd("coffer", "point")}
        for target in readers.values():
            job(target, FORK_BYTES, "--rw=read", "--bs=1m", "--iodepth=4")
        for step, reads, options in FORK_STEPS:
            if "flushed" in step:
                plain = ["--ioengine=psync", f"--filename={raw}"]
                options = [option for option in options if "iodepth" not in option]
                for target in (targets["fork"], plain):
                    job(target, FORK_BYTES, "--rw=write", "--bs=1m", "--end_fsync=1")
                for _ in range(FORK_RUNS):
                    measure(step, "fork", targets["fork"], [*options, *FOR_A_WHILE])
                    measure(step, "qemu-nbd", targets["qemu-nbd"], [*options, *FOR_A_WHILE])
                    measure(step, "a plain file", plain, [*options[:-1], "--fdatasync=1", *FOR_A_WHILE])
                for run in range(FORK_RUNS):
                    first = "the same, the first on their blocks"
                    fresh = ["--ioengine=psync", f"--filename={os.path.join(scratch, f'fresh{run}')}", "--fallocate=none"]
                    # Each block once: in an order that does not repeat, and a part of the disk for each run.
                    part = ["--number_ios=4000", "--norandommap=0", f"--randseed={run}"]
                    part += [f"--offset={FORK_BYTES // 4 * run}", f"--size={FORK_BYTES // 4}"]
                    measure(first, "fork", nbd("coffer", "touched"), [*options, *part])
                    measure(first, "a plain file", fresh, [*options[:-1], "--fdatasync=1", *part])
                continue
            for _ in range(FORK_RUNS):
                for through, target in (readers if reads else targets).items():
                    measure(step, through, target, [*options, *FOR_A_WHILE])
    rows = []
    for (step, through), (rate, speed, late) in best.items():
        yardstick = best.get((step, "a plain file")) or best[step, "qemu-nbd"]
        shown = f"{speed / 1e6:.0f} MB/s" if "1 MiB" in step else f"{rate:.0f}/s"
        ratio = f"{rate / yardstick[0]:.2f}" if through in ("fork", "point") else ""
        rows.append([step, through, shown, ratio, f"{late:.0f}"])
    order = list(dict.fromkeys(row[0] for row in rows))
    rows.sort(key=lambda row: order.index(row[0]))
    head = ["Forks over NBD", "through", "speed", "against qemu-nbd or the file", "99 % within us"]
    table(f"{FORK_BYTES // MIB} MiB ({share:.0%} data), warm, best of {FORK_RUNS}", head, rows)


def store_table(images):
    """What stores.rs prints, as one table: backups beside the one into a folder, reads beside what the link gives."""
    command = [os.path.join(PROGRAMS, "coffer-stores"), os.path.join(images, "A-gen0.raw")]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    split = [line.split("\t") for line in lines]
    rates = {step: int(count) / float(wall) for step, count, wall in split}
    yardsticks = {"mount": "link", "nbd": "link"}
    for store in ("seaweedfs", "ceph"):
        # Where Coffer's own share of the processors hardly grows, what the first lacks is the store's: it runs on the same ones.
        yardsticks |= {f"backup {store}": "backup folder", f"stored {store}": f"put {store}"}
        yardsticks[f"processor {store}"] = "processor folder"
    rows = []
    for step, count, wall in split:
        yardstick = yardsticks.get(step)
        ratio = f"{rates[step] / rates[yardstick]:.2f} of {yardstick}" if yardstick else ""
        rows.append([step, f"{int(count) / MIB:.0f}", f"{float(wall):.1f}", f"{rates[step] / 1e6:.0f}", ratio])
    table("Object stores", ["Step", "MiB", "s", "MB/s", "ratio"], rows)


# fio with its engine for iSCSI, as tests/setup.sh builds it.
FIO_FOR_ISCSI = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../target/fio/fio")
IQN = "iqn.2026-01.bench:disk"
ISCSI_STEPS = (
    ("random 4 KiB reads, one at a time", ["--rw=randread", "--bs=4k", "--iodepth=1"]),
    ("random 4 KiB reads, 32 at once", ["--rw=randread", "--bs=4k", "--iodepth=32"]),
    ("reads in order, 1 MiB", ["--rw=read", "--bs=1m", "--iodepth=4"]),
    ("random 4 KiB writes, one at a time", ["--rw=randwrite", "--bs=4k", "--iodepth=1"]),
    ("random 4 KiB writes, 32 at once", ["--rw=randwrite", "--bs=4k", "--iodepth=32"]),
    ("writes in order, 1 MiB", ["--rw=write", "--bs=1m", "--iodepth=4"]),
)
SESSIONS = 256


def free_port():
    """A port of loopback that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_listening(port):
    """Whether somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def log_in(port, session):
    """A connection with a session of its own, as RFC 7143 has it, in which 64 KiB were read."""
    text = f"InitiatorName=iqn.2026-01.bench:{session}\0TargetName={IQN}\0SessionType=Normal\0".encode()
    # A login from the operational stage straight to the end, with an ISID of its own.
    head = bytes([0x43, 0x87, 0, 0, 0]) + len(text).to_bytes(3, "big") + b"\x80\0\0\0" + session.to_bytes(2, "big")
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(head.ljust(48, b"\0") + text.ljust(-len(text) % 4 + len(text), b"\0"))
    answer = connection.recv(48, socket.MSG_WAITALL)
    if len(answer) != 48 or answer[0] != 0x23 or answer[36] != 0:
        sys.exit(f"bench: the login of session {session} was answered {answer.hex()}")
    connection.recv(int.from_bytes(answer[5:8], "big") + 3 & ~3, socket.MSG_WAITALL)
    # TEST UNIT READY hears of the start, and then it is READ(10)'s turn.
    for number, cdb, length in ((0, bytes(6), 0), (1, bytes([0x28, 0, 0, 0, 0, 0, 0, 0, 128, 0]), 65536)):
        head = bytes([1, 0xC0 if length else 0x80]).ljust(8, b"\0") + bytes([0, 1]).ljust(8, b"\0")
        head += b"".join(field.to_bytes(4, "big") for field in (number, length, number, number + 1))
        connection.sendall(head + cdb.ljust(16, b"\0"))
        got, is_over = 0, False
        while not is_over:
            answer = connection.recv(48, socket.MSG_WAITALL)
            size = int.from_bytes(answer[5:8], "big")
            connection.recv(size + 3 & ~3, socket.MSG_WAITALL)
            is_data = answer[0] == 0x25
            got += size if is_data else 0
            is_over = not is_data or answer[1] & 1
        if got != length:
            sys.exit(f"bench: session {session} read {got} bytes instead of {length}")
    return connection


def tgtd(raw, port, stack):
    """tgtd with a raw file as LUN 1, until the stack ends."""
    control = str(port % 30000)
    admin = ["tgtadm", "-C", control, "--lld", "iscsi", "--op"]

    def is_up():
        return subprocess.run([*admin, "show", "--mode", "sys"], capture_output=True, check=False).returncode == 0

    command = ["tgtd", "-f", "-C", control, "--iscsi", f"portal=127.0.0.1:{port}"]
    pid = stack.enter_context(server(command, is_up))
    # It does not go while a target is there.
    for order in (["delete", "--mode", "sys"], ["delete", "--force", "--mode", "target", "--tid", "1"]):
        stack.callback(subprocess.run, [*admin, *order], check=False)
    for order in (
        ["new", "--mode", "target", "--tid", "1", "-T", IQN],
        ["new", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "-b", raw],
        ["bind", "--mode", "target", "--tid", "1", "-I", "ALL"],
    ):
        subprocess.run([*admin, *order], check=True)
    return pid


def iscsi_table(images):
    """A fork as a LUN, beside tgtd on a raw file, over TCP on loopback, all warm. Prints a table."""
    image = os.path.join(images, "A-gen1.raw")
    start, share = densest(image, FORK_BYTES)
    best = {}
    with tempfile.TemporaryDirectory(prefix="coffer-bench.") as scratch, contextlib.ExitStack() as stack:
        raw, ports = os.path.join(scratch, "raw"), {"coffer": free_port(), "tgtd": free_port()}
        cut(image, start, FORK_BYTES, raw)
        coffer = Coffer(scratch)
        coffer.init()
        coffer.backup(raw, "I")
        coffer.run("fork", "create", "own", "I@latest")
        serve = ["serve", "iscsi", "--listen", f"127.0.0.1:{ports['coffer']}", "--target", IQN, "--lun", "1=fork:own"]
        pid = stack.enter_context(
            server([*coffer.command, *serve], lambda: is_listening(ports["coffer"]), coffer.environment)
        )
        tgtd(raw, ports["tgtd"], stack)

        def measure(door, *options):
            address = f"iscsi\\://127.0.0.1\\:{ports[door]}/{IQN.replace(':', chr(92) + ':')}/1"
            target = ["--ioengine=libiscsi", f"--filename={address}"]
            return job(target, FORK_BYTES, *options, program=FIO_FOR_ISCSI)

        for door in ports:
            measure(door, "--rw=write", "--bs=1m", "--iodepth=4")
            measure(door, "--rw=read", "--bs=1m", "--iodepth=4")
        for step, options in ISCSI_STEPS:
            os.sync()  # so that nobody waits for what was written before
            for _ in range(FORK_RUNS):
                for door in ports:
                    measured = measure(door, *options, *FOR_A_WHILE)
                    best[step, door] = max(best.get((step, door), measured), measured)
        before = resident(pid)
        sessions = [log_in(ports["coffer"], number) for number in range(SESSIONS)]
        after = resident(pid)
        for connection in sessions:
            connection.close()
    rows = []
    for (step, door), (rate, speed, late) in best.items():
        shown = f"{speed / 1e6:.0f} MB/s" if "1 MiB" in step else f"{rate:.0f}/s"
        yardstick, yardstick_late = best[step, "tgtd"][0], best[step, "tgtd"][2]
        ratios = (f"{rate / yardstick:.2f}", f"{late / yardstick_late:.2f}") if door == "coffer" else ("", "")
        rows.append([step, door, shown, ratios[0], f"{late:.0f}", ratios[1]])
    head = ["A fork over iSCSI", "through", "speed", "against tgtd", "99 % within us", "against tgtd"]
    title = f"{FORK_BYTES // MIB} MiB ({share:.0%} data), warm, best of {FORK_RUNS}; "
    title += f"{SESSIONS} sessions more that read 64 KiB each: "
    title += f"{before / MIB:.0f} MiB of memory become {after / MIB:.0f}"
    table(title, head, rows)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    wanted = os.environ.get("BENCH_TABLES", "backup reads forks iscsi stores").split()
    tools = ["coffer", *os.environ.get("BENCH_PEERS", "restic borg").split()]
    if "backup" in wanted:
        backup_tables(os.path.abspath(sys.argv[1]), tools, int(os.environ.get("BENCH_RUNS", "1")))
    if "reads" in wanted:
        read_tables(os.path.abspath(sys.argv[1]))
    if "forks" in wanted:
        fork_table(os.path.abspath(sys.argv[1]))
    if "iscsi" in wanted:
        iscsi_table(os.path.abspath(sys.argv[1]))
    if "stores" in wanted:
        store_table(os.path.abspath(sys.argv[1]))


main()
