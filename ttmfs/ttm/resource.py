"""Resource and ResourceManager: who owns which pages of a region (ttm_resource, ttm_resource_manager).

A Resource is what a BO holds while it lives in a region. Its manager hands it out, keeps the region's LRU and
counts `usage`. Managers differ in how they choose pages (`ttmfs.ttm.managers`); what they share is here.
"""

import errno
from collections.abc import Iterator
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from ttmfs.errors import TtmError
from ttmfs.memory.arena import Arena
from ttmfs.sync.fence import Fence
from ttmfs.ttm.account import Account
from ttmfs.ttm.advice import Adviser
from ttmfs.ttm.contention import Claims
from ttmfs.ttm.dmem import Group, Pool
from ttmfs.ttm.lru import LruItem, LruList, PriorityLru
from ttmfs.ttm.placement import Place, PlaceFlag
from ttmfs.units import PAGE_SIZE

NUM_MOVE_FENCES: Final = 8
"""Eviction-fence slots of a manager (TTM_NUM_MOVE_FENCES)."""


class Owner(Protocol):
    """What a manager asks of the BO that it allocates for."""

    page_alignment: int
    account: Account
    group: Group

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def num_pages(self) -> int:
        """Its size."""


class Resource(LruItem):
    """Space of `num_pages` pages in one region, owned by `bo`, a BufferObject.

    `start` is the first page in the region, or -1 when it has no address (system, scattered VRAM). A region with
    memory of its own (VRAM) numbers its `pages`; elsewhere there are none, and the bytes are in the BO's tt.
    """

    __slots__ = ("account", "bo", "flags", "manager", "num_pages", "pool", "private", "scattered", "start")

    def __init__(self, manager: "ResourceManager", bo: Owner, num_pages: int, start: int, flags: PlaceFlag) -> None:
        super().__init__()
        self.manager = manager
        self.bo: Any = bo
        self.account = bo.account
        """Who pays for it until it is freed, whoever has it then."""
        self.pool: Pool | None = bo.group.live.pools.get(manager.name)
        """Likewise the group that is charged; None: nobody is, for this region."""
        self.num_pages = num_pages
        self.start = start
        self.flags = flags
        self.scattered: NDArray[np.uint32] | None = None
        """The numbers of pages of the region's own memory that are no run; most are, and cost nothing."""
        self.private: object = None
        """What the manager needs to take the space back."""

    @property
    def mem_type(self) -> str:
        """The region's name."""
        return self.manager.name

    def pay(self, account: Account) -> None:
        """From now on `account` pays for it."""
        self.account.uncharge(self.mem_type, self.num_pages)
        account.charge(self.mem_type, self.num_pages)
        self.account = account

    def charge_to(self, pool: Pool | None) -> None:
        """From now on `pool` of another group is charged for it."""
        size = self.num_pages * PAGE_SIZE
        # In this order, or those above both would seem to have had both.
        if self.pool is not None:
            self.pool.uncharge(size)
        if pool is not None:
            pool.charge(size)
        self.pool = pool

    @property
    def own_pages(self) -> int:
        """Its first pages that lie in the region's own memory: all of them, or none where the bytes are in the tt."""
        return 0 if self.manager.arena is None else self.num_pages

    @property
    def pages(self) -> NDArray[np.uint32] | None:
        """Page numbers in the region's own memory, uint32 (num_pages,), made now where they are a run; None elsewhere.
        """
        return None if self.manager.arena is None else self.numbers(0, self.num_pages)

    @property
    def arena(self) -> Arena:
        """The memory that `pages` number; only for regions with memory of their own."""
        arena = self.manager.arena
        assert arena is not None
        return arena

    def extent(self, index: int, count: int) -> tuple[int, int]:
        """(page number, length): the longest run of consecutive pages from page `index` on, `count` at most."""
        if self.start >= 0:
            return self.start + index, min(count, self.num_pages - index)
        pages = self.scattered
        assert pages is not None
        first = pages.item(index)
        if count == 1:
            return first, 1
        part = pages[index : index + count]
        if part.item(-1) - first == len(part) - 1 and bool((part[1:] - part[:-1] == 1).all()):
            return first, len(part)
        breaks = np.flatnonzero(part[1:] - part[:-1] != 1)
        return first, int(breaks[0]) + 1

    def numbers(self, index: int, count: int) -> NDArray[np.uint32]:
        """Page numbers of `count` pages from `index` on, fewer at its end; to be read."""
        if self.start >= 0:
            end = min(index + count, self.num_pages)
            return np.arange(self.start + index, self.start + end, dtype=np.uint32)
        assert self.scattered is not None
        return self.scattered[index : index + count]

    def pages_between(self, first: int, end: int) -> int:
        """How many of its pages of the region's own memory have numbers in [first, end)."""
        if self.start >= 0:
            return max(0, min(end, self.start + self.num_pages) - max(first, self.start))
        assert self.scattered is not None
        return int(((self.scattered >= first) & (self.scattered < end)).sum())


