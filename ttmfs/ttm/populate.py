"""Populate: memory for pages of a BO, reclaiming where there is none (ttm_bo_populate, ttm_tt_populate)."""

import errno
from typing import Final

import trio

from ttmfs.errors import TtmError
from ttmfs.memory.leftovers import IN_A_LULL, STEP_PAGES
from ttmfs.observe.counters import Lull
from ttmfs.ttm.account import MEMORY
from ttmfs.ttm.afford import afford
from ttmfs.ttm.ahead import take_ahead
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.device import Need
from ttmfs.ttm.reclaim import COMMAND_WAIT, FAULT_WAIT, Attempts, below_limit
from ttmfs.ttm.restore import restore_all, restore_range
from ttmfs.ttm.tt import TT, out_of_memory
from ttmfs.units import MAX_ORDER

_SCARCE_PREFAULT: Final = 15
"""Pages around a fault when others have to go for them: the kernel's 16, with the one asked for."""
_ZEROED_AT_ONCE: Final = 512
"""Pages that are zeroed in one step: two tenths of a millisecond."""
_RESTORED_AT_ONCE: Final = 512
"""Pages of the store that room is made for at a time."""


async def populate_range(
    bo: BufferObject,
    first: int,
    count: int,
    ctx: OperationContext,
    *,
    prefault: int = 0,
    zero: bool = True,
    holes: bool = True,
) -> int:
    """Memory, and the content from the store, for every page of [first, first + count); the pages added.

    Without `holes` only what is in the store comes. At most `prefault` pages beyond are added. The BO is reserved.
    TtmError(ENOMEM) when reclaim cannot help, EDQUOT for a limit of its account, or what the store says; pages added
    until then stay.
    """
    own = bo.own_pages
    if first < own:
        count -= own - first
        first = own
    if count <= 0:
        return 0
    if first >> MAX_ORDER << MAX_ORDER < own:
        # An aligned piece would reach below what the region holds.
        prefault = 0
    tt = bo.need_tt()
    _drop_overtaken_restore(bo, tt)

    def complete() -> bool:
        return tt.has_memory(first, count) if holes else not len(tt.handles_in(first, first + count))

    if complete():
        return 0
    bo.drop_vmap()
    device = bo.device
    device.inject.check("page_alloc", errno.ENOMEM, f"{count} pages for {bo.name!r}", count, bo=bo.name)
    keep = range(first, first + count)
    if device.over_limit(count + prefault) > 0:
        # What nobody has asked for is not worth pages that somebody uses.
        prefault = min(prefault, _SCARCE_PREFAULT)
    if holes and tt.account.limited and not ctx.unlimited:
        more = len(tt.holes_in(first, first + count))
        await afford(device, tt.account, more, ctx)
        prefault = min(prefault, tt.account.room(MEMORY) - more)
    need = _need(bo, ctx, min(count + prefault, tt.num_pages - tt.populated_pages), keep)
    await below_limit(device, need)
    if holes:
        take_ahead(bo, tt, first, count)
    added = 0
    attempts = Attempts(device, need)
    while not complete():
        try:
            if len(tt.handles_in(first, first + count)):
                added += await restore_range(bo, tt, first, count, prefault=prefault)
            if holes:
                # Last, so that nothing is awaited between pages that come unzeroed and the caller's overwriting them.
                added += tt.populate_range(first, count, prefault=prefault, zero=zero, unlimited=ctx.unlimited)
        except TtmError as error:
            await attempts.after(error, count)
            prefault = 0
    device.defrag_list.join_if_marked(bo)
    device.note_pressure()
    return added


def _drop_overtaken_restore(bo: BufferObject, tt: TT) -> None:
    """All that an unfinished restore was to bring has come by other ways: the pages that it holds are of no use."""
    if tt.unfinished is not None and not tt.backed_up_pages:
        tt.drop_restore()
        bo.device.unfinished_restores.pop(bo, None)


