"""`scripts/bench all`: every subcommand, one after the other, each in a process of its own.

`--quick` takes fewer rounds and smaller BOs, to be through in four minutes: a look at whether anything is badly off,
not numbers to compare. What one cannot measure is said, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from . import plot
from .common import console, output

QUICK: Final = {
    "backup": ["--rounds=2", "--size=64M"],
    "fragment": ["--rounds=2", "--memory=128M", "--large=64M"],
    "groups": ["--rounds=2", "--few=500", "--many=10000", "--groups=100"],
    "io": ["--rounds=2", "--size=64M"],
    "move": ["--rounds=2", "--size=64M"],
    "others": ["--rounds=1", "--bos=2000"],
    "scale": ["--rounds=2", "--few=500", "--many=10000"],
    "storm": ["--rounds=1"],
    "svm": ["--rounds=2", "--size=16M"],
    "swapping": ["--rounds=1", "--cycles=3"],
    "trace": ["--rounds=2", "--size=64M"],
}
"""What each is told for a quick look. Every subcommand has a line here (a test says so)."""

SECONDS: Final = 3600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `all`."""
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller BOs: four minutes instead of many")
    parser.add_argument("--only", type=lambda t: t.split(","), metavar="NAMES", help="these subcommands, by comma")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured there as well")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the ratios (.svg, .png, .pdf; needs matplotlib)"
    )
    parser.add_argument("--strict", action="store_true", help="exit status 1 when a goal is missed")


def run(options: argparse.Namespace, names: list[str]) -> int:
    """Measure all of `names`; the exit status: 1 when one could not be measured, or with --strict missed a goal."""
    if options.plot:
        plot.check()
    found: list[dict[str, object]] = []
    failed = False
    for name in names:
        started = time.monotonic()
        console.rule(name)
        with tempfile.NamedTemporaryFile(prefix="ttmfs-bench-", suffix=".json") as result:
            more = [*(QUICK[name] if options.quick else []), f"--json={result.name}"]
            more += ["--strict"] if options.strict else []
            try:
                done = subprocess.run(
                    [sys.executable, "-m", "benchlib.main", name, *more], timeout=SECONDS, check=False
                ).returncode
            except subprocess.TimeoutExpired:
                console.print(f"{name} did not end in {SECONDS:.0f} s", style="red")
                done = 1
            failed |= bool(done)
            if text := Path(result.name).read_text():
                found.append(json.loads(text))
        console.print(f"{name}: {time.monotonic() - started:.0f} s", highlight=False)
    if options.json:
        options.json.write_text(json.dumps({"cpus": os.cpu_count(), "reports": found}, indent=1) + "\n")
    if options.plot:
        plot.draw(found, options.plot)
    missed = [f"{report['subcommand']}: {row}" for report in found for row in plot.missed(report)]
    output().print("\n".join(["goals missed:", *missed]) if missed else "no goal was missed", markup=False)
    return int(failed)
