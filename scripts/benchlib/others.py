"""What another program waits for while a command works through very many BOs: the worst commands, each by itself.

Beside every command a client reads a text of the mount and faults a page of a BO of its own, once a millisecond; each
row is the longest of these looks while that command ran. One user's work is not to hold another for more than 50 ms. On
a machine with other work the scheduler's share of it is in every row, and "nothing" says how much that may be.
"""

from __future__ import annotations

import argparse

from lib.device import Device

from .common import C_SOURCES, Goal, Report, run_client

ALLOWED = 50.0
"""Milliseconds."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this subcommand."""
    parser.add_argument("--bos", type=int, default=20_000, help="BOs of one page (default 20000)")
    parser.add_argument("--rounds", type=int, default=3, help="how often all commands are given (default 3)")


def run(options: argparse.Namespace) -> Report:
    """Measure."""
    title = f"The longest wait of another program while a command works through {options.bos} BOs"
    report = Report(title, "longest", "allowed")
    size = max(64 << 20, 2 * 4096 * options.bos)
    with Device([f"--vram={size}", f"--gtt={size}", f"--memory={2 * size}", f"--swap={size}"]) as device:
        for sample in run_client(device, C_SOURCES / "others_client.py", "others", options.bos, options.rounds):
            for name, longest in sample.items():
                report.add(name, "ms", "allowed", ALLOWED)
                report.add(name, "ms", "longest", longest)
                report.goals[name] = Goal(1.0)
    return report
