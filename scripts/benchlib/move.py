"""Moves of one BO against a plain copy of as many bytes, unmap of dirty pages, faults while copies run.

The plain copy is numpy's, between warm huge pages. A move is timed from its command to the end of its copy. "order-9":
the BO has 2 MiB pages and no client has cached it. "page-fragmented": no two of its pages are neighbours, and the only
free memory to evict to is as scattered. The ratio is rate by rate (or time by time) within this run.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path

from lib.device import Device

from . import meanwhile
from .common import C_SOURCES, Goal, Report, awake_processors, built, console, parse_size, run_client

GOALS = {
    "evict": Goal(2.5, at_least=True),
    "validate": Goal(2.5, at_least=True),
    "evict fragmented": Goal(0.3, at_least=True),
    "validate fragmented": Goal(0.3, at_least=True),
    "unmap 64 MiB dirty": Goal(1.0),
    "fault p99": Goal(2.0),
}
UNMAP_LIMIT_MS = 60.0
CLIENT = C_SOURCES / "move_client.py"
MIB = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this subcommand."""
    parser.add_argument("--rounds", type=int, default=7, help="repetitions (default 7, sensible minimum 5)")
    parser.add_argument("--size", type=parse_size, default=256 << 20, help="of the BO that moves (default 256M)")


def run(options: argparse.Namespace) -> Report:
    """Measure."""
    title = f"moves of a {options.size >> 20} MiB BO, medians of {options.rounds} rounds"
    report = Report(title, subject="ttmfs", reference="reference", goals=dict(GOALS))
    with ExitStack() as stack:
        cbench = stack.enter_context(built("cbench"))["cbench"]
        stack.enter_context(awake_processors())
        contiguous(options, report)
        fragmented(options, report)
        faults(options, report, cbench)
    report.notes.append("the reference: numpy's copy of as many bytes; 60 ms for the unmap; faults of an idle device")
    return report


def add_rates(report: Report, samples: list[dict[str, float]], size: int, suffix: str) -> None:
    """GB/s of evict and validate, and of the plain copy beside each."""
    for sample in samples:
        for name in ("evict", "validate"):
            report.add(name + suffix, "GB/s", "ttmfs", size / sample[name] / 1e9)
            report.add(name + suffix, "GB/s", "reference", size / sample["copy"] / 1e9)


def contiguous(options: argparse.Namespace, report: Report) -> None:
    """Evict, validate, and the unmap."""
    size = options.size
    console.print("  order-9 runs")
    with Device([f"--vram={2 * size}", f"--gtt={2 * size}", f"--memory={3 * size}"]) as device:
        samples = run_client(device, CLIENT, "order-9", size, options.rounds)
        add_rates(report, samples, size, "")
        orders = json.loads(device.read("objects/moving/status.json"))["page_orders"]
        report.notes.append(f"page orders of the evicted BO: {orders}")
        for sample in run_client(device, CLIENT, "unmap", 64 * MIB, options.rounds):
            report.add("unmap 64 MiB dirty", "ms", "ttmfs", sample["unmap"] * 1e3)
            report.add("unmap 64 MiB dirty", "ms", "reference", UNMAP_LIMIT_MS)


def fragmented(options: argparse.Namespace, report: Report) -> None:
    """Evict and validate where no two pages are neighbours."""
    size = min(options.size, 64 * MIB)
    console.print("  page-fragmented")
    with Device([f"--vram={2 * size}", f"--gtt={4 * size}", f"--memory={2 * size + 4 * MIB}"]) as device:
        add_rates(report, run_client(device, CLIENT, "fragmented", size, options.rounds), size, " fragmented")
        status = json.loads(device.read("objects/moving/status.json"))
        report.notes.append(f"the fragmented BO: {status['runs']} runs of {size // 4096} pages")


def faults(options: argparse.Namespace, report: Report, cbench: Path) -> None:
    """4 KiB random faults of one BO, idle and while another one moves without a pause."""
    size = options.size
    console.print("  faults while copies run")
    with Device([f"--vram={3 * size}", f"--gtt={2 * size}", f"--memory={4 * size}"]) as device:
        run_client(device, CLIENT, "fill", size, options.rounds)
        mover = [sys.executable, str(CLIENT), str(device.mount), "mover", str(size), "0"]
        meanwhile.faults(report, device, cbench, "moving", options.rounds, mover)
