"""Faults, reads and writes of one contiguous BO against the C reference server and plain memory.

All servers are mounted at once with the same readahead, a SCHED_IDLE spinner keeps every processor awake, and every
test runs on one after the other, the first one changing from round to round. The table has medians; the ratio is that
of ttmfs to C within this run, which is the only number to compare with another machine. "C threads" is the same server
with libfuse's multi-threaded loop. Rows "in system" have the BO in system; the reference is the same C server.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from lib.device import Device, ScriptError

from .common import Goal, MemfsServer, Report, awake_processors, built, console, parse_size, set_read_ahead

READ_AHEAD_KIB = 1024
TESTS = [
    *("fault1", "fault4", "fault16", "fault4p", "sequential", "normal", "populate"),
    *("pread", "hot", "pwrite", "pwrite4k", "direct", "memset"),
]
GOALS = {
    "fault1": Goal(0.8),
    "fault4": Goal(1.3),
    "sequential": Goal(1.0, at_least=True),
    "populate": Goal(1.0, at_least=True),
    "pread": Goal(1.0, at_least=True),
    "pwrite": Goal(1.0, at_least=True),
    "direct_read": Goal(1.0, at_least=True),
    "direct_write": Goal(1.0, at_least=True),
}
IN_SYSTEM = " in system"
TEST_SECONDS = 180.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this subcommand."""
    parser.add_argument("--rounds", type=int, default=5, help="alternations (default and sensible minimum 5)")
    parser.add_argument("--size", type=parse_size, default=512 << 20, help="of the BO (default 512M)")
    parser.add_argument("--place", choices=("vram", "system", "both"), default="both", help="of the BO (default both)")
    parser.add_argument("--tests", type=lambda t: t.split(","), default=TESTS, help="some of " + ",".join(TESTS))
    parser.add_argument("--no-memory", action="store_true", help="leave out plain memory (a tmpfs file)")
    parser.add_argument("--no-threads", action="store_true", help="leave out the C server with threads")


