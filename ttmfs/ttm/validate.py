"""Validate: make a BO satisfy a Placement (ttm_bo_validate).

Two passes: first only idle space and no FALLBACK places; then, evicting as needed, no DESIRED ones. An allocation
error other than "full" ends the call; a place that can never hold the BO is skipped without evicting for it. Full
everywhere is ENOMEM, or ENOSPC with `--propagate-enospc`.
"""

import errno
from collections.abc import Sequence

from ttmfs.errors import TtmError
from ttmfs.observe import points
from ttmfs.sync.breather import Breather
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.defrag import nothing_to_gain
from ttmfs.ttm.mem_space import UNDO_SECONDS, alloc_resource, move_to, no_room, undoing
from ttmfs.ttm.move import pipeline_gutting
from ttmfs.ttm.placement import Place, Placement
from ttmfs.ttm.resource import Resource, resource_compatible


async def validate(bo: BufferObject, placement: Placement, ctx: OperationContext) -> None:
    """ttm_bo_validate: `bo` (reserved) ends in the first of `placement` that can be had, or stays as it was.

    Compatible already: no move, no LRU bump; with `ctx.defrag` it moves all the same, unless fresh pages cannot be
    better than those it has. A BO that was never placed is compatible with nothing, so it goes to the first place that
    has room; where that is system, it stays, without a move. TtmError: EINVAL pinned and would have to move; ENOMEM (or
    ENOSPC) no room; EDQUOT a limit of who pays; EBUSY a wait was needed that ctx forbids; whatever the driver's move
    raises.
    """
    bo.validations += 1
    ctx.ticket = ctx.ticket or bo.resv.holder
    trace = bo.device.trace
    points.validate(trace, bo, placement=placement)
    try:
        result = await _validate(bo, placement, ctx)
    except OSError as error:
        points.validated(trace, bo, result="error", errno=error.errno, region=bo.mem_type)
        raise
    points.validated(trace, bo, result=result, errno=0, region=bo.mem_type)


async def _validate(bo: BufferObject, placement: Placement, ctx: OperationContext) -> str:
    """What it came to, in one word."""
    if not placement:
        _refuse_imported(bo)
        await pipeline_gutting(bo, ctx)
        return "gutted"
    resource = await _allocate(bo, placement, ctx)
    if resource is None:
        return "compatible"
    await move_to(bo, resource, ctx, evict=False)
    return "moved"


async def _allocate(bo: BufferObject, placement: Placement, ctx: OperationContext) -> Resource | None:
    """The new home of `bo` by the two passes; None when it is at home already."""
    ctx.done.contended = None
    if ctx.defrag:
        _refuse_pinned(bo)
        _refuse_imported(bo)
    at_home = not ctx.defrag or nothing_to_gain(bo, compact=ctx.compact)
    for evicting in (False, True):
        old = bo.resource
        placed = bo.placed or ctx.defrag
        if old is not None and placed and at_home and resource_compatible(old, placement, evicting=evicting):
            return None
        _refuse_pinned(bo)
        _refuse_imported(bo)
        resource = await alloc_resource(bo, placement, ctx, evicting=evicting)
        if resource is not None and not bo.placed and _is_there(bo, resource):
            resource.manager.free(resource)
            bo.placed = True
            return None
        if resource is not None:
            return resource
    raise no_room(bo, placement, ctx)


def _is_there(bo: BufferObject, resource: Resource) -> bool:
    """A new BO is in system, and `resource` is no other place and no other size."""
    old = bo.resource
    return old is not None and old.manager is resource.manager and old.num_pages == resource.num_pages


def _refuse_pinned(bo: BufferObject) -> None:
    if bo.pin_count and bo.resource is not None:
        raise TtmError(errno.EINVAL, f"{bo.name!r} is pinned in {bo.mem_type} and would have to move: unpin it first")


def _refuse_imported(bo: BufferObject) -> None:
    if bo.external:
        raise TtmError(errno.EINVAL, f"{bo.name!r} is imported: its memory is another file's and cannot be moved")


async def validate_all(
    bos: Sequence[BufferObject], placement: Placement, ctx: OperationContext
) -> list[BufferObject]:
    """Validate BOs that are reserved under one ticket, all or none; returns those that moved.

    Every new resource is allocated before the first move. The BOs are never each other's victims, because an eviction
    walk passes over what its own ticket holds. If a move fails, those before it are moved back.
    """
    breather = Breather()
    if not placement:
        for bo in bos:
            _refuse_imported(bo)
            if bo.pin_count:
                raise TtmError(errno.EINVAL, f"{bo.name!r} is pinned: unpin it before it is gutted")
        for bo in bos:
            await validate(bo, placement, ctx)
            await breather.step()
        return list(bos)
    ctx.together = bos
    allocated: list[tuple[BufferObject, Resource]] = []
    try:
        for bo in bos:
            points.validate(bo.device.trace, bo, placement=placement)
            resource = await _allocate(bo, placement, ctx)
            if resource is not None:
                allocated.append((bo, resource))
            await breather.step()
    except BaseException:
        for _bo, resource in allocated:
            resource.manager.free(resource)
        raise
    moved: list[tuple[BufferObject, Placement]] = []
    for index, (bo, resource) in enumerate(allocated):
        before = (Place(bo.mem_type),)
        try:
            await move_to(bo, resource, ctx, evict=False)
            moved.append((bo, before))
            await breather.step()
        except BaseException:
            for _later, unused in allocated[index + 1 :]:
                unused.manager.free(unused)
            await _move_back(moved, ctx)
            raise
    return [bo for bo, _resource in allocated]


async def _move_back(moved: Sequence[tuple[BufferObject, Placement]], ctx: OperationContext) -> None:
    """Undo moves, the last first. Their old space is free or becomes so; one that cannot go back stays where it is."""
    left = list(moved)
    breather = Breather()
    with undoing():
        while left:
            bo, place = left[-1]
            try:
                await validate(bo, place, ctx.for_undo(bo.resv))
            except TtmError as error:
                bo.last_error = f"could not be moved back: {error.message}"
            left.pop()
            await breather.step()
    for bo, _place in left:
        bo.last_error = f"was not moved back: there was no time ({UNDO_SECONDS:g} s)"
