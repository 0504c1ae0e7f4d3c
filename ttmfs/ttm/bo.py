"""BufferObject (ttm_buffer_object): a size, a place, a page vector and a reservation.

Where its bytes are, page by page:

* `copies` holds the copies that have not signaled, oldest first. While there are any, the truth about a page is in the
  source of the oldest copy that covers it.
* Otherwise a page below `resource.num_pages` of a region with memory of its own (VRAM) is there; every other page is
  in the tt. Pages that a growing file appended behind its VRAM resource are in the tt until the next validate:
  its tail, which goes to the store and comes back as pages of a BO in system do.

`size` is what the file says, in bytes; resources and the tt are brought in line whenever the BO is idle.
"""

import errno
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from ttmfs.errors import TtmError
from ttmfs.memory.pool_types import Caching
from ttmfs.observe.recorder import LastMove
from ttmfs.sync.fence import Fence
from ttmfs.sync.resv import Reservation, Usage
from ttmfs.ttm.account import Account
from ttmfs.ttm.advice import Adviser, compare_home, tell
from ttmfs.ttm.backing import Backing
from ttmfs.ttm.copy import Copy, CopyState, truth_ends
from ttmfs.ttm.device import Device
from ttmfs.ttm.dmem import Group
from ttmfs.ttm.funcs import DriverFuncs
from ttmfs.ttm.gate import Gate
from ttmfs.ttm.growth import Growth
from ttmfs.ttm.lru import LruBulkMove
from ttmfs.ttm.placement import SYSTEM, Placement
from ttmfs.ttm.resource import Resource
from ttmfs.ttm.tt import TT
from ttmfs.ttm.watcher import Named, Watcher, WriteObserver
from ttmfs.units import PAGE_SHIFT, pages_of

NUM_PRIORITIES: Final = 4
CONTENT_LOST: Final = "its content was lost in a failed copy; truncate it to 0, or validate none, and write it anew"
"""Why nothing is served of a BO in unknown state, and what ends that."""
PURGED: Final = "its content was purged (--purgeable strict); truncate it to 0, and write it anew"
"""Likewise, of one that is gone for good."""
MAX_SIZE: Final = 1 << 47
"""Bytes: 128 TiB, the address space of a process, so that a BO can always be mapped whole."""
_NO_COPIES: Final[deque[Copy]] = deque()


