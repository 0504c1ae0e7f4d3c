"""Device (ttm_device): what all BOs of a device share. State and books, no deeds.

The managers and the page pool, the counters and the trace, the limits, whom the core asks outside, and the lists of BOs
that somebody is to look at. It lies below the BO, which knows its device: what the BOs are that it lists stands open
here. What happens to one as a whole is in `ttmfs.ttm.lifetime`.
"""

import errno
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

import trio

from ttmfs.errors import TtmError
from ttmfs.memory.account import Held
from ttmfs.memory.pool import PagePool
from ttmfs.memory.stores import SwapStore
from ttmfs.observe.counters import Counters
from ttmfs.observe.inject import Injection
from ttmfs.observe.recorder import Recorder
from ttmfs.observe.trace import Trace
from ttmfs.sync.bell import Bell
from ttmfs.sync.ww_mutex import WwClass
from ttmfs.ttm.account import Accounts
from ttmfs.ttm.advice import Homes, Prefetcher
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.defrag_list import DefragList
from ttmfs.ttm.dmem import Dmem
from ttmfs.ttm.funcs import NoUnmapper, Unmapper
from ttmfs.ttm.io_mem import IoMem
from ttmfs.ttm.lru import LruList
from ttmfs.ttm.placement import SYSTEM, Place, Placement
from ttmfs.ttm.resource import ResourceManager

CLEAR_STEP_PAGES: Final = 64
"""The step (256 KiB) in which bytes are copied and cleared on the loop while clients want something."""


def suspended_error() -> TtmError:
    """What all are told that want something of a suspended device."""
    return TtmError(errno.ENODEV, "the device is suspended: write ctl/resume first")


@dataclass(frozen=True, slots=True)
class Need:
    """System pages that somebody finds none free of: `pages` of them, for the BO `but`.

    `but` is reserved by who asks. Its pages outside `keep`, which the request being served has locked (H30), may go
    like those of others; none of it without `keep`. What only others use is tried for again for `patience` seconds.
    """

    pages: int
    but: Any = None
    keep: range | None = None
    patience: float = 0.5
    no_wait_gpu: bool = False


class Shrinkable(Protocol):
    """Who has system pages beside BOs that may go to the store (struct shrinker)."""

    owed: int
    """Pages that are its share of what was asked for, and that it was not asked for yet."""

    def count(self) -> int:
        """Pages that it has in memory (count_objects)."""

    def busy(self) -> bool:
        """Are there some that could go if nobody used them just now?"""

    async def scan(self, pages: int, ctx: OperationContext) -> int:
        """About so many go to the store, the coldest first (scan_objects); returns how many did. Waits for nobody's
        reservation, nor for jobs if `ctx.no_wait_gpu`.
        """


Reclaimer = Callable[[Need], Awaitable[int]]
"""Asked to free so many pages it says how many it did. It waits for nobody's reservation."""


def _nobody_counts(_engine: str, _bo: object, _ns: int) -> None:
    """The core alone has no clients."""


