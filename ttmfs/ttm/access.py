"""Access: the bytes of a BO for a READ, and from a WRITE (what ttm_bo_access and the PTEs do in the kernel).

Rules (docs/rules.md) that live here:

* R1: while an INVAL of the BO is outstanding nothing waits; requests are served from where the bytes are.
* R3: a READ waits for moves as `fault_idle` says; when it may not wait any more it is served from the source of the
  oldest copy.
* R4: a WRITE goes to the source of the oldest copy that moves no bytes yet, waits for one that does, and needs no
  reservation where memory is present. It is answered with an error only for pages that never had memory.

Between the last check and the copy into or out of the reply there is no await.
"""

import errno
from functools import partial
from typing import Final

import trio

from ttmfs import clock
from ttmfs.errors import TtmError
from ttmfs.memory.copy import gather
from ttmfs.ttm import lifetime
from ttmfs.ttm.advice import trace_use, used, used_at_once
from ttmfs.ttm.backing import Backing
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.copy import Copy, CopyState
from ttmfs.ttm.device import Need
from ttmfs.ttm.eof import drop_cached_eof_page
from ttmfs.ttm.external import read_external, write_external
from ttmfs.ttm.fault import serve_fault
from ttmfs.ttm.funcs import FaultFlag, FaultResult, VmFault
from ttmfs.ttm.gate import ALL_PAGES
from ttmfs.ttm.growth import growing
from ttmfs.ttm.move import retreat_to_system
from ttmfs.ttm.park import park
from ttmfs.ttm.reclaim import FAULT_WAIT, make_room
from ttmfs.ttm.request import Request, parked, trace_fault
from ttmfs.ttm.tt import TT
from ttmfs.units import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, pages_of

_ERRNO: Final = {FaultResult.SIGBUS: errno.EIO, FaultResult.OOM: errno.ENOMEM}

Buffer = memoryview | bytes | bytearray


def try_read(bo: BufferObject, offset: int, size: int) -> Buffer | None:
    """`size` bytes (fewer only at the end of the BO) if they can be had with no wait at all, else None."""
    if bo.resv.locked or bo.copies or bo.gate.unmapping or not bo.placed or not bo.visible:
        return None
    if bo.external or bo.device.unplugged:
        return None
    size = min(size, bo.size - offset)
    if size <= 0:
        return b""
    if not bo.view_known:
        bo.make_view()
    return None if bo.lost else _read_now(bo, offset, size)


def _try_look(bo: BufferObject, offset: int, size: int) -> Buffer | None:
    """As `try_read`, for who only looks: holes are zeros and stay holes."""
    if bo.resv.locked or bo.copies or bo.gate.unmapping or not bo.visible:
        return None
    if bo.external or bo.device.unplugged or bo.lost:
        return None
    size = min(size, bo.size - offset)
    return _look(bo, offset, size) if size > 0 else b""


def _look(bo: BufferObject, offset: int, size: int) -> Buffer | None:
    """The bytes of a BO with no copy pending where they are, holes as zeros; None when some are in the store."""
    first = offset >> PAGE_SHIFT
    count = ((offset + size - 1) >> PAGE_SHIFT) - first + 1
    tt = bo.tt
    if tt is not None and len(tt.handles_in(first, first + count)):
        return None
    bo.looked = True
    return bytes(size) if tt is None and not bo.own_pages else gather_now(bo, offset, size)


def _read_now(bo: BufferObject, offset: int, size: int) -> Buffer | None:
    """The bytes of a BO with no copy pending, as a view where they are one run; None if some have no memory."""
    first = offset >> PAGE_SHIFT
    count = ((offset + size - 1) >> PAGE_SHIFT) - first + 1
    backing, page, length = bo.extent(first, count)
    if page >= 0 and length >= count:
        start = (page << PAGE_SHIFT) + (offset & PAGE_MASK)
        return backing.arena.buf[start : start + size]
    if not bo.has_memory(first, count):
        return None
    if first + count <= backing.num_pages:
        return gather(backing.arena, backing.numbers(first, count), offset & PAGE_MASK, size)
    return gather_now(bo, offset, size)