class BufferObject:
    """One BO. Every field is protected by `resv`, except what requests may do without it (see ttmfs.ttm.access)."""

    __slots__ = (
        "_copies", "_gate", "account", "adviser", "bulk", "caching", "defrag_old_tt", "deleted", "device", "dirty",
        "eof_page_read", "evicting", "evictions", "fault_pages", "faults", "fresh_tt", "funcs", "ghost", "group",
        "growth", "handed_out", "has_writers", "home", "last_error", "last_move", "last_use", "looked", "looks_only",
        "madvise", "moved_at", "moves", "named", "page_alignment", "pages_moved", "pin_count", "placed", "placement",
        "prefault", "prefault_pages", "priority", "private", "purged", "reservation_retries", "resource", "resv",
        "shares_resv", "size", "tt", "unknown_state", "uses", "validations", "view", "vmap", "vmap_known", "watcher",
        "when_unlocked", "when_unlocking", "whole", "zombie",
    )  # fmt: skip

    def __init__(  # noqa: PLR0915 - a statement a field
        self,
        device: Device,
        funcs: "DriverFuncs[BufferObject]",
        *,
        name: str = "",
        placement: Placement = (),
        resv: Reservation | None = None,
        account: Account | None = None,
        group: Group | None = None,
    ) -> None:
        self.device = device
        self.account = device.accounts.root if account is None else account
        """Who pays for what it gets from now on."""
        self.group = device.dmem.root if group is None else group
        """Which group is charged for it likewise."""
        self.funcs = funcs
        self.named: Named | str = name
        self.size = 0
        self.growth: Growth | None = None
        self.resource: Resource | None = None
        self.tt: TT | None = None
        self.defrag_old_tt: TT | None = None
        """The source of a defrag move while the driver makes it; `tt` is the fresh one then."""
        self.fresh_tt: TT | None = None  # what a defrag move is to go to, until it is `tt`
        self.resv = Reservation(device.ww_class) if resv is None else resv
        self.shares_resv = resv is not None
        """The reservation was given: others may have the same one."""
        self._gate: Gate | None = None
        self._copies: deque[Copy] = _NO_COPIES
        self.vmap: memoryview | None = None
        """All of the BO as one run of bytes, when that may be read and written without further questions."""
        self.whole: Backing | None = None
        """What holds all of it, pages and holes alike, where whoever has its bytes in reach may have them at once."""
        self.vmap_known = False
        """Has `vmap` been worked out since the last change?"""
        self.handed_out = False
        """A READ or WRITE was answered since the last INVAL: clients may have pages cached."""
        self.looks_only = self.looked = False
        """Nobody can store into what READs hand out: see ttmfs.ttm.looking. Whoever counts the openers says so."""
        self.has_writers = False
        """Somebody has it open for writing, and will be seen to close it."""
        self.eof_page_read = False
        """A client may have the page with the end of the file cached and up to date; see ttmfs.ttm.before_reply."""
        self.placed = False
        """False until the first validate, fault, WRITE or job; gutting resets it."""
        self.placement = placement
        self.pin_count = 0
        self.priority = self.page_alignment = 1
        self.caching = Caching.cached
        self.prefault = device.prefault
        self.madvise = "normal"
        self.purged = False
        """Its content was dropped while it was advised `dontneed`, or by a purge. Until it is truncated to 0, or, where
        that shows as zeros, advised anew."""
        self.deleted = self.zombie = False
        """`deleted`: the last reference is gone, nobody begins anything with it; `zombie`: and it still has memory."""
        self.ghost = False
        """A ghost holds what a move left behind until its fences signal; the driver never sees one."""
        self.when_unlocking: tuple[Callable[[BufferObject], None], ...] = ()
        """What waits for the end of the reservation: called at every unlock, while it is still held."""
        self.when_unlocked: tuple[Callable[[BufferObject], None], ...] = ()
        """Likewise, when it is held no more."""
        self.unknown_state = False
        self.bulk: LruBulkMove | None = None
        device.bos[self] = None
        self.private: object = None
        """What the driver or the file system hangs on to a BO."""
        self.adviser: Adviser | None = None
        """Who knows that it is in its region."""
        self.view: object = None
        """What advisers know it by."""
        self.evicting = False
        self.home = ""
        """The region that it is wanted in; "" when nobody has said."""
        self.uses = self.last_use = self.moved_at = 0
        """How often, and when on the clock of Device.uses; when it last moved, in nanoseconds since 1970."""
        self.watcher: Watcher | None = None
        self.dirty: WriteObserver | None = None
        """The driver's dirty tracking: hears of every WRITE."""
        self.last_error = ""
        self.last_move: LastMove | None = None
        self.moves = self.pages_moved = self.evictions = self.validations = 0
        self.faults = self.fault_pages = self.prefault_pages = self.reservation_retries = 0

    @property
    def name(self) -> str:
        """For messages and traces: `named`, or what that says, where somebody may rename the BO."""
        return self.named if isinstance(self.named, str) else self.named.path

    @property
    def tts(self) -> list[TT]:
        """All that hold something for it: its own, and while it is backed anew the old or the fresh one."""
        return [tt for tt in (self.tt, self.defrag_old_tt, self.fresh_tt) if tt is not None]

    # -- size and place ------------------------------------------------------------------------------------------

    @property
    def num_pages(self) -> int:
        """Pages that `size` needs."""
        return pages_of(self.size)

    @property
    def mem_type(self) -> str:
        """The region it is in; `system` when it has no resource."""
        return SYSTEM if self.resource is None else self.resource.mem_type

    @property
    def purgeable(self) -> bool:
        """madvise dontneed: its content may be dropped instead of moved."""
        return self.madvise == "dontneed"

    @property
    def external(self) -> bool:
        """An imported BO (the sg type): its memory is somebody else's."""
        return self.tt is not None and self.tt.external

    @property
    def swapped(self) -> bool:
        """All that it has is in the store."""
        tt = self.tt
        return tt is not None and tt.backed_up_pages > 0 and not tt.populated_pages and not self.own_pages

    @property
    def held_pages(self) -> int:
        """Pages of content, wherever they are: in its region, in system, in the store."""
        tt = self.tt
        in_tt = 0 if tt is None else tt.populated_pages + tt.backed_up_pages
        return min(self.own_pages, self.num_pages) + in_tt

    @property
    def unevictable(self) -> bool:
        """Pinned or swapped out: on the device's unevictable list instead of a manager's LRU."""
        return self.pin_count > 0 or self.swapped

    @property
    def gone(self) -> bool:
        """Purged on a device that does not show zeros instead: nobody gets a byte of it until it is truncated to 0."""
        return self.purged and self.device.strict_purge

    @property
    def lost(self) -> str:
        """Why no byte of it is served; empty when all are."""
        return CONTENT_LOST if self.unknown_state else PURGED if self.gone else ""

    def content_changed(self) -> None:
        """Somebody else than a client has changed it, or dropped it."""
        if self.watcher is not None:
            self.watcher.content_changed()

    @property
    def gate(self) -> Gate:
        """When requests may touch its bytes. Made when it is first asked for: of most BOs nobody does."""
        gate = self._gate
        if gate is None:
            gate = self._gate = Gate()
        return gate

    @property
    def unmapping(self) -> bool:
        """Is an INVAL of it outstanding?"""
        return self._gate is not None and bool(self._gate.outstanding)

    @property
    def state(self) -> str:
        """The gate's state: `resident`, `unmapping` or `moving`; `queued` while a copy has not begun."""
        if self.unmapping:
            return "unmapping"
        if self._copies:
            return "moving" if self._copies[0].state is CopyState.RUNNING else "queued"
        return "resident"

    def need_tt(self) -> TT:
        """The tt, made now if there is none (ttm_tt_create), and as long as the BO."""
        tt = self.tt
        if tt is None:
            tt = TT(self.device.pool, self.num_pages, self.caching, self.device.swap_store, self.account)
            self.set_tt(tt)
        elif tt.num_pages < self.num_pages:
            tt.resize(self.num_pages)
        return tt

    def set_tt(self, tt: TT | None) -> None:
        """Take `tt` as the BO's page vector; the old one is the caller's."""
        self.drop_vmap()
        self.tt = tt

    # -- where the bytes are -------------------------------------------------------------------------------------

    @property
    def copies(self) -> deque[Copy]:
        """Copies that have not signaled, oldest first; empty (and shared) most of the time."""
        return self._copies

    def add_copy(self, copy: Copy) -> None:
        """A copy was submitted; it leaves the list when it is done."""
        if self._copies is _NO_COPIES:
            self._copies = deque()
        for earlier in self._copies:
            # What this one does not take on was cut off by a truncate: it is no content any more.
            earlier.covers = min(earlier.covers, copy.num_pages)
        self._copies.append(copy)
        self.drop_vmap()
        copy.fence.add_callback(lambda _fence: self._copy_done(copy))

    def _copy_done(self, copy: Copy) -> None:
        if copy in self._copies:
            self._copies.remove(copy)
        if not self._copies:
            self._copies = _NO_COPIES
        self.resv.forget_signaled()

    def forget_copies(self) -> None:
        """Gutted: what is still on its way is no content of this BO any more."""
        self._copies = _NO_COPIES

    @property
    def own_pages(self) -> int:
        """Its first pages that lie in its region's own memory, once all copies are done; the others are in the tt."""
        resource = self.resource
        return 0 if resource is None else resource.own_pages

    def part(self, index: int, count: int) -> tuple[Backing, int]:
        """(what holds page `index` once all copies are done, how many of `count` pages from there on it holds)."""
        resource = self.resource
        if resource is not None and index < (own := resource.own_pages):
            return resource, min(count, own - index)
        return self.need_tt(), count

    def parts(self, first: int, count: int) -> Iterator[tuple[Backing, int, int]]:
        """What holds pages [first, first + count) once all copies are done, as (backing, first page, pages)."""
        end = first + count
        while first < end:
            backing, pages = self.part(first, end - first)
            yield backing, first, pages
            first += pages

    def backing_now(self, index: int) -> Backing:
        """What holds page `index` once all copies are done."""
        return self.part(index, 1)[0]

    @property
    def has_tail(self) -> bool:
        """Is it longer than what its region's own memory holds of it?"""
        return 0 < self.own_pages < self.num_pages

    def truth(self, index: int) -> tuple[Backing | None, Copy | None, int]:
        """(what holds page `index` now, None for zeros; the copy whose source that is; before which page it ends)."""
        end = truth_ends(self._copies, index)
        found = next((copy for copy in self._copies if copy.first <= index < copy.covers), None)
        return (self.backing_now(index), None, end) if found is None else (found.src, found, end)

    def extent(self, index: int, count: int) -> tuple[Backing, int, int]:
        """(backing, page number or -1 for a hole, length) of a run that starts at page `index`; no copies pending."""
        backing, count = self.part(index, count)
        page, length = backing.extent(index, count)
        return backing, page, length

    def has_memory(self, index: int, count: int) -> bool:
        """Do all these pages have memory where they are now (no copies pending)?"""
        own, end = self.own_pages, index + count
        return end <= own or self.need_tt().has_memory(max(index, own), end - max(index, own))

    def make_vmap(self) -> None:
        """Set `whole` if one backing in reach holds all of the BO and no copy is pending; `vmap` if it is one run."""
        self.vmap = self.whole = None
        self.vmap_known = True
        if not self.size or self._copies or self.device.unplugged or self.lost or not self.reachable:
            return
        if self.external or self.has_tail:  # Imported memory may go away: it is looked at each time.
            return
        backing = self.whole = self.backing_now(0)
        if backing is self.tt and not self.tt.is_populated:
            return
        page, length = backing.extent(0, min(self.num_pages, backing.num_pages))
        if page >= 0 and length == self.num_pages:
            self.vmap = backing.arena.buf[page << PAGE_SHIFT :][: self.size]

    def drop_vmap(self) -> None:
        """Before what is behind it changes, or could be seen as one run from now on.

        None is made while the BO is reserved or has copies: once is enough for all that a holder of the reservation
        does. A new resource, tt or copy does it by itself.
        """
        self.vmap = self.whole = None
        self.vmap_known = False

    @property
    def visible(self) -> bool:
        """Can the CPU reach it where it is?"""
        resource = self.resource
        return resource is None or resource.manager.visible(resource)

    @property
    def reachable(self) -> bool:
        """Is it `visible`, and mapped for the CPU if its driver has to do that (ttmfs.ttm.io_mem)?"""
        return self.visible and (self.resource is None or self.device.io_mem.has(self.resource))

    def snapshot(self, first: int = 0, count: int = 1 << 62) -> bytes:
        """One letter per page, . s g v b m, of at most `count` pages from page `first` on. Takes time by the letter."""
        count = max(0, min(count, self.num_pages - first))
        letters = np.full(count, ord("."), np.uint8)
        if self.tt is not None:
            letters = self.tt.letters(first, count)
            if self.resource is not None and self.mem_type != SYSTEM and self.resource.manager.use_tt:
                letters[letters == ord("s")] = ord(self.mem_type[0])
        letters[: max(0, self.own_pages - first)] = ord(self.mem_type[0])
        for copy in self._copies:
            letters[max(0, copy.first - first) : max(0, copy.covers - first)] = ord("m")
        return letters.tobytes()

    # -- reservation, LRU, pins ----------------------------------------------------------------------------------

    def check_alive(self) -> None:
        """TtmError(ENOENT) when it is deleted: whoever has waited for it looks again (ttm_bo_get_unless_zero)."""
        if self.deleted:
            raise TtmError(errno.ENOENT, f"{self.name or 'the BO'} is gone: it was unlinked")

    def unreserve(self) -> None:
        """ttm_bo_unreserve: bump to the LRU tail, then unlock."""
        try:
            self.bump()
        finally:
            self.unlock()

    def unlock(self) -> None:
        """dma_resv_unlock, without the bump. What had to wait for it is done: a truncate's trim, a deletion."""
        try:
            for work in self.when_unlocking:
                work(self)
        finally:
            self.resv.unlock()
        for work in self.when_unlocked:
            work(self)

    def assign(self, resource: Resource | None) -> None:
        """Take `resource` (already allocated) as the BO's place and put it on the LRU; the old one is the caller's."""
        self.drop_vmap()
        self.device.io_mem.free(self.resource)
        self.resource = resource
        if resource is None:
            return
        resource.bo = self
        manager = resource.manager
        manager.unassigned.pop(resource, None)
        manager.lru_add(resource)
        if self.has_tail:
            self.device.tails[self] = None
        if manager.adviser is not self.adviser:
            tell(self, manager.adviser)
        if self.home:
            compare_home(self)

    def bump(self) -> None:
        """ttm_bo_move_to_lru_tail: it was used just now."""
        if self.resource is not None:
            self.resource.manager.lru_bump(self.resource)

    def relist(self) -> None:
        """It was pinned, unpinned, swapped out or in, or given another priority: to the list where it belongs now."""
        if self.resource is not None:
            self.resource.manager.lru_readd(self.resource)
            tell(self, self.resource.manager.adviser)

    def pin(self) -> None:
        """ttm_bo_pin: counted; a pinned BO is never evicted, swapped or moved. Populates nothing, waits for nothing."""
        self.pin_count += 1
        if self.pin_count == 1:
            self.relist()

    def unpin(self) -> None:
        """ttm_bo_unpin. TtmError(EINVAL) when it is not pinned."""
        if not self.pin_count:
            raise TtmError(errno.EINVAL, f"{self.name!r} is not pinned")
        self.pin_count -= 1
        if not self.pin_count:
            self.relist()

    def moving_fence(self) -> Fence | None:
        """The KERNEL-usage fence that everybody waits for, or None (i915_gem_object_get_moving_fence)."""
        return self.resv.get_singleton(Usage.KERNEL)
