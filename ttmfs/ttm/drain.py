"""Drain: what a group has beyond its `max` goes, when that is lowered (ttm_bo_evict_cgroup)."""

import errno
from typing import Final

from ttmfs.errors import TtmError
from ttmfs.sync.pace import Pace
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.contention import NoRoom
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.dmem import Pool
from ttmfs.ttm.evict import evict_one
from ttmfs.ttm.lru_cursor import LruCursor
from ttmfs.ttm.protection import why_spared
from ttmfs.ttm.resource import Resource, ResourceManager
from ttmfs.ttm.turn import Turn

_STAYS: Final = (errno.ENOSPC, errno.EBUSY, errno.ENOMEM, errno.EINVAL)
"""Who cannot go for these reasons is passed over."""


async def drain(manager: ResourceManager, pool: Pool, ctx: OperationContext) -> int:
    """Evict BOs of `pool`, and of those below it, until it has no more than its `max`; returns bytes.

    In the order of the LRU: first whom nothing protects, then whom `low` does; `min` of those below it holds. Victims
    that somebody holds are waited for. What is pinned, imported, or finds no room elsewhere stays: `max` is kept for
    what comes then. TtmError: as the driver's moves, but for those reasons.
    """
    before = pool.usage
    for ignore_low in (False, True):
        if pool.usage > pool.max:
            await _drain(manager, pool, ctx, ignore_low=ignore_low)
    return max(before - pool.usage, 0)


async def _drain(manager: ResourceManager, pool: Pool, ctx: OperationContext, *, ignore_low: bool) -> None:
    pace = Pace()
    with LruCursor(manager.lru, until_now=True) as cursor:
        while pool.usage > pool.max and (item := cursor.next()) is not None:
            assert isinstance(item, Resource)
            bo: BufferObject = item.bo
            mine = item.pool is not None and pool in item.pool.chain and not bo.pin_count and not bo.external
            if item.pool is not None and mine and not why_spared(item.pool, pool, ignore_low=ignore_low):
                await _evict(item, ctx)
            await pace.step()


async def _evict(resource: Resource, ctx: OperationContext) -> None:
    """Evict its BO, and start over where others are in the way for the moment."""
    bo: BufferObject = resource.bo
    try:
        with Turn(bo.device, bo.name) as turn:
            while (contended := await evict_one(resource, ctx, turn)) is not None:
                await turn.wait(contended)
    except NoRoom:
        return
    except TtmError as error:
        if error.errno not in _STAYS:
            raise
