"""Faults, reads and writes of one contiguous BO against the C reference server and plain memory.

Both servers are mounted at once with the same readahead, a SCHED_IDLE spinner keeps every processor awake, and every
test runs on one after the other, the first one changing from round to round. The table has medians; the ratio is that
of ttmfs to C within this run, which is the only number to compare with another machine.
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
    *("fault1", "fault4", "sequential", "normal", "populate"),
    *("pread", "hot", "pwrite", "pwrite4k", "direct", "memset"),
]
GOALS = {
    "fault1": Goal(1.0),
    "fault4": Goal(1.5),
    "sequential": Goal(0.95, at_least=True),
    "populate": Goal(0.95, at_least=True),
    "pread": Goal(0.95, at_least=True),
    "pwrite": Goal(0.75, at_least=True),
}
TEST_SECONDS = 180.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this subcommand."""
    parser.add_argument("--rounds", type=int, default=5, help="alternations (default and sensible minimum 5)")
    parser.add_argument("--size", type=parse_size, default=512 << 20, help="of the BO (default 512M)")
    parser.add_argument("--place", choices=("vram", "system"), default="vram", help="where the BO is (default vram)")
    parser.add_argument("--tests", type=lambda t: t.split(","), default=TESTS, help="some of " + ",".join(TESTS))
    parser.add_argument("--no-memory", action="store_true", help="leave out plain memory (a tmpfs file)")


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
    title = f"{options.size >> 20} MiB BO in {options.place}, medians of {options.rounds} rounds"
    report = Report(title, subject="ttmfs", reference="C", goals=dict(GOALS))
    report.more = {"size": options.size, "place": options.place, "rounds": options.rounds}
    unknown = set(options.tests) - set(TESTS)
    if unknown:
        raise ScriptError(f"no test {sorted(unknown)[0]!r}; there are {', '.join(TESTS)}")
    with ExitStack() as stack:
        programs = stack.enter_context(built("memfs", "cbench"))
        subjects = [c_subject(stack, programs["memfs"], options.size), ttmfs_subject(stack, options, report)]
        if not options.no_memory:
            subjects.append(memory_subject(stack, options.size))
        stack.enter_context(awake_processors())
        for number in range(options.rounds):
            for test in options.tests:
                console.print(f"\r  round {number + 1} of {options.rounds}: {test:<12}", end="")
                for subject in subjects[:: 1 if number % 2 == 0 else -1]:
                    found, reads = subject.run(programs["cbench"], test)
                    for name, (value, unit) in found.items():
                        report.add(name, unit, subject.name, value)
                    if reads is not None and found:
                        report.add_requests(next(iter(found)), subject.name, reads)
        console.print()
    return report


def c_subject(stack: ExitStack, program: Path, size: int) -> Subject:
    """The reference server's file."""
    server = stack.enter_context(MemfsServer(program, size))
    set_read_ahead(server, READ_AHEAD_KIB)
    return Subject("C", server.mount / "bo", "fuse", lambda: int(json.loads(server.read("requests"))["read"]))


def ttmfs_subject(stack: ExitStack, options: argparse.Namespace, report: Report) -> Subject:
    """A BO that is contiguous where it was asked to be, with content, on a device of its own."""
    return bo_subject(stack.enter_context(roomy_device(options.size)), options, report)


def roomy_device(size: int) -> Device:
    """A device with room for a BO of `size` bytes anywhere."""
    room = size + (64 << 20)
    return Device(
        [f"--vram={room}", f"--visible-vram={room}", f"--gtt={room}", f"--memory={2 * room}", "--prefault=256"]
    )


def bo_subject(device: Device, options: argparse.Namespace, report: Report) -> Subject:
    """Make that BO."""
    size = options.size
    try:
        set_read_ahead(device, READ_AHEAD_KIB)
        path = device.mount / "bo" / "bench"
        done = device.run(["truncate", "-s", str(size), str(path)], 60)
        if done.returncode:
            raise ScriptError(f"cannot make the BO: {done.stderr.strip()}")
        device.write("objects/bench/validate", "vram:contiguous" if options.place == "vram" else "system")
        done = device.run(["dd", "if=/dev/zero", f"of={path}", "bs=1M", f"count={size >> 20}", "conv=notrunc"], 120)
        if done.returncode:
            raise ScriptError(f"cannot fill the BO: {done.stderr.strip()}")
        status = json.loads(device.read("objects/bench/status.json"))
        report.more["bo"] = {key: status.get(key) for key in ("mem_type", "contiguous", "runs", "page_orders")}
        report.notes.append(f"the BO: {report.more['bo']}")
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
