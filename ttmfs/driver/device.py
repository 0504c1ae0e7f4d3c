"""VirtualDevice: regions with real memory behind them, copy engines, and the policy that drives TTM."""

import errno
import re
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Final

import trio

from ttmfs.driver.compute import ComputeEngine
from ttmfs.driver.config import Config
from ttmfs.driver.defrag import DefragWorker
from ttmfs.driver.engine import CopyEngine, FenceErrors, Link
from ttmfs.driver.policy import DefaultDriver
from ttmfs.driver.suspend import PowerState
from ttmfs.driver.vmwgfx import VmwgfxDriver
from ttmfs.errors import TtmError
from ttmfs.memory.arena import Arena
from ttmfs.memory.pool import PagePool
from ttmfs.memory.stores import make_store
from ttmfs.memory.warm import MAX_DROP_PAGES
from ttmfs.sync.fence import Fence, FenceCounters
from ttmfs.ttm import kswapd
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.device import Device
from ttmfs.ttm.managers import BuddyManager, RangeManager, SystemManager
from ttmfs.ttm.placement import GTT, SYSTEM, VRAM, Place, Placement, parse_placement
from ttmfs.ttm.resource import ResourceManager
from ttmfs.units import PAGE_SHIFT, PAGE_SIZE, parse_size

RESERVE_PAGES = 256
"""Pages of the system arena kept for WRITEs to pages that were handed out (rule R4): 1 MiB."""

POOL_TRIM_INTERVAL = 1.0
_CLEAN_WINDOWS = 16
"""Windows of memory without anything to give back that are passed over at once."""

DRIVERS: Final[dict[str, type[DefaultDriver]]] = {"default": DefaultDriver, "vmwgfx": VmwgfxDriver}
"""What --driver and `Config.driver` choose from. A program that makes mounts of its own may add to it."""

_FENCE: Final = re.compile(r"[1-9][0-9]{0,17}:[1-9][0-9]{0,17}")


