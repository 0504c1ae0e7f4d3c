"""The engine `device`: the real core, with memory, moves, fences and holes, without a mount.

A virtual device is made whose vram is the region. Each request is a validate of its BO into vram, those of one call
under one ticket. Under `lru` the core chooses its victims by its own list; another policy is asked as in a mount. What
is counted is what the core counts. A trace that says which moves there were is compared with those made here.

Faults of single pages are uses of whole BOs here: vram holds BOs whole. There is no prefetch.
"""

import errno
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from time import perf_counter_ns
from typing import Any, Final

import trio

from ttmfs.driver import calls
from ttmfs.driver.advisers import RegionAdviser
from ttmfs.driver.config import Config
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.locking import with_all_reserved
from ttmfs.errors import TtmError
from ttmfs.policy.deadline import Budget
from ttmfs.policy.registry import Prepared
from ttmfs.policy.seat import Ejection
from ttmfs.replay.rows import Counts, Row
from ttmfs.replay.trace import Trace
from ttmfs.sync.resv import Usage
from ttmfs.ttm.advice import used
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.lifetime import release, set_size
from ttmfs.ttm.placement import VRAM, Place
from ttmfs.ttm.validate import validate
from ttmfs.units import PAGE_SIZE, format_size, pages_of

SLACK: Final = 64 << 20
"""Memory of the device beside what its BOs need."""


@dataclass(frozen=True, slots=True)
class _Named:
    """What a BO of the trace is called, and whose it is."""

    path: str
    owner: str


class _Run:
    """One run."""

    def __init__(self, vdev: VirtualDevice, trace: Trace) -> None:
        self.vdev = vdev
        self.trace = trace
        self.manager = vdev.ttm.managers[VRAM]
        self.bos: list[BufferObject | None] = [None] * len(trace.names)
        self.ejected: list[str] = []
        self.counts = Counts()
        self.moves: list[str] = []
        self.adviser = RegionAdviser(self.manager, self._ejected, self._timed)

    def _ejected(self, ejection: Ejection) -> None:
        self.ejected.append(f"{ejection} (request {self.counts.requests})")

    def _timed(self, budget: Budget, function: Callable[..., Any], /, *args: Any) -> Any:
        """Runs the policy's code and adds up its time; nothing is too slow here."""
        del budget
        began = perf_counter_ns()
        try:
            return function(*args)
        finally:
            self.counts.policy_ns += perf_counter_ns() - began

    async def run(self) -> None:
        """All requests."""
        trace = self.trace
        if trace.moves is not None:
            self.vdev.ttm.trace.start(["move_end"])
        gone = repeat(0) if trace.gone is None else trace.gone.tolist()
        calls_ = repeat(0) if trace.calls is None else trace.calls.tolist()
        together: list[BufferObject] = []
        last = 0
        for index, is_gone, call in zip(trace.objects.tolist(), gone, calls_, strict=False):
            if together and (not call or call != last or is_gone):
                await self._use(together, one_by_one=last < 0)
                together = []
            if is_gone:
                await self._destroy(index)
                continue
            bo = self.bos[index] or self._new(index)
            if self._fits(bo):
                together.append(bo)
            last = call
        if together:
            await self._use(together, one_by_one=last < 0)

    def _new(self, index: int) -> BufferObject:
        trace = self.trace
        bo = self.vdev.create_bo(trace.names[index])
        bo.named = _Named(trace.names[index], "" if trace.clients is None else trace.clients[index])
        set_size(bo, int(trace.sizes[index]))
        self.bos[index] = bo
        return bo

    def _fits(self, bo: BufferObject) -> bool:
        """Count a request, and say whether the region could ever hold its BO."""
        counts = self.counts
        counts.requests += 1
        counts.bytes_requested += bo.size
        if bo.mem_type != VRAM:
            counts.misses += 1
            counts.bytes_missed += bo.size
        if bo.size <= self.manager.size:
            return True
        counts.too_large += 1
        used(bo, "validate")
        return False

    async def _use(self, bos: list[BufferObject], *, one_by_one: bool) -> None:
        missed = [bo for bo in bos if bo.mem_type != VRAM]
        place = (Place(VRAM),)
        if len(bos) == 1:
            await calls.validate_bo(self.vdev, bos[0], place, OperationContext())
        elif one_by_one:
            await self._place_each(bos)
        else:
            await calls.validate_many(self.vdev, bos, place, OperationContext())
        for bo in missed:
            # Until its copies are done, and those of what went for it, which it inherits: what is counted must not
            # depend on how far the engines are.
            await bo.resv.wait(Usage.BOOKKEEP)
        for event in self.vdev.ttm.trace.ring:
            places = event.facts["src"], event.facts["dst"]
            if event.facts["errno"] == 0 and VRAM in places:
                self.moves.append(f"{event.bo} {places[0]} {places[1]}")
        self.vdev.ttm.trace.ring.clear()

    async def _place_each(self, bos: list[BufferObject]) -> None:
        """As a job does."""
        for bo in bos:
            used(bo, "job")
        ctx = OperationContext()

        async def work() -> None:
            for bo in bos:
                ctx.resv = bo.resv
                await validate(bo, (Place(VRAM),), ctx)

        await with_all_reserved(bos, ctx, work)

    async def _destroy(self, index: int) -> None:
        bo, self.bos[index] = self.bos[index], None
        if bo is not None:
            # A busy one would keep its space until it is idle, and how long that is must not change what is counted.
            await bo.resv.wait(Usage.BOOKKEEP)
            release(bo)

    def differs(self) -> str:
        """What is to be said of the moves that were recorded."""
        recorded = self.trace.moves
        if recorded is None or recorded == self.moves:
            return ""
        common = sum((Counter(recorded) & Counter(self.moves)).values())
        at = next((n for n, (one, other) in enumerate(zip(recorded, self.moves, strict=False)) if one != other), None)
        at = min(len(recorded), len(self.moves)) if at is None else at
        was, now = (moves[at] if at < len(moves) else "nothing more" for moves in (recorded, self.moves))
        return (
            f"{len(recorded)} moves were recorded, {len(self.moves)} are made here, {common} of them the same; "
            f"the first that differs is number {at + 1}: {was} there, {now} here"
        )


