"""The CPU side: READs and WRITEs of an address space (page faults, and the stores that come back as WRITEs).

A READ of pages in VRAM brings back the allocation of the first of them (migrate_to_ram); pages of further ones are
answered from VRAM without moving. A WRITE is applied where the bytes are, and an allocation that it reached comes back
too, because the client keeps that page. All pages that were answered with are noted in `Chunk.handed`, so that whoever
uses them on the device has them invalidated first.

Rule R1 for spaces: while an INVAL of a page is outstanding no request of it waits for anything that a device job or a
migration could hold; it is served from where the bytes are. Between the last look and the bytes there is no await.
"""

import errno
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import numpy as np
import trio

from ttmfs.errors import TtmError
from ttmfs.svm.chunk import Chunk, DevMem
from ttmfs.svm.cpu_prefetch import prefetch_for_cpu
from ttmfs.svm.devmem import evict_to_ram
from ttmfs.svm.pages import CHUNK_PAGES, Pages, free_pages, index_of, mask_of, take_pages
from ttmfs.svm.swap import load_now, load_stored
from ttmfs.svm.system_pages import alloc_pages, give_pages
from ttmfs.ttm.before_reply import drop_cached_eof_page, drop_unwritten
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.copy import CopyState
from ttmfs.ttm.growth import growing
from ttmfs.ttm.request import Waiting
from ttmfs.units import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from ttmfs.svm.space import AddressSpace

Buffer = memoryview | bytes | bytearray
_CHUNK_BYTES = 2 << 20


def _pages(offset: int, size: int) -> tuple[int, int]:
    """First page and the page behind the last."""
    return offset >> PAGE_SHIFT, (offset + size + PAGE_MASK) >> PAGE_SHIFT


async def read(space: "AddressSpace", offset: int, size: int, request: Waiting | None = None) -> Buffer:
    """Serve a READ: exactly min(size, end of the space - offset) bytes. TtmError: ENOMEM, ESHUTDOWN.

    The caller hands the buffer on before its next await.
    """
    data = _read_quickly(space, offset, size)
    if data is None and not space.looks_only and _first_touch(space, offset, size):
        data = _read_quickly(space, offset, size)
    if data is None:
        data = await _shielded_read(space, offset, size, request or waiting_for(space))
    if offset + len(data) >= space.size:
        space.eof_page_read = True
    counters = space.svm.counters
    counters.cpu_faults += 1
    counters.cpu_fault_pages += (len(data) + PAGE_MASK) >> PAGE_SHIFT
    space.cpu_faults += 1
    return data


def _read_quickly(space: "AddressSpace", offset: int, size: int) -> Buffer | None:
    """The bytes when they are one run of system memory: the memory itself."""
    size = min(size, space.size - offset)
    if size <= 0:
        return b""
    if space.vdev.ttm.unplugged:
        return bytes(size)
    first, end = _pages(offset, size)
    chunk = space.chunks.get(first >> 9)
    if chunk is None or not chunk.pages.present >> (first & 511) & 1:
        return None
    page, length = chunk.pages.extent(first & 511, end - first)
    if length < end - first:
        return None
    chunk.handed |= ((1 << (end - first)) - 1) << (first & 511)
    space.used(chunk)
    start = (page << PAGE_SHIFT) + (offset & PAGE_MASK)
    return space.arena.buf[start : start + size]


def _first_touch(space: "AddressSpace", offset: int, size: int) -> bool:
    """Memory for mapped holes of one chunk of which nothing is in VRAM, if it is there for the asking."""
    ttm = space.vdev.ttm
    first, end = _pages(offset, min(size, space.size - offset))
    number = first >> 9
    chunk = space.chunks.get(number)
    if (end - 1) >> 9 != number or ttm.closing or space.released or ttm.inject["page_alloc"].probability:
        return False
    if ttm.prefetcher is not None:
        return False
    holes = ((1 << (end - first)) - 1) << (first & 511)
    if chunk is not None:
        if chunk.allocs or chunk.moves or chunk.in_store & holes:
            return False
        holes &= ~chunk.pages.present
    if not holes or space.mapped_mask(number, holes) != holes:
        return False
    count = holes.bit_count()
    if ttm.pool.in_use_pages + count > ttm.pages_limit:
        return False
    try:
        give_pages(space, number, holes)
    except TtmError:
        return False
    return True


