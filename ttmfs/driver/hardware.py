"""Hardware: what the virtual device is made of: memory, regions over it, engines with their timelines.

It decides nothing. Below the policy (`ttmfs.driver.policy`), suspend and the defrag worker, which work on it; the
device that puts all of them together is `ttmfs.driver.device.VirtualDevice`.
"""

import errno
import re
from collections.abc import Iterator
from itertools import count
from typing import Final

from ttmfs.driver.compute import Compute
from ttmfs.driver.config import Config
from ttmfs.driver.engine import CopyEngine, FenceErrors, Link
from ttmfs.driver.queues import Queue
from ttmfs.errors import TtmError
from ttmfs.memory.arena import Arena
from ttmfs.memory.pool import PagePool
from ttmfs.memory.stores import make_store
from ttmfs.sync.containers import unwrap
from ttmfs.sync.fence import Fence, FenceCounters
from ttmfs.sync.resv import Usage
from ttmfs.ttm.audit import audit, believed, with_pauses
from ttmfs.ttm.device import Device
from ttmfs.ttm.managers import BuddyManager, RangeManager, SystemManager
from ttmfs.ttm.placement import GTT, VRAM, Placement, parse_placement
from ttmfs.ttm.resource import ResourceManager
from ttmfs.units import PAGE_SHIFT, PAGE_SIZE

RESERVE_PAGES: Final = 256
"""Pages of the system arena kept for WRITEs to pages that were handed out (rule R4): 1 MiB."""

_FENCE: Final = re.compile(r"[1-9][0-9]{0,17}:[1-9][0-9]{0,17}")


