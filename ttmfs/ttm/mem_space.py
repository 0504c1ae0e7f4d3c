"""Space: allocate a Resource for a BO, evicting others as needed, and move it there.

ttm_bo_alloc_resource, ttm_bo_mem_space, ttm_bo_evict: they call each other, because an evicted BO needs space too, so
they live together. The search for victims is in ttmfs.ttm.evict_alloc.

Where the kernel ends in ENOMEM although all that was missing is held by somebody at the moment, NoRoom names that:
whoever owns the call gives everything up, waits and starts over (ttmfs.ttm.contention, ttmfs.ttm.turn).
"""

import errno
from typing import Final

import trio

from ttmfs.errors import TtmError, called
from ttmfs.observe.asker import WHY
from ttmfs.sync.resv import Usage
from ttmfs.ttm import lifetime
from ttmfs.ttm.afford import afford, limit_met, more_space, search_for, take
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.contention import NoRoom
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.dmem import OverMax
from ttmfs.ttm.evict_alloc import evict_alloc, is_claimed, trace_place
from ttmfs.ttm.funcs import Multihop
from ttmfs.ttm.in_the_way import in_the_way
from ttmfs.ttm.leaving import note_eviction, trace_evict
from ttmfs.ttm.move import handle_move_mem, pipeline_gutting, wait_ctx
from ttmfs.ttm.placement import SYSTEM, Place, PlaceFlag, Placement, format_placement
from ttmfs.ttm.resource import NUM_MOVE_FENCES, Resource, ResourceManager
from ttmfs.ttm.walk import Walk
from ttmfs.units import PAGE_SIZE, format_size

_SKIP: Final = frozenset({errno.ENOSPC, errno.EBUSY, errno.EALREADY, errno.E2BIG})
"""A victim that fails so is passed over; any other error ends the walk."""

_WHY: Final = {errno.ENOSPC: "full", errno.E2BIG: "never_fits", errno.EDQUOT: "limit", errno.EAGAIN: "over_max"}
"""Why a manager had no room, as the trace says it."""

UNDO_SECONDS: Final = 0.5
"""How long a call that has failed, or whose time is up, may go on to put things back. Then they stay where they are."""
_UNHOP_SECONDS: Final = 0.3
"""The same for one BO on its way, which may be the last of those that are put back."""


def undoing(seconds: float = UNDO_SECONDS) -> trio.CancelScope:
    """A scope for that: not cancelled from outside, and not long."""
    return trio.CancelScope(shield=True, deadline=trio.current_time() + seconds)


def no_room(bo: BufferObject, placement: Placement, ctx: OperationContext) -> TtmError:
    """Full everywhere, as callers see it: ENOMEM, or ENOSPC with `--propagate-enospc`; EDQUOT where a limit was met."""
    code = errno.ENOSPC if bo.device.propagate_enospc else errno.ENOMEM
    if (limit := limit_met(bo, placement, ctx)) is not None:
        return limit
    what = f"no room for {called(bo.name)} ({format_size(bo.num_pages * PAGE_SIZE)}) in {format_placement(placement)}"
    why = in_the_way(bo, placement, ctx.done.contended)
    return NoRoom(code, f"{what}: {why}" if why else what, ctx.done.contended)


async def alloc_resource(
    bo: BufferObject, placement: Placement, ctx: OperationContext, *, evicting: bool
) -> Resource | None:
    """ttm_bo_alloc_resource: one pass over the places; None when none of them has room.

    The new resource inherits the fences of evictions that still copy out of its region. A place that can never hold
    the BO (E2BIG) is passed over, and nobody is evicted for it; the kernel gives up there. So is one of which who pays
    for the BO may have no more (EDQUOT).
    """
    device = bo.device
    skipped = PlaceFlag.DESIRED if evicting else PlaceFlag.FALLBACK
    bo.resv.reserve_fences(NUM_MOVE_FENCES)
    for place in placement:
        manager = device.managers.get(place.mem_type)
        if manager is None or not _is_there(manager) or skipped in place.flags:
            continue
        if is_claimed(bo, manager, place, ctx, evicting=evicting):
            continue
        resource = await _find(bo, manager, place, ctx, evicting=evicting)
        if resource is None:
            continue
        if _add_eviction_fences(bo, resource, ctx):
            trace_place(bo, place, evicting, "ok", f"at {resource.start}" if resource.start >= 0 else "-")
            return resource
        trace_place(bo, place, evicting, "busy", "what was evicted from there is still copied out")
        manager.free(resource)
    return None


