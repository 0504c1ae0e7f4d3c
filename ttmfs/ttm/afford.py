"""Afford: may somebody have more? Asked before anybody else has to give something up for what is refused then.

What a move has left behind is its owner's until the copy has ended, so a limit that is only in the way for that moment
is waited for, in bounded time.
"""

import errno

import trio

from ttmfs.errors import TtmError
from ttmfs.observe import points
from ttmfs.ttm.account import MEMORY, Account
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.device import Device, suspended_error
from ttmfs.ttm.dmem import OverMax, Pool
from ttmfs.ttm.placement import SYSTEM, Place, PlaceFlag, Placement
from ttmfs.ttm.protection import Search
from ttmfs.ttm.reclaim import GHOST_WAIT
from ttmfs.ttm.resource import Resource, ResourceManager
from ttmfs.units import PAGE_SIZE


async def afford(device: Device, account: Account, count: int, ctx: OperationContext, what: str = MEMORY) -> None:
    """Until `account` may have `count` more of `what`. TtmError(EDQUOT) when that does not come.

    With `no_wait_gpu` it is not waited for; with `unlimited` it is not asked.
    """
    if ctx.unlimited or account.room(what) >= count:
        return
    if not ctx.no_wait_gpu and account.most(what) >= count:
        with trio.move_on_after(GHOST_WAIT):
            while device.num_ghosts and account.room(what) < count:
                await device.ghost_gone.park()
    account.check(what, count)


def more_space(bo: BufferObject, manager: ResourceManager) -> int:
    """Pages of a region that the BO takes, beside those that it gives up for them."""
    old = bo.resource
    return bo.num_pages - (old.num_pages if old is not None and old.manager is manager else 0)


def check_space(bo: BufferObject, manager: ResourceManager, ctx: OperationContext) -> None:
    """TtmError(EDQUOT) when who pays for the BO may not have so much of the region; no wait.

    Who is over the limit of memory, since others had his BOs evicted, gets no region's memory for new content either.
    """
    if ctx.unlimited:
        return
    bo.account.check(manager.name, more_space(bo, manager))
    if not manager.use_tt and bo.num_pages > bo.held_pages:
        bo.account.check(MEMORY, 0)


def pool_of(bo: BufferObject, manager: ResourceManager) -> Pool | None:
    """Who is charged when it gets space there."""
    return bo.group.live.pools.get(manager.name)


def check_max(bo: BufferObject, manager: ResourceManager, place: Place) -> None:
    """OverMax when its group may not have so much more of the region; no wait (dmem_cgroup_try_charge).

    A hop is never refused: whoever is on his way is in nobody's way for long, and may have to go for others.
    """
    pool = pool_of(bo, manager)
    if pool is None or pool.parent is None or PlaceFlag.TEMPORARY in place.flags:
        return
    size = bo.num_pages * PAGE_SIZE
    if (limit := pool.over(size)) is not None:
        raise OverMax(limit, size)


def _note_over_max(bo: BufferObject, error: OverMax) -> None:
    """Count and record that a group's max was in the way."""
    error.pool.max_events += 1
    group, region = error.pool.group.name, error.pool.region
    points.dmem_over_max(bo.device.trace, bo, region=region, group=group, bytes=error.pool.usage, max=error.pool.max)


def take(bo: BufferObject, manager: ResourceManager, place: Place, ctx: OperationContext) -> Resource:
    """Space for the BO, as its account and its group allow.

    TtmError as `alloc` of the manager, EDQUOT, OverMax, and ENODEV once suspended. That is asked here, and not only
    where a call begins: one that has waited for a victim may meet a device that was emptied.
    """
    if bo.device.suspended and manager.name != SYSTEM and not ctx.power:
        raise suspended_error()
    bo.device.inject.check("resource_alloc", errno.ENOSPC, f"allocating in {place}", bo=bo.name)
    check_space(bo, manager, ctx)
    check_max(bo, manager, place)
    resource = manager.alloc(bo, place)
    pool, trace = resource.pool, bo.device.trace
    if pool is not None and trace.on:
        size = resource.num_pages * PAGE_SIZE
        points.dmem_charge(trace, bo, region=pool.region, group=pool.group.name, bytes=size, current=pool.usage)
    return resource


def search_for(bo: BufferObject, manager: ResourceManager, error: TtmError, *, evicting: bool) -> Search | None:
    """Whose BOs may go, now that a place had no room for this reason (ttm_bo_alloc_at_place); None: nobody's.

    In the first pass only who is entitled to more than he has may evict. Over a limit what is charged to that goes, and
    nobody for what it could never let in.
    """
    pool, size = pool_of(bo, manager), bo.num_pages * PAGE_SIZE
    if not evicting:
        entitled = pool.entitled(size) if error.errno == errno.ENOSPC and pool is not None else ""
        return Search(pool, may_try_low=entitled == "min") if entitled else None
    search = Search(pool)
    search.meets(error, payer_over(bo, manager))
    if isinstance(error, OverMax):
        _note_over_max(bo, error)
        return search if error.pool.room() >= size else None
    if error.errno == errno.EDQUOT:
        return search if search.payer is not None and bo.account.most(manager.name) >= more_space(bo, manager) else None
    return search


def payer_over(bo: BufferObject, manager: ResourceManager) -> Account | None:
    """Who pays for the BO, or is above that, and may not have so much of the region."""
    return bo.account.limited_by(manager.name, more_space(bo, manager))


def limit_met(bo: BufferObject, placement: Placement, ctx: OperationContext) -> TtmError | None:
    """The limit that is in the way in one of these places: the reason why the BO finds no room.

    None where none is, or where what others have just now may soon be had.
    """
    for place in placement if ctx.done.contended is None else ():
        try:
            check_space(bo, bo.device.managers[place.mem_type], ctx)
        except TtmError as error:
            return error
    return None
