"""Device (ttm_device): the managers, the page pool, the LRUs and what the driver plugs in."""

import errno
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import trio

from ttmfs.errors import TtmError
from ttmfs.memory.pool import PagePool
from ttmfs.memory.stores import SwapStore
from ttmfs.observe.counters import Counters
from ttmfs.observe.inject import Injection
from ttmfs.observe.trace import Trace
from ttmfs.sync.resv import Reservation, Usage, WwClass
from ttmfs.ttm.bo import MAX_SIZE, BufferObject
from ttmfs.ttm.copy import CopyState, zero_bytes
from ttmfs.ttm.defrag_list import DefragList
from ttmfs.ttm.funcs import NoUnmapper, Unmapper
from ttmfs.ttm.lru import LruList
from ttmfs.ttm.placement import SYSTEM, Place, Placement
from ttmfs.ttm.resource import ResourceManager
from ttmfs.units import PAGE_SHIFT, pages_of

CLEAR_STEP_PAGES: Final = 64
"""The step (256 KiB) in which bytes are copied and cleared on the loop while clients want something."""


class Device:
    """One device. `pool` is the memory of system and gtt; `managers` are the regions by name, system first."""

    def __init__(self, pool: PagePool, managers: Iterable[ResourceManager]) -> None:
        self.pool = pool
        self.managers = {manager.name: manager for manager in managers}
        assert SYSTEM in self.managers
        self.counters = Counters()
        self.trace = Trace()
        self.inject = Injection()
        self.ww_class = WwClass()
        self.ww_class.fail_fence_slot = self.inject["fence_slot"].should_fail
        self.unevictable = LruList()
        """Pinned and swapped BOs: on no manager's LRU."""
        for manager in self.managers.values():
            manager.unevictable = self.unevictable
        self.unmapper: Unmapper[BufferObject] = NoUnmapper()
        self.default_placement: Placement = (Place(SYSTEM),)
        self.num_bos = 0
        """Live BOs, ghosts and zombies included (ttm_glob.bo_count)."""
        self.num_ghosts = 0
        self.num_zombies = 0
        self.ghost_gone = trio.Event()
        """Set, and replaced, when a ghost gives its memory back."""
        self.prefault = 256
        self.fault_timeout = 15.0
        self.max_parked = 1 << 30
        """READs and WRITEs that may wait at a time; beyond that the oldest is served without waiting on (R8)."""
        self.unplugged = False
        self.closing = False
        """The mount is going: requests end with ESHUTDOWN instead of waiting."""
        self.propagate_enospc = False
        self.defrag_list = DefragList()
        self.suspended = False
        """Every BO is in system and the device does no work; a fault of a BO that was never placed stays there."""
        self.placed_in_suspend: dict[BufferObject, None] = {}
        """BOs whose first use was then: they are placed anew by the next one after resume."""
        self.swap_store: SwapStore | None = None
        """Where swapout puts pages; None: nothing can be swapped out."""
        self.pages_limit = pool.num_pages - pool.reserve_pages
        """Soft limit on populated pages (ttm_tt_pages_limit): populating beyond it first makes others give some up."""
        self.pressure = trio.Event()
        """Set when populated pages come near the limit, for who shrinks ahead of need."""
        self.purgeable_bos: dict[BufferObject, None] = {}
        """BOs that are advised `dontneed`, the first one advised so first."""
        self.reclaimers: list[Callable[[int], Awaitable[int]]] = []
        """Who else has system pages: asked to free so many, they say how many they did."""
        self.unfinished_restores: dict[BufferObject, None] = {}
        """BOs whose restore failed or was interrupted, and that hold the pages it was going on with."""

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

    def note_pressure(self) -> None:
        """Pages were populated: wake the one who shrinks ahead of need when the gap is used up."""
        if self.over_limit(self.pages_gap) > 0:
            self.pressure.set()

    def set_madvise(self, bo: BufferObject, advice: str) -> None:
        """`dontneed` makes it purgeable; whatever else is advised then, it is wanted again."""
        bo.madvise = advice
        if bo.purgeable:
            self.purgeable_bos[bo] = None
        else:
            self.purgeable_bos.pop(bo, None)
            bo.purged = False

    # -- truncate ------------------------------------------------------------------------------------------------

    def set_size(self, bo: BufferObject, size: int) -> None:
        """SETATTR(size) and O_TRUNC: takes effect at once and waits for nobody (rule R5).

        What was cut off reads as zeros if the file grows again. Memory behind the end is freed as soon as the BO is
        idle: now, or when its reservation is released. TtmError: EFBIG beyond MAX_SIZE, EPERM for an imported BO, whose
        size is the file's; nothing has changed then.
        """
        self.resize(bo, size)
        if bo.growth is not None:
            bo.growth.settled = size

    def resize(self, bo: BufferObject, size: int) -> None:
        """As `set_size`, also of a WRITE past the end that may still fail (see ttmfs.ttm.growth)."""
        if size > MAX_SIZE:
            raise TtmError(errno.EFBIG, f"{bo.name} cannot have {size} bytes: a BO has at most {MAX_SIZE} (128 TiB)")
        if bo.external and size != bo.size:
            raise TtmError(errno.EPERM, f"{bo.name} is imported: its size is that of the file behind it")
        old_size, bo.size = bo.size, size
        bo.drop_view()
        if size < old_size:
            # The page with the new end may be cached from when it was in the middle.
            bo.eof_page_read |= bo.handed_out
            self._zero_tail(bo, size, old_size)
            if bo.dirty is not None:
                bo.dirty.cut(pages_of(size))
        if not size:
            # Nothing is left that could be lost.
            bo.unknown_state = False
        if size == old_size:
            return
        bo.resize_pending = True
        if bo.resv.trylock():
            bo.unreserve()

    def _zero_tail(self, bo: BufferObject, size: int, old_size: int) -> None:
        """Zero [size, old_size) where these bytes are now; copies that have not begun carry the zeros on.

        Nowhere else: the target of a queued copy may still be read by the one that empties it for its former owner.
        In one step: a move that began in between would carry along what is not zeroed yet.
        """
        end_page = pages_of(old_size)
        for copy in bo.copies:
            if copy.state is CopyState.RUNNING:
                copy.zero_from = size if copy.zero_from is None else min(copy.zero_from, size)
        offset = size
        while (index := offset >> PAGE_SHIFT) < end_page:
            backing, copy_of = bo.truth(index)
            stop = end_page
            if copy_of is not None:
                stop = min(stop, copy_of.covers)
            elif backing is not None:
                stop = min(stop, backing.num_pages)
            if stop <= index:
                break
            if backing is not None:
                zero_bytes(backing, offset, stop)
                if backing is bo.tt and bo.tt is not None:
                    bo.tt.cut(offset, stop)
            offset = stop << PAGE_SHIFT

    def apply_resize(self, bo: BufferObject) -> None:
        """Bring resource and tt in line with the size; called with the reservation held, when the BO is idle."""
        if bo.copies or bo.gate.unmapping or not bo.resv.test_signaled(Usage.BOOKKEEP):
            return
        bo.resize_pending = False
        bo.drop_view()
        pages = bo.num_pages
        resource = bo.resource
        if resource is not None and (resource.mem_type == SYSTEM or pages < resource.num_pages):
            resource.manager.trim(resource, pages)
        if bo.tt is not None:
            bo.tt.resize(pages)
        if not pages and resource is not None and resource.mem_type != SYSTEM and not bo.pin_count:
            # Nothing is left of it: back to a new file's state, so that its next content goes to its placement.
            bo.resource = None
            resource.manager.free(resource)
            bo.assign(self.managers[SYSTEM].alloc(bo, Place(SYSTEM)))
            bo.placed = False

    # -- deletion ------------------------------------------------------------------------------------------------

    def release(self, bo: BufferObject) -> None:
        """The last reference is gone (ttm_bo_release): free now if idle, else when the last fence signals.

        A busy BO becomes a zombie: it keeps its space, stays on its LRU and can be reclaimed by eviction.
        """
        if self.trace.on and not bo.ghost:
            zombie = int(not bo.resv.test_signaled(Usage.BOOKKEEP))
            self.trace.emit("bo_destroy", bo.name, bytes=bo.size, region=bo.mem_type, zombie=zombie)
        bo.deleted = bo.zombie = True
        self.placed_in_suspend.pop(bo, None)
        self.defrag_list.leave(bo)
        self.purgeable_bos.pop(bo, None)
        self.unfinished_restores.pop(bo, None)
        bo.drop_view()
        bo.pin_count = 0
        self._individualize(bo)
        bo.relist()
        if not bo.ghost:
            self.num_zombies += 1
        self.cleanup_when_idle(bo)

    def _individualize(self, bo: BufferObject) -> None:
        """ttm_bo_individualize_resv: out of its bulk move, and a reservation of its own with all fences of the shared.

        Where there is no memory for that (injected) it keeps the shared one, and goes with the next unreserve.
        """
        if bo.bulk is not None:
            if bo.resource is not None:
                bo.bulk.remove(bo.resource)
            bo.bulk = None
        if not bo.shares_resv or bo.ghost:
            return
        own = Reservation(self.ww_class)
        own.trylock()
        try:
            own.copy_fences(bo.resv)
        except TtmError:
            return
        finally:
            own.unlock()
        bo.resv = own
        bo.shares_resv = False

    def cleanup_when_idle(self, bo: BufferObject) -> None:
        """Free a deleted BO if nobody uses it; otherwise the last fence, or the holder's unreserve, comes back here."""
        if not bo.zombie:
            return
        for fence in bo.resv.fences(Usage.BOOKKEEP):
            if fence.add_callback(lambda _fence: self.cleanup_when_idle(bo)):
                return
        if bo.resv.trylock():
            self.cleanup(bo)
            bo.resv.unlock()

    def cleanup(self, bo: BufferObject) -> None:
        """ttm_bo_cleanup_memtype_use: free tt and resource of an idle, reserved BO for good."""
        if not bo.zombie:
            return
        bo.funcs.delete_mem_notify(bo)
        bo.drop_view()
        if bo.tt is not None:
            bo.tt.fini()
            bo.tt = None
        resource, bo.resource = bo.resource, None
        if resource is not None:
            resource.manager.free(resource)
        bo.zombie = False
        self.num_bos -= 1
        if bo.ghost:
            self.num_ghosts -= 1
            self.ghost_gone.set()
            self.ghost_gone = trio.Event()
        else:
            self.num_zombies -= 1