def gather_now(bo: BufferObject, offset: int, size: int) -> bytearray:
    """Bytes out of several runs, from where each page is now; holes and fresh pages are zeros."""
    out = bytearray(size)
    view = memoryview(out)
    done = 0
    while done < size:
        index = (offset + done) >> PAGE_SHIFT
        count = ((offset + size - 1) >> PAGE_SHIFT) - index + 1
        backing, page, length = _locate(bo, index, count)
        take = min(size - done, (length << PAGE_SHIFT) - ((offset + done) & PAGE_MASK))
        if page >= 0 and backing is not None:
            start = (page << PAGE_SHIFT) + ((offset + done) & PAGE_MASK)
            view[done : done + take] = backing.arena.buf[start : start + take]
        done += take
    return out


def _locate(bo: BufferObject, index: int, count: int) -> tuple[Backing | None, int, int]:
    """(backing, page or -1, length) of the run of pages that starts at `index`, from the truth about it now."""
    if not bo.copies:
        return bo.extent(index, count)
    backing, copy = bo.truth(index)
    assert copy is not None or backing is not None
    if copy is not None:
        count = min(count, copy.covers - index)
    if backing is None:
        return None, -1, count
    page, length = backing.extent(index, count)
    return backing, page, length


async def read(bo: BufferObject, offset: int, size: int) -> Buffer:
    """Serve a READ: exactly min(size, end of BO - offset) bytes. TtmError: EIO, ENOMEM, ENOSPC.

    The caller hands the buffer on before its next await.
    """
    trace = bo.device.trace
    started = clock.monotonic_ns() if trace.on else 0
    data = try_read(bo, offset, size)
    if data is None and bo.looks_only:
        data = _try_look(bo, offset, size)
    if data is None:
        used(bo, "fault")
        data = await parked(bo, read_external if bo.external else _read_slowly, offset, size)
        if started:
            first = offset >> PAGE_SHIFT
            trace_use(bo, "fault", bo.last_use, first, pages_of(offset + len(data)) - first)
    else:
        used_at_once(bo, "read", offset, len(data))
        if started:
            trace_fault(bo, offset, len(data), started)
    faults = bo.device.counters.faults
    pages = (len(data) + PAGE_SIZE - 1) >> PAGE_SHIFT
    faults.count += 1
    faults.pages += pages
    bo.faults += 1
    bo.fault_pages += pages
    bo.handed_out = True
    if offset + len(data) >= bo.size:
        bo.eof_page_read = True
    return data


async def _read_slowly(bo: BufferObject, offset: int, size: int, request: Request) -> Buffer:
    flags = FaultFlag.ALLOW_RETRY
    while True:
        begun = trio.current_time()
        size = min(size, bo.size - offset)
        if size <= 0:
            return b""
        first = offset >> PAGE_SHIFT
        count = ((offset + size - 1) >> PAGE_SHIFT) - first + 1
        late = request.late
        if bo.device.unplugged:
            return bytes(size)
        if bo.device.closing:
            raise TtmError(errno.ESHUTDOWN, f"fault of {bo.name}: the mount is being taken down")
        _check_content(bo, f"fault of {bo.name} page {first}")
        if bo.gate.unmaps(first, count) or late:
            try:
                _give_memory_now(bo, first, count, late=request.expired, holes=not bo.looks_only)
            except TtmError as error:
                await _make_room(bo, count, error, request)
                continue
            bo.looked |= bo.looks_only
            return gather_now(bo, offset, size)
        vmf = VmFault(bo, first, count, deadline=request.deadline, flags=flags)
        result = await serve_fault(vmf, request.turn)
        request.note(vmf)
        if result is FaultResult.OK:
            # A copy or a truncate slipped in before, or the move that was waited for failed: start over.
            stale = bo.copies or bo.lost or size > bo.size - offset
            data = None if stale else _read_now(bo, offset, size)
            if data is None and bo.looks_only and not stale:
                data = _look(bo, offset, size)
            if data is not None:
                return data
        elif result in _ERRNO:
            raise TtmError(vmf.code or _ERRNO[result], f"fault of {bo.name} page {first}: {vmf.message}")
        elif result is FaultResult.RETRY:
            # The kernel allows one restart; after that the fault queues for what it waits for.
            flags = FaultFlag.NONE
        await request.again(begun, first, count)