def waiting_for(space: "AddressSpace") -> Waiting:
    """A request of a space, as long as it may wait."""
    return Waiting(space.gate, space.vdev.ttm.fault_timeout)


async def _shielded_read(space: "AddressSpace", offset: int, size: int, request: Waiting) -> Buffer:
    with trio.CancelScope(shield=True), space.asked.during(*_pages(offset, size)):
        return await _read_slowly(space, offset, size, request)
    raise AssertionError("a shield is not cancelled")


async def _read_slowly(space: "AddressSpace", offset: int, size: int, request: Waiting) -> Buffer:
    ttm = space.vdev.ttm
    came_back = False
    while True:
        size = min(size, space.size - offset)
        if size <= 0:
            return b""
        if ttm.unplugged:
            return bytes(size)
        if ttm.closing:
            raise TtmError(errno.ESHUTDOWN, f"fault of {space.name}: the mount is being taken down")
        first, end = _pages(offset, size)
        at_once = space.gate.unmaps(first, end - first) or request.late
        if not at_once:
            move = space.move_of(first, end)
            if move is not None:
                await _park(space, first, end, move.copy.fence.wait, request)
                continue
            devmem = None if came_back else space.alloc_of(first, end)
            if devmem is not None:
                came_back = await _bring_back(space, first, end, devmem, request)
                continue
        waited = await _populate_in_time(space, first, end, request, at_once=at_once, looks=space.looks_only)
        if waited or _stored(space, first, end):
            continue
        return _gather(space, offset, size)


async def _park(
    space: "AddressSpace", first: int, end: int, wait: Callable[[], Awaitable[object]], request: Waiting
) -> bool:
    """`wait` for a request of these pages, until it is late; False when that, or an INVAL of one of them, ended it."""
    return await space.gate.park(wait, request.time_left, first, end - first)


def _gather(space: "AddressSpace", offset: int, size: int) -> bytearray:
    """All bytes, from where each page is now; they are handed out. Holes are zeros."""
    out = bytearray(size)
    view = memoryview(out)
    done = 0
    while done < size:
        number, at = divmod(offset + done, _CHUNK_BYTES)
        take = min(size - done, _CHUNK_BYTES - at)
        first, end = _pages(offset + done, take)
        chunk = space.chunks.get(number)
        if chunk is None:
            space.looked |= space.looks_only
            space.looked_at.note(first, end, space.num_pages)
        else:
            chunk.read_into(view[done : done + take], at)
            _hand_out(space, chunk, mask_of(first & (CHUNK_PAGES - 1), end - first))
        done += take
    return out


def _hand_out(space: "AddressSpace", chunk: Chunk, mask: int) -> None:
    """A READ is answered with these pages, wherever they are."""
    chunk.handed |= mask
    space.used(chunk)
    if space.looks_only and mask & ~chunk.populated():
        space.looked = True
    if mask & chunk.vram():
        space.svm.counters.served_in_place += 1


async def _bring_back(space: "AddressSpace", first: int, end: int, devmem: DevMem, request: Waiting) -> bool:
    """A CPU fault on a device page: migrate the whole allocation, after its timeslice. False: an INVAL ended the wait.

    Failure is no error of the fault: the bytes are in VRAM, and are read there.
    """

    async def work() -> None:
        await trio.sleep_until(devmem.expires)
        await migrate_to_ram(devmem, "cpu_fault")

    try:
        return await _park(space, first, end, work, request)
    except TtmError as error:
        space.last_error = error.message
        return True


