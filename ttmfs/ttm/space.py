"""Space: allocate a Resource for a BO, evicting others as needed, and move it there.

ttm_bo_alloc_resource, ttm_bo_mem_space, ttm_bo_evict_alloc, ttm_bo_evict: they call each other, because an evicted BO
needs space too, so they live together.

A first walk over the region's LRU only trylocks. If the evictor's reservation was taken with a ww ticket, more walks
may block for one victim each, as long as the walk before freed something. After each victim the allocation is tried
again, so never more is evicted than needed in LRU order.

EDEADLK never leaves a walk. Where the kernel ends in ENOMEM then, `ctx.contended` names the victim, so that whoever
owns the ticket can give everything up, wait for it and start over (`ttmfs.driver.locking`).
"""

import errno
from typing import Final

import trio

from ttmfs.errors import TtmError
from ttmfs.sync.resv import AcquireContext, Usage
from ttmfs.ttm import lifetime
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.funcs import Multihop
from ttmfs.ttm.lru_cursor import LruCursor
from ttmfs.ttm.move import handle_move_mem, pipeline_gutting, wait_ctx
from ttmfs.ttm.placement import SYSTEM, Place, PlaceFlag, Placement, format_placement
from ttmfs.ttm.resource import NUM_MOVE_FENCES, Resource, ResourceManager

_SKIP: Final = frozenset({errno.ENOSPC, errno.EBUSY, errno.EALREADY, errno.E2BIG})
"""A victim that fails so is passed over; any other error ends the walk."""

_WHY: Final = {errno.ENOSPC: "full", errno.E2BIG: "never_fits"}
"""Why a manager had no room, as the trace says it."""

BUSY_RETRY_SECONDS: Final = 0.02
"""How long an allocation waits once for victims that were only briefly locked, before it gives up."""


UNDO_SECONDS: Final = 0.5
"""How long a call that has failed, or whose time is up, may go on to put things back. Then they stay where they are."""
_UNHOP_SECONDS: Final = 0.3
"""The same for one BO on its way, which may be the last of those that are put back."""


def undoing(seconds: float = UNDO_SECONDS) -> trio.CancelScope:
    """A scope for that: not cancelled from outside, and not long."""
    return trio.CancelScope(shield=True, deadline=trio.current_time() + seconds)


def no_room(bo: BufferObject, placement: Placement) -> TtmError:
    """Full everywhere, as callers see it: ENOMEM, or ENOSPC with `--propagate-enospc`."""
    code = errno.ENOSPC if bo.device.propagate_enospc else errno.ENOMEM
    return TtmError(code, f"no room for {bo.name or 'a BO'} ({bo.num_pages} pages) in {format_placement(placement)}")


async def alloc_resource(
    bo: BufferObject, placement: Placement, ctx: OperationContext, *, evicting: bool
) -> Resource | None:
    """ttm_bo_alloc_resource: one pass over the places; None when none of them has room.

    The new resource inherits the fences of evictions that still copy out of its region. A place that can never hold
    the BO (E2BIG) is passed over, and nobody is evicted for it; the kernel gives up there.
    """
    device = bo.device
    skipped = PlaceFlag.DESIRED if evicting else PlaceFlag.FALLBACK
    bo.resv.reserve_fences(NUM_MOVE_FENCES)
    for place in placement:
        manager = device.managers.get(place.mem_type)
        if manager is None or not manager.used or skipped in place.flags:
            continue
        if manager.name != SYSTEM and not manager.size:
            continue
        try:
            device.inject.check("resource_alloc", errno.ENOSPC, f"allocating in {place}")
            resource = manager.alloc(bo, place)
        except TtmError as error:
            if device.trace.on:
                _trace_place(bo, place, evicting, _WHY.get(error.errno or 0, "error"), error.message)
            if error.errno == errno.E2BIG:
                continue
            if error.errno != errno.ENOSPC:
                raise
            if not evicting or manager.name == SYSTEM:
                continue
            found = await evict_alloc(bo, manager, place, ctx)
            if found is None:
                continue
            resource = found
        if _add_eviction_fences(bo, resource, ctx):
            if device.trace.on:
                _trace_place(bo, place, evicting, "ok", f"at {resource.start}" if resource.start >= 0 else "-")
            return resource
        if device.trace.on:
            _trace_place(bo, place, evicting, "busy", "what was evicted from there is still copied out")
        manager.free(resource)
    return None