def _check_content(bo: BufferObject, what: str) -> None:
    """TtmError(EIO) when no byte of it is right: a copy failed, or it was purged and is not to read as zeros."""
    if bo.lost:
        raise TtmError(errno.EIO, f"{what}: {bo.lost}")


def _give_memory_now(bo: BufferObject, first: int, count: int, *, late: bool, holes: bool = True) -> None:
    """Nothing may be waited for: what is in the store, and holes, get memory from what is free or from the reserve.

    A page that is handed out must have memory, or its WRITE could fail; without `holes` there can be none. TtmError:
    ENOMEM (the kernel then asks page by page), EIO when the time is up and there are no bytes to be had.
    """
    bo.gate.touch(first, count)
    _load_sources_now(bo, first, count)
    for index, pages in _tt_ranges(bo, first, count):
        tt = bo.need_tt()
        if tt.backed_up_pages:
            tt.load_now(index, pages, use_reserve=True)
        if not holes:
            continue
        if late and bo.resv.locked and not bo.gate.unmaps(first, count) and not tt.has_memory(index, pages):
            raise TtmError(
                errno.EIO, f"fault of {bo.name} page {first} was not served within {bo.device.fault_timeout:g} s"
            )
        tt.populate_range(index, pages, use_reserve=True)


async def _make_room(bo: BufferObject, count: int, error: TtmError, request: Request) -> None:
    """There is no memory right now: make some, or raise the error."""
    need = Need(count, bo, patience=min(FAULT_WAIT, request.time_to_live))
    if error.errno != errno.ENOMEM or request.expired or not await make_room(bo.device, need):
        raise error


def _load_sources_now(bo: BufferObject, first: int, count: int) -> None:
    """What is in the store of the pages that copies have not moved yet: the rest of a BO that is being backed up."""
    index, end = first, first + count
    for copy in bo.copies:
        covered = min(copy.covers, end)
        if index < covered:
            if isinstance(copy.src, TT):
                copy.src.load_now(index, covered - index, use_reserve=True)
            index = covered


def _tt_ranges(bo: BufferObject, first: int, count: int) -> list[tuple[int, int]]:
    """The parts of a page range that are in the BO's own tt now (not in a copy's source, not in VRAM)."""
    start = first
    for copy in bo.copies:
        start = max(start, copy.covers)
    if not bo.copies:
        start = max(start, bo.own_pages)
    end = first + count
    return [(start, end - start)] if start < end else []


# -- WRITE ---------------------------------------------------------------------------------------------------------


async def write(bo: BufferObject, offset: int, data: bytes) -> int:
    """Serve a WRITE of all of `data`, growing the BO if it ends behind it. TtmError: ENOMEM, ENOSPC, EIO, EFBIG.

    Fails only for pages that never had memory, and beyond the largest size. Size and content are as before then.
    """
    end = offset + len(data)
    old_size = bo.size
    if end <= old_size:
        await _write(bo, offset, data)
    else:
        with growing(bo, end, partial(lifetime.resize, bo)):
            await _write(bo, offset, data)
    first = offset >> PAGE_SHIFT
    bo.gate.touch(first, pages_of(end) - first)
    if bo.dirty is not None:
        bo.dirty.wrote(offset >> PAGE_SHIFT, (end + PAGE_MASK) >> PAGE_SHIFT)
    bo.handed_out = True
    if end > old_size and old_size & PAGE_MASK:
        await drop_cached_eof_page(bo, bo.device.unmapper, old_size, ALL_PAGES)
    return len(data)