class VirtualDevice:
    """The device of one mount. Make it in the process that serves: arenas are not shared with forked children."""

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
        self.compute = ComputeEngine("compute0", self.fence_counters, self.fence_errors)
        self._next_engine = count()
        self.power = PowerState(self)
        self.defrag = DefragWorker(self)
        self.sync_moves = config.sync_moves
        if config.driver not in DRIVERS:
            raise TtmError(errno.EINVAL, f"--driver {config.driver!r}: say one of {' '.join(DRIVERS)}")
        self.funcs = DRIVERS[config.driver](self)
        self.default_placement = self.parse_placement(config.placement.split())
        self.ttm.default_placement = self.default_placement or (Place(SYSTEM),)

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

    # -- what the layers above ask for ---------------------------------------------------------------------------

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

    @property
    def all_engines(self) -> tuple[CopyEngine | ComputeEngine, ...]:
        """Copy engines and the compute engine."""
        return (*self.engines, self.compute)

    def find_fence(self, name: str) -> Fence | None:
        """The pending fence `CONTEXT:SEQNO`; None when it has signaled. TtmError(EINVAL) for one never emitted."""
        context, _, seqno = name.partition(":")
        # Written in one way only: its error is remembered by this name.
        if _FENCE.fullmatch(name):
            for engine in self.all_engines:
                if engine.timeline.context == int(context) and 0 < int(seqno) <= engine.timeline.last_emitted:
                    return engine.timeline.find(int(seqno))
        raise TtmError(errno.EINVAL, f"{name[:40]!r} is no fence: say CONTEXT:SEQNO as in a command's result")

    def copy_engine(self) -> CopyEngine:
        """The engine for the next copy, in turn."""
        return self.engines[next(self._next_engine) % len(self.engines)]

    def create_bo(self, name: str) -> BufferObject:
        """A new, empty BO in system, unpopulated; its first use takes it to its placement."""
        bo = BufferObject(self.ttm, self.funcs, name=name, placement=self.default_placement)
        bo.assign(self.ttm.managers[SYSTEM].alloc(bo, Place(SYSTEM)))
        bo.placed = bo.placement == (Place(SYSTEM),)
        self.funcs.bo_created(bo)
        if name and self.ttm.trace.on:
            self.ttm.trace.emit("bo_create", name, ino=0, uid=0)
        return bo

    def selfcheck(self) -> list[str]:
        """Walk all structures; sentences that say what is wrong, none when all is well."""
        wrong: list[str] = []
        for name, check in (
            ("pool", self.pool.check),
            *((manager.name, manager.check) for manager in self.ttm.managers.values()),
            *((("swap", self.ttm.swap_store.check),) if self.ttm.swap_store is not None else ()),
        ):
            try:
                check()
            except AssertionError as error:
                wrong.append(f"{name}: {error}")
        return wrong

    # -- run-time knobs --------------------------------------------------------------------------------------------

    def knobs(self) -> dict[str, str]:
        """What ctl/config shows."""
        config = self.config
        return {
            "fault_timeout": _decimal(config.fault_timeout),
            "command_timeout": _decimal(config.command_timeout),
            "prefault": str(config.prefault),
            "pool_limit": str(config.pool_limit),
            "propagate_enospc": str(int(config.propagate_enospc)),
            "copy_bandwidth": _decimal(self.engines[0].link.bandwidth),
            "copy_latency": _decimal(self.engines[0].link.latency),
            "defrag_limit": str(self.defrag.limit),
            "defrag_interval": _decimal(self.defrag.interval),
            "defrag_interval_max": _decimal(self.defrag.interval_max),
        }

    def set_knob(self, key: str, value: str) -> None:
        """Change one. TtmError(EINVAL) for an unknown key or a value that it does not take."""
        config = self.config
        if key not in self.knobs():
            raise TtmError(errno.EINVAL, f"{key[:40]!r} is no knob: say one of {' '.join(self.knobs())}")
        if key in ("fault_timeout", "command_timeout", "copy_latency"):
            seconds = _seconds(key, value)
            if key == "copy_latency":
                self._set_link(Link(self.engines[0].link.bandwidth, seconds))
            else:
                setattr(config, key, seconds)
        elif key in ("defrag_interval", "defrag_interval_max"):
            setattr(self.defrag, key.removeprefix("defrag_"), _seconds(key, value))
        elif key == "defrag_limit":
            self.defrag.limit = parse_size(value)
        elif key == "copy_bandwidth":
            self._set_link(Link(parse_size(value), self.engines[0].link.latency))
        elif key == "propagate_enospc":
            if value not in ("0", "1"):
                raise TtmError(errno.EINVAL, f"{key}={value[:40]!r}: say 0 or 1")
            config.propagate_enospc = value == "1"
        else:
            setattr(config, key, parse_size(value))
        self.ttm.fault_timeout = config.fault_timeout
        self.ttm.prefault = config.prefault
        self.ttm.propagate_enospc = config.propagate_enospc
        self.pool.limit_pages = config.pool_limit >> PAGE_SHIFT

    def _set_link(self, link: Link) -> None:
        for engine in self.engines:
            engine.link = link

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The engines and the housekeeping; runs until cancelled."""
        async with trio.open_nursery() as nursery:
            tasks: list[Callable[[], Awaitable[None]]] = [engine.run for engine in self.all_engines]
            for task in (*tasks, self._trim_pool, self.defrag.run):
                nursery.start_soon(task)
            nursery.start_soon(kswapd.watermark, self.ttm)
            nursery.start_soon(kswapd.upkeep, self.ttm)
            task_status.started()

    async def _trim_pool(self) -> None:
        while True:
            await trio.sleep(POOL_TRIM_INTERVAL)
            for number in range(self.pool.idle_windows):
                while (dropped := self.pool.drop_idle()) >= MAX_DROP_PAGES:
                    await trio.lowlevel.checkpoint()
                if dropped or not number % _CLEAN_WINDOWS:
                    await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Give all memory back to the host."""
        if self.ttm.swap_store is not None:
            self.ttm.swap_store.close()
        for arena in self.arenas:
            arena.close()


def _decimal(value: float) -> str:
    """As it may be written again: no exponent, no rounding above a nanosecond."""
    return f"{value:.9f}".rstrip("0").rstrip(".")


def _seconds(key: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 1e6:
        raise TtmError(errno.EINVAL, f"{key}={value[:40]!r}: say a number of seconds")
    return seconds