class Device:
    """One device. `pool` is the memory of system and gtt; `managers` are the regions by name, system first."""

    def __init__(  # noqa: PLR0915 - a statement a field
        self, pool: PagePool, managers: Iterable[ResourceManager]
    ) -> None:
        self.pool = pool
        self.managers = {manager.name: manager for manager in managers}
        assert SYSTEM in self.managers
        self.accounts = Accounts()
        self.dmem = Dmem({name: each.size for name, each in self.managers.items() if name != SYSTEM and each.size})
        self.counters = Counters()
        self.trace = Trace()
        self.recorder = Recorder()
        self.inject = Injection(self.recorder.struck)
        self.ww_class = WwClass()
        self.ww_class.fail_fence_slot = self.inject["fence_slot"].should_fail
        self.unevictable = LruList()
        """Pinned and swapped BOs: on no manager's LRU."""
        for manager in self.managers.values():
            manager.unevictable = self.unevictable
        self.unmapper: Unmapper[Any] = NoUnmapper()
        self.io_mem = IoMem()
        self.default_placement: Placement = (Place(SYSTEM),)
        self.bos: dict[Any, None] = {}
        """Live BOs, ghosts and zombies included, oldest first."""
        self.num_ghosts = self.num_zombies = 0
        self.ghost_gone = trio.lowlevel.ParkingLot()
        """Who waits here goes on when a ghost gives its memory back."""
        self.worked: Callable[[str, Any, int], None] = _nobody_counts
        """Is told what an engine has done: its class (`copy`, `compute`), the BO that it was for, nanoseconds."""
        self.prefault = 256
        self.fault_timeout = 15.0
        self.max_parked = 1 << 30
        """READs and WRITEs that may wait at a time; beyond that the oldest is served without waiting on (R8)."""
        self.unplugged = self.closing = False
        """The mount is going: requests end with ESHUTDOWN instead of waiting."""
        self.propagate_enospc = False
        self.strict_purge = False
        """What was purged is an error to whoever wants it, not zeros."""
        self.defrag_list = DefragList()
        self.suspended = False
        """Every BO is in system and the device does no work; a fault of a BO that was never placed stays there."""
        self.placed_in_suspend: dict[Any, None] = {}
        """BOs whose first use was then: they are placed anew by the next one after resume."""
        self.swap_store: SwapStore | None = None
        """Where swapout puts pages; None: nothing can be swapped out."""
        self.pages_limit = pool.num_pages - pool.reserve_pages
        """Soft limit on populated pages (ttm_tt_pages_limit): populating beyond it first makes others give some up."""
        self.pressure = Bell()
        """Rung when populated pages come near the limit, for who shrinks ahead of need."""
        self.purgeable_bos: dict[Any, None] = {}
        """BOs that are advised `dontneed`, the first one advised so first."""
        self.tails: dict[Any, None] = {}
        """BOs that have grown behind what their region holds of them, or had: the rest is in system pages."""
        self.aheads: dict[Any, None] = {}
        """BOs that hold, or held, a block for what is written behind their end."""
        self.shrinkers: list[Reclaimer] = []
        """Who makes BOs give memory up without waiting for anything, in this order."""
        self.shrinkables: list[Shrinkable] = []
        self.reclaimers: list[Reclaimer] = []
        """Who else has system pages that nobody needs, in this order: asked when the shrinkers found nothing."""
        self.uses = 0
        """The clock of uses: it ticks once for every use of any BO."""
        self.homes: Homes | None = None
        self.prefetcher: Prefetcher | None = None
        """None: the BO's own `prefault` is what comes along with a fault."""
        self.holders: list[Callable[[], Iterator[tuple[Any, Held]]]] = []
        """Who has system pages without a BO: they yield owners, which have a name, and what says their pages."""
        self.slot_holders: list[Callable[[], Iterator[tuple[Any, Held]]]] = []
        """Who has slots of the store without a BO, likewise."""
        self.unfinished_restores: dict[Any, None] = {}
        """BOs whose restore failed or was interrupted, and that hold the pages it was going on with."""

    @property
    def num_bos(self) -> int:
        """How many live BOs there are (ttm_glob.bo_count)."""
        return len(self.bos)

    # -- page accounting -----------------------------------------------------------------------------------------

    def over_limit(self, pages: int) -> int:
        """By how many pages `pages` more would be over the soft limit; nothing helps without a store."""
        if self.swap_store is None and not self.purgeable_bos:
            return 0
        return self.pool.in_use_pages + pages - self.pages_limit

    @property
    def pages_gap(self) -> int:
        """Pages below the limit that are to stay free, so that a fault seldom has to make room: 1/16 of it."""
        return min(self.pages_limit >> 4, 8192)

    def can_spare(self, pages: int) -> bool:
        """Are so many free, and so far below the limit that nobody shrinks for them, nor soon because of them?

        As much stays as kswapd would make free.
        """
        return pages <= self.pool.free_pages and self.over_limit(pages + 2 * self.pages_gap) <= 0

    def note_pressure(self) -> None:
        """Pages were populated: wake the one who shrinks ahead of need when the gap is used up."""
        if self.over_limit(self.pages_gap) > 0:
            self.pressure.ring()
