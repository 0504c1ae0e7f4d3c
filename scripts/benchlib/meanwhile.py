"""4 KiB random faults of one BO while something else goes on in the same device, and while nothing does.

Something goes on from before the first fault to after the last one: a program says when it has begun, and is told when
to end.
"""

from __future__ import annotations

import contextlib
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

from lib.device import Device, ScriptError

from .common import Report

SECONDS = 300.0


@contextlib.contextmanager
def going_on(command: list[str]) -> Iterator[None]:
    """A program that prints a line when it has begun, and ends when its standard input is closed."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        try:
            begun, _, _ = select.select([program.stdout], [], [], SECONDS)
            if not begun or not program.stdout.readline():
                raise ScriptError(f"{' '.join(command)} has not begun")
            yield
            program.communicate(timeout=SECONDS)
        finally:
            program.kill()


def faults(report: Report, device: Device, cbench: Path, bo: str, rounds: int, command: list[str]) -> None:
    """Rows "fault p50" and "fault p99" of `bo`, in us: the reference is an idle device."""
    for _ in range(rounds):
        for who in ("reference", "ttmfs"):
            with going_on(command) if who == "ttmfs" else contextlib.nullcontext():
                done = device.run([str(cbench), str(device.mount / "bo" / bo), "fuse", "fault1"], SECONDS)
            if done.returncode:
                raise ScriptError(f"cbench failed: {done.stderr.strip()}")
            found = {name: float(value) for name, value, _unit in map(str.split, done.stdout.splitlines())}
            report.add("fault p99", "us", who, found["fault1_p99"])
            report.add("fault p50", "us", who, found["fault1_p50"])
