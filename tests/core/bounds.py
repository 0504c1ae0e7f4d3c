"""A device in a tight spot, and every command that can be given there: none may outlive its bound.

The scene has BOs everywhere, full regions, a copy engine that may be paused with moves pending, a compute engine that
may be busy for ever, a client with dirty pages in its cache, and places that fail. The clock jumps, so that minutes
of waiting take no time and are seen all the same. It waits for no thread, so nothing here uses one: no `writeback`.
"""

import itertools
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from tests.core.harness import MIB, PAGE, pattern
from tests.core.together_machine import CachedBo, Unmapper
from tests.svm.page_cache import PageCache
from tests.sync.inline import Inline
from ttmfs.driver import calls
from ttmfs.driver.config import Config
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.jobs import Job
from ttmfs.driver.namespace import Namespace
from ttmfs.driver.submit import submit_job
from ttmfs.errors import TtmError
from ttmfs.fs.commands.command import Command, Machine, Target
from ttmfs.fs.commands.objects_and_ctl import CTL_COMMANDS, OBJECT_COMMANDS
from ttmfs.fs.commands.runner import Runner
from ttmfs.fs.commands.spaces import SPACE_COMMANDS, OpenedSpace
from ttmfs.fs.kernel.opening import Opening
from ttmfs.observe.inject import PLACES
from ttmfs.svm import cpu
from ttmfs.svm.audit import check_svm
from ttmfs.svm.names import SpaceNames
from ttmfs.svm.spaces import Svm
from ttmfs.sync import offload
from ttmfs.sync.resv import Usage
from ttmfs.ttm import access
from ttmfs.ttm.backup import BackupFlags
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.lifetime import set_size

BOUND = 2.0
"""Seconds: command_timeout."""
BUSY = 20.0
"""Seconds: longer than anybody may wait."""
FAULT = 4.0
"""Seconds: fault_timeout."""

