"""Swapping: BOs of 1.5 x VRAM cycled through it by jobs, asynchronous moves against --sync-moves.

Every job adds 1 to each word of its BO, which must be in VRAM for it; every 4 KiB page of every BO is checked at the
end. Both devices have the same simulated link, two copy engines as a full-duplex link has two directions, and the same
jobs. A second pair has no simulated link.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import time
from collections.abc import Callable

from lib.device import Device, ScriptError

from .common import Goal, Report, awake_processors, console, parse_size

PAGE = 4096
LINKED = "with link"
FREE = "no link"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("--vram", type=parse_size, default=64 << 20, help="memory of the device (default 64M)")
    parser.add_argument("--bo", type=parse_size, default=8 << 20, help="size of one BO (default 8M)")
    parser.add_argument("--bandwidth", default="1G", help="of the simulated link, bytes per second (default 1G)")
    parser.add_argument("--cycles", type=int, default=6, help="jobs on each BO (default 6)")
    parser.add_argument("--in-flight", type=int, default=4, help="jobs submitted ahead, as in a ring (default 4)")
    parser.add_argument("--rounds", type=int, default=5, help="alternations (default 5)")


def run(options: argparse.Namespace) -> Report:
    """Measure."""
    count = options.vram * 3 // 2 // options.bo
    sizes = f"{options.bo >> 20} MiB through {options.vram >> 20} MiB of VRAM"
    title = f"{count} BOs of {sizes}, {options.cycles} jobs each"
    goals = {LINKED: Goal(1 / 1.5), FREE: Goal(1.0)}
    report = Report(title, subject="async", reference="sync", goals=goals)
    link = f"--copy-bandwidth={options.bandwidth}"
    with awake_processors():
        for number in range(options.rounds):
            for name, extra in ((LINKED, [link]), (FREE, [])):
                for who in ("sync", "async")[:: 1 if number % 2 == 0 else -1]:
                    console.print(f"\r  round {number + 1} of {options.rounds}: {name}, {who}   ", end="")
                    more = [*extra, "--sync-moves"] if who == "sync" else extra
                    report.add(name, "s", who, one(options, count, more))
    console.print()
    report.notes.append(f"link {options.bandwidth} B/s for each of 2 copy engines; all {count} BOs verified every time")
    return report


def one(options: argparse.Namespace, count: int, extra: list[str]) -> float:
    """Seconds for all jobs on one fresh device."""
    room = options.vram * 4
    flags = [f"--vram={options.vram}", f"--gtt={room}", f"--memory={room}", "--copy-engines=2", "--placement=vram"]
    with Device([*flags, *extra]) as device:
        paths = [device.mount / "bo" / f"b{n}" for n in range(count)]
        for n, path in enumerate(paths):
            path.write_bytes(stamped(n, options.bo))
        (device.mount / "bo" / "ones").write_bytes(struct.pack("<I", 1) * (options.bo // 4))
        (device.mount / "objects" / "ones" / "placement").write_text("gtt")
        (device.mount / "objects" / "ones" / "validate").write_text("gtt")
        submit = command(device.mount / "ctl" / "submit")
        wait = command(device.mount / "ctl" / "wait")
        in_flight: list[str] = []
        started = time.monotonic()
        for _cycle in range(options.cycles):
            for n in range(count):
                if len(in_flight) >= options.in_flight:
                    wait(f"{in_flight.pop(0)} 300")
                in_flight.append(submit(f"add src=ones dst=b{n} dtype=u32")["fence"])
        for fence in in_flight:
            wait(f"{fence} 300")
        seconds = time.monotonic() - started
        for n, path in enumerate(paths):
            check(path.read_bytes(), n, options.cycles, path.name)
        return seconds


def stamped(number: int, size: int) -> bytes:
    """Each page starts with its own number and the BO's; the rest of it is zeros."""
    return b"".join(struct.pack("<II", number, page).ljust(PAGE, b"\0") for page in range(size // PAGE))


def check(data: bytes, number: int, added: int, name: str) -> None:
    """Every page must hold its stamp, with `added` added to each word."""
    rest = struct.pack("<I", added) * ((PAGE - 8) // 4)
    for page in range(len(data) // PAGE):
        if data[page * PAGE : (page + 1) * PAGE] != struct.pack("<II", number + added, page + added) + rest:
            raise ScriptError(f"{name}: page {page} is wrong")


def command(path: os.PathLike[str]) -> Callable[[str], dict[str, str]]:
    """A function that writes a command and reads its result."""

    def call(line: str) -> dict[str, str]:
        fd = os.open(path, os.O_RDWR)
        try:
            os.write(fd, line.encode())
            return dict(json.loads(os.read(fd, 65536)))
        except OSError as error:
            raise ScriptError(f"{line}: {error.strerror}") from error
        finally:
            os.close(fd)

    return call
