"""What every measurement needs: awake processors, built C programs, alternation, medians, ratios and goals.

Only ratios within one run mean anything: idle wake-ups on a small virtual machine vary by half from one to the next.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lib.device import ROOT, Device, ScriptError

C_SOURCES = ROOT / "scripts" / "bench.d"
SPINNERS = C_SOURCES / "spinners.py"
console = Console(stderr=True)


FILE_COLUMNS = 140
"""How wide a table is where it goes to a file or a pipe, which do not say how wide they are."""


def output() -> Console:
    """Where results go: standard output."""
    return Console() if sys.stdout.isatty() else Console(width=FILE_COLUMNS)


CLIENT_SECONDS = 300.0


def samples_of(done: subprocess.CompletedProcess[str], what: str, why: str = "") -> list[dict[str, float]]:
    """What a client printed, one dict a round. ScriptError when it failed: `what` it measured, and `why` perhaps."""
    if done.returncode:
        raise ScriptError(f"measuring {what} failed: {done.stderr.strip()[-1500:]}\n{why}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def run_client(device: Device, client: Path, what: str, *arguments: object) -> list[dict[str, float]]:
    """Run a client of scripts/bench.d on the device; its samples, one dict a round."""
    command = [sys.executable, str(client), str(device.mount), what, *map(str, arguments)]
    try:
        done = device.run(command, CLIENT_SECONDS)
    except subprocess.TimeoutExpired:
        raise ScriptError(f"measuring {what} did not end in {CLIENT_SECONDS:.0f} s") from None
    return samples_of(done, what, device.diagnosis() if done.returncode else "")


def parse_size(text: str) -> int:
    """512M and the like, in bytes."""
    unit = {"K": 10, "M": 20, "G": 30}.get(text[-1:].upper())
    return int(text[:-1]) << unit if unit else int(text)


@contextlib.contextmanager
def awake_processors() -> Iterator[None]:
    """A spinner on every processor: it never sleeps, and never takes time from others (spinners.py says why)."""
    cpus = [str(cpu) for cpu in sorted(os.sched_getaffinity(0))]
    with subprocess.Popen([sys.executable, str(SPINNERS), *cpus], start_new_session=True) as spinners:
        try:
            yield
        finally:
            os.killpg(spinners.pid, signal.SIGKILL)


@contextlib.contextmanager
def built(*names: str) -> Iterator[dict[str, Path]]:
    """The programs NAME.c of scripts/bench.d, built in a temporary folder: name to path."""
    directory = Path(tempfile.mkdtemp(prefix="ttmfs-bench-"))
    try:
        flags = _tool("pkg-config", "--cflags", "--libs", "fuse3").split()
        for name in names:
            _tool("cc", "-O2", str(C_SOURCES / f"{name}.c"), "-o", str(directory / name), *flags, "-lpthread")
        yield {name: directory / name for name in names}
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _tool(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError as error:
        raise ScriptError(f"there is no {command[0]}: install gcc pkg-config libfuse3-dev") from error
    except subprocess.CalledProcessError as error:
        raise ScriptError(f"{' '.join(command[:3])} failed:\n{error.stderr}") from error


class MemfsServer(Device):
    """The C reference server, with the same guard against hanging as a ttmfs device.

    `threads`: libfuse's multi-threaded loop with cloned descriptors, which no server in Python can be.
    """

    def __init__(self, program: Path, size: int, *, threads: bool = False) -> None:
        super().__init__([])
        self._program, self._size, self._threads = program, size, threads
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> MemfsServer:
        # A session of its own, as a daemon has one: the kernel may share out time by sessions.
        command = [str(self._program), str(self.mount), str(self._size >> 20), *["mt"] * self._threads]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
        end = time.monotonic() + 60
        while not self.is_mounted():
            if self._process.poll() is not None or time.monotonic() > end:
                error = self._process.stderr.read().decode() if self._process.poll() is not None else "not in 60 s"  # type: ignore[union-attr]
                self.stop()
                raise ScriptError(f"memfs did not mount: {error}")
            time.sleep(0.02)
        return self

    def stop(self) -> str | None:
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
            if self._process.poll() is None:
                self._abort()
                self._process.kill()
        shutil.rmtree(self.directory, ignore_errors=True) if not self.is_mounted() else self._abort()
        return None


def set_read_ahead(device: Device, kib: int) -> None:
    """Give the mount's readahead window this size; it counts for files opened from now on."""
    knob = Path(f"/sys/class/bdi/0:{device.connection()}/read_ahead_kb")
    try:
        knob.write_text(str(kib))
    except OSError as error:
        raise ScriptError(f"cannot set {knob}: {error}; without the same readahead nothing can be compared") from error


