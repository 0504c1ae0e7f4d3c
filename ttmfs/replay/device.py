"""The engine `device`: the real core, with memory, moves, fences and holes, without a mount.

A virtual device is made whose vram is the region. Each request is a validate of its BO into vram. Under `lru` the core
chooses its victims itself; another policy is asked before the validate and what it names is evicted as `ctl/evict` of
one BO would, so that the core finds room. What is counted is what the core counts.

Faults of single pages are uses of whole BOs here: vram holds BOs whole. There is no prefetch.
"""

import errno
from collections import OrderedDict
from collections.abc import Callable, Iterator
from time import perf_counter_ns
from typing import Any, Final

import trio

from ttmfs.driver import calls
from ttmfs.driver.config import Config
from ttmfs.driver.device import VirtualDevice
from ttmfs.errors import TtmError
from ttmfs.policy import BO, Region, Request
from ttmfs.policy.deadline import Budget
from ttmfs.policy.evict import EvictAdviser
from ttmfs.policy.plain import PlainBO
from ttmfs.policy.registry import Prepared
from ttmfs.policy.seat import Ejection
from ttmfs.replay.rows import Counts, Row
from ttmfs.replay.trace import Trace
from ttmfs.sync.resv import Usage
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.lifetime import release, set_size
from ttmfs.ttm.placement import VRAM, Place
from ttmfs.units import PAGE_SIZE, format_size, pages_of

SLACK: Final = 64 << 20
"""Memory of the device beside what its BOs need."""


class DeviceBO(PlainBO):
    """A BO of the trace: its view, and the core's object."""

    __slots__ = ("bo",)

    def __init__(self, bo: BufferObject, size: int, client: str) -> None:
        super().__init__(bo.name, size, client=client)
        self.bo = bo


class _Run:
    """One run: the device, and the BOs in vram in the order of their last use."""

    def __init__(self, vdev: VirtualDevice, trace: Trace) -> None:
        self.vdev = vdev
        self.trace = trace
        self.manager = vdev.ttm.managers[VRAM]
        self.region = Region(VRAM, self.manager.size)
        self.order: OrderedDict[BO, None] = OrderedDict()
        self.bos: list[DeviceBO | None] = [None] * len(trace.names)
        self.ejected: list[str] = []
        self.counts = Counts()
        self.adviser = EvictAdviser(self, self._ejected, self._timed)

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

    # -- what the adviser asks ---------------------------------------------------------------------------------------

    def residents(self) -> Iterator[BO]:
        """See ttmfs.policy.evict.Residents."""
        return iter(list(self.order))

    def a_victim(self, request: Request) -> BO | None:
        """See ttmfs.policy.evict.Residents."""
        return next((bo for bo in self.order if bo is not request.for_bo), None)

    # -- requests ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """All of them."""
        gone = None if self.trace.gone is None else self.trace.gone.tolist()
        for number, index in enumerate(self.trace.objects.tolist()):
            view = self.bos[index] or self._new(index)
            if gone is not None and gone[number]:
                await self._destroy(index, view)
            else:
                await self._use(view)

    def _new(self, index: int) -> DeviceBO:
        trace = self.trace
        bo = self.vdev.create_bo(trace.names[index])
        size = int(trace.sizes[index])
        set_size(bo, size)
        view = self.bos[index] = DeviceBO(bo, size, "" if trace.clients is None else trace.clients[index])
        return view

    async def _use(self, view: DeviceBO) -> None:
        counts = self.counts
        counts.requests += 1
        view._uses += 1
        view._last_use = counts.requests
        counts.bytes_requested += view.size
        hit = view.bo.mem_type == VRAM
        if not hit:
            counts.misses += 1
            counts.bytes_missed += view.size
            if view.size > self.manager.size:
                counts.too_large += 1
                return
            if self.adviser.active:
                await self._make_room(view)
        await calls.validate_bo(self.vdev, view.bo, (Place(VRAM),), OperationContext())
        if not hit:
            # Until its copies are done, and those of what went for it, which it inherits: what is counted must not
            # depend on how far the engines are.
            await view.bo.resv.wait(Usage.BOOKKEEP)
        if self.adviser.active:
            self._note(view, hit=hit)

    def _note(self, view: DeviceBO, *, hit: bool) -> None:
        self.order[view] = None
        self.order.move_to_end(view)
        view._region = VRAM
        if hit:
            self.adviser.used(view, "validate")
        else:
            self.adviser.added(view)

    async def _make_room(self, view: DeviceBO) -> None:
        """Evict what the policy names until there is room. What it does not bring about, the core does."""
        pages = pages_of(view.size)
        while self.manager.size - self.manager.usage < pages * PAGE_SIZE:
            with self.adviser.ask(Request(pages, view)) as answer:
                victim = next(answer, None)
            if not isinstance(victim, DeviceBO):
                return
            await calls.evict_one(self.vdev, victim.bo, OperationContext())
            self.adviser.took()
            self._left(victim, "evicted")

    def _left(self, view: DeviceBO, why: Any) -> None:
        if view in self.order:
            del self.order[view]
            view._region = ""
            self.adviser.removed(view, why)

    async def _destroy(self, index: int, view: DeviceBO) -> None:
        # A busy one would keep its space until it is idle, and how long that is must not change what is counted.
        await view.bo.resv.wait(Usage.BOOKKEEP)
        self._left(view, "destroyed")
        self.bos[index] = None
        release(view.bo)


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
            if evict.spec.name != run.adviser.nobody:
                for _ in run.adviser.install(evict):
                    pass
            await run.run()
            nursery.cancel_scope.cancel()
        moves = vdev.ttm.counters.moves
        run.counts.bytes_moved, run.counts.evictions = moves.bytes, moves.evictions
        return Row.of(trace.name, evict.spec, prefetch.spec, config.vram, "device", run.counts, run.ejected)
    finally:
        vdev.close()


def available_memory() -> int:
    """Bytes of this machine that could be taken without swapping."""
    with open("/proc/meminfo", encoding="ascii") as file:
        facts = dict(line.split(":", 1) for line in file)
    return int(facts["MemAvailable"].split()[0]) << 10
