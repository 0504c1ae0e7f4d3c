"""Cost of create, validate, evict and unlink per BO with few and with very many BOs on the device; memory per BO.

Processor time, since other programs may run. No mount: the core and the namespace alone, which is where such costs
would grow. Two devices are kept, one nearly empty and one with many BOs in vram; batches of BOs are made, validated to
vram, evicted and unlinked on them in turn. Memory is what Python has allocated for a BO with a name that lives in vram,
its page numbers included.
"""

from __future__ import annotations

import argparse
import gc
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import trio

from .common import Goal, Report, console

PAGE = 4096
MEMORY_GOAL = 2048
STEPS = ("create", "validate", "evict", "unlink")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this subcommand."""
    parser.add_argument("--few", type=int, default=1000, help="BOs on the small device, and of one batch")
    parser.add_argument("--many", type=int, default=100_000, help="BOs on the large device (default 100000)")
    parser.add_argument("--rounds", type=int, default=7, help="alternations (default 7)")


class Population:
    """A device with a namespace, and batches of one-page BOs on it, each the next one of `groups` groups'."""

    def __init__(self, capacity: int, groups: int = 0) -> None:
        from ttmfs.driver.config import Config  # noqa: PLC0415 - only this subcommand needs ttmfs itself
        from ttmfs.driver.device import VirtualDevice  # noqa: PLC0415
        from ttmfs.driver.namespace import BoFile, Namespace  # noqa: PLC0415

        size = 2 * capacity * PAGE
        self.vdev = VirtualDevice(Config(vram=size, gtt=size, memory=size, swap=0))
        self.names = Namespace(self.vdev, uid=0, gid=0)
        self.files: list[BoFile] = []
        self.serial = 0
        self.groups = [self.vdev.ttm.dmem.root]
        for number in range(groups):
            # Folders of ten, three deep: what a charge passes through.
            group = self.groups[number // 10].make(f"g{number}")
            group.pools["vram"].protect(low=64 * PAGE)
            self.groups.append(group)

    async def create(self, count: int) -> None:
        """Files of one page each, as creat and ftruncate make them."""
        from ttmfs.ttm.lifetime import set_size  # noqa: PLC0415

        for _ in range(count):
            file = self.names.create(self.names.root, b"bo%d" % self.serial, 0o644, 0, 0)
            file.bo.group = self.groups[self.serial % len(self.groups)]
            set_size(file.bo, PAGE)
            self.files.append(file)
            self.serial += 1

    async def validate(self, count: int) -> None:
        """The last `count` to vram."""
        from ttmfs.driver import calls  # noqa: PLC0415
        from ttmfs.ttm.context import OperationContext  # noqa: PLC0415

        placement = self.vdev.parse_placement(["vram"])
        for file in self.files[-count:]:
            await calls.validate_bo(self.vdev, file.bo, placement, OperationContext())
        await self._idle()

    async def evict(self, count: int) -> None:
        """The last `count` out of vram."""
        from ttmfs.driver import calls  # noqa: PLC0415
        from ttmfs.ttm.context import OperationContext  # noqa: PLC0415

        for file in self.files[-count:]:
            await calls.evict_one(self.vdev, file.bo, OperationContext())
        await self._idle()

    async def unlink(self, count: int) -> None:
        """The last `count` are gone."""
        for file in self.files[-count:]:
            self.names.unlink(self.names.root, file.name)
        del self.files[-count:]

    async def _idle(self) -> None:
        for engine in self.vdev.engines:
            for fence in engine.pending():
                await fence.wait()


@asynccontextmanager
async def running(capacity: int, groups: int = 0):  # type: ignore[no-untyped-def]
    """A Population whose device runs."""
    population = Population(capacity, groups)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(population.vdev.run)
            yield population
            nursery.cancel_scope.cancel()
    finally:
        population.vdev.close()


async def _timed(step: Callable[[int], Awaitable[None]], count: int) -> float:
    start = time.process_time()
    await step(count)
    return (time.process_time() - start) / count * 1e6


async def _memory(count: int) -> float:
    """Bytes that Python allocates for one BO with a name, in vram."""
    async with running(2 * count) as population:
        await population.create(count // 4)
        await population.validate(count // 4)
        gc.collect()
        tracemalloc.start()
        await population.create(count)
        await population.validate(count)
        gc.collect()
        traced, _peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return traced / count


async def compare(small: Population, large: Population, options: argparse.Namespace, report: Report) -> None:
    """Fill the large one, then every step on both in turns."""
    few, many = options.few, options.many
    console.print(f"making {many - few} BOs …")
    await large.create(many - few)
    await large.validate(many - few)
    gc.collect()
    for number in range(options.rounds):
        console.print(f"round {number + 1} of {options.rounds}")
        order = [(small, report.reference), (large, report.subject)]
        for population, who in order if number % 2 else order[::-1]:
            for step in STEPS:
                report.add(step, "us/BO", who, await _timed(getattr(population, step), few))


async def _measure(options: argparse.Namespace, report: Report) -> None:
    few, many = options.few, options.many
    async with AsyncExitStack() as stack:
        small = await stack.enter_async_context(running(2 * few))
        large = await stack.enter_async_context(running(many + few))
        await compare(small, large, options, report)
    traced = await _memory(4 * few)
    report.add("memory", "bytes/BO", report.subject, traced)
    verdict = "met" if traced <= MEMORY_GOAL else "MISSED"
    report.notes.append(f"memory per BO: {traced:.0f} bytes, goal ≤ {MEMORY_GOAL}: {verdict}")


def run(options: argparse.Namespace) -> Report:
    """Measure."""
    title = f"Cost of a BO among {options.many} and among {options.few}"
    report = Report(title, str(options.many), str(options.few), goals={step: Goal(1.5) for step in STEPS})
    trio.run(_measure, options, report)
    return report