@dataclass
class Goal:
    """What a ratio must be: at most (times) or at least (rates) `limit`."""

    limit: float
    at_least: bool = False

    def met(self, ratio: float) -> bool:
        """Whether the goal holds."""
        return ratio >= self.limit if self.at_least else ratio <= self.limit

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g} x"


@dataclass
class Metric:
    """All samples of one thing that was measured, for each who was measured."""

    name: str
    unit: str
    samples: dict[str, list[float]] = field(default_factory=dict)

    def add(self, who: str, value: float) -> None:
        """One more sample."""
        self.samples.setdefault(who, []).append(value)

    def median(self, who: str) -> float | None:
        """The median of the samples, None without any."""
        return statistics.median(self.samples[who]) if self.samples.get(who) else None


@dataclass
class Report:
    """What a subcommand measured: a table of medians, the ratio of `subject` to `reference`, and the goals."""

    title: str
    subject: str
    reference: str
    goals: dict[str, Goal] = field(default_factory=dict)
    metrics: dict[str, Metric] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    requests: dict[str, Metric] = field(default_factory=dict)  # READs the server saw, by the metric they belong to
    more: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, unit: str, who: str, value: float) -> None:
        """One sample."""
        self.metrics.setdefault(name, Metric(name, unit)).add(who, value)

    def add_requests(self, name: str, who: str, reads: float) -> None:
        """How many READs one run of the test cost whose first metric is `name`."""
        self.requests.setdefault(name, Metric(name, "READs")).add(who, reads)

    def who(self) -> list[str]:
        """Everyone who was measured, the reference first."""
        found = dict.fromkeys([self.reference, self.subject])
        for metric in self.metrics.values():
            found.update(dict.fromkeys(metric.samples))
        return list(found)

    def ratio(self, name: str) -> float | None:
        """Median of the subject by median of the reference."""
        metric = self.metrics.get(name)
        mine, reference = (metric.median(w) if metric else None for w in (self.subject, self.reference))
        return mine / reference if mine is not None and reference else None

    def ratios(self, name: str) -> list[float]:
        """The same round by round: what the machine does between rounds cancels out."""
        samples = self.metrics[name].samples if name in self.metrics else {}
        pairs = zip(samples.get(self.subject, []), samples.get(self.reference, []), strict=False)
        return [mine / reference for mine, reference in pairs if reference]

    def verdict(self, name: str) -> bool | None:
        """Whether the goal for this metric is met; None where there is no goal or nothing measured."""
        ratio = self.ratio(name)
        return self.goals[name].met(ratio) if name in self.goals and ratio is not None else None

    def missed(self) -> list[str]:
        """The metrics whose goals are missed."""
        return [name for name in self.goals if self.verdict(name) is False]

    def print(self) -> None:
        """The table, for people."""
        who = self.who()
        table = Table(title=self.title)
        reads = ["READs of " + " / ".join(who[:2])] if self.requests else []
        for heading in ("", "unit", *who, "ratio", "min - max", "goal", "", *reads):
            table.add_column(heading, justify="left" if heading in ("", "unit") else "right", no_wrap=not heading)
        for name, metric in self.metrics.items():
            ratio, verdict = self.ratio(name), self.verdict(name)
            table.add_row(
                name,
                metric.unit,
                *["-" if (m := metric.median(w)) is None else f"{m:.2f}" for w in who],
                "-" if ratio is None else f"{ratio:.2f}",
                f"{min(ratios):.2f} - {max(ratios):.2f}" if len(ratios := self.ratios(name)) > 1 else "",
                str(self.goals[name]) if name in self.goals else "",
                {True: "[green]goal met[/]", False: "[red]missed[/]", None: ""}[verdict],
                *[self._reads_of(name, who[:2]) for _ in reads],
            )
        out = output()
        out.print(table)
        for note in self.notes:
            out.print(note, markup=False, highlight=False, soft_wrap=True)

    def _reads_of(self, name: str, who: list[str]) -> str:
        if name not in self.requests:
            return ""
        medians = [self.requests[name].median(w) for w in who]
        return " / ".join("-" if m is None else f"{m:.0f}" for m in medians)

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        return {
            "title": self.title,
            "subject": self.subject,
            "reference": self.reference,
            "metrics": {
                name: {
                    "unit": m.unit,
                    "samples": m.samples,
                    "medians": {w: m.median(w) for w in m.samples},
                    "ratio": self.ratio(name),
                    "ratios": self.ratios(name),
                    "goal": str(self.goals[name]) if name in self.goals else None,
                    "met": self.verdict(name),
                }
                for name, m in self.metrics.items()
            },
            "reads": {name: m.samples for name, m in self.requests.items()},
            "notes": self.notes,
            **self.more,
        }
