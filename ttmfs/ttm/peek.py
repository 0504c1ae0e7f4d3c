"""Peek (ttm_bo_access): the bytes of a BO where they are, for who looks at it from outside its file.

Nothing moves for it, no fault is counted, and the LRU stays as it is. VRAM beyond the CPU's window is reached, and so
is the swap store: what is there is loaded aside, or stored anew under another handle, and the BO stays there. Only a
hole that is written gets memory. What clients have stored through a mapping and the kernel has not written back yet is
in their caches; a reader does not see it, a writer has it written back before and dropped after (R7).

Pages go by in steps. Between the last look at where a page is and its bytes there is no await.
"""

import errno
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Final

import numpy as np
import trio

from ttmfs.errors import TtmError
from ttmfs.memory.arena import Arena
from ttmfs.ttm import access, at_once
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.external import ExternalTT
from ttmfs.ttm.page_vector import Vector
from ttmfs.ttm.populate import populate_range
from ttmfs.ttm.store_io import look_pages, store_pages
from ttmfs.ttm.tt import TT
from ttmfs.ttm.unmap import unmap_virtual
from ttmfs.units import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, pages_of

STEP_PAGES: Final = 64
"""What is loaded, or stored anew, at a time."""
_Loaded = dict[tuple[int, int], tuple[int, memoryview]]
"""By tt (its id()) and index: the entry that it had, and the bytes that were in the store then."""


async def peek(bo: BufferObject, offset: int, size: int) -> bytearray | bytes:
    """`size` bytes (fewer only at the end of the BO). TtmError: EIO, ENODEV, ENOENT, ETIME."""
    _check(bo)
    size = max(0, min(size, bo.size - offset))
    if bo.external:
        return await _exporter(bo).read(offset, size)
    out = bytearray()
    while len(out) < size:
        at = offset + len(out)
        step = min(size - len(out), (STEP_PAGES << PAGE_SHIFT) - (at & PAGE_MASK))
        part = _bytes_now(bo, at, step, {})
        if part is None:
            part = await _load_aside(bo, at, step)
        out += part
        await trio.lowlevel.checkpoint()
        _check(bo)
        size = max(0, min(size, bo.size - offset))
    return out[:size]


async def poke(bo: BufferObject, offset: int, data: bytes) -> None:
    """Write all of `data`, within the BO. What fails half way has written what was before it.

    TtmError: EIO also past its end; ENOSPC when what is in the store finds no room to be stored anew; ENOMEM, EDQUOT
    for a hole; ENODEV, ENOENT, ETIME.
    """
    _check(bo)
    end = offset + len(data)
    if end > bo.size:
        raise TtmError(errno.EIO, f"{bo.name!r} ends at byte {bo.size}: peek does not make it longer, bo/ does")
    if not data:
        return
    first, count = offset >> PAGE_SHIFT, pages_of(end) - (offset >> PAGE_SHIFT)
    if not bo.external and not bo.placed:
        # It has no bytes anywhere yet: its first WRITE decides where they are.
        await access.write(bo, offset, data)
        await _publish(bo, first, count)
        return
    async with AsyncExitStack() as stack:
        if not bo.external:
            await stack.enter_async_context(_held(bo))
            await _wait_for_moves(bo)
            await unmap_virtual(bo, first, count)
        try:
            if bo.external:
                await _exporter(bo).write(offset, data)
            else:
                await _write_steps(bo, offset, data)
        finally:
            # What failed half way has written what was before it.
            await _publish(bo, first, count)


async def _publish(bo: BufferObject, first: int, count: int) -> None:
    """Somebody else than a client has written these pages (R7)."""
    bo.content_changed()
    if bo.dirty is not None:
        bo.dirty.wrote(first, first + count)
    await unmap_virtual(bo, first, count)