async def _write(bo: BufferObject, offset: int, data: bytes) -> None:
    if _try_write(bo, offset, data):
        used_at_once(bo, "write", offset, len(data))
    else:
        used(bo, "write")
        await parked(bo, write_external if bo.external else _write_slowly, offset, data)
        first = offset >> PAGE_SHIFT
        trace_use(bo, "write", bo.last_use, first, pages_of(offset + len(data)) - first)


def _try_write(bo: BufferObject, offset: int, data: bytes) -> bool:
    """Write with no wait at all, without the reservation: memory is there and no bytes are moving."""
    first = offset >> PAGE_SHIFT
    count = ((offset + len(data) - 1) >> PAGE_SHIFT) - first + 1
    if not data or bo.device.unplugged:
        return True
    if bo.lost:
        return False
    if not bo.copies:
        if bo.external or not bo.has_memory(first, count):
            return False
        if not (bo.placed and bo.visible) and not bo.gate.unmaps(first, count):
            return False
        scatter_now(bo, offset, data)
        return True
    index = first
    while index < first + count:
        backing, copy = bo.truth(index)
        if copy is None:
            # Behind all copies, or below those of a tail that is stored.
            below = bo.own_pages if index < bo.own_pages else first + count
            if not bo.has_memory(index, min(below, first + count) - index):
                return False
            index = below
            continue
        if backing is None or copy.state is not CopyState.QUEUED or _has_hole(backing, index, first + count, copy):
            return False
        index = copy.covers
    return scatter_now(bo, offset, data)


def _has_hole(src: Backing, index: int, end: int, copy: Copy) -> bool:
    """Is one of the pages that the copy takes from `index` on a hole of its source (defrag leaves holes alone)?"""
    return isinstance(src, TT) and not src.has_memory(index, min(end, copy.covers) - index)


def _fill_holes(bo: BufferObject, index: int, count: int) -> None:
    """Memory, zeroed, for these pages in all tts of copies that have not begun: they carry on what is written there.

    Targets before sources: a source's page needs one to go to, while a target may have more than it gets.
    TtmError(ENOMEM).
    """
    ends = [copy.dst for copy in bo.copies] + [copy.src for copy in bo.copies]
    for tt in ends:
        if isinstance(tt, TT) and index < tt.num_pages:
            tt.populate_range(index, min(count, tt.num_pages - index), use_reserve=True)


def scatter_now(bo: BufferObject, offset: int, data: bytes) -> bool:
    """Put the bytes where each page is now; every page has memory."""
    done, size = 0, len(data)
    view = memoryview(data)
    while done < size:
        index = (offset + done) >> PAGE_SHIFT
        count = ((offset + size - 1) >> PAGE_SHIFT) - index + 1
        backing, page, length = _locate(bo, index, count)
        assert backing is not None
        assert page >= 0
        take = min(size - done, (length << PAGE_SHIFT) - ((offset + done) & PAGE_MASK))
        start = (page << PAGE_SHIFT) + ((offset + done) & PAGE_MASK)
        backing.arena.buf[start : start + take] = view[done : done + take]
        done += take
    return True