def _is_there(manager: ResourceManager) -> bool:
    """Has the device this region, and does it hand anything out?"""
    return manager.used and (manager.name == SYSTEM or manager.size > 0)


async def _find(
    bo: BufferObject, manager: ResourceManager, place: Place, ctx: OperationContext, *, evicting: bool
) -> Resource | None:
    """Space in one place, others evicted for it when `evicting`; None when it is to be passed over.

    Who has less than what protects his group may evict already when others take idle space only.
    """
    device = bo.device
    try:
        if evicting:
            await afford(device, bo.account, more_space(bo, manager), ctx, manager.name)
        return take(bo, manager, place, ctx)
    except TtmError as error:
        trace_place(bo, place, evicting, _WHY.get(error.errno or 0, "error"), error.message)
        if error.errno == errno.E2BIG:
            return None
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) and not isinstance(error, OverMax):
            raise
        search = search_for(bo, manager, error, evicting=evicting)
    if search is None or manager.name == SYSTEM:
        return None
    try:
        return await evict_alloc(Walk(bo, manager, place, ctx, search, _evict_candidate))
    except TtmError as error:
        if error.errno != errno.E2BIG:
            raise
        # Its file has grown while others were evicted: it can never be there any more.
        trace_place(bo, place, evicting, "never_fits", error.message)
        return None


def _add_eviction_fences(bo: BufferObject, resource: Resource, ctx: OperationContext) -> bool:
    """ttm_bo_add_pipelined_eviction_fences; False when some are pending and no_wait_gpu makes the place busy.

    TtmError(ENOMEM) for want of a fence slot; `resource` is freed then.
    """
    pending = resource.manager.pending_eviction_fences()
    if pending and ctx.no_wait_gpu:
        return False
    try:
        for fence in pending:
            bo.resv.reserve_fences(1)
            bo.resv.add_fence(fence, Usage.KERNEL)
    except TtmError:
        resource.manager.free(resource)
        raise
    return True


async def mem_space(bo: BufferObject, placement: Placement, ctx: OperationContext) -> Resource:
    """ttm_bo_mem_space: both passes, without the ENOMEM conversion. NoRoom(ENOSPC) when there is none."""
    for evicting in (False, True):
        resource = await alloc_resource(bo, placement, ctx, evicting=evicting)
        if resource is not None:
            return resource
    what = f"no room for {called(bo.name)} in {format_placement(placement)}"
    raise limit_met(bo, placement, ctx) or NoRoom(errno.ENOSPC, what, ctx.done.contended)


async def move_to(bo: BufferObject, resource: Resource, ctx: OperationContext, *, evict: bool) -> None:
    """Move `bo` to `resource`, bouncing through the hops that the driver asks for.

    On failure, or cancelled, `resource` is freed and the BO is back where it was.
    """
    origin = bo.mem_type
    bounced = False
    if evict:
        ctx = ctx.for_victims()
    try:
        while True:
            try:
                await handle_move_mem(bo, resource, ctx, evict=evict)
                break
            except Multihop as multihop:
                await _bounce(bo, multihop.hop, ctx)
                bounced = True
    except BaseException:
        resource.manager.free(resource)
        if bounced:
            await _back_from_hop(bo, origin, ctx.for_undo(bo.resv))
        raise
    if evict:
        _count_eviction(bo, ctx)