ON_A_BO = {
    "validate": ("vram", "gtt", "system", "gtt vram", "none", "vram@0-511", "vram no_wait_gpu"),
    "evict": ("", "no_wait_gpu"),
    "pin": ("",),
    "unpin": ("",),
    "unmap": ("",),
    "wait": ("", "kernel 50"),
    "swapout": ("",),
    "defrag": ("",),
    "backup": ("", "purge"),
    "restore": ("",),
}
TARGETS: tuple[str, ...] = ("torn", "pending", "idle", "gtt", "system", "stored", "fresh", "cached", "working")
ON_THE_DEVICE = {
    "validate": ("pending,idle,gtt,torn gtt", "idle,system vram", "cached,fresh,stored vram", "working,idle system"),
    "evict": ("vram", "gtt", "vram 4K"),
    "submit": (
        "fill dst=idle value=7", "copy src=pending dst=system wait", "checksum src=stored wait",
        "fill dst=fresh value=1", "busy seconds=1 bo=cached,gtt wait",
    ),
    "swapout": ("all",),
    "shrink": ("all", "all purge"),
    "backup": ("all",),
    "defrag": ("", "all", "pending gtt"),
    "suspend": ("",),
    "resume": ("",),
    "unplug": ("",),
    "copy": ("idle system",),
    "wait": ("{fence}", "{fence} 50"),
}  # fmt: skip
ON_A_SPACE = {
    "gpu": ("fill 0 256K 7", "write 1M 00ff", "atomic_add 0 1", "fill 2M 2M 1 nowait"),
    "gpu_read": ("read 64K 64K", "checksum 0 2M"),
    "prefetch": ("0 2M vram", "0 2M system", "2M 2M vram"),
    "madvise": ("0 4M preferred=vram",),
    "map": ("1M 64K ro",),
    "unmap": ("0 256K",),
    "backup": ("",),
    "restore": ("",),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One command, as it is written into its file."""

    kind: str
    name: str
    words: str
    target: str = ""

    def spares(self, name: str) -> bool:
        """Does it leave the content of this BO alone?"""
        if self.name == "unplug":
            return False
        if self.target:
            return name != self.target or self.words not in ("none", "purge")
        return self.name not in ("submit", "copy") or name not in ("idle", "system", "fresh")

    def __str__(self) -> str:
        where = f"{self.kind}/{self.target}/" if self.target else f"{self.kind}/"
        return f"{where}{self.name} {self.words}".rstrip()


CASES = [
    *(Case("objects", name, words, on) for name, lines in ON_A_BO.items() for words in lines for on in TARGETS),
    *(Case("ctl", name, words) for name, lines in ON_THE_DEVICE.items() for words in lines),
    *(Case("svm", name, words) for name, lines in ON_A_SPACE.items() for words in lines),
]


@dataclass(frozen=True)
class Spot:
    """How tight it is: `paused` copies do not begin, `busy` jobs do not end, `place` fails each time it is reached,
    and what is `held` stays reserved."""

    paused: bool = False
    busy: bool = False
    place: str = ""
    held: bool = False

    def __str__(self) -> str:
        words = ["paused"] * self.paused + ["busy"] * self.busy + [f"fail_{self.place}"] * bool(self.place)
        return "+".join(words + ["held"] * self.held) or "calm"


SPOTS = [Spot(paused, busy, place) for place in ("", *PLACES) for paused in (False, True) for busy in (False, True)]
SPOTS += [Spot(paused=paused, held=True) for paused in (False, True)]
HELD = ("torn", "idle", "gtt", "working", "pending")
"""All that could be evicted."""


class Scene:
    """The device and its BOs by name."""

    def __init__(self, seed: int = 0) -> None:
        config = Config(
            vram=4 * MIB, gtt=8 * MIB, memory=32 * MIB, swap=16 * MIB, fault_timeout=FAULT, command_timeout=BOUND
        )
        self.vdev = VirtualDevice(config)
        self.svm = Svm(self.vdev)
        self.unmapper = Unmapper(random.Random(seed))
        self.vdev.ttm.unmapper = self.unmapper
        self.svm.unmapper = PageCache()
        self.names = Namespace(self.vdev, uid=0, gid=0)
        self.runner = Runner(Machine(self.vdev, self.names, self.svm), BOUND)
        self.bos: dict[str, BufferObject] = {}
        self.spot = Spot()
        self.pending = ""
        """The name of a fence that was pending when everything was set up."""

    async def _make(self, name: str, size: int, place: str = "") -> BufferObject:
        bo = self.bos[name] = self.names.create(self.names.root, name.encode(), 0o644, 0, 0).bo
        set_size(bo, size)
        if name != "fresh":
            await access.write(bo, 0, pattern(name, size))
        if place:
            await self._validate(name, place)
            await bo.resv.wait(Usage.BOOKKEEP)
        return bo

    async def _validate(self, name: str, place: str) -> None:
        await calls.validate_bo(self.vdev, self.bos[name], self.vdev.parse_placement([place]), OperationContext())

    async def set_up(self, spot: Spot) -> None:
        """BOs everywhere; then what the spot says."""
        vdev, self.spot = self.vdev, spot
        for name, size, place in (
            ("pending", MIB, "vram"), ("idle", MIB, "vram"), ("working", MIB, "vram"), ("torn", MIB, "gtt"),
            ("gtt", 2 * MIB, "gtt"), ("system", 2 * MIB, ""), ("stored", 2 * MIB, ""), ("fresh", MIB, ""),
            ("cached", 16 * PAGE, ""),
        ):  # fmt: skip
            await self._make(name, size, place)
        self.bos["fresh"].placement, self.bos["fresh"].placed = vdev.parse_placement(["vram"]), False
        stored = self.bos["stored"]
        await calls.backup_one(vdev, stored, BackupFlags(), OperationContext())
        await access.read(stored, 0, PAGE)
        file = self.file = CachedBo(self.bos["cached"])
        self.unmapper.cached[self.bos["cached"]] = file
        await self.unmapper.cache.store(file, 0, b"dirty" * 1000)  # type: ignore[arg-type]
        spaces = SpaceNames(self.svm, itertools.count(1 << 20).__next__, uid=0, gid=0)
        self.space_file = spaces.create(spaces.root, b"a", 0o644, 0, 0)
        space = self.space_file.space
        space.set_size(4 * MIB)
        await cpu.write(space, 0, bytes(range(256)) * 1024)
        if spot.paused:
            for engine in vdev.engines:
                engine.paused = True
            await self._validate("pending", "gtt")
            await self._validate("pending", "vram")
        await self._validate("torn", "vram")
        if spot.busy:
            job = Job("busy", srcs=tuple(self.bos[name] for name in ("working", "system", "torn")), seconds=BUSY)
            await submit_job(vdev, job, OperationContext())
        for name in ("working", "idle", "pending"):
            # The first victims of vram are those that it is hardest to move.
            self.bos[name].bump()
        fences = [fence for queue in vdev.all_queues for fence in queue.pending()]
        self.pending = fences[0].name if fences else "1:1"
        if spot.held:
            for name in HELD:
                assert self.bos[name].resv.trylock()
        if spot.place:
            attr = vdev.ttm.inject[spot.place]
            attr.probability, attr.times = 100, -1

    def command(self, case: Case) -> tuple[Command, Target | None]:
        """What runs it, and on what."""
        if case.kind == "objects":
            return OBJECT_COMMANDS[case.name], self.bos[case.target]
        if case.kind == "ctl":
            return CTL_COMMANDS[case.name], None
        return SPACE_COMMANDS[case.name], OpenedSpace(self.space_file, None, may_read=True)

    async def run(self, case: Case) -> tuple[str, float]:
        """("ok" or the errno's name, seconds)."""
        command, target = self.command(case)
        started = trio.current_time()
        line = case.words.format(fence=self.pending).encode()
        outcome = await self.runner.run(command, case.target or None, target, line, Opening(0, 0, 0, os.O_RDWR))
        return outcome.error.name if outcome.error is not None else "ok", trio.current_time() - started

    async def request(self, name: str, kind: str, offset: int) -> tuple[str, float]:
        """A READ of a page, or a WRITE of what is there anyway; as `run`."""
        bo, started = self.bos[name], trio.current_time()
        try:
            if kind == "read":
                await access.read(bo, offset, PAGE)
            else:
                page = pattern(name, bo.size)[offset : offset + PAGE] if name != "fresh" else bytes(PAGE)
                await access.write(bo, offset, page)
        except TtmError as error:
            return error.name, trio.current_time() - started
        return "ok", trio.current_time() - started

    def _let_go(self) -> None:
        if self.spot.held:
            for name in HELD:
                self.bos[name].unreserve()

    async def settle(self, case: Case) -> None:
        """Nothing fails, nothing is paused any more: everything comes to rest, with nobody's bytes changed."""
        for place in PLACES:
            self.vdev.ttm.inject[place].probability = 0
        for engine in self.vdev.engines:
            engine.paused = False
        self._let_go()
        for name, bo in self.bos.items():
            await bo.resv.wait(Usage.BOOKKEEP)
            assert not bo.resv.locked, f"{name} is still reserved"
            assert not bo.gate.unmapping, f"{name} is still being unmapped"
            if case.spares(name) and not bo.unknown_state:
                wanted = pattern(name, bo.size) if name != "fresh" else bytes(bo.size)
                if name == "cached":
                    wanted = b"dirty" * 1000 + wanted[5000:]
                    got = await self.unmapper.cache.load(self.file, 0, bo.size)  # type: ignore[arg-type]
                else:
                    got = bytes(await access.read(bo, 0, bo.size))
                assert got == wanted, f"wrong bytes in {name}"
        if self.vdev.ttm.suspended and not self.vdev.ttm.unplugged:
            await self.vdev.power.resume(OperationContext())
        wrong = self.vdev.selfcheck() + check_svm(self.svm)
        assert not wrong, wrong


@asynccontextmanager
async def scene(spot: Spot) -> AsyncIterator[Scene]:
    """A scene that is set up and runs; checked at the end."""
    here = Scene()
    # The clock that jumps does not wait for threads.
    offload.use(Inline(lambda _lane, _when: 1))
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(here.vdev.run)
            nursery.start_soon(here.svm.run)
            await here.set_up(spot)
            yield here
            nursery.cancel_scope.cancel()
    finally:
        here.vdev.close()