def _check(bo: BufferObject) -> None:
    device = bo.device
    if device.unplugged:
        raise TtmError(errno.ENODEV, "the device was unplugged")
    if device.closing:
        raise TtmError(errno.ESHUTDOWN, f"peek at {bo.name!r}: the mount is being taken down")
    bo.check_alive()
    if bo.lost:
        raise TtmError(errno.EIO, f"peek at {bo.name!r}: {bo.lost}")


def _exporter(bo: BufferObject) -> ExternalTT:
    """TtmError(EIO) when the CPU may not touch it."""
    assert isinstance(bo.tt, ExternalTT)
    bo.tt.check_mappable(bo.name)
    return bo.tt


@asynccontextmanager
async def _held(bo: BufferObject) -> AsyncIterator[None]:
    """Reserve it, without a bump at the end. TtmError(ETIME)."""
    limit = bo.device.fault_timeout
    with trio.move_on_after(limit) as scope:
        await bo.resv.lock()
    if scope.cancelled_caught:
        raise TtmError(errno.ETIME, f"{bo.name!r} stayed reserved for {limit:g} s: debug/tasks says by whom")
    try:
        _check(bo)
        yield
    finally:
        bo.unlock()


async def _wait_for_moves(bo: BufferObject) -> None:
    """Until no bytes of it are on their way. TtmError(ETIME)."""
    limit = bo.device.fault_timeout
    with trio.move_on_after(limit):
        while bo.copies:
            await bo.copies[0].fence.wait()
    if bo.copies:
        raise TtmError(errno.ETIME, f"the bytes of {bo.name!r} were on their way for {limit:g} s")
    _check(bo)


# -- reading -------------------------------------------------------------------------------------------------------


def _stored_now(bo: BufferObject, first: int, count: int) -> Iterator[tuple[TT, int]]:
    """The (tt, index) of the pages of a step whose bytes are in the store at this moment."""
    for index in range(first, first + count):
        backing, _copy, _end = bo.truth(index)
        if isinstance(backing, TT) and index < backing.num_pages and backing.entry(index) & 1:
            yield backing, index


def _bytes_now(bo: BufferObject, offset: int, size: int, loaded: _Loaded) -> bytearray | None:
    """The bytes of a step; None when some are in the store and not in `loaded`."""
    size = max(0, min(size, bo.size - offset))
    first = offset >> PAGE_SHIFT
    count = pages_of(offset + size) - first
    stored = list(_stored_now(bo, first, count))
    if any(loaded.get((id(tt), index), (0,))[0] != tt.entry(index) for tt, index in stored):
        return None
    out = at_once.gather_now(bo, offset, size)
    for tt, index in stored:
        page = loaded[id(tt), index][1]
        begin, end = max(offset, index << PAGE_SHIFT), min(offset + size, (index + 1) << PAGE_SHIFT)
        within = begin & PAGE_MASK
        out[begin - offset : end - offset] = page[within : within + end - begin]
        cut = max(tt.cut_at(index), within)
        if cut < within + end - begin:
            out[begin - offset + cut - within : end - offset] = bytes(within + end - begin - cut)
    return out


async def _load_aside(bo: BufferObject, offset: int, size: int) -> bytearray:
    """As `_bytes_now`, with what is in the store. It is reserved meanwhile: nobody else brings these pages back."""
    first = offset >> PAGE_SHIFT
    async with _held(bo):
        while True:
            size = max(0, min(size, bo.size - offset))
            stored: dict[TT, list[int]] = {}
            for tt, index in _stored_now(bo, first, pages_of(offset + size) - first):
                stored.setdefault(tt, []).append(index)
            with _scratch(sum(map(len, stored.values()))) as arena:
                loaded: _Loaded = {}
                for tt, indices in stored.items():
                    begin = len(loaded)
                    where = np.array(indices)
                    entries = tt.at(where).tolist()
                    pages = np.arange(begin, begin + len(where), dtype=np.uint32)
                    await look_pages(bo.device, tt, where, arena, pages, bo=bo.name)
                    for at, entry, page in zip(indices, entries, pages.tolist(), strict=True):
                        loaded[id(tt), at] = (entry, arena.view(page, 1))
                part = _bytes_now(bo, offset, size, loaded)
                loaded.clear()
            if part is not None:
                return part
            _check(bo)


