"""Fragmentation: an aged arena, and what `ctl/defrag all` makes of it.

Memory is filled with small BOs, some of these unlinked at random, the gaps filled with large ones, again and again,
until few blocks of order 9 are left. Then: free blocks by order, runs a BO and cold sequential reads before and after
the pass, against BOs made afresh; and the defrag of one BO that no client has cached, of 2 MiB pages and of single
ones, against a numpy copy between warm pages. Every byte of every BO is checked afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from lib.device import Device, ScriptError

from .common import Goal, Report, awake_processors, console, parse_size, run_client
from .move import CLIENT
from .swapping import command

MIB = 1 << 20
ORDER = 9
PIECE = 4096 << ORDER
SMALL = (16 << 10, 64 << 10, 256 << 10, MIB)
WEIGHTS = [size**-0.7 for size in SMALL]
LARGE = (2 * MIB, 4 * MIB, 8 * MIB)
READ = "cold sequential read"
MOVE = "defrag, order-9 runs, not cached"
FROM_PAGES = "defrag, a source of single pages"
SHARE = "eligible BOs wholly at order 9"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("--memory", type=parse_size, default=512 << 20, help="system memory (default 512M)")
    parser.add_argument("--keep", type=float, default=0.5, help="part of it in use after ageing (default 0.5)")
    parser.add_argument("--large", type=parse_size, default=256 << 20, help="BO for the speed of a move (default 256M)")
    parser.add_argument("--rounds", type=int, default=5, help="alternations (default 5)")
    parser.add_argument("--seed", type=int, default=1, help="of the ageing (default 1)")


def run(options: argparse.Namespace) -> Report:
    """Measure."""
    report = Report(
        f"Defrag of {options.memory >> 20} MiB of aged memory, {options.keep:.0%} of it in use",
        subject="defragmented",
        reference="reference",
        goals={
            READ: Goal(0.95, at_least=True),
            MOVE: Goal(1.0, at_least=True),
            FROM_PAGES: Goal(0.5, at_least=True),
            SHARE: Goal(0.9, at_least=True),
        },
    )
    with awake_processors():
        with Device(_flags(options.memory)) as device:
            _aged(device, options, report)
        with Device(_flags(options.large * 2 + 64 * MIB)) as device:
            _speed(device, options, report)
        size = min(options.large, 64 * MIB)
        with Device(_flags(4 * size)) as device:
            _from_pages(device, options, size, report)
    console.print()
    report.notes.append("reference: for reads a BO made afresh, for the move a numpy copy, for the share all of them")
    return report


def _flags(memory: int) -> list[str]:
    return ["--vram=0", "--gtt=16M", f"--memory={memory}", "--swap=0"]


def _aged(device: Device, options: argparse.Namespace, report: Report) -> None:
    (device.mount / "ctl" / "config").write_text("defrag_interval=1000000")
    (device.mount / "ctl" / "config").write_text("defrag_interval_max=1000000")
    fills = age(device, options)
    eligible = [name for name in fills if _size(device, name) >= PIECE]
    if not eligible:
        raise ScriptError("no BO of 2 MiB is left after ageing: try another --seed")
    report.notes.append(f"{len(fills)} BOs, {len(eligible)} of them of 2 MiB or more")
    report.notes.append(f"free blocks by order, aged:        {_blocks(device)}")
    report.notes.append(f"runs a BO (eligible), aged:         {_runs(device, eligible):.1f}")
    for _ in range(options.rounds):
        report.add(READ, "MiB/s", "aged", _read(device, eligible))
    report.add(SHARE, "", "aged", _share(device, eligible))
    started = time.monotonic()
    result = command(device.mount / "ctl" / "defrag")("all")
    seconds = time.monotonic() - started
    report.more["defrag"] = result
    report.notes.append(f"defrag all: {seconds:.2f} s, {result}")
    report.notes.append(f"free blocks by order, defragmented: {_blocks(device)}")
    report.notes.append(f"runs a BO (eligible), defragmented: {_runs(device, eligible):.1f}")
    report.add(SHARE, "", "defragmented", _share(device, eligible))
    report.add(SHARE, "", "reference", 1.0)
    if any(int(gained) < 0 for gained in result["gained"]):
        raise ScriptError(f"an order is worse off: {result['gained']}")
    fresh = _fresh(device, [_size(device, name) for name in eligible])
    # The same number and sizes on both sides: opening a file costs as much as reading some.
    alike = eligible[: len(fresh)]
    share = _share(device, fresh)
    report.notes.append(f"reads compare {len(alike)} BOs with as many fresh ones, of which {share:.0%} are at order 9")
    for number in range(options.rounds):
        for who in ("reference", "defragmented")[:: 1 if number % 2 == 0 else -1]:
            report.add(READ, "MiB/s", who, _read(device, fresh if who == "reference" else alike))
    for name, fill in fills.items():
        if (device.mount / "bo" / name).read_bytes() != bytes([fill]) * _size(device, name):
            raise ScriptError(f"{name} has wrong bytes")


class _Ager:
    """Makes and unlinks BOs at random. `fills`: the BOs that are left, each with the byte that it is full of."""

    def __init__(self, device: Device, seed: int) -> None:
        self.device = device
        self.rng = random.Random(seed)
        self.fills: dict[str, int] = {}
        self.serial = 0

    def fill(self, room: int, sizes: tuple[int, ...], weights: list[float] | None = None) -> None:
        """Make BOs until at most `room` bytes are free."""
        while _free(self.device) > room + max(sizes):
            self.serial += 1
            name, size, byte = f"b{self.serial}", self.rng.choices(sizes, weights)[0], 1 + self.serial % 255
            with (self.device.mount / "bo" / name).open("wb", buffering=0) as file:
                os.truncate(file.fileno(), size)
                file.write(bytes([byte]) * size)
            self.fills[name] = byte

    def drop(self, room: int) -> None:
        """Unlink any until at least `room` bytes are free."""
        names = list(self.fills)
        self.rng.shuffle(names)
        while names and _free(self.device) < room:
            for name in [names.pop() for _ in range(min(4, len(names)))]:
                (self.device.mount / "bo" / name).unlink()
                del self.fills[name]


def age(device: Device, options: argparse.Namespace, rounds: int = 3) -> dict[str, int]:
    """Small BOs all over memory, large ones into the gaps that some of them leave, a few times over."""
    ager = _Ager(device, options.seed)
    (device.mount / "ctl" / "config").write_text("pool_limit=0")
    memory = options.memory
    for number in range(rounds):
        ager.fill(memory // 16, SMALL, WEIGHTS)
        ager.drop(memory // 2)
        ager.fill(memory // 16, LARGE)
        ager.drop(memory // 3)
        console.print(f"\r  ageing, round {number + 1} of {rounds}   ", end="")
    ager.drop(int(memory * (1 - options.keep)))
    return ager.fills


def _speed(device: Device, options: argparse.Namespace, report: Report) -> None:
    """Seconds of moving one large BO at order 9, against a copy of as much warm memory."""
    fresh = _fresh(device, [options.large])
    size = options.large
    src, dst = np.ones(size, np.uint8), np.ones(size, np.uint8)
    defrag = command(device.mount / "objects" / fresh[0] / "defrag")
    wait = command(device.mount / "objects" / fresh[0] / "wait")
    _unmap(device, fresh[0])
    for number in range(options.rounds + 1):
        started = time.monotonic()
        np.copyto(dst, src)
        copied = time.monotonic()
        result: dict[str, Any] = defrag("\n")
        wait("kernel 60")
        moved = time.monotonic()
        if result["moved"] != 1:
            raise ScriptError(f"nothing was moved: {result}")
        if number:  # the first touches what is new to the host
            report.add(MOVE, "MiB/s", "reference", size / MIB / (copied - started))
            report.add(MOVE, "MiB/s", "defragmented", size / MIB / (moved - copied))


def _from_pages(device: Device, options: argparse.Namespace, size: int, report: Report) -> None:
    """The same of a BO no two of whose pages are neighbours."""
    (device.mount / "ctl" / "config").write_text("defrag_interval=1000000")
    (device.mount / "ctl" / "config").write_text("defrag_interval_max=1000000")
    for sample in run_client(device, CLIENT, "defrag", size, options.rounds):
        report.add(FROM_PAGES, "MiB/s", "reference", size / MIB / sample["copy"])
        report.add(FROM_PAGES, "MiB/s", "defragmented", size / MIB / sample["defrag"])


def _fresh(device: Device, sizes: list[int]) -> list[str]:
    """BOs of these sizes, made now, as far as there is memory."""
    names = []
    for number, size in enumerate(sizes):
        if _free(device) < size + 8 * MIB:
            break
        names.append(f"fresh{number}")
        with (device.mount / "bo" / names[-1]).open("wb", buffering=0) as file:
            os.truncate(file.fileno(), size)
            for _ in range(0, size, MIB):
                file.write(b"\xaa" * MIB)
    return names


def _read(device: Device, names: list[str]) -> float:
    """MiB/s of reading these BOs once by 1 MiB, nothing of them cached."""
    for name in names:
        _unmap(device, name)
    total = 0
    buffer = bytearray(MIB)
    started = time.monotonic()
    for name in names:
        with (device.mount / "bo" / name).open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total / MIB / (time.monotonic() - started)


def _unmap(device: Device, name: str) -> None:
    (device.mount / "objects" / name / "unmap").write_text("\n")


def _status(device: Device, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((device.mount / "objects" / name / "status.json").read_text())
    return found


def _size(device: Device, name: str) -> int:
    return Path(device.mount / "bo" / name).stat().st_size


def _runs(device: Device, names: list[str]) -> float:
    return float(statistics.mean(_status(device, name)["runs"] for name in names))


def _share(device: Device, names: list[str]) -> float:
    """Part of these BOs that have all their whole pieces in blocks of the beneficial order."""
    good = 0
    for name in names:
        orders = _status(device, name)["page_orders"]
        pages = sum(count << int(order) for order, count in orders.items() if int(order) >= ORDER)
        good += pages == _size(device, name) // PIECE << ORDER
    return good / len(names)


def _blocks(device: Device) -> list[int]:
    lines = (device.mount / "pool" / "fragmentation").read_text().splitlines()[1:]
    return [int(line.split("\t")[1]) for line in lines]


def _free(device: Device) -> int:
    lines = dict(line.split("\t") for line in (device.mount / "pool" / "pages").read_text().splitlines())
    return int(lines["free"]) << 12
