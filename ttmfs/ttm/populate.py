"""Populate: memory for pages of a BO, reclaiming where there is none (ttm_bo_populate)."""

import errno
from typing import Final

import numpy as np
import trio

from ttmfs.errors import TtmError
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.reclaim import reclaim
from ttmfs.ttm.tt import TT, out_of_memory

_SWAP_STEP: Final = 512
"""Pages that come back from swap at a time."""


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
    await _below_limit(bo, min(count, tt.num_pages - tt.populated_pages))
    was_swapped = tt.swap is not None
    while True:
        try:
            # Pages may come unzeroed only where nothing is awaited before the caller overwrites them.
            added = tt.populate_range(first, count, prefault=prefault, zero=zero or was_swapped)
            break
        except TtmError as error:
            await _reclaim_for(bo, tt, count, ctx, error, keep=(first, count))
            prefault = 0
    bo.device.defrag_list.join_if_marked(bo)
    if was_swapped:
        await _swap_in_rest(bo, tt)
    return added


async def populate_all(bo: BufferObject, tt: TT, ctx: OperationContext, *, overwritten: int = 0) -> None:
    """Memory for all of `tt`, as gtt, jobs and restore need it: all or TtmError(ENOMEM) with nothing kept.

    The first `overwritten` pages are about to be copied over, so they are taken as they come.
    """
    if not tt.is_populated:
        bo.device.inject.check("page_alloc", errno.ENOMEM, f"{tt.num_pages - tt.populated_pages} pages for {bo.name}")
        await _below_limit(bo, tt.num_pages - tt.populated_pages)
    while tt.swap is not None:
        # First, and for good: what came back from swap is content, not part of an attempt that may be undone.
        try:
            await _swap_in(bo, tt)
        except TtmError as error:
            await _reclaim_for(bo, tt, tt.swapped_pages, ctx, error, keep=None)
    while not tt.is_populated:
        # Looked at anew for each attempt: while memory was reclaimed, WRITEs may have added pages.
        present_before = tt.present()
        try:
            if overwritten:
                tt.populate_range(0, min(overwritten, tt.num_pages), zero=False)
            tt.populate_all()
        except TtmError as error:
            tt.depopulate(np.setdiff1d(tt.present(), present_before, assume_unique=True))
            await _reclaim_for(bo, tt, tt.num_pages - tt.populated_pages, ctx, error, keep=None)
    bo.device.defrag_list.join_if_marked(bo)
    await trio.lowlevel.checkpoint_if_cancelled()


async def _below_limit(bo: BufferObject, pages: int) -> None:
    """The soft limit on populated pages (ttm_tt_populate): swap others out, trylock only; then allocate anyway."""
    device = bo.device
    over = device.pool.in_use_pages + pages - device.pages_limit
    if over > 0 and device.swap_store is not None:
        await _swap_others_out(bo, over)


async def _swap_others_out(bo: BufferObject, pages: int) -> int:
    from ttmfs.ttm.swap import device_swapout  # noqa: PLC0415 - swapping out moves, moving populates

    return await device_swapout(bo.device, OperationContext(no_wait_gpu=True), pages, but=bo)


async def _swap_in(bo: BufferObject, tt: TT) -> None:
    """ttm_tt_swapin, step by step: all that is in swap. TtmError(ENOMEM): the rest stays there."""
    bo.drop_view()
    bo.device.inject.check("store_read", errno.EIO, f"reading {bo.name} from swap")
    first = 0
    while tt.swap is not None and first < tt.num_pages:
        tt.swap_in(first, min(_SWAP_STEP, tt.num_pages - first))
        first += _SWAP_STEP
        await trio.lowlevel.checkpoint()
    bo.drop_view()
    bo.device.lru_bump(bo)


async def _swap_in_rest(bo: BufferObject, tt: TT) -> None:
    """A fault has its pages; bring back what else fits, as the kernel swaps in the whole."""
    try:
        with trio.CancelScope(shield=True):
            await _swap_in(bo, tt)
    except TtmError:
        bo.device.lru_bump(bo)


async def _reclaim_for(
    bo: BufferObject, tt: TT, pages: int, ctx: OperationContext, error: TtmError, keep: tuple[int, int] | None
) -> None:
    """Free memory somewhere, or raise the ENOMEM that the caller has met."""
    if error.errno != errno.ENOMEM:
        raise error
    if pages > tt.pool.arena.num_pages:
        raise out_of_memory(pages, tt.pool) from error
    if await reclaim(bo.device, pages, ctx, faulting=bo, keep=keep) or await _swap_others_out(bo, pages):
        return
    raise out_of_memory(pages, tt.pool) from error
