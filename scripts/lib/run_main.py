"""`scripts/run`: overcommitted VRAM, verified through three engines under a storm of commands.

Promise: exit status 0 only if every pass verified every byte, by fio and by a check that shares no code with it, and in
the pass with a small visible window at least one fault moved a BO into it.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from . import unprivileged
from .device import ROOT, Device, ScriptError, ttmfs_command
from .fio import FIO_JOBS, FioResult, Storm, add_up, run_fio

JOB = FIO_JOBS / "overcommit.fio"
NAMES = [f"{engine}.{number}" for engine in ("mmap", "psync", "libaio") for number in range(4)]
ROUND_SECONDS = 240.0  # one round of fio takes seconds; this is where it counts as hung
STORMS = 2
WORDS = "validate evict unmap"
LONGEST_MS = 5000.0  # no fault and no operation of a client may take longer
EMPTY_SECONDS = 10.0  # until the memory of unlinked BOs is back
console = Console(stderr=True)


def parse_size(text: str) -> int:
    """128M and the like, in bytes."""
    unit = {"K": 10, "M": 20, "G": 30}.get(text[-1:].upper())
    return int(text[:-1]) << unit if unit else int(text)


@dataclass
class Pass:
    """One pass over the job and what came of it."""

    title: str
    options: list[str]
    prefix: list[str] = field(default_factory=list)
    needs_window_moves: bool = False
    failures: list[str] = field(default_factory=list)
    rounds: int = 0
    fio_verified: int = 0
    fio_max_ms: float = 0.0
    oldest_ms: float = 0.0
    checked: int = 0
    wrong: int | None = None
    storm: dict[str, int] = field(default_factory=dict)
    stats: dict[str, Any] = field(default_factory=dict)


class Progress(threading.Thread):
    """Prints what the device did, every few seconds, until stopped."""

    def __init__(self, device: Device, what: Pass) -> None:
        super().__init__(daemon=True)
        self._device, self._pass = device, what
        self._stopped = threading.Event()
        self._since = time.monotonic()

    def run(self) -> None:
        while not self._stopped.wait(3.0):
            try:
                stats = self._device.stats()
            except (ScriptError, ValueError) as error:
                console.print(f"  [yellow]{error}[/]")
                continue
            self._pass.oldest_ms = max(self._pass.oldest_ms, pick(stats, "requests.oldest_ms") or 0.0)
            console.print(
                f"  {time.monotonic() - self._since:5.1f} s  round {self._pass.rounds + 1}  "
                f"moves {pick(stats, 'moves.count')}  moved {mib(pick(stats, 'moves.bytes'))}  "
                f"faults {pick(stats, 'faults.count')}  retries {pick(stats, 'faults.retries')}",
                highlight=False,
            )

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self.join(15)


def pick(stats: dict[str, Any], path: str) -> Any:
    """A value of the stats by its dotted name, None when it is not there."""
    value: Any = stats
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def mib(value: Any) -> str:
    """Bytes as MiB."""
    return "-" if value is None else f"{value / (1 << 20):.0f} MiB"


def one_pass(what: Pass, *, seconds: float, vram: int, keep: bool) -> None:
    """Mount, run rounds of fio under the storm for `seconds`, read all back; fills `what`."""
    size = (vram * 3 // 2 // len(NAMES)) & -65536
    device = Device([f"--vram={vram}", *what.options], prefix=what.prefix, keep=keep)
    try:
        with device:
            try:
                work(device, what, seconds, size)
                what.stats = device.stats()
                what.failures += too_slow(what)
                if not pick(what.stats, "moves.count") or not what.storm.get("ok"):
                    what.failures.append("nothing was moved: this was no storm")
                if what.needs_window_moves and not pick(what.stats, "faults.window_moves"):
                    what.failures.append("no fault moved a BO into the visible window (stats: faults.window_moves)")
                if not what.failures:
                    what.failures += left_over(device)
            except ScriptError as error:
                what.failures.append(str(error))
            if what.failures:
                console.print(device.diagnosis(), markup=False, highlight=False)
            if forced := device.stop():
                what.failures.append(f"unmounting: {forced}")
    except ScriptError as error:
        what.failures.append(str(error))


def work(device: Device, what: Pass, seconds: float, size: int) -> None:
    """The rounds and the reading back."""
    create = 'cd "$1" && shift && size=$1 && shift && for name; do truncate -s "$size" "$name" || exit; done'
    done = device.run(["bash", "-c", create, "create", str(device.mount / "bo"), str(size), *NAMES], 60)
    if done.returncode:
        raise ScriptError(f"cannot make the BOs: {done.stderr.strip()}")
    environment = {"TTMFS_FIO_SIZE": str(size), "TTMFS_FIO_SEED": "0"}
    progress = Progress(device, what)
    progress.start()
    storms = [
        Storm(device, int(seconds + ROUND_SECONDS), NAMES, random.randrange(1 << 15), WORDS)
        for _ in range(STORMS)
    ]
    started = time.monotonic()
    try:
        while time.monotonic() - started < seconds and not what.failures:
            environment["TTMFS_FIO_SEED"] = str(what.rounds + 1)
            take(what, run_fio(device, JOB, environment, seconds=ROUND_SECONDS))
            what.rounds += 1
            for storm in storms:
                if not storm.running():
                    what.failures.append("a storm ended before its time")
                    break
    finally:
        for storm in storms:
            storm.__exit__()
            if storm.failed:
                what.failures.append(storm.failed)
        progress.stop()
        what.storm = add_up([storm.total for storm in storms])
    if what.failures:
        return
    console.print("  reading every BO back with fio --verify_only")
    take(what, run_fio(device, JOB, environment, seconds=ROUND_SECONDS, arguments=["--verify_only"]))
    console.print("  reading every BO back by pread, mmap and O_DIRECT")
    check(device, what, size)


def too_slow(what: Pass) -> list[str]:
    """What took longer than anything may: by the device's clock and by fio's."""
    times = {
        "the longest fault": pick(what.stats, "faults.max_ms") or 0.0,
        "the oldest request": max(what.oldest_ms, pick(what.stats, "requests.oldest_ms") or 0.0),
        "fio's longest operation": what.fio_max_ms,
    }
    return [f"{name} took {ms:.0f} ms" for name, ms in times.items() if ms > LONGEST_MS]


def left_over(device: Device) -> list[str]:
    """Unlink everything; what the device still holds after that."""
    device.run(["rm", "-f", *[str(device.mount / "bo" / name) for name in NAMES]], 60)
    end = time.monotonic() + EMPTY_SECONDS
    while True:
        stats = device.stats()
        held = {f"regions.{name}.usage": region["usage"] for name, region in stats["regions"].items()}
        held |= {path: pick(stats, path) for path in ("pool.in_use_pages", "bos.count", "requests.waiting")}
        kept = [f"after unlink {path} is {value}" for path, value in held.items() if value]
        if not kept or time.monotonic() > end:
            return kept
        time.sleep(0.2)


def take(what: Pass, result: FioResult) -> None:
    """Add one run of fio to the pass."""
    what.fio_verified += result.verified_bytes
    what.fio_max_ms = max(what.fio_max_ms, result.max_latency_ms)
    if result.failed:
        what.failures.append(f"{result.job}: {result.failed}")


def check(device: Device, what: Pass, size: int) -> None:
    """The independent check of all BOs."""
    program = (ROOT / "scripts" / "lib" / "check_blocks.py").read_text()
    paths = [str(device.mount / "bo" / name) for name in NAMES]
    done = device.run([sys.executable, "-c", program, *paths], ROUND_SECONDS)
    try:
        found = json.loads(done.stdout)
    except ValueError:
        what.failures.append(f"the check of all BOs failed: {done.stderr.strip()[-1000:]}")
        return
    what.checked, what.wrong = found["bytes"], found["wrong_bytes"]
    what.failures += found["details"]
    if what.checked != size * len(NAMES):
        what.failures.append(f"the check saw {what.checked} bytes of {size * len(NAMES)}")


ROWS: list[tuple[str, str, Callable[[Any], str]]] = [
    ("moves", "moves.count", str),
    ("bytes moved", "moves.bytes", mib),
    ("evictions", "moves.evictions", str),
    ("faults", "faults.count", str),
    ("retries", "faults.retries", str),
    ("faults that moved a BO into the window", "faults.window_moves", str),
    ("longest fault, ms", "faults.max_ms", lambda value: "-" if value is None else f"{value:.1f}"),
    ("write errors", "requests.write_errors", str),
]


def report(passes: list[Pass]) -> None:
    """The table of what happened."""
    table = Table("", *[p.title for p in passes], title="BOs of 1.5 x VRAM under a storm of validate, evict and unmap")
    for title, path, show in ROWS:
        values = [pick(p.stats, path) for p in passes]
        table.add_row(title, *["-" if v is None else show(v) for v in values])
    table.add_row("commands (ok, EBUSY, ENOMEM, ...)", *[storm_text(p.storm) for p in passes])
    table.add_row("fio rounds", *[str(p.rounds) for p in passes])
    table.add_row("fio: longest operation, ms", *[f"{p.fio_max_ms:.0f}" for p in passes])
    table.add_row("fio: bytes verified", *[mib(p.fio_verified) for p in passes])
    table.add_row("read back by us", *[mib(p.checked) for p in passes])
    table.add_row("wrong bytes", *["not checked" if p.wrong is None else str(p.wrong) for p in passes])
    table.add_row("result", *["[red]FAILED[/]" if p.failures else "[green]verified[/]" for p in passes])
    Console().print(table)


def storm_text(storm: dict[str, int]) -> str:
    """The counts of a storm in a cell."""
    rest = [f"{key} {value}" for key, value in sorted(storm.items()) if key not in ("writes", "ok")]
    return ", ".join([f"ok {storm.get('ok', 0)}", *rest])


def without_root(what: Pass) -> list[str]:
    """Make the pass without root possible; what to say about it: what that took, and what the doctor says is lost."""
    notes = [f"without root: {note}" for note in unprivileged.prepare()]
    done = subprocess.run(
        [*what.prefix, *ttmfs_command(), "doctor"], capture_output=True, text=True, timeout=60, check=False, cwd="/"
    )
    lines = done.stdout.splitlines()
    return notes + [f"without root, doctor: {line}" for line in lines if not line.startswith("ok")]


def main() -> int:
    """Run the passes; returns the exit status."""
    p = argparse.ArgumentParser(prog="scripts/run", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--seconds", type=float, default=20, help="storm and fio for at least this long, each pass (20)")
    p.add_argument("--vram", type=parse_size, default=128 << 20, help="default 128M; the BOs sum to 1.5 times this")
    p.add_argument("--keep", action="store_true", help="keep the temporary folders")
    options = p.parse_args()
    window = options.vram // 4
    passes = [
        Pass(f"{options.vram >> 20} MiB", [f"--visible-vram={options.vram}"]),
        Pass(f"{window >> 20} MiB visible", [f"--visible-vram={window}"], needs_window_moves=True),
    ]
    reason: str | None = unprivileged.why_not()
    notes: list[str] = []
    if reason is None:
        passes.append(Pass("without root", [f"--visible-vram={options.vram}"], prefix=unprivileged.PREFIX))
    for number, what in enumerate(passes, 1):
        console.print(f"pass {number} of {len(passes)}: {what.title}")
        if what.prefix:
            try:
                notes = without_root(what)
            except unprivileged.UnavailableError as error:
                reason = str(error)
                passes = [p for p in passes if p is not what]
                continue
            except ScriptError as error:
                what.failures.append(str(error))
                console.print(f"  FAILED: {error}", style="red", markup=False)
                continue
        one_pass(what, seconds=options.seconds, vram=options.vram, keep=options.keep)
        for failure in what.failures:
            console.print(f"  FAILED: {failure}", style="red", markup=False)
    report(passes)
    for note in notes:
        print(note)
    for what in passes:
        for failure in what.failures:
            print(f"{what.title}: {failure}")
    if reason is not None:
        print(f"not run without root: {reason}")
    return 1 if any(what.failures for what in passes) else 0


if __name__ == "__main__":
    sys.exit(main())