async def migrate_to_ram(devmem: DevMem, why: str, ctx: OperationContext | None = None) -> None:
    """Reserve an allocation and bring all of it back; nothing to do when it is dead. TtmError: as evict_to_ram."""
    bo = devmem.bo
    await bo.resv.lock()
    try:
        if not devmem.dead:
            await evict_to_ram(devmem.chunk.space.vdev, devmem, ctx or OperationContext(), why)
    finally:
        bo.unlock()


def _stored(space: "AddressSpace", first: int, end: int) -> bool:
    """Is one of these pages in the store?"""
    return any(chunk.in_store & mask for chunk, mask in space.pieces(first, end))


async def _populate_in_time(
    space: "AddressSpace",
    first: int,
    end: int,
    request: Waiting,
    *,
    at_once: bool,
    anew: bool = False,
    looks: bool = False,
) -> bool:
    """`populate` for a request: what it waits for ends with the time, and when these pages are to be invalidated.

    Where pages had no memory the prefetch policy is asked what comes along.
    """
    if at_once:
        try:
            return await populate(space, first, end, at_once=True, anew=anew, looks=looks)
        except TtmError:
            if not request.only_hurried:
                raise
            request.wait_on()
            return True
    waited = True

    async def fill() -> None:
        nonlocal waited
        waited = await populate(space, first, end, anew=anew, looks=looks)
        prefetcher = space.vdev.ttm.prefetcher
        if waited and prefetcher is not None:
            await prefetch_for_cpu(space, first, end, prefetcher, holes=not looks)

    await _park(space, first, end, fill, request)
    return waited


async def populate(
    space: "AddressSpace",
    first: int,
    end: int,
    *,
    at_once: bool = False,
    anew: bool = False,
    looks: bool = False,
    ctx: OperationContext | None = None,
) -> bool:
    """What is in the store comes back, and the mapped holes (`anew`: all holes) get memory, zeroed, unless who asks
    only `looks`; True when this has waited.

    A page that is handed out must have memory, or its WRITE could fail (R4): without waiting the reserve serves. `ctx`
    says whether memory that only others use is waited for.
    TtmError: ENOMEM, EDQUOT, and what the store says.
    """
    waited, ctx = False, ctx or OperationContext()
    with space.asked.during(first, end):
        for number, mask in space.masks(first, end):
            waited |= await _load(space, number, mask, ctx, at_once=at_once, must=anew)
            if not looks:
                waited |= await _fill_chunk(space, number, mask, ctx, at_once=at_once, anew=anew)
    return waited


async def _load(
    space: "AddressSpace", number: int, mask: int, ctx: OperationContext, *, at_once: bool, must: bool
) -> bool:
    """What is in the store of some pages of one chunk; `must` falls back to the reserve."""
    if not at_once:
        try:
            return await load_stored(space, number, mask, ctx)
        except TtmError as error:
            if not must or error.errno != errno.ENOMEM:
                raise
    load_now(space, number, mask)
    return not at_once


async def _fill_chunk(
    space: "AddressSpace", number: int, mask: int, ctx: OperationContext, *, at_once: bool, anew: bool
) -> bool:
    """Memory for the holes among some pages of one chunk."""
    holes = mask & ~space.held(number)
    if holes and not anew:
        holes = space.mapped_mask(number, holes)
    if not holes:
        return False
    handed = anew and number in space.chunks and bool(space.chunks[number].handed & holes)
    pages = await _pages_for(space, holes.bit_count(), ctx, at_once=at_once, must=anew, handed=handed)
    _put(space, number, holes, pages)
    return not at_once


async def _pages_for(
    space: "AddressSpace", count: int, ctx: OperationContext, *, at_once: bool, must: bool, handed: bool
) -> Pages:
    """Zeroed pages: without a wait from what is free or the reserve; `must` falls back to that.

    TtmError(ENOMEM, EDQUOT), the latter for pages that are `handed` out only when the slack is used up.
    """
    if not at_once:
        try:
            return await alloc_pages(space.vdev.ttm, space, count, ctx, zero=True)
        except TtmError as error:
            if not must or (error.errno == errno.EDQUOT and not handed):
                raise
    return take_pages(space, count, use_reserve=True)