def _trace_place(bo: BufferObject, place: Place, evicting: bool, why: str, detail: str) -> None:
    bo.device.trace.emit(
        "place_tried", bo.name, place=str(place), pages=bo.num_pages, evicting=int(evicting), why=why, detail=detail
    )


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
    """ttm_bo_mem_space: both passes, without the ENOMEM conversion. TtmError(ENOSPC) when there is no room."""
    for evicting in (False, True):
        resource = await alloc_resource(bo, placement, ctx, evicting=evicting)
        if resource is not None:
            return resource
    raise TtmError(errno.ENOSPC, f"no room for {bo.name or 'a BO'} in {format_placement(placement)}")


async def move_to(bo: BufferObject, resource: Resource, ctx: OperationContext, *, evict: bool) -> None:
    """Move `bo` to `resource`, bouncing through the hops that the driver asks for.

    On failure, or cancelled, `resource` is freed and the BO is back where it was.
    """
    origin = bo.mem_type
    bounced = False
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
            await _back_from_hop(bo, origin)
        raise
    if evict:
        _count_eviction(bo, ctx)


async def _back_from_hop(bo: BufferObject, origin: str) -> None:
    """The last leg of a multihop failed: back to the region that it came from (the kernel leaves it in the hop)."""
    ctx = OperationContext(resv=bo.resv)
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
    ctx.evictions += 1


async def _bounce(bo: BufferObject, hop: Placement, ctx: OperationContext) -> None:
    """ttm_bo_bounce_temp_buffer: move to a temporary place, as an ordinary move.

    The kernel lets the ENOSPC of a full hop out as it is; here it is translated as everywhere.
    """
    try:
        resource = await mem_space(bo, hop, ctx)
    except TtmError as error:
        raise no_room(bo, hop) if error.errno == errno.ENOSPC else error from None
    try:
        await handle_move_mem(bo, resource, ctx, evict=False)
    except BaseException:
        resource.manager.free(resource)
        raise


class _Walk:
    """One evict_alloc: who evicts, for what place, and what it met."""

    __slots__ = ("bo", "busy", "ctx", "evicted", "looked", "manager", "place")

    def __init__(self, bo: BufferObject, manager: ResourceManager, place: Place, ctx: OperationContext) -> None:
        self.bo = bo
        self.manager = manager
        self.place = place
        self.ctx = ctx
        self.evicted = 0
        self.looked = 0
        """BOs of the LRU that this walk has come past: the position of the one it is at."""
        self.busy: BufferObject | None = None
        """A victim that somebody held."""


async def evict_alloc(
    bo: BufferObject, manager: ResourceManager, place: Place, ctx: OperationContext
) -> Resource | None:
    """ttm_bo_evict_alloc: evict from `manager` until `bo` fits into `place`; None when that cannot be done.

    TtmError for errors that end the whole validate.
    """
    walk = _Walk(bo, manager, place, ctx)
    resource = await _walk_lru(walk, None)
    ticket = bo.resv.holder
    while resource is None and ticket is not None and walk.busy is not None and not ctx.no_wait_gpu:
        walk.evicted = 0
        walk.busy = None
        resource = await _walk_lru(walk, ticket)
        if not walk.evicted:
            break
    if resource is not None or ctx.no_wait_gpu:
        return resource
    busy = walk.busy or _on_its_way(manager, bo)
    if busy is None:
        return None
    if ticket is not None:
        # Whoever owns the ticket may give all up, wait for that one and start over.
        ctx.contended = ctx.contended or busy
        return None
    # Users of real drivers meet ENOMEM when every victim happens to be locked for a moment: try once more.
    with trio.move_on_after(BUSY_RETRY_SECONDS):
        await busy.resv.wait_unlocked()
    return _try_alloc(walk) or await _walk_lru(walk, None)


def _on_its_way(manager: ResourceManager, bo: BufferObject) -> BufferObject | None:
    """Somebody else's BO that has space here but has not arrived yet: nobody can evict it, for the moment."""
    own = bo.resv.holder
    for resource in manager.unassigned:
        other: BufferObject = resource.bo
        if other is not bo and other.resv.locked and (own is None or other.resv.holder is not own):
            return other
    return None


