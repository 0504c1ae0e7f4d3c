"""Audit: all memory that is in use, and all that is in the store, is somebody's, and the books say what owners have.

An audit yields sentences about what is wrong, and None wherever others may run before it goes on. Pages go on only to
BOs that are younger (ghosts), to what a fence will free, or back; so holders are asked first, then BOs from the oldest
on, then what is detached, and nothing that moves meanwhile is missed.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from ttmfs.memory.account import Account
from ttmfs.memory.runs import PageArray
from ttmfs.sync.resv import Usage
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.device import Device
from ttmfs.ttm.managers import BuddyManager
from ttmfs.ttm.resource import ResourceManager
from ttmfs.ttm.tt import TT
from ttmfs.units import PAGE_SHIFT

_AT_ONCE = 64
"""BOs that are asked between two pauses."""
_NOTHING: PageArray = np.zeros(0, np.uint32)


def believed(check: Callable[[], Iterator[str | None]]) -> Iterator[str | None]:
    """A check of sums that hold as of one moment, and the pauses it makes.

    What others do in a pause may be counted twice or not at all: where that makes it find something wrong, it is asked
    once more without pauses, and only what it says then is said.
    """
    wrong = False
    for sentence in check():
        wrong |= sentence is not None
        if sentence is None:
            yield None
    if wrong:
        yield from (sentence for sentence in check() if sentence is not None)


def with_pauses(bos: Iterable[BufferObject]) -> Iterator[BufferObject | None]:
    """All of them as they are now, with a None now and then."""
    for count, bo in enumerate(list(bos), 1):
        yield bo
        if not count % _AT_ONCE:
            yield None


def audit(device: Device) -> Iterator[str | None]:
    """All of it."""
    yield from believed(lambda: books(device))
    yield from device.io_mem.check()
    yield None
    walk = _Walk(device)
    try:
        yield from walk.everybody()
        yield from walk.results()
    finally:
        walk.end()


def books(device: Device) -> Iterator[str | None]:
    """The counts of the device and of its regions, as of one moment."""
    pages = dict.fromkeys(device.managers.values(), 0)
    bos = dict.fromkeys(device.managers.values(), 0)
    ghosts = zombies = 0
    for bo in with_pauses(device.bos):
        if bo is None:
            yield None
            continue
        ghosts += bo.ghost
        zombies += bo.zombie and not bo.ghost
        resource = bo.resource
        if resource is not None:
            pages[resource.manager] += resource.num_pages
            bos[resource.manager] += 1
            if resource.bo is not bo:
                yield f"{bo.name} has space in {resource.mem_type} that {resource.bo.name} has, too"
        if bo.zombie and not bo.resv.locked and bo.resv.test_signaled(Usage.BOOKKEEP):
            yield f"{bo.name} is deleted and idle, and has not been freed"
    for manager in device.managers.values():
        for resource in manager.unassigned:
            pages[manager] += resource.num_pages
            bos[manager] += 1
        yield from _differ(manager.name, "pages in use", manager.usage >> PAGE_SHIFT, pages[manager])
        yield from _differ(manager.name, "BOs", manager.num_bos, bos[manager])
    yield from _differ("device", "ghosts", device.num_ghosts, ghosts)
    yield from _differ("device", "zombies", device.num_zombies, zombies)


def _differ(who: str, what: str, counted: int, there: int) -> Iterator[str]:
    if counted != there:
        yield f"{who}: {counted} {what} are counted, and owners have {there}"


class _Walk:
    """One walk through all owners, with an account of each kind of thing that they have."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._pages = Account("pages", device.pool.num_pages)
        store = device.swap_store
        self._slots = Account("slots", 0 if store is None else store.slots.num_slots)
        self._regions: dict[ResourceManager, Account] = {
            manager: Account("pages", manager.num_pages)
            for manager in device.managers.values()
            if isinstance(manager, BuddyManager)
        }
        device.pool.accounts.append(self._pages)
        if store is not None:
            store.slots.accounts.append(self._slots)

    def end(self) -> None:
        """Nobody need tell it what is handed out any more."""
        self._device.pool.accounts.remove(self._pages)
        if self._device.swap_store is not None:
            self._device.swap_store.slots.accounts.remove(self._slots)

    def everybody(self) -> Iterator[str | None]:
        """Ask all owners. When the last has answered nothing has been awaited since."""
        for account, holders in ((self._pages, self._device.holders), (self._slots, self._device.slot_holders)):
            for holder in holders:
                for count, (owner, held) in enumerate(holder()):
                    if not count % _AT_ONCE:
                        yield None
                    yield from account.belong(owner, held)
        asked: dict[BufferObject, None] = {}
        while new := [bo for bo in self._device.bos if bo not in asked]:
            for count, bo in enumerate(new):
                if not count % _AT_ONCE and len(new) > _AT_ONCE:
                    yield None
                yield from self._ask(bo)
                asked[bo] = None
        for pages in self._device.pool.detached.values():
            self._pages.excuse(pages)

    def _ask(self, bo: BufferObject) -> Iterator[str]:
        resource, whole = bo.resource, bo.whole
        if whole is not None and (
            bo.copies or bo.lost or bo.external or not bo.reachable or bo.backing_now(0) is not whole
        ):
            yield f"{bo.name} is served from what does not hold it any more"
        if resource is not None and resource.manager in self._regions:
            yield from self._regions[resource.manager].belong(bo, _space_in(resource.manager))
        tts = _tts(bo)
        if not tts:
            return
        yield from self._pages.belong(bo, _pages_of)
        for tt in tts:
            for held in (tt.ahead, tt.unfinished, *tt.restoring):
                if held is not None:
                    self._pages.excuse(held.pages)
            if tt.stock is not None:
                self._pages.excuse(tt.stock.rest())
            if tt.store is not None:
                self._slots.excuse(tt.handles_on_their_way() - np.uint32(1))
        if any(tt.backed_up_pages for tt in tts):
            yield from self._slots.belong(bo, _slots_of)

    def results(self) -> Iterator[str | None]:
        """What nobody has; then, as others run in between, who has what is free."""
        device, store = self._device, self._device.swap_store
        for sentence in self._pages.without_owner(device.pool.in_use_map()):
            yield f"memory: {sentence}"
        if store is not None:
            for sentence in self._slots.without_owner(store.slots.stored_map()):
                yield f"swap: {sentence}"
            yield from self._slots.used_no_more(store.slots.stored_map)
        yield from self._pages.used_no_more(device.pool.in_use_map)
        for manager, account in self._regions.items():
            assert isinstance(manager, BuddyManager)
            yield from account.used_no_more(manager.buddy.allocated_map)


def _tts(bo: BufferObject) -> list[TT]:
    """All that it has whose pages are the pool's."""
    return [tt for tt in bo.tts if not tt.external]


def _pages_of(bo: BufferObject) -> PageArray:
    parts = [tt.pages_in(0, tt.num_pages)[1] for tt in _tts(bo) if tt.populated_pages]
    return np.concatenate(parts) if parts else _NOTHING


def _slots_of(bo: BufferObject) -> PageArray:
    parts = [tt.handles() - np.uint32(1) for tt in _tts(bo) if tt.backed_up_pages]
    return np.concatenate(parts) if parts else _NOTHING


def _space_in(manager: ResourceManager) -> Any:
    def space(bo: BufferObject) -> PageArray:
        resource = bo.resource
        if resource is None or resource.manager is not manager or resource.pages is None:
            return _NOTHING
        return resource.pages

    return space
