"""Shared address spaces: faults of the CPU and of the device at 4 KiB stride, migration both ways against a plain copy.

Faults: one touch of each page of a space that has no memory yet (and of one whose ranges come back from vram on the
way), against one touch of each page of a BO in system. Device: one write of a byte to each page, through its faults,
thousands of commands in a write. Migration: `prefetch` of 1/4 to 128 x 2 MiB to vram and back, all pages with memory
and cached by nobody, against numpy's copy of as many bytes between warm huge pages.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack

from lib.device import Device

from .common import C_SOURCES, Report, awake_processors, console, parse_size, run_client

MIB = 1 << 20
CLIENT = C_SOURCES / "svm_client.py"
PAGE = 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this subcommand."""
    parser.add_argument("--rounds", type=int, default=7, help="repetitions (default 7, sensible minimum 5)")
    parser.add_argument("--size", type=parse_size, default=64 * MIB, help="of what is faulted (default 64M)")


def run(options: argparse.Namespace) -> Report:
    """Measure."""
    title = f"address spaces, medians of {options.rounds} rounds"
    report = Report(title, subject="ttmfs", reference="reference")
    with ExitStack() as stack:
        stack.enter_context(awake_processors())
        faults(options, report)
        migration(options, report)
    report.notes.append("the reference: a fault of a BO in system; numpy's copy of as many bytes")
    return report


def faults(options: argparse.Namespace, report: Report) -> None:
    """One access of each page."""
    size, pages = options.size, options.size // PAGE
    console.print(f"  faults, {pages} pages")
    with Device([f"--vram={2 * size}", f"--memory={4 * size}"]) as device:
        samples = run_client(device, CLIENT, "faults", size, options.rounds)
        for sample in samples:
            for name, key in (
                ("CPU fault", "fresh"),
                ("CPU fault, back from vram", "back"),
                ("device access", "device"),
            ):
                report.add(name, "us", "ttmfs", sample[key] / pages * 1e6)
                report.add(name, "us", "reference", sample["bo"] / pages * 1e6)
        report.notes.append(f"{pages} accesses of the device were {samples[-1]['device_faults']:.0f} faults")


def migration(options: argparse.Namespace, report: Report) -> None:
    """There and back, by size."""
    with Device(["--vram=512M", "--memory=1G"]) as device:
        for quarters in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512):
            size = quarters * MIB // 2
            label = f"1/{4 // quarters}" if quarters < 4 else f"{quarters // 4}"
            console.print(f"  migration, {label} x 2 MiB")
            for sample in run_client(device, CLIENT, "migration", size, options.rounds):
                for way, key in (("to vram", "there"), ("to system", "back")):
                    name = f"{label} x 2 MiB {way}"
                    report.add(name, "GB/s", "ttmfs", size / sample[key] / 1e9)
                    report.add(name, "GB/s", "reference", size / sample["copy"] / 1e9)
