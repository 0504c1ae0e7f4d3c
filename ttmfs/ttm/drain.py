"""Drain: what a group has beyond its `max` goes, when that is lowered (ttm_bo_evict_cgroup)."""

import errno
from typing import Final

from ttmfs.errors import TtmError
from ttmfs.sync.breather import Breather
from ttmfs.ttm.advised import first_named
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.contention import NoRoom
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.dmem import Pool
from ttmfs.ttm.evict import evict_one
from ttmfs.ttm.lru_cursor import LruCursor
from ttmfs.ttm.protection import why_spared
from ttmfs.ttm.resource import Resource, ResourceManager
from ttmfs.ttm.turn import Turn
from ttmfs.units import pages_of

_STAYS: Final = (errno.ENOSPC, errno.EBUSY, errno.ENOMEM, errno.EINVAL)
"""Who cannot go for these reasons is passed over."""


async def drain(manager: ResourceManager, pool: Pool, ctx: OperationContext) -> int:
    """Evict BOs of `pool`, and of those below it, until it has no more than its `max`; returns bytes.

    First whom nothing protects, then whom `low` does; `min` of those below it holds; each time whom the region's
    adviser names, if it has one, then in the order of the LRU. Victims that somebody holds are waited for. What is
    pinned, imported, or finds no room elsewhere stays: `max` is kept for what comes then. TtmError: as the driver's
    moves, but for those reasons.
    """
    before = pool.usage
    for ignore_low in (False, True):
        if pool.usage > pool.max:
            await _drain(manager, pool, ctx, ignore_low=ignore_low)
    return max(before - pool.usage, 0)


async def _drain(manager: ResourceManager, pool: Pool, ctx: OperationContext, *, ignore_low: bool) -> None:
    breather = Breather()
    if manager.adviser is not None:
        await _drain_named(manager, pool, ctx, ignore_low=ignore_low)
    with LruCursor(manager.lru, until_now=True) as cursor:
        while pool.usage > pool.max and (item := cursor.next()) is not None:
            assert isinstance(item, Resource)
            if _may_go(item, pool, ignore_low=ignore_low):
                await _evict(item, ctx)
            await breather.step()


async def _drain_named(manager: ResourceManager, pool: Pool, ctx: OperationContext, *, ignore_low: bool) -> None:
    """Those whom the region's adviser names, as many as are there and none of them twice."""
    tried: dict[BufferObject, None] = {}

    def fits(bo: BufferObject) -> bool:
        resource = bo.resource
        return bo not in tried and isinstance(resource, Resource) and _may_go(resource, pool, ignore_low=ignore_low)

    breather = Breather()
    for _ in range(manager.lru.count):
        # It may have been ejected, or another one installed, while the last one went.
        adviser, over = manager.adviser, pool.usage - pool.max
        item = first_named(manager, adviser, fits, pages=pages_of(over)) if adviser is not None and over > 0 else None
        if adviser is None or item is None:
            return
        bo: BufferObject = item.bo
        tried[bo] = None
        await _evict(item, ctx)
        if bo.resource is not item:
            adviser.took(bo)
        await breather.step()


def _may_go(resource: Resource, pool: Pool, *, ignore_low: bool) -> bool:
    """Is it charged below `pool`, and may it go for that?"""
    bo: BufferObject = resource.bo
    test = resource.pool
    mine = test is not None and pool in test.chain and not bo.pin_count and not bo.external
    return test is not None and mine and not why_spared(test, pool, ignore_low=ignore_low)


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