async def populate_all(bo: BufferObject, tt: TT, ctx: OperationContext, *, overwritten: int = 0) -> None:
    """Memory for all of `tt`, as gtt, jobs and restore need it: all or TtmError(ENOMEM, EDQUOT) with no hole filled.

    The first `overwritten` pages are about to be copied over, so they are taken as they come.
    """
    bo.drop_vmap()
    _drop_overtaken_restore(bo, tt)
    if not tt.is_populated:
        pages = tt.num_pages - tt.populated_pages
        _check_fits(tt)
        bo.device.inject.check("page_alloc", errno.ENOMEM, f"{pages} pages for {bo.name!r}", pages, bo=bo.name)
        await afford(bo.device, tt.account, pages - tt.backed_up_pages, ctx)
        await below_limit(bo.device, _need(bo, ctx, tt.num_pages - tt.populated_pages))
    attempts = Attempts(bo.device, _need(bo, ctx, tt.num_pages))
    while tt.backed_up_pages:
        # First, and for good: what came back from the store is content, not part of an attempt that may be undone.
        try:
            await restore_all(bo, tt)
        except TtmError as error:
            await attempts.after(error, min(tt.backed_up_pages, _RESTORED_AT_ONCE))
    while not tt.is_populated:
        await _take_apart(bo, tt.num_pages - tt.populated_pages)
        # Looked at anew for each attempt: while memory was reclaimed, WRITEs may have added pages, or made it longer.
        _check_fits(tt)
        try:
            await _fill(bo, tt, tt.num_pages, overwritten, ctx)
        except TtmError as error:
            await attempts.after(error, tt.num_pages - tt.populated_pages)
    bo.device.defrag_list.join_if_marked(bo)
    bo.device.note_pressure()
    await trio.lowlevel.checkpoint_if_cancelled()


async def populate_overwritten(bo: BufferObject, tt: TT, count: int, ctx: OperationContext) -> None:
    """Memory for the first `count` pages of `tt`, taken as they come since they are about to be copied over: for all of
    them or TtmError(ENOMEM, EDQUOT) with no hole filled. What is behind stays as it is: holes, and pages in the store.
    """
    bo.drop_vmap()
    holes = len(tt.holes_in(0, min(count, tt.num_pages)))
    bo.device.inject.check("page_alloc", errno.ENOMEM, f"{holes} pages for {bo.name!r}", holes, bo=bo.name)
    await afford(bo.device, tt.account, holes, ctx)
    need = _need(bo, ctx, holes)
    await below_limit(bo.device, need)
    attempts = Attempts(bo.device, need)
    # Looked at anew for each attempt: while memory was reclaimed the file may have been cut short.
    while not tt.has_memory(0, min(count, tt.num_pages)):
        await _take_apart(bo, holes)
        first = min(count, tt.num_pages)
        try:
            await _fill(bo, tt, first, first, ctx)
        except TtmError as error:
            await attempts.after(error, holes)
    bo.device.defrag_list.join_if_marked(bo)
    bo.device.note_pressure()
    await trio.lowlevel.checkpoint_if_cancelled()


async def _take_apart(bo: BufferObject, pages: int) -> None:
    """What the pool would take apart at once to have so many pages is taken apart in steps."""
    leftovers, lull = bo.device.pool.leftovers, Lull(bo.device.counters.requests)
    while leftovers.are_needed_for(pages):
        for _ in range(IN_A_LULL if lull() else 1):
            leftovers.step()
        await trio.lowlevel.checkpoint()


async def _fill(bo: BufferObject, tt: TT, end: int, overwritten: int, ctx: OperationContext) -> None:
    """Memory for the holes of [0, end), for all of them or TtmError(ENOMEM, EDQUOT) with none filled; those before
    `overwritten`, which nobody sees, as it comes.

    Much memory is taken at once, and given to the holes some at a time: what may fail has succeeded by then, so nothing
    has to be undone that WRITEs may have used, and nobody is left with half of it by a cancellation. What was filled
    by others meanwhile leaves some over; what was added to the file meanwhile gets none.
    """
    if not tt.begin_fill(end, unlimited=ctx.unlimited):
        return
    unseen = min(overwritten, end)
    lull = Lull(bo.device.counters.requests)
    try:
        with trio.CancelScope(shield=True):
            first = 0
            while first < end:
                zero = first >= unseen
                step = _ZEROED_AT_ONCE if zero else STEP_PAGES * IN_A_LULL if lull() else STEP_PAGES
                before = min(first + step, end if zero else unseen)
                tt.fill_from_stock(first, before, zero=zero)
                first = before
                if first < end:
                    await trio.lowlevel.checkpoint()
    finally:
        tt.drop_stock()


def _check_fits(tt: TT) -> None:
    """TtmError(ENOMEM) for one that is longer than all memory: nobody has to make room, and nothing comes back from the
    store, for an attempt in vain, and no array is as long as that.
    """
    if tt.num_pages > tt.pool.arena.num_pages:
        raise out_of_memory(tt.num_pages - tt.populated_pages, tt.pool)


def _need(bo: BufferObject, ctx: OperationContext, pages: int, keep: range | None = None) -> Need:
    """What is asked of reclaim for `bo`, which is reserved: a request of its own waits longest."""
    patience = FAULT_WAIT if ctx.faulting is bo else COMMAND_WAIT
    return Need(pages, bo, keep, patience, ctx.no_wait_gpu)