async def _back_from_hop(bo: BufferObject, origin: str, ctx: OperationContext) -> None:
    """The last leg of a multihop failed: back to the region that it came from (the kernel leaves it in the hop)."""
    why = f"there was no time: it did not come back within {_UNHOP_SECONDS:g} s"
    with undoing(_UNHOP_SECONDS):
        try:
            resource = await mem_space(bo, (Place(origin),), ctx)
            try:
                await handle_move_mem(bo, resource, ctx, evict=False)
            except BaseException:
                resource.manager.free(resource)
                raise
            return
        except TtmError as error:
            why = error.message
        except Multihop as error:
            why = str(error)
    bo.last_error = f"left in {bo.mem_type}: {why}"


def _count_eviction(bo: BufferObject, ctx: OperationContext) -> None:
    bo.evictions += 1
    bo.device.counters.moves.evictions += 1
    ctx.done.evictions += 1


async def _bounce(bo: BufferObject, hop: Placement, ctx: OperationContext) -> None:
    """ttm_bo_bounce_temp_buffer: move to a temporary place, as an ordinary move.

    The kernel lets the ENOSPC of a full hop out as it is; here it is translated as everywhere. A hop that asks for
    another hop is EIO: nobody could say where that ends.
    """
    try:
        resource = await mem_space(bo, hop, ctx)
    except TtmError as error:
        raise no_room(bo, hop, ctx) if error.errno == errno.ENOSPC else error from None
    try:
        await handle_move_mem(bo, resource, ctx, evict=False)
    except BaseException as error:
        resource.manager.free(resource)
        if isinstance(error, Multihop):
            what = f"the driver's hop to {format_placement(hop)} asks for a hop to {format_placement(error.hop)}"
            raise TtmError(errno.EIO, f"{what}: one is all there may be") from None
        raise


async def _evict_candidate(walk: Walk, resource: Resource, position: int) -> bool:
    """Evict the locked BO of `resource`; True when it went."""
    if not walk.affords(resource):
        walk.refused[resource] = None
        return False
    pool = resource.pool
    despite_low = pool is not None and walk.search.takes_low(pool)
    size = resource.num_pages * PAGE_SIZE
    if pool is not None:
        pool.leave(size)
    try:
        await evict_bo(resource.bo, walk.ctx, for_bo=walk.bo.name, position=position)
    except TtmError as error:
        if error.errno in _SKIP:
            walk.refused[resource] = None
            return False
        raise
    finally:
        if pool is not None:
            pool.leave(-size)
    walk.evicted += 1
    if despite_low and pool is not None:
        pool.low_events += 1
    return True


async def evict_bo(bo: BufferObject, ctx: OperationContext, *, for_bo: str = "", position: int = 0) -> None:
    """ttm_bo_evict: move a reserved BO to where its driver sends evicted ones, or purge it.

    `for_bo` (who needs the space) and `position` (on the LRU walk that chose it) are for the trace.

    A zombie or ghost is waited for and cleaned up instead: that counts as an eviction but moves no byte. TtmError:
    ENOSPC no room there, EBUSY, EINVAL for an imported BO, or the driver's.
    """
    if bo.device.trace.on:
        trace_evict(bo, for_bo, position)
    if bo.deleted:
        await wait_ctx(bo, ctx)
        lifetime.cleanup(bo)
        _count_eviction(bo, ctx)
        return
    if bo.external:
        raise TtmError(errno.EINVAL, f"{bo.name!r} is imported: it is never moved, and its content never dropped")
    asked = note_eviction(bo, for_bo, position)
    bo.evicting = True
    pool = None if bo.resource is None else bo.resource.pool
    try:
        await _evict_live(bo, ctx.for_victims())
        if pool is not None:
            pool.evictions += 1
    finally:
        bo.evicting = False
        WHY.reset(asked)


async def _evict_live(bo: BufferObject, ctx: OperationContext) -> None:
    placement = bo.funcs.evict_flags(bo)
    if not placement:
        await wait_ctx(bo, ctx)
        pages = bo.num_pages
        await pipeline_gutting(bo, ctx, purge=bo.purgeable)
        if bo.purgeable:
            bo.device.counters.backup.purged_pages += pages
        _count_eviction(bo, ctx)
        return
    resource = await mem_space(bo, placement, ctx)
    await move_to(bo, resource, ctx, evict=PlaceFlag.TEMPORARY not in placement[0].flags)
