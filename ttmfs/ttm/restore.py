"""Restore: pages of a tt back from the swap store (ttm_tt_restore, ttm_pool_restore_and_alloc).

Piece by piece: fresh pages, the largest blocks first, then step by step the bytes of the handles, which are dropped as
they are copied. A restore of the whole also copies the pages that were never stored and frees them, so that what was
split for backup is whole again, and gives memory to holes; beside a copy of the BO these pages stay. Where it stands is
kept in `tt.unfinished` when it fails or is interrupted, and the next one goes on from there: no page is loaded or
allocated twice. It is dropped when complete, also by a resume that completes it (the kernel kept it until 2026).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import trio

from ttmfs.errors import TtmError
from ttmfs.memory.copy import copy_pages, zero_pages
from ttmfs.observe import points
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.holdings import Restore
from ttmfs.ttm.page_vector import HOLE, Index, Vector, are_handles, decode_pages, encode_pages
from ttmfs.ttm.store_io import LONG_STEP_PAGES, StoreSteps, in_lanes, load_pages
from ttmfs.ttm.tt import TT
from ttmfs.units import MAX_ORDER


async def restore_range(bo: BufferObject, tt: TT, first: int, count: int, *, prefault: int = 0) -> int:
    """What is in the store of [first, first + count), and at most `prefault` pages besides; the pages that came.

    The BO is reserved. TtmError: ENOMEM, EIO, or what the medium says; what did not come is where it was.
    """
    end = first + count
    before, steps = tt.backed_up_pages, _steps(bo, tt)
    try:
        state = tt.unfinished
        if state is not None and len(tt.handles_in(first, end)) and _meets(state, first, end):
            await _fill_asked(bo, tt, state, first, end, steps)
        while len(index := tt.handles_in(first, end)):
            low, high = tt.piece(int(index[0]), first, end, prefault)
            await _piece(bo, tt, tt.handles_in(low, high), first, end, steps)
    finally:
        came = _came_back(bo, tt, before)
    return came


async def restore_all(bo: BufferObject, tt: TT) -> int:
    """All that is in the store; returns the pages that came. Pieces of the beneficial order become whole again.

    Errors as for `restore_range`.
    """
    before, steps, at = tt.backed_up_pages, _steps(bo, tt), 0
    try:
        if tt.unfinished is not None:
            await _fill(bo, tt, tt.unfinished, steps)
        while tt.backed_up_pages and (at := tt.next_content(at)) < tt.num_pages:
            index = tt.handles_in(at, at + LONG_STEP_PAGES)
            if len(index):
                at = await _whole_piece(bo, tt, int(index[0]), steps)
            else:
                at += LONG_STEP_PAGES
                await trio.lowlevel.checkpoint()
    finally:
        came = _came_back(bo, tt, before)
    return came


def _steps(bo: BufferObject, tt: TT) -> StoreSteps:
    assert tt.store is not None
    return StoreSteps(bo.device, tt.store)


def _meets(state: Restore, first: int, end: int) -> bool:
    return bool(((state.index >= first) & (state.index < end)).any())


def _came_back(bo: BufferObject, tt: TT, before: int) -> int:
    """Books of pages that are in memory again; with the first of them the BO is on a LRU again."""
    came = before - tt.backed_up_pages
    if tt.unfinished is not None and not bo.deleted:
        bo.device.unfinished_restores[bo] = None
    else:
        bo.device.unfinished_restores.pop(bo, None)
    if came > 0:
        bo.device.counters.backup.pages_in += came
        bo.bump()
        points.restore(bo.device.trace, bo, pages=came, left=tt.backed_up_pages)
    return max(came, 0)


async def _whole_piece(bo: BufferObject, tt: TT, index: int, steps: StoreSteps) -> int:
    """The blocks of the beneficial order around an entry: as many as the steps take, one when memory is scarce or when
    not all of it is in the store, as the rest is copied or cleared at once. All of it in new blocks if these can be
    had, else only what is in the store. Returns the entry behind it.
    """
    order = tt.pool.beneficial_order or MAX_ORDER
    low = index >> order << order
    pages = steps.for_all_lanes(low, tt.pool.free_pages // 2)
    high = min(low + (max(pages >> order, 1) << order), tt.num_pages)
    handles = tt.handles_in(low, high)
    if len(handles) < high - low:
        high = min(low + (1 << order), tt.num_pages)
        handles = tt.handles_in(low, high)
    if len(handles) < high - low and not bo.copies and tt.pool.free_pages >= high - low:
        handles = np.arange(low, high)
    await _piece(bo, tt, handles, low, high, steps)
    return high


async def _piece(bo: BufferObject, tt: TT, index: Index, first: int, end: int, steps: StoreSteps) -> None:
    """Fresh pages for these entries, and their content. TtmError(ENOMEM) before anything else.

    Other errors only for entries of [first, end): the others are extra.
    """
    state = Restore(index, tt.take_pages(len(index)))
    kept = tt.unfinished is None
    if kept:
        tt.unfinished = state
    try:
        with _listed(tt, state):
            await _fill_asked(bo, tt, state, first, end, steps)
    finally:
        if not kept:
            tt.give_pages(state.pages)


@contextmanager
def _listed(tt: TT, state: Restore) -> Iterator[None]:
    """Its pages are accounted for meanwhile."""
    tt.restoring = (*tt.restoring, state)
    try:
        yield
    finally:
        tt.restoring = tuple(other for other in tt.restoring if other is not state)


async def _fill_asked(bo: BufferObject, tt: TT, state: Restore, first: int, end: int, steps: StoreSteps) -> None:
    """Go on with `state`. Where an entry outside [first, end) does not come, those within come all the same: a page
    that is lost costs nobody the pages around it.
    """
    try:
        await _fill(bo, tt, state, steps)
    except TtmError:
        asked = (state.index >= first) & (state.index < end)
        if asked.item(0):
            raise
        if not asked.any():
            return
        own = Restore(state.index[asked], state.pages[asked])
        state.index, state.pages = state.index[~asked], state.pages[~asked]
        try:
            with _listed(tt, own):
                await _fill(bo, tt, own, steps)
        finally:
            index, pages = np.concatenate((state.index, own.index)), np.concatenate((state.pages, own.pages))
            order = np.argsort(index)
            state.index, state.pages = index[order], pages[order]


async def _fill(bo: BufferObject, tt: TT, state: Restore, steps: StoreSteps) -> None:
    """Go on with `state` until it is done, some steps at once."""
    assert tt.store is not None
    filled = np.zeros(len(state.index), bool)
    failures: list[TtmError] = []

    def parts() -> Iterator[slice]:
        begin = 0
        while begin < len(state.index):
            end = begin + steps.next_to(begin)
            yield slice(begin, end)
            begin = end

    async def step(part: slice) -> bool:
        count, error = await _fill_step(bo, tt, state.index[part], state.pages[part])
        filled[part.start : part.start + count] = True
        failures.extend([error] if error is not None else [])
        await trio.lowlevel.checkpoint()
        steps.after_step()
        return not failures

    try:
        await in_lanes(tt.store, parts(), step)
    finally:
        state.index, state.pages = state.index[~filled], state.pages[~filled]
        if not len(state.index) and tt.unfinished is state:
            tt.unfinished = None
    if failures:
        bo.device.counters.backup.failed += 1
        raise failures[0]


async def _fill_step(bo: BufferObject, tt: TT, index: Index, pages: Vector) -> tuple[int, TtmError | None]:
    """Content for these entries on these pages; (how many are done, why the next is not)."""
    inside = index < tt.num_pages
    handle = np.zeros(len(index), bool)
    handle[inside] = are_handles(tt.at(index[inside]))
    filled = len(index)
    error: TtmError | None = None
    if handle.any():
        done, error = await load_pages(bo.device, tt, index[handle], pages[handle], bo=bo.name)
        if done.all():
            error = None
        else:
            filled = int(np.flatnonzero(handle)[int(np.argmin(done))])
    _finish(bo, tt, index[:filled], pages[:filled])
    return filled, error


def _finish(bo: BufferObject, tt: TT, index: Index, pages: Vector) -> None:
    """The entries that were no handles: retained pages are copied and freed, holes are zeros. Synchronous.

    What is not in the tt any more gives its page back. Beside a copy retained pages stay: bytes move into them, or out.
    """
    gone = index >= tt.num_pages
    if gone.any():
        tt.give_pages(pages[gone])
        index, pages = index[~gone], pages[~gone]
    entries = tt.at(index)
    rest = entries != encode_pages(pages)
    if not rest.any():
        return
    index, pages, entries = index[rest], pages[rest], entries[rest]
    hole = entries == HOLE
    if hole.any():
        zero_pages(tt.arena, pages[hole])
        tt.adopt(index[hole], pages[hole], taken=True)
    page = (entries & 1 == 0) & ~hole
    if page.any() and bo.copies:
        tt.give_pages(pages[page])
    elif page.any():
        copy_pages(tt.arena, pages[page], tt.arena, decode_pages(entries[page]))
        tt.depopulate(index[page], to_pool=False)
        tt.adopt(index[page], pages[page], taken=True)
    assert (hole | page).all(), "what is in the store is loaded or waits in the state"