def _put(space: "AddressSpace", number: int, holes: int, pages: Pages) -> None:
    """Give `pages` to those of `holes` that still are holes; the others were filled, or cut off, meanwhile."""
    if space.released:
        free_pages(space, pages)
        return
    still = holes & ~space.held(number)
    free_pages(space, pages[still.bit_count() :])
    if not still:
        return
    chunk = space.need_chunk(number)
    order = index_of(still)
    for move in chunk.moves:
        part = still & move.live if move.into_vram else 0
        if part:
            move.fill_holes(part, pages[np.searchsorted(order, index_of(part))])
            still &= ~part
    if still:
        chunk.pages.put(still, pages[np.searchsorted(order, index_of(still))])
        chunk.changed()
        space.used(chunk)


async def write(space: "AddressSpace", offset: int, data: bytes, request: Waiting | None = None) -> None:
    """Serve a WRITE of all of `data`; the space grows if it ends behind it. TtmError: ENOMEM, EFBIG, ESHUTDOWN, EIO.

    If it fails, size, content and mapping are as before.
    """
    if not data:
        return
    request = request or waiting_for(space)
    end_byte, old_size = offset + len(data), space.size
    with trio.CancelScope(shield=True), space.asked.during(*_pages(offset, len(data))):
        try:
            if end_byte <= old_size:
                await _write(space, offset, data, request)
                return
            with growing(space, end_byte, space.resize):
                await _write(space, offset, data, request)
        except TtmError as error:
            await drop_unwritten(space, space.svm.unmapper, offset, len(data), error)
            raise
    if old_size & PAGE_MASK:
        page = old_size >> PAGE_SHIFT
        await drop_cached_eof_page(space, space.svm.unmapper, old_size, range(page, page + 1))


async def _write(space: "AddressSpace", offset: int, data: bytes, request: Waiting) -> None:
    ttm = space.vdev.ttm
    first, end = _pages(offset, len(data))
    while True:
        if ttm.unplugged or space.released:
            return
        if ttm.closing:
            raise TtmError(errno.ESHUTDOWN, f"write to {space.name}: the mount is being taken down")
        if offset + len(data) > space.size:
            # Truncated meanwhile: the WRITE comes after that.
            space.resize(offset + len(data))
        at_once = space.gate.unmaps(first, end - first) or request.late
        running = space.move_of(first, end, CopyState.RUNNING)
        if running is not None:
            # Bytes move: not for long, and nothing that an INVAL waits for is waited for here.
            if not await running.copy.fence.wait(ttm.fault_timeout):
                raise TtmError(errno.EIO, f"write to {space.name}: a copy did not end in {ttm.fault_timeout:g} s")
            continue
        waited = await _populate_in_time(space, first, end, request, at_once=at_once, anew=True)
        if waited or _stored(space, first, end):
            continue
        break
    space.map_holes(first, end)
    view = memoryview(data)
    done = 0
    while done < len(data):
        at = (offset + done) % _CHUNK_BYTES
        take = min(len(data) - done, _CHUNK_BYTES - at)
        space.chunks[(offset + done) // _CHUNK_BYTES].write_from(view[done : done + take], at)
        done += take
    for chunk, mask in space.pieces(first, end):
        chunk.handed |= mask
        space.used(chunk)
    space.svm.counters.writes += 1
    await _touched(space, first, end, request)


async def _touched(space: "AddressSpace", first: int, end: int, request: Waiting) -> None:
    """A WRITE is a touch: what is in VRAM comes back, unless somebody is just invalidating these pages."""
    while (devmem := space.alloc_of(first, end)) is not None:
        if space.gate.unmaps(first, end - first) or request.late:
            return
        await _bring_back(space, first, end, devmem, request)
        if not devmem.dead:
            return


assert _CHUNK_BYTES == PAGE_SIZE << 9