class Subject:
    """One file to measure, and how many READs its server has seen."""

    def __init__(self, name: str, path: Path, kind: str, reads: Callable[[], int] | None) -> None:
        self.name, self.path, self.kind, self.reads = name, path, kind, reads

    def run(self, cbench: Path, test: str) -> tuple[dict[str, tuple[float, str]], int | None]:
        """One run of one test: metric to (value, unit), and the READs it cost."""
        before = self.reads() if self.reads else None
        try:
            done = subprocess.run(
                [cbench, self.path, self.kind, test], capture_output=True, text=True, timeout=TEST_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise ScriptError(f"{test} on {self.name} did not end in {TEST_SECONDS:.0f} s") from None
        if done.returncode:
            raise ScriptError(f"{test} on {self.name} failed: {done.stderr.strip()}")
        reads = self.reads() - before if self.reads and before is not None else None
        lines = [line.split() for line in done.stdout.splitlines()]
        return {name: (float(value), unit) for name, value, unit in lines}, reads


def run(options: argparse.Namespace) -> Report:
    """Measure."""
    places = ["vram", "system"] if options.place == "both" else [options.place]
    title = f"{options.size >> 20} MiB BO in {' and '.join(places)}, medians of {options.rounds} rounds"
    report = Report(title, subject="ttmfs", reference="C")
    for place in places:
        report.goals.update({name + suffix_of(place): goal for name, goal in GOALS.items()})
    report.more = {"size": options.size, "place": options.place, "rounds": options.rounds, "bos": {}}
    unknown = set(options.tests) - set(TESTS)
    if unknown:
        raise ScriptError(f"no test {sorted(unknown)[0]!r}; there are {', '.join(TESTS)}")
    with ExitStack() as stack:
        programs = stack.enter_context(built("memfs", "cbench"))
        measured = [(suffix_of(p), bo_in(stack, p, options.size, report)) for p in places]
        others = [c_subject(stack, programs["memfs"], options.size)]
        if not options.no_threads:
            others.append(c_subject(stack, programs["memfs"], options.size, threads=True))
        if not options.no_memory:
            others.append(memory_subject(stack, options.size))
        stack.enter_context(awake_processors())
        for number in range(options.rounds):
            for test in options.tests:
                console.print(f"\r  round {number + 1} of {options.rounds}: {test:<12}", end="")
                order = [(suffix, subject) for suffix, subject in measured] + [("", subject) for subject in others]
                for suffix, subject in order[:: 1 if number % 2 else -1]:
                    found, reads = subject.run(programs["cbench"], test)
                    # The others are measured once, and stand beside each place.
                    rows = [suffix] if subject.name == "ttmfs" else [suffix_of(place) for place in places]
                    for row in rows:
                        add(report, subject.name, row, found, reads)
        console.print()
    return report


def suffix_of(place: str) -> str:
    """What rows of a BO there end with."""
    return IN_SYSTEM if place == "system" else ""


def add(report: Report, who: str, row: str, found: dict[str, tuple[float, str]], reads: int | None) -> None:
    """What one run of one test has found, in rows that end with `row`."""
    for name, (value, unit) in found.items():
        report.add(name + row, unit, who, value)
    if reads is not None and found:
        report.add_requests(next(iter(found)) + row, who, reads)


def c_subject(stack: ExitStack, program: Path, size: int, *, threads: bool = False) -> Subject:
    """The reference server's file."""
    server = stack.enter_context(MemfsServer(program, size, threads=threads))
    set_read_ahead(server, READ_AHEAD_KIB)
    name = "C threads" if threads else "C"
    return Subject(name, server.mount / "bo", "fuse", lambda: int(json.loads(server.read("requests"))["read"]))


def bo_in(stack: ExitStack, place: str, size: int, report: Report) -> Subject:
    """A BO that is contiguous where it was asked to be, with content, on a device of its own."""
    return bo_subject(stack.enter_context(roomy_device(size)), place, size, report)


def roomy_device(size: int) -> Device:
    """A device with room for a BO of `size` bytes anywhere."""
    room = size + (64 << 20)
    return Device(
        [f"--vram={room}", f"--visible-vram={room}", f"--gtt={room}", f"--memory={2 * room}", "--prefault=256"]
    )


def bo_subject(device: Device, place: str, size: int, report: Report) -> Subject:
    """Make that BO."""
    try:
        set_read_ahead(device, READ_AHEAD_KIB)
        path = device.mount / "bo" / "bench"
        done = device.run(["truncate", "-s", str(size), str(path)], 60)
        if done.returncode:
            raise ScriptError(f"cannot make the BO: {done.stderr.strip()}")
        device.write("objects/bench/validate", "vram:contiguous" if place == "vram" else "system")
        done = device.run(["dd", "if=/dev/zero", f"of={path}", "bs=1M", f"count={size >> 20}", "conv=notrunc"], 120)
        if done.returncode:
            raise ScriptError(f"cannot fill the BO: {done.stderr.strip()}")
        status = json.loads(device.read("objects/bench/status.json"))
        bo = {key: status.get(key) for key in ("mem_type", "contiguous", "runs", "page_orders")}
        report.more.setdefault("bos", {})[place] = bo
        report.notes.append(f"the BO in {place}: {bo}")
    except ScriptError:
        console.print(device.diagnosis(), markup=False, highlight=False)
        raise

    def reads() -> int:
        return int(device.stats()["requests"]["read"])

    return Subject("ttmfs", path, "fuse", reads)


def memory_subject(stack: ExitStack, size: int) -> Subject:
    """A tmpfs file with content: what the same accesses cost without a server."""
    path = Path("/dev/shm/ttmfs-bench-memory")
    stack.callback(lambda: path.unlink(missing_ok=True))
    block = b"\1" * (1 << 20)
    with path.open("wb") as file:
        for _ in range(size >> 20):
            file.write(block)
    return Subject("memory", path, "tmpfs", None)
