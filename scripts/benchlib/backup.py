"""Backup and restore against a plain copy and `cp`, the faults of others meanwhile, and how long the loop is held.

The plain copy is numpy's, between warm huge pages. "order-9": the BO has 2 MiB pages and no client has cached it.
"page-fragmented": no two of its pages are neighbours. A backup is timed from its command to its return; what a file
store has written by then is on its way to the disk, as with `cp`. Ratios are of rates within this run, for faults and
the loop of times.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from lib.device import Device

from . import meanwhile
from .common import (
    C_SOURCES,
    CLIENT_SECONDS,
    Goal,
    Report,
    awake_processors,
    built,
    console,
    parse_size,
    run_client,
    samples_of,
)

GOALS = {
    "backup": Goal(0.7, at_least=True),
    "restore": Goal(0.7, at_least=True),
    "backup fragmented": Goal(0.3, at_least=True),
    "restore fragmented": Goal(0.3, at_least=True),
    "file backup / cp": Goal(1.0, at_least=True),
    "file restore / cp": Goal(1.0, at_least=True),
    "fault p99": Goal(3.0),
    "loop held by backup": Goal(1.0),
    "loop held by restore": Goal(1.0),
}
LOOP_LIMIT_MS = 1.0
CLIENT = C_SOURCES / "backup_client.py"
MIB = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this subcommand."""
    parser.add_argument("--rounds", type=int, default=7, help="repetitions (default 7, sensible minimum 5)")
    parser.add_argument("--size", type=parse_size, default=256 << 20, help="of the BO that is stored (default 256M)")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where the disk is")


def run(options: argparse.Namespace) -> Report:
    """Measure."""
    title = f"backup and restore of a {options.size >> 20} MiB BO, medians of {options.rounds} rounds"
    report = Report(title, subject="ttmfs", reference="reference", goals=dict(GOALS))
    with ExitStack() as stack:
        cbench = stack.enter_context(built("cbench"))["cbench"]
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ttmfs-bench-", dir=options.folder)))
        stack.enter_context(awake_processors())
        for store in ("shmem", "zstd"):
            contiguous(options, report, store)
        fragmented(options, report)
        against_cp(options, report, folder)
        faults(options, report, cbench)
        loop(options, report)
    report.notes.append("the reference: numpy's copy of as many bytes; cp; faults of an idle device; 1 ms")
    return report


def add_rates(report: Report, samples: list[dict[str, float]], size: int, prefix: str, suffix: str) -> None:
    """GB/s of backup and restore, and of the plain copy beside each."""
    for sample in samples:
        for name in ("backup", "restore"):
            report.add(prefix + name + suffix, "GB/s", "ttmfs", size / sample[name] / 1e9)
            report.add(prefix + name + suffix, "GB/s", "reference", size / sample["copy"] / 1e9)


def contiguous(options: argparse.Namespace, report: Report, store: str) -> None:
    """To and from a store in memory."""
    size = options.size
    console.print(f"  order-9 runs, {store}")
    with Device([f"--memory={3 * size}", f"--swap={2 * size}", f"--swap-store={store}"]) as device:
        samples = run_client(device, CLIENT, "order-9", size, options.rounds)
        add_rates(report, samples, size, "" if store == "shmem" else f"{store} ", "")
        orders = json.loads(device.read("objects/stored/status.json"))["page_orders"]
        report.notes.append(f"{store}: page orders of the restored BO: {orders}")


def fragmented(options: argparse.Namespace, report: Report) -> None:
    """Where no two pages are neighbours."""
    size = options.size
    console.print("  page-fragmented")
    with Device([f"--memory={2 * size + 4 * MIB}", f"--swap={2 * size}"]) as device:
        add_rates(report, run_client(device, CLIENT, "fragmented", size, options.rounds), size, "", " fragmented")
        status = json.loads(device.read("objects/stored/status.json"))
        report.notes.append(f"the fragmented BO: {status['runs']} runs of {size // 4096} pages")


def against_cp(options: argparse.Namespace, report: Report, folder: Path) -> None:
    """To and from a file, and `cp` beside it on the same disk."""
    size = options.size
    console.print("  file store")
    store = f"--swap-store=file:{folder / 'store'}"
    with Device([f"--memory={3 * size}", f"--swap={2 * size}", store]) as device:
        for sample in run_client(device, CLIENT, "against-cp", size, options.rounds, str(folder)):
            for name in ("backup", "restore"):
                report.add(f"file {name} / cp", "GB/s", "ttmfs", size / sample[name] / 1e9)
                report.add(f"file {name} / cp", "GB/s", "reference", size / sample[f"cp_{name}"] / 1e9)


def faults(options: argparse.Namespace, report: Report, cbench: Path) -> None:
    """4 KiB random faults of one BO, idle and while another one goes and comes without a pause."""
    size = options.size
    console.print("  faults while a backup runs")
    with Device([f"--memory={4 * size}", f"--swap={2 * size}"]) as device:
        run_client(device, CLIENT, "fill", size, options.rounds)
        mover = [sys.executable, str(CLIENT), str(device.mount), "mover", str(size), "0"]
        meanwhile.faults(report, device, cbench, "faulted", options.rounds, mover)


def loop(options: argparse.Namespace, report: Report) -> None:
    """How long a task of the same loop ever waited for its turn."""
    console.print("  the loop")
    command = [sys.executable, str(CLIENT), "shmem", "loop", str(options.size), str(options.rounds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=CLIENT_SECONDS, check=False)
    for sample in samples_of(done, "the loop"):
        for name in ("backup", "restore"):
            report.add(f"loop held by {name}", "ms", "ttmfs", sample[name] * 1e3)
            report.add(f"loop held by {name}", "ms", "reference", LOOP_LIMIT_MS)
        report.add("loop held when idle", "ms", "ttmfs", sample["idle"] * 1e3)
