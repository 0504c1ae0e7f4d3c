"""Direct reclaim: free system pages for who finds none (what the page allocator does under ttm_tt_populate).

First the device's shrinkers (others give memory up, then other parts of the BO that needs it), then what else has been
registered as a reclaimer (pages that hold nothing but zeros), then what copies in flight are about to free. Nothing
here knows any of them. Trylock only (H31): what others hold is tried again when they have had time to let go of it, for
a bounded time.
"""

import errno
from dataclasses import replace
from typing import Final

import trio

from ttmfs.errors import TtmError
from ttmfs.sync.resv import Usage
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.device import Device, Need, Reclaimer
from ttmfs.ttm.lru_cursor import LruCursor
from ttmfs.ttm.tt import out_of_memory

FAULT_WAIT: Final = 5.0
"""Seconds that a request tries for memory that only BOs in use hold."""
COMMAND_WAIT: Final = 0.5
"""Seconds that a command does: less, because requests may wait for what it holds."""
GHOST_WAIT: float = 1.0
"""Seconds to wait for copies in flight to give their source back."""
LONGEST: Final = 15.0
"""Seconds after which who still finds none gives up, even if some was freed each time and others were faster."""
_FIRST_PAUSE: Final = 0.0005
_LONGEST_PAUSE: Final = 0.05
_LEAST_SHRINK: Final = 512
"""Pages that who finds none free makes others give up at the least."""


async def below_limit(device: Device, need: Need) -> None:
    """The soft limit on populated pages, before `need.pages` more: others than its BO, then parts of it, give some up.

    What cannot go stays: the caller allocates anyway.
    """
    over = device.over_limit(need.pages)
    if over > 0:
        # Some more, so that the next faults need not unmap anything.
        await _ask(device.shrinkers, replace(need, pages=over + device.pages_gap))


async def make_room(device: Device, need: Need) -> bool:
    """Free some memory for `need`. False when nothing can be had.

    Waits for INVALs of other BOs only, whose requests have their memory.
    """
    give_up = trio.current_time() + need.patience
    pause = _FIRST_PAUSE
    while True:
        if await _ask(device.shrinkers, replace(need, pages=max(need.pages, _LEAST_SHRINK))):
            return True
        if await _ask(device.reclaimers, need) or await _ghosts_gone(device, need):
            return True
        if device.pool.free_pages >= need.pages:
            return True
        if need.no_wait_gpu or trio.current_time() >= give_up or not _held_by_others(device, need.but):
            return False
        await trio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


class Attempts:
    """The attempts of one allocation: what fails with ENOMEM is tried again while something can be reclaimed for it."""

    def __init__(self, device: Device, need: Need) -> None:
        self._device = device
        self._need = need
        self._give_up = trio.current_time() + LONGEST

    async def after(self, error: TtmError, pages: int) -> None:
        """An attempt at `pages` pages ended with `error`: free memory for another one, or raise it."""
        if error.errno != errno.ENOMEM:
            raise error
        pool = self._device.pool
        in_vain = pages > pool.num_pages or trio.current_time() >= self._give_up
        if in_vain or not await make_room(self._device, replace(self._need, pages=pages)):
            raise out_of_memory(pages, pool) from error


async def _ask(reclaimers: list[Reclaimer], need: Need) -> int:
    """Each for what those before it have not found; returns how many pages were freed."""
    freed = 0
    for reclaimer in reclaimers:
        if freed < need.pages:
            freed += await reclaimer(replace(need, pages=need.pages - freed))
    return freed


async def _ghosts_gone(device: Device, need: Need) -> int:
    """Wait for a copy in flight to give its source back; how many pages are free that were not."""
    if need.no_wait_gpu or not device.num_ghosts:
        return 0
    before = device.pool.free_pages
    with trio.move_on_after(GHOST_WAIT):
        while device.num_ghosts and device.pool.free_pages <= before:
            await device.ghost_gone.park()
    return max(0, device.pool.free_pages - before)


def _held_by_others(device: Device, but: BufferObject | None) -> bool:
    """Has another BO, or whoever else may shrink, pages that could go if nobody used them just now?"""

    def holds(other: BufferObject) -> bool:
        if other is but or other.tt is None or not other.tt.populated_pages or other.external:
            return False
        return other.resv.locked or other.unmapping or not other.resv.test_signaled(Usage.BOOKKEEP)

    for manager in device.managers.values():
        if not manager.use_tt:
            continue
        with LruCursor(manager.lru, until_now=True) as cursor:
            while (item := cursor.next()) is not None:
                if holds(item.bo):
                    return True
    if any(bo.has_tail and holds(bo) for bo in device.tails):
        return True
    store = device.swap_store
    return store is not None and store.available_pages > 0 and any(each.busy() for each in device.shrinkables)
