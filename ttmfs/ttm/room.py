"""Room: free system pages for who finds none (direct reclaim of ttm_tt_populate and of the page allocator under it).

First the device's shrinkers (others give memory up, then other parts of the BO that needs it), then pages that hold
nothing but zeros, then what copies in flight are about to free. Trylock only (H31): what others hold is tried again
when they have had time to let go of it, for a bounded time.
"""

from dataclasses import replace
from typing import Final

import trio

from ttmfs.sync.resv import Usage
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.device import Device, Need
from ttmfs.ttm.lru_cursor import LruCursor
from ttmfs.ttm.reclaim import reclaim

FAULT_WAIT: Final = 5.0
"""Seconds that a request tries for memory that only BOs in use hold."""
COMMAND_WAIT: Final = 0.5
"""Seconds that a command does: less, because requests may wait for what it holds."""
LONGEST: Final = 15.0
"""Seconds after which who still finds none gives up, even if some was freed each time and others were faster."""
_FIRST_PAUSE: Final = 0.0005
_LONGEST_PAUSE: Final = 0.05
_LEAST_SHRINK: Final = 512
"""Pages that who finds none free makes others give up at the least."""


async def below_limit(
    device: Device, pages: int, *, but: BufferObject | None = None, keep: range | None = None
) -> None:
    """The soft limit on populated pages, before `pages` more: others than `but`, then parts of `but`, give some up.

    `but` is reserved by the caller; its pages `keep` stay, all of them without it. What cannot go stays: the caller
    allocates anyway.
    """
    over = device.over_limit(pages)
    if over > 0:
        # Some more, so that the next faults need not unmap anything.
        await _shrink(device, Need(over + device.pages_gap, but, keep))


async def make_room(
    device: Device,
    pages: int,
    ctx: OperationContext,
    *,
    but: BufferObject | None = None,
    keep: range | None = None,
    patience: float = COMMAND_WAIT,
) -> bool:
    """Free some memory for `pages` pages, `but` and `keep` as for `below_limit`. False when nothing can be had.

    What only others use is tried for again for `patience` seconds. Waits for INVALs of other BOs only, whose requests
    have their memory.
    """
    locked = None if keep is None else (keep.start, len(keep))
    give_up = trio.current_time() + patience
    pause = _FIRST_PAUSE
    while True:
        if await _shrink(device, Need(max(pages, _LEAST_SHRINK), but, keep)):
            return True
        if await reclaim(device, pages, ctx, faulting=but, keep=locked) or device.pool.free_pages >= pages:
            return True
        if ctx.no_wait_gpu or trio.current_time() >= give_up or not _held_by_others(device, but):
            return False
        await trio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


async def _shrink(device: Device, need: Need) -> int:
    """The shrinkers, each for what those before it have not found; returns the pages that left memory."""
    freed = 0
    for shrinker in device.shrinkers:
        if freed < need.pages:
            freed += await shrinker(replace(need, pages=need.pages - freed))
    return freed


def _held_by_others(device: Device, but: BufferObject | None) -> bool:
    """Has another BO pages that could go if nobody used it just now?"""
    for manager in device.managers.values():
        if not manager.use_tt:
            continue
        with LruCursor(manager.lru, until_now=True) as cursor:
            while (item := cursor.next()) is not None:
                other = item.bo
                if other is but or other.tt is None or not other.tt.populated_pages or other.external:
                    continue
                if other.resv.locked or other.gate.unmapping or not other.resv.test_signaled(Usage.BOOKKEEP):
                    return True
    return False