@contextmanager
def _scratch(num_pages: int) -> Iterator[Arena]:
    """Memory of the daemon's own, for a moment."""
    arena = Arena("peek", num_pages)
    try:
        yield arena
    finally:
        arena.close()


# -- writing -------------------------------------------------------------------------------------------------------


async def _write_steps(bo: BufferObject, offset: int, data: bytes) -> None:
    """Into a reserved BO whose bytes are where they stay."""
    done = 0
    while done < len(data):
        _check(bo)
        at = offset + done
        if offset + len(data) > bo.size:
            raise TtmError(errno.EIO, f"{bo.name!r} was truncated while it was written")
        index = at >> PAGE_SHIFT
        count = min(pages_of(offset + len(data)) - index, STEP_PAGES)
        _backing, page, length = bo.extent(index, count)
        if page >= 0:
            count = min(count, length)
        stored = 0 if page >= 0 else _stored_run(bo.need_tt(), index, count)
        step = min(len(data) - done, ((stored or count) << PAGE_SHIFT) - (at & PAGE_MASK))
        part = data[done : done + step]
        if page >= 0:
            at_once.scatter_now(bo, at, part)
        elif stored:
            if not await _store_anew(bo, bo.need_tt(), index, stored, at, part):
                continue
        else:
            await populate_range(bo, index, 1, OperationContext())
            bo.relist()
            continue
        done += step
        await trio.lowlevel.checkpoint()


def _stored_run(tt: TT, index: int, count: int) -> int:
    """How many pages from `index` on, up to `count`, are in the store; 0 when that one is not."""
    handles = tt.handles_in(index, index + count)
    expected = np.arange(index, index + len(handles))
    return int(np.argmin(np.append(handles == expected, False)))


async def _store_anew(bo: BufferObject, tt: TT, first: int, count: int, offset: int, data: bytes) -> bool:
    """Pages of the store with `data` in them, under new handles. False: somebody had some of them meanwhile."""
    index = np.arange(first, first + count)
    before, cuts = tt.at(index).copy(), [tt.cut_at(at) for at in index.tolist()]
    with _scratch(count) as arena:
        pages: Vector = np.arange(count, dtype=np.uint32)
        edges = [0] * bool(offset & PAGE_MASK) + [count - 1] * bool(offset + len(data) & PAGE_MASK)
        if edges:
            some = np.unique(edges)
            await look_pages(bo.device, tt, index[some], arena, pages[some], bo=bo.name)
        for edge in edges:
            cut = tt.cut_at(first + edge)
            arena.buf[(edge << PAGE_SHIFT) + cut : (edge + 1) << PAGE_SHIFT] = bytes(PAGE_SIZE - cut)
        arena.buf[offset & PAGE_MASK : (offset & PAGE_MASK) + len(data)] = data
        handles = await store_pages(bo.device, arena, pages, bo=bo.name)
    inside = np.arange(len(handles)) < tt.num_pages - first
    same = np.zeros(len(handles), np.bool_)
    same[inside] = tt.at(index[: len(handles)][inside]) == before[: len(handles)][inside]
    if cuts != [tt.cut_at(at) for at in index.tolist()]:
        same[:] = False
    tt.store_again(index[: len(handles)][same], handles[same])
    tt.drop_stored(handles[~same])
    if not same.all():
        return False
    if len(handles) < count:
        raise TtmError(errno.ENOSPC, f"no room in the store for what was written to {bo.name!r}: {_why_full(bo)}")
    return True


def _why_full(bo: BufferObject) -> str:
    store = bo.device.swap_store
    return store.full_because if store is not None else "there is no swap store"
