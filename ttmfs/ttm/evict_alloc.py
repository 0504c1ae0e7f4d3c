"""Evict for space: a region's victims one after the other, until what was asked for fits (ttm_bo_evict_alloc).

A first walk over the region's LRU only trylocks. If the evictor's reservation was taken with a ww ticket, more walks
may block for one victim each, as long as the walk before freed something. After each victim the allocation is tried
again, so never more is evicted than needed in LRU order.

Between one BO and the next others may run (`Walk.breather`), so the last word on whether there is room has the
allocation.

How a victim is evicted is handed over with the walk (the kernel's `process_lru`): it needs space in its turn.
"""

import errno

from ttmfs.errors import TtmError
from ttmfs.observe import points
from ttmfs.sync.ww_mutex import AcquireContext
from ttmfs.ttm.advice import Adviser
from ttmfs.ttm.advised import named_victim
from ttmfs.ttm.afford import payer_over, take
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.dmem import OverMax
from ttmfs.ttm.lru_cursor import LruCursor
from ttmfs.ttm.placement import Place
from ttmfs.ttm.resource import Resource, ResourceManager
from ttmfs.ttm.walk import Walk


async def evict_alloc(walk: Walk) -> Resource | None:
    """ttm_bo_evict_alloc: evict from a region until the walk's BO fits into its place; None when that cannot be done.

    Then `walk.ctx.done.contended` says whether it might be done later. TtmError for errors that end the whole validate.
    Whom `low` protects goes only when nobody else is left, not even one to wait for. The kernel, whose waits hold a
    ticket only, gives `low` up already when all others are locked.
    """
    search = walk.search
    may_wait = not walk.ctx.no_wait_gpu
    resource = await _walk_anew(walk, None)
    if resource is None and not may_wait and search.lower():
        resource = await _walk_anew(walk, None)
    if resource is not None or not may_wait:
        return resource or _try_alloc(walk)
    resource = await _wait_for_victims(walk)
    if resource is None and search.lower():
        resource = await _wait_for_victims(walk)
    return resource


async def _wait_for_victims(walk: Walk) -> Resource | None:
    """The walks that may wait, as long as each frees something."""
    ctx, manager = walk.ctx, walk.manager
    resource = None
    while resource is None:
        left = await walk.left()
        ticket, evicted = walk.ticket, walk.evicted
        if left is None:
            return _try_alloc(walk)
        if is_claimed(walk.bo, manager, walk.place, ctx, evicting=True):
            return None
        if ticket is None:
            ctx.done.contended = left
            return None
        if walk.search.full:
            manager.claims.lay(ctx.age)
        resource = _try_alloc(walk) or await _walk_anew(walk, ticket)
        if resource is None and walk.evicted == evicted:
            ctx.done.contended = await walk.left() or left
            return None
    return resource


async def _walk_anew(walk: Walk, ticket: AcquireContext | None) -> Resource | None:
    """A walk, and another one without waiting whenever something else came into the way after somebody went."""
    walk.search.anew = False
    resource = await _walk_lru(walk, ticket)
    while resource is None and walk.search.anew:
        walk.search.anew = False
        resource = await _walk_lru(walk, None)
    return resource


async def _walk_lru(walk: Walk, ticket: AcquireContext | None) -> Resource | None:
    """One walk, oldest of the lowest priority first. With `ticket` it may block for one victim (then trylocks).

    Where the region has an adviser, those whom it names come before.
    """
    walk.looked = 0
    if walk.manager.adviser is not None:
        resource, ticket = await _walk_named(walk, walk.manager.adviser, ticket)
        if resource is not None:
            return resource
    with LruCursor(walk.manager.lru, until_now=True) as cursor:
        while (item := await _next(walk, cursor)) is not None:
            victim = item.bo
            position, walk.looked = walk.looked, walk.looked + 1
            if walk.spares(victim):
                continue
            if not walk.trylock(victim):
                if ticket is None or not walk.wants(item):
                    continue
                # At most one wait a walk, whether it ends well or not.
                waiting, ticket = ticket, None
                if not await walk.wait_for(victim, waiting):
                    continue
            try:
                if walk.wants(item) and await walk.evict(walk, item, position):
                    resource = _try_alloc(walk)
                    if resource is not None:
                        return resource
            finally:
                walk.unlock(victim)
    return None


async def _next(walk: Walk, cursor: LruCursor) -> Resource | None:
    """The next of the list, after others could run: nothing is awaited between the look at it and what is done."""
    await walk.breather.step()
    item = cursor.next()
    assert item is None or isinstance(item, Resource)
    return item


async def _walk_named(
    walk: Walk, adviser: Adviser, ticket: AcquireContext | None
) -> tuple[Resource | None, AcquireContext | None]:
    """The part of a walk that an adviser leads: the space, if there is some, and the ticket, if it was not used.

    As many as there were in the region at most, or newcomers could make it endless.
    """
    for _ in range(walk.manager.lru.count):
        await walk.breather.step()
        named = named_victim(walk, adviser, may_wait=ticket is not None)
        if named is None:
            break
        item, locked = named
        victim = item.bo
        position, walk.looked = walk.looked, walk.looked + 1
        if not locked:
            assert ticket is not None
            waiting, ticket = ticket, None
            if not await walk.wait_for(victim, waiting):
                continue
        try:
            if walk.wants(item) and await walk.evict(walk, item, position):
                adviser.took(victim)
                resource = _try_alloc(walk)
                if resource is not None:
                    return resource, ticket
        finally:
            walk.unlock(victim)
    return None, ticket


def _try_alloc(walk: Walk) -> Resource | None:
    if is_claimed(walk.bo, walk.manager, walk.place, walk.ctx, evicting=True):
        return None
    try:
        return take(walk.bo, walk.manager, walk.place, walk.ctx)
    except TtmError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) and not isinstance(error, OverMax):
            raise
        walk.search.meets(error, payer_over(walk.bo, walk.manager))
    return None


def is_claimed(
    bo: BufferObject, manager: ResourceManager, place: Place, ctx: OperationContext, *, evicting: bool
) -> bool:
    """Is it somebody older's turn to be given space there?"""
    if not manager.claims.binds(ctx.age):
        return False
    ctx.done.contended = ctx.done.contended or manager.claims
    trace_place(bo, place, evicting, "claimed", "it is the turn of who has waited longer")
    return True


def trace_place(bo: BufferObject, place: Place, evicting: bool, why: str, detail: str) -> None:
    points.place_tried(
        bo.device.trace, bo, place=place, pages=bo.num_pages, evicting=evicting, why=why, detail=detail
    )
