"""Populate: memory for pages of a BO, reclaiming where there is none (ttm_bo_populate)."""

import errno

import numpy as np
import trio

from ttmfs.errors import TtmError
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.reclaim import reclaim
from ttmfs.ttm.tt import TT, out_of_memory


def _own_pages(bo: BufferObject) -> int:
    """Pages that a region with memory of its own holds: they are populated by definition."""
    resource = bo.resource
    return resource.num_pages if resource is not None and resource.pages is not None else 0


async def populate_range(
    bo: BufferObject, first: int, count: int, ctx: OperationContext, *, prefault: int = 0, zero: bool = True
) -> int:
    """Memory for every page of [first, first + count); returns the pages added, at most `prefault` beyond.

    The BO is reserved. TtmError(ENOMEM) when reclaim cannot help; pages added until then stay.
    """
    own = _own_pages(bo)
    if first < own:
        count -= own - first
        first = own
    if count <= 0:
        return 0
    tt = bo.need_tt()
    if tt.has_memory(first, count):
        return 0
    bo.drop_view()
    bo.device.inject.check("page_alloc", errno.ENOMEM, f"{count} pages for {bo.name}")
    while True:
        try:
            return tt.populate_range(first, count, prefault=prefault, zero=zero)
        except TtmError as error:
            await _reclaim_for(bo, tt, count, ctx, error, keep=(first, count))
            prefault = 0


async def populate_all(bo: BufferObject, tt: TT, ctx: OperationContext, *, overwritten: int = 0) -> None:
    """Memory for all of `tt`, as gtt, jobs and restore need it: all or TtmError(ENOMEM) with nothing kept.

    The first `overwritten` pages are about to be copied over, so they are taken as they come.
    """
    present_before = None
    if not tt.is_populated:
        bo.device.inject.check("page_alloc", errno.ENOMEM, f"{tt.num_pages - tt.populated_pages} pages for {bo.name}")
    while not tt.is_populated:
        if present_before is None:
            present_before = tt.present()
        try:
            if overwritten:
                tt.populate_range(0, min(overwritten, tt.num_pages), zero=False)
            tt.populate_all()
        except TtmError as error:
            tt.depopulate(np.setdiff1d(tt.present(), present_before, assume_unique=True))
            await _reclaim_for(bo, tt, tt.num_pages - tt.populated_pages, ctx, error, keep=None)
    await trio.lowlevel.checkpoint_if_cancelled()


async def _reclaim_for(
    bo: BufferObject, tt: TT, pages: int, ctx: OperationContext, error: TtmError, keep: tuple[int, int] | None
) -> None:
    """Free memory somewhere, or raise the ENOMEM that the caller has met."""
    if error.errno != errno.ENOMEM:
        raise error
    if pages > tt.pool.arena.num_pages or not await reclaim(bo.device, pages, ctx, faulting=bo, keep=keep):
        raise out_of_memory(pages, tt.pool) from error
