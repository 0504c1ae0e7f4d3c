"""The slowest touches of a mapping while a storm of commands moves what is touched.

BOs of 1.5 times the memory; `scripts/storm` validates, evicts and unmaps them at random, and four threads touch random
pages of one of them through its mapping. A touch that is slow has waited for a move, for the daemon or for a processor.
The reference is the same without the storm, on the same device.
"""

from __future__ import annotations

import argparse
import contextlib
from contextlib import ExitStack
from pathlib import Path

from lib.device import Device, ScriptError
from lib.fio import Storm

from .common import Goal, Report, awake_processors, built, console, parse_size

BOS = 12
SECONDS = 60.0
SLOW = "touches over 20 ms"
LONGEST_MS, SLOW_TOUCHES = 100, 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this subcommand."""
    parser.add_argument("--rounds", type=int, default=7, help="repetitions of 4 s (default 7)")
    parser.add_argument("--vram", type=parse_size, default=64 << 20, help="memory of the device (default 64M)")
    parser.add_argument("--bandwidth", default="0", help="of a simulated link, bytes per second (default none)")


def run(options: argparse.Namespace) -> Report:
    """Measure."""
    title = f"touches under a storm, {options.vram >> 20} MiB of VRAM, medians of {options.rounds} rounds"
    report = Report(title, subject="storm", reference="calm", goals={"longest touch": Goal(2.0)})
    flags = [f"--vram={options.vram}", f"--gtt={2 * options.vram}", f"--memory={4 * options.vram}"]
    if options.bandwidth != "0":
        flags.append(f"--copy-bandwidth={options.bandwidth}")
    with ExitStack() as stack:
        cbench = stack.enter_context(built("cbench"))["cbench"]
        device = stack.enter_context(Device(flags))
        names = made(device, options.vram * 3 // 2 // BOS)
        stack.enter_context(awake_processors())
        for number in range(options.rounds):
            for who in ("calm", "storm")[:: 1 if number % 2 == 0 else -1]:
                console.print(f"\r  round {number + 1} of {options.rounds}: {who:<12}", end="")
                storm = Storm(device, int(SECONDS), names, number, "validate evict unmap") if who == "storm" else None
                with storm or contextlib.nullcontext():
                    touched(report, device, cbench, device.mount / "bo" / names[number % BOS], who)
                if storm is not None and storm.failed:
                    raise ScriptError(storm.failed)
        console.print()
        stats = device.stats()
    report.notes.append(f"moves {stats['moves']['count']}, faults {stats['faults']['count']}")
    worst = [max(report.metrics[name].samples["storm"]) for name in ("longest touch", SLOW)]
    met = worst[0] <= LONGEST_MS and worst[1] <= SLOW_TOUCHES
    goal = f"goal ≤ {LONGEST_MS} ms and ≤ {SLOW_TOUCHES}: {'met' if met else 'MISSED'}"
    report.notes.append(f"the worst round of the storm: {worst[0]:.0f} ms, {worst[1]:.0f} over 20 ms ({goal})")
    return report


def made(device: Device, size: int) -> list[str]:
    """The BOs, with content; their names."""
    names = [f"bo{number}" for number in range(BOS)]
    for name in names:
        path = device.mount / "bo" / name
        done = device.run(
            ["dd", "if=/dev/urandom", f"of={path}", "bs=1M", f"count={size >> 20}", "status=none"], SECONDS
        )
        if done.returncode:
            raise ScriptError(f"cannot fill {name}: {done.stderr.strip()}")
    return names


def touched(report: Report, device: Device, cbench: Path, path: Path, who: str) -> None:
    """Four seconds of touches."""
    done = device.run([str(cbench), str(path), "fuse", "storm"], SECONDS)
    if done.returncode:
        raise ScriptError(f"cbench failed: {done.stderr.strip()}")
    found = {name: float(value) for name, value, _unit in map(str.split, done.stdout.splitlines())}
    report.add("longest touch", "ms", who, found["storm_longest"])
    report.add(SLOW, "", who, found["storm_slow"])