class Hardware:
    """Made in the process that serves: arenas are not shared with forked children."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.arenas: list[Arena] = []
        memory = self._arena("memory", config.memory)
        reserve = min(RESERVE_PAGES, memory.num_pages // 16)
        self.pool = PagePool(
            memory,
            limit_pages=config.pool_limit >> PAGE_SHIFT,
            reserve_pages=reserve,
            warm_pages=memory.num_pages // 2,
            beneficial_order=config.beneficial_order,
        )
        self.ttm = Device(self.pool, self._managers())
        self.ttm.prefault = config.prefault
        self.ttm.fault_timeout = config.fault_timeout
        self.ttm.propagate_enospc = config.propagate_enospc
        self.ttm.strict_purge = config.purgeable == "strict"
        self.ttm.swap_store = make_store(config.swap_store, config.swap)
        if config.pages_limit is not None:
            self.ttm.pages_limit = min(self.ttm.pages_limit, config.pages_limit >> PAGE_SHIFT)
        self.fence_counters = FenceCounters(self.ttm.trace)
        link = Link(config.copy_bandwidth, config.copy_latency)
        self.fence_errors = FenceErrors()
        self.engines = [
            CopyEngine(f"copy{n}", self.fence_counters, link, self.ttm.inject, self.fence_errors)
            for n in range(max(1, config.copy_engines))
        ]
        self.compute = Compute(max(1, config.compute_engines), self.fence_counters, self.fence_errors)
        self._next_engine = count()
        self.sync_moves = config.sync_moves

    def _arena(self, name: str, size: int) -> Arena:
        arena = Arena(name, size >> PAGE_SHIFT)
        self.arenas.append(arena)
        return arena

    def _managers(self) -> list[ResourceManager]:
        config = self.config
        visible = config.vram if config.visible_vram is None else config.visible_vram
        managers: list[ResourceManager] = [
            SystemManager(),
            RangeManager(GTT, config.gtt // PAGE_SIZE * PAGE_SIZE),
            self._buddy(VRAM, config.vram, visible),
        ]
        for region in config.regions:
            if region.name in {manager.name for manager in managers}:
                raise TtmError(errno.EINVAL, f"--region {region.name}: there is a region of that name already")
            if region.manager == "buddy":
                managers.append(self._buddy(region.name, region.size, region.size))
            else:
                size = region.size // PAGE_SIZE * PAGE_SIZE
                managers.append(RangeManager(region.name, size, use_tt=False, arena=self._arena(region.name, size)))
        return managers

    def _buddy(self, name: str, size: int, visible: int) -> ResourceManager:
        size = size // PAGE_SIZE * PAGE_SIZE
        if not size:  # a region that this device has not: everything there is ENOMEM
            return RangeManager(name, 0, use_tt=False, arena=self._arena(name, 0))
        return BuddyManager(name, size, visible, self._arena(name, size))

    # -- regions -------------------------------------------------------------------------------------------------

    @property
    def region_names(self) -> tuple[str, ...]:
        """Regions by name, system first."""
        return tuple(self.ttm.managers)

    def parse_placement(self, words: list[str]) -> Placement:
        """A Placement in this device's regions. TtmError(EINVAL) naming the unknown word."""
        return parse_placement(words, self.region_names)

    def visible_pages(self, region: str) -> int:
        """Pages of a region that the CPU can reach."""
        manager = self.ttm.managers[region]
        return manager.visible_pages if isinstance(manager, BuddyManager) else manager.num_pages

    # -- engines and fences --------------------------------------------------------------------------------------

    @property
    def all_queues(self) -> tuple[CopyEngine | Queue, ...]:
        """What has a timeline: copy engines, and the queues of the compute engines."""
        return (*self.engines, *self.compute.queues)

    def copy_engine(self) -> CopyEngine:
        """The engine for the next copy, in turn."""
        return self.engines[next(self._next_engine) % len(self.engines)]

    @property
    def link(self) -> Link:
        """The simulated link of all copy engines."""
        return self.engines[0].link

    @link.setter
    def link(self, link: Link) -> None:
        for engine in self.engines:
            engine.link = link

    def find_fence(self, name: str) -> Fence | None:
        """The pending fence `CONTEXT:SEQNO`, or what reaches `QUEUE:POINT`; None when it has signaled.

        TtmError: EINVAL for one never emitted, ENOENT for no such queue.
        """
        at = self.compute.queues.point(name)
        if at is not None:
            return at[0].find_point(at[1])
        # Written in one way only: its error is remembered by this name.
        if _FENCE.fullmatch(name):
            context, seqno = map(int, name.split(":"))
            for queue in self.all_queues:
                if queue.timeline.context == context and 0 < seqno <= queue.timeline.last_emitted:
                    return queue.timeline.find(seqno)
            if self.compute.queues.emitted_and_gone(context, seqno):
                return None
        raise TtmError(
            errno.EINVAL, f"{name[:80]!r} is no fence: say CONTEXT:SEQNO as in a command's result, or QUEUE:POINT"
        )

    def fence_error(self, name: str) -> int:
        """The errno that a signaled fence had, by its name; of a point that of the first job up to it that failed."""
        at = self.compute.queues.point(name)
        return self.fence_errors.get(name) if at is None else at[0].error_at(at[1])

    # -- the whole -----------------------------------------------------------------------------------------------

    def selfcheck(self) -> list[str]:
        """Walk all structures; sentences that say what is wrong, none when all is well."""
        return [sentence for sentence in self.selfcheck_steps() if sentence is not None]

    def selfcheck_steps(self) -> Iterator[str | None]:
        """As `selfcheck`, with a None wherever others may run before it goes on."""
        store = self.ttm.swap_store
        for name, check in (
            ("pool", self.pool.check_steps),
            *((manager.name, manager.check_steps) for manager in self.ttm.managers.values()),
            *((("swap", store.check_steps),) if store is not None else ()),
        ):
            try:
                for _ in check():
                    yield None
            except AssertionError as error:
                yield f"{name}: {error}"
            yield None
        yield from believed(self.check_fences)
        yield from audit(self.ttm)

    def check_fences(self) -> Iterator[str | None]:
        """Every fence that is pending will be signaled by somebody."""
        timelines = {queue.timeline for queue in self.all_queues}
        for queue in self.all_queues:
            queued = set(queue.pending())
            for fence in queue.timeline.pending:
                if fence not in queued:
                    yield f"fences: {fence.name} ({fence.what}) is pending, and no engine is going to signal it"
        pending = sum(len(timeline.pending) for timeline in timelines)
        if pending != self.fence_counters.pending:
            yield f"fences: {self.fence_counters.pending} are counted as pending, and timelines have {pending}"
        for bo in with_pauses(self.ttm.bos):
            if bo is None:
                yield None
                continue
            for fence in bo.resv.fences(Usage.BOOKKEEP):
                for plain in unwrap(fence):
                    if not plain.signaled and plain.context and plain.timeline not in timelines:
                        yield f"fences: {bo.name} waits for {plain.name} ({plain.what}), which is of no engine"

    def close(self) -> None:
        """Give all memory back to the host."""
        if self.ttm.swap_store is not None:
            self.ttm.swap_store.close()
        for arena in self.arenas:
            arena.close()