def run_device(trace: Trace, size: int, evict: Prepared, prefetch: Prepared) -> Row:
    """Run a trace through a device with `size` bytes of vram. TtmError: ENOMEM when this machine cannot hold its BOs,
    EINVAL for what this engine has not."""
    if prefetch.spec.name != "none":
        raise TtmError(errno.EINVAL, f"--prefetch {prefetch.spec.name}: --engine device has no prefetch, sizes has")
    pages = sum(pages_of(int(bytes_)) for bytes_ in trace.sizes.tolist())
    need = pages * PAGE_SIZE + size + SLACK
    there = available_memory()
    if need > there:
        raise TtmError(
            errno.ENOMEM,
            f"{trace.name}: --engine device holds all BOs in memory, {format_size(need >> 20 << 20)} of which "
            f"{format_size(there >> 20 << 20)} are free: take a part of the trace, or a smaller --block-bytes",
        )
    memory = pages * PAGE_SIZE + SLACK
    # All BOs and what hops through it have room in gtt, so that nothing but vram is evicted.
    config = Config(vram=max(size, PAGE_SIZE), gtt=2 * memory, memory=memory, swap=0)
    return trio.run(_run, trace, config, evict, prefetch)


async def _run(trace: Trace, config: Config, evict: Prepared, prefetch: Prepared) -> Row:
    vdev = VirtualDevice(config)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(vdev.run)
            run = _Run(vdev, trace)
            if evict.spec.name != run.adviser.policy.nobody:
                for _ in run.adviser.install(evict):
                    pass
            await run.run()
            nursery.cancel_scope.cancel()
        moves = vdev.ttm.counters.moves
        run.counts.bytes_moved, run.counts.evictions = moves.bytes, moves.evictions
        row = Row.of(trace.name, evict.spec, prefetch.spec, config.vram, "device", run.counts, run.ejected)
        row.differs = run.differs()
        return row
    finally:
        vdev.close()


def available_memory() -> int:
    """Bytes of this machine that could be taken without swapping."""
    with open("/proc/meminfo", encoding="ascii") as file:
        facts = dict(line.split(":", 1) for line in file)
    return int(facts["MemAvailable"].split()[0]) << 10
