"""Running fio with verification, and the storm beside it.

Promise: `FioResult.failed` is set whenever fio found a wrong byte, met an error or ran out of time.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .device import ROOT, Device

FIO_JOBS = ROOT / "scripts" / "fio"
STORM = ROOT / "scripts" / "storm"


@dataclass
class FioResult:
    """What one run of fio did; bytes are those of all its jobs."""

    job: str
    failed: str | None
    written_bytes: int = 0
    verified_bytes: int = 0
    max_latency_ms: float = 0.0


def run_fio(
    device: Device,
    job: Path,
    environment: dict[str, str] | None = None,
    *,
    seconds: float,
    arguments: list[str] | None = None,
) -> FioResult:
    """Run one job file on the device; `environment` is what its ${...} want (TTMFS_MOUNT is set here)."""
    variables = {**os.environ, "TTMFS_MOUNT": str(device.mount), **(environment or {})}
    command = ["fio", "--output-format=json", *(arguments or []), str(job)]
    try:
        done = device.run(command, seconds, env=variables, cwd=device.directory)
    except subprocess.TimeoutExpired:
        return FioResult(job.name, f"fio did not end in {seconds:.0f} s")
    found = parse_fio(done.stdout)
    jobs: list[dict[str, Any]] = found.get("jobs", [])
    errors = sorted({int(j["error"]) for j in jobs if j.get("error")})
    failed = None
    if done.returncode or errors or not jobs:
        text = (done.stderr.strip() + "\n" + done.stdout[: done.stdout.find("{")].strip()).strip()
        names = ", ".join(os.strerror(e) for e in errors)
        failed = f"fio exited with {done.returncode} ({names or 'no errno'}): {text[-1500:]}"
    slowest = max((float(j[way]["lat_ns"].get("max", 0)) for j in jobs for way in ("read", "write")), default=0.0)
    return FioResult(
        job.name,
        failed,
        sum(int(j["write"]["io_bytes"]) for j in jobs),
        sum(int(j["read"]["io_bytes"]) for j in jobs),
        slowest / 1e6,
    )


def parse_fio(text: str) -> dict[str, Any]:
    """fio's JSON, which may have warnings before it."""
    start = text.find("\n{") + 1 if not text.startswith("{") else 0
    try:
        found: dict[str, Any] = json.JSONDecoder().raw_decode(text[start:])[0]
    except ValueError:
        return {}
    return found


class Storm:
    """scripts/storm beside something else; a context manager that ends it. `total` has the counts afterwards."""

    def __init__(self, device: Device, seconds: int, names: list[str], seed: int, words: str = "") -> None:
        self.device = device
        self.total: dict[str, Any] = {}
        self.failed: str | None = None
        self._process = subprocess.Popen(
            [*device.prefix, str(STORM), str(device.mount), str(seconds), *names],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "STORM_WORDS": words, "STORM_SEED": str(seed)},
            cwd=device.directory,
        )

    def __enter__(self) -> Storm:
        return self

    def running(self) -> bool:
        """Whether it still writes commands."""
        return self._process.poll() is None

    def __exit__(self, *_: object) -> None:
        if self.running():
            self._process.send_signal(signal.SIGTERM)
        try:
            out, err = self._process.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self.failed = "the storm is stuck in a command"
            return
        try:
            self.total = json.loads(out.splitlines()[-1])
        except (ValueError, IndexError):
            self.failed = f"the storm ended with status {self._process.returncode} and no counts: {err.strip()}"
            return
        if self._process.returncode:
            self.failed = f"commands of the storm failed in ways that are no part of it:\n{err.strip()}"


def add_up(totals: list[dict[str, Any]]) -> dict[str, int]:
    """The results of several storms together: count by errno, and `writes`."""
    result: dict[str, int] = {}
    for total in totals:
        result["writes"] = result.get("writes", 0) + int(total.get("writes", 0))
        for key, value in total.get("results", {}).items():
            result[key] = result.get(key, 0) + int(value)
    return result