class ResourceManager:
    """One region: allocates Resources, keeps their LRU, and remembers the fences of pipelined evictions.

    `size` and `usage` are bytes; size 0 of the system manager means no limit of its own. `use_tt` says that the
    bytes of its BOs are in their tt.
    """

    name: str
    use_tt: bool

    def __init__(self, name: str, size: int, *, use_tt: bool, arena: Arena | None = None) -> None:
        self.name = name
        self.size = size
        self.use_tt = use_tt
        self.arena = arena
        self.usage = 0
        self.num_bos = 0
        self.lru = PriorityLru()
        self.unevictable = LruList()
        """What is pinned or swapped out, and so on no manager's LRU: one list for all managers of a device."""
        self.unassigned: dict[Resource, None] = {}
        """Allocated for a move that is under way, oldest first: its BO is reserved and not here yet."""
        self.used = True
        """ttm_resource_manager_set_used: an unused manager hands nothing out."""
        self.eviction_fences: list[Fence] = []
        self.adviser: Adviser | None = None
        """Who says which BO goes first; None: the LRU alone."""
        self.claims = Claims()

    @property
    def num_pages(self) -> int:
        """Size in pages."""
        return self.size // PAGE_SIZE

    def alloc(self, bo: Owner, place: Place) -> Resource:
        """Space for all of `bo` in `place`. TtmError(ENOSPC): full, eviction may help; any other error is final.

        Accounts the space; puts nothing on the LRU (that is `bo.assign`'s business).
        """
        raise NotImplementedError

    def free_space(self, resource: Resource) -> None:
        """Give the space of `resource` back; called once by `free`."""
        raise NotImplementedError

    def account(self, resource: Resource) -> Resource:
        """Count a new resource in `usage`."""
        resource.account.charge(self.name, resource.num_pages)
        if resource.pool is not None:
            resource.pool.charge(resource.num_pages * PAGE_SIZE)
        self.usage += resource.num_pages * PAGE_SIZE
        self.num_bos += 1
        self.unassigned[resource] = None
        return resource

    def free(self, resource: Resource) -> None:
        """ttm_resource_free: off the LRU, uncounted, space given back."""
        self.unassigned.pop(resource, None)
        self.lru_remove(resource)
        resource.account.uncharge(self.name, resource.num_pages)
        if resource.pool is not None:
            resource.pool.uncharge(resource.num_pages * PAGE_SIZE)
        self.usage -= resource.num_pages * PAGE_SIZE
        self.num_bos -= 1
        self.free_space(resource)

    def lru_add(self, resource: Resource) -> None:
        """Put a resource of this manager on the list where its BO belongs (ttm_resource_init)."""
        bo = resource.bo
        if bo.unevictable:
            self.unevictable.add_tail(resource)
        else:
            self.lru.add_tail(resource, bo.priority)
            if bo.bulk is not None:
                bo.bulk.add(resource)

    def lru_remove(self, resource: Resource) -> None:
        """Take it off whatever list it is on."""
        if not resource.on_lru:
            return
        if resource.lru_list is self.unevictable:
            self.unevictable.remove(resource)
        else:
            self.lru.remove(resource)

    def lru_readd(self, resource: Resource) -> None:
        """Its BO was pinned, unpinned, swapped out or in, or given another priority."""
        self.lru_remove(resource)
        self.lru_add(resource)

    def lru_bump(self, resource: Resource) -> None:
        """ttm_bo_move_to_lru_tail; nothing happens to one that is on no list."""
        if not resource.on_lru:
            return
        bo = resource.bo
        unevictable = bo.unevictable
        if unevictable != (resource.lru_list is self.unevictable):
            self.lru_readd(resource)
        elif unevictable:
            self.unevictable.move_to_tail(resource)
        else:
            self.lru.move_to_tail(resource, bo.priority)

    def trim(self, resource: Resource, num_pages: int) -> None:
        """Shrink `resource` to its first `num_pages` pages in place, when the BO was truncated."""
        resource.account.uncharge(self.name, resource.num_pages - num_pages)
        if resource.pool is not None:
            resource.pool.uncharge((resource.num_pages - num_pages) * PAGE_SIZE)
        self.usage -= (resource.num_pages - num_pages) * PAGE_SIZE
        resource.num_pages = num_pages

    def intersects(self, resource: Resource, place: Place) -> bool:
        """Would evicting `resource` help an allocation in `place`?"""
        del resource, place
        return True

    def compatible(self, resource: Resource, place: Place) -> bool:
        """Is `resource` within the range of `place`?"""
        del resource, place
        return True

    def visible(self, resource: Resource) -> bool:
        """Can the CPU reach all of `resource`?"""
        del resource
        return True

    def pending_eviction_fences(self) -> list[Fence]:
        """Fences of copies out of this region whose space is already free: every new owner waits for them."""
        self.eviction_fences = [fence for fence in self.eviction_fences if not fence.signaled]
        return self.eviction_fences

    def add_eviction_fence(self, fence: Fence) -> bool:
        """Keep `fence` for the next owners; False when all slots hold fences of other contexts."""
        fences = self.pending_eviction_fences()
        for index, old in enumerate(fences):
            if old.context == fence.context:
                if fence.is_later(old):
                    fences[index] = fence
                return True
        if len(fences) >= NUM_MOVE_FENCES:
            return False
        fences.append(fence)
        return True

    def to_clear(self, pages: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Which of these pages, to which nothing was written since they were handed out, are not known to be zero."""
        return pages

    def check_steps(self) -> Iterator[None]:
        """AssertionError naming what is wrong with the manager's own books; others may run at each yield."""
        assert self.usage >= 0, f"usage is {self.usage}"
        yield

    def debug_lines(self) -> list[str]:
        """The manager's own dump, after the four common lines."""
        return []

    def debug(self) -> str:
        """ttm_resource_manager_debug."""
        head = [
            f"  use_type: {int(self.used)}",
            f"  use_tt: {int(self.use_tt)}",
            f"  size: {self.size}",
            f"  usage: {self.usage}",
        ]
        return "\n".join(head + self.debug_lines()) + "\n"


def resource_compatible(resource: Resource, placement: tuple[Place, ...], *, evicting: bool) -> bool:
    """ttm_resource_compatible: does one place of this pass accept the BO where it is?

    A BO whose size outgrew its resource is compatible with nothing, so that the next validate makes room.
    """
    if PlaceFlag.TEMPORARY in resource.flags or resource.num_pages != resource.bo.num_pages:
        return False
    skipped = PlaceFlag.DESIRED if evicting else PlaceFlag.FALLBACK
    for place in placement:
        if place.mem_type != resource.mem_type or skipped in place.flags:
            continue
        if PlaceFlag.CONTIGUOUS in place.flags and PlaceFlag.CONTIGUOUS not in resource.flags:
            continue
        if resource.manager.compatible(resource, place):
            return True
    return False


def no_space(manager: ResourceManager, num_pages: int, place: Place) -> TtmError:
    """The ENOSPC of a manager: full for now, evicting may help."""
    return TtmError(
        errno.ENOSPC,
        f"{manager.name} has no room for {num_pages} pages at {place}: {manager.usage} of {manager.size} bytes used",
    )


def never_fits(manager: ResourceManager, num_pages: int, place: Place) -> TtmError:
    """The E2BIG of a manager (xe's): no eviction can help, so the place is passed over and nobody evicted for it."""
    return TtmError(
        errno.E2BIG, f"{num_pages} pages never fit into {place}: {manager.name} has {manager.num_pages} pages"
    )