async def _write_slowly(bo: BufferObject, offset: int, data: bytes, request: Request) -> None:
    first = offset >> PAGE_SHIFT
    end = offset + len(data)
    count = ((end - 1) >> PAGE_SHIFT) - first + 1
    overwrite = not offset & PAGE_MASK and not end & PAGE_MASK
    flags = FaultFlag.ALLOW_RETRY | FaultFlag.WRITE
    while True:
        begun = trio.current_time()
        if bo.device.closing:
            raise TtmError(errno.ESHUTDOWN, f"write to {bo.name}: the mount is being taken down")
        _check_content(bo, f"write to {bo.name} page {first}")
        if end > bo.size:
            # Truncated meanwhile: the WRITE comes after that.
            lifetime.resize(bo, end)
        if bo.copies or bo.gate.unmaps(first, count) or request.late:
            await _prepare(bo, first, count, request)
        else:
            vmf = VmFault(bo, first, count, deadline=request.deadline, flags=flags, overwrite=overwrite)
            result = await serve_fault(vmf, request.turn)
            request.note(vmf)
            if result in _ERRNO and end <= bo.size and not bo.has_memory(first, count):
                raise TtmError(vmf.code or _ERRNO[result], f"write to {bo.name} page {first}: {vmf.message}")
            if result is FaultResult.SIGBUS and not bo.copies and not bo.lost and end <= bo.size:
                # Pinned out of the CPU's reach, say: the memory is there, and a WRITE must not be lost.
                scatter_now(bo, offset, data)
                return
            if result is FaultResult.RETRY:
                flags = FaultFlag.WRITE
        still_fits = end <= bo.size
        if still_fits and (_try_write(bo, offset, data) or _write_anyway(bo, offset, data, first, count, request)):
            return
        await request.again(begun, first, count)


async def _prepare(bo: BufferObject, first: int, count: int, request: Request) -> None:
    """One step towards a WRITE beside copies, or without the reservation: what is in its way ends, or memory is had."""
    try:
        if bo.copies:
            await _wait_for_copy(bo, first, count, request)
        else:
            _give_memory_now(bo, first, count, late=request.expired and not bo.gate.unmaps(first, count))
    except TtmError as error:
        await _make_room(bo, count, error, request)


def _write_anyway(bo: BufferObject, offset: int, data: bytes, first: int, count: int, request: Request) -> bool:
    """Time is up but the memory is there (out of the CPU's reach, say): a WRITE must not be lost."""
    moving = any(copy.src is not copy.dst for copy in bo.copies)
    if not request.late or moving or not bo.has_memory(first, count):
        return False
    return scatter_now(bo, offset, data)


async def _wait_for_copy(bo: BufferObject, first: int, count: int, request: Request) -> None:
    """Bytes are moving, or the BO is fresh on space still being copied out: wait, then place it in system."""
    unmapping = bo.gate.unmaps(first, count)
    index = max(first, min(copy.first for copy in bo.copies))
    while index < first + count:
        backing, copy = bo.truth(index)
        if copy is None:
            _give_memory_now(bo, index, first + count - index, late=False)
            return
        if backing is None or copy.state is not CopyState.QUEUED:
            fence, left = copy.fence, request.time_left
            if backing is not None or unmapping:
                # Hurried or not, a WRITE cannot be put beside bytes that move, and they do not move for long.
                request.waits += ("copy",)
                done = await fence.wait(request.time_to_live)
            else:
                # The clear may be far off: the end of the mount releases it. Moving bytes are waited for.
                request.waits += ("clear",)
                done = await park(bo, "clear", fence.wait, left, first, count)
            if done or not request.late:
                return
            if backing is None and retreat_to_system(bo):
                return
            if await park(bo, "clear", fence.wait, request.time_to_live, first, count) or not request.expired:
                return
            if copy.src is copy.dst:
                # A backup whose store takes its time. It finds the page touched and leaves it in memory.
                bo.need_tt().populate_range(first, count, use_reserve=True)
                return
            raise TtmError(errno.EIO, f"write to {bo.name}: a copy did not end in {bo.device.fault_timeout:g} s")
        if _has_hole(backing, index, first + count, copy):
            if request.late or unmapping:
                _fill_holes(bo, index, min(first + count, copy.covers) - index)
            else:
                request.waits += ("copy",)
                await park(bo, "copy", copy.fence.wait, request.time_left, first, count)
            return
        index = copy.covers