async def _walk_lru(walk: _Walk, ticket: AcquireContext | None) -> Resource | None:
    """One walk, oldest of the lowest priority first. With `ticket` it may block for one victim (then trylocks)."""
    own = walk.bo.resv.holder
    walk.looked = 0
    with LruCursor(walk.manager.lru, until_now=True) as cursor:
        while (item := cursor.next()) is not None:
            assert isinstance(item, Resource)
            victim = item.bo
            position, walk.looked = walk.looked, walk.looked + 1
            if victim is walk.bo:
                continue
            if not _trylock(victim, walk.ctx):
                if own is not None and victim.resv.holder is own:
                    # EALREADY: named in the same call, so never its victim.
                    continue
                walk.busy = victim
                if ticket is None:
                    continue
                # At most one wait a walk, whether it ends well or not.
                waiting, ticket = ticket, None
                if not await _ticket_lock(victim, waiting, walk.ctx):
                    continue
            try:
                if await _evict_candidate(walk, item, position):
                    resource = _try_alloc(walk)
                    if resource is not None:
                        return resource
            finally:
                if not _shares_held(victim, walk.ctx):
                    victim.unlock()
    return None


def _shares_held(victim: BufferObject, ctx: OperationContext) -> bool:
    return ctx.allow_res_evict and ctx.resv is not None and victim.resv is ctx.resv


def _trylock(victim: BufferObject, ctx: OperationContext) -> bool:
    return _shares_held(victim, ctx) or victim.resv.trylock()


async def _ticket_lock(victim: BufferObject, ticket: AcquireContext, ctx: OperationContext) -> bool:
    """Wait for a victim under the ticket. EDEADLK and EALREADY make it unusable, they never leave the walk."""
    try:
        await victim.resv.lock(ticket)
    except TtmError as error:
        if error.errno == errno.EDEADLK:
            ctx.contended = victim
            return False
        if error.errno == errno.EALREADY:
            return False
        raise
    return True


async def _evict_candidate(walk: _Walk, resource: Resource, position: int) -> bool:
    """Evict the locked BO of `resource` if it still is there and worth it; True when it went."""
    victim = resource.bo
    if victim.resource is not resource or not resource.on_lru or victim.pin_count:
        return False
    if not victim.funcs.eviction_valuable(victim, walk.place) or not walk.manager.intersects(resource, walk.place):
        return False
    try:
        await evict_bo(victim, walk.ctx, for_bo=walk.bo.name, position=position)
    except TtmError as error:
        if error.errno in _SKIP:
            return False
        raise
    walk.evicted += 1
    return True


def _try_alloc(walk: _Walk) -> Resource | None:
    try:
        return walk.manager.alloc(walk.bo, walk.place)
    except TtmError as error:
        if error.errno != errno.ENOSPC:
            raise
    return None


async def evict_bo(bo: BufferObject, ctx: OperationContext, *, for_bo: str = "", position: int = 0) -> None:
    """ttm_bo_evict: move a reserved BO to where its driver sends evicted ones, or purge it.

    `for_bo` (who needs the space) and `position` (on the LRU walk that chose it) are for the trace.

    A zombie or ghost is waited for and cleaned up instead: that counts as an eviction but moves no byte. TtmError:
    ENOSPC no room there, EBUSY, EINVAL for an imported BO, or the driver's.
    """
    if bo.device.trace.on:
        _trace_evict(bo, for_bo, position)
    if bo.deleted:
        await wait_ctx(bo, ctx)
        lifetime.cleanup(bo)
        _count_eviction(bo, ctx)
        return
    if bo.external:
        raise TtmError(errno.EINVAL, f"{bo.name} is imported: it is never moved, and its content never dropped")
    defrag, ctx.defrag = ctx.defrag, False
    try:
        await _evict_live(bo, ctx)
    finally:
        # What the target of a defrag asked for is not for its victims.
        ctx.defrag = defrag


def _trace_evict(bo: BufferObject, for_bo: str, position: int) -> None:
    if bo.deleted:
        dst = "freed"
    elif bo.external:
        dst = "refused"
    else:
        dst = format_placement(bo.funcs.evict_flags(bo)) or "purged"
    bo.device.trace.emit(
        "evict",
        bo.name,
        region=bo.mem_type,
        dst=dst,
        for_bo=for_bo or "-",
        position=position,
        priority=bo.priority,
        pages=bo.num_pages,
    )


async def _evict_live(bo: BufferObject, ctx: OperationContext) -> None:
    placement = bo.funcs.evict_flags(bo)
    if not placement:
        await wait_ctx(bo, ctx)
        pages = bo.num_pages
        await pipeline_gutting(bo, ctx)
        if bo.purgeable:
            bo.purged = True
            bo.device.counters.backup.purged_pages += pages
        _count_eviction(bo, ctx)
        return
    resource = await mem_space(bo, placement, ctx)
    await move_to(bo, resource, ctx, evict=PlaceFlag.TEMPORARY not in placement[0].flags)
