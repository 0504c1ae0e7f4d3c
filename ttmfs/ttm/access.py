"""Access: the bytes of a BO for a READ, and from a WRITE (what ttm_bo_access and the PTEs do in the kernel).

Rules (docs/rules.md) that live here:

* R1: while an INVAL of the BO is outstanding nothing waits; requests are served from where the bytes are.
* R3: a READ waits for moves as `fault_idle` says; when it may not wait any more it is served from the source of the
  oldest copy.
* R4: a WRITE goes to the source of the oldest copy that moves no bytes yet, waits for one that does, and needs no
  reservation where memory is present. It is answered with an error only for pages that never had memory.

Between the last check and the copy into or out of the reply there is no await: what needs no wait is in
ttmfs.ttm.at_once, and here is what waits for it to become so.
"""

import errno
from functools import partial
from typing import Final

import trio

from ttmfs import clock
from ttmfs.errors import TtmError
from ttmfs.ttm import at_once, lifetime
from ttmfs.ttm.advice import trace_use, used, used_at_once
from ttmfs.ttm.at_once import Buffer
from ttmfs.ttm.before_reply import drop_cached_eof_page, drop_unwritten
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.copy import CopyState
from ttmfs.ttm.device import Need
from ttmfs.ttm.external import read_external, write_external
from ttmfs.ttm.fault import serve_fault
from ttmfs.ttm.funcs import FaultFlag, FaultResult, VmFault
from ttmfs.ttm.gate import ALL_PAGES
from ttmfs.ttm.growth import growing
from ttmfs.ttm.move import retreat_to_system
from ttmfs.ttm.park import park
from ttmfs.ttm.reclaim import COMMAND_WAIT, FAULT_WAIT, make_room
from ttmfs.ttm.request import Request, parked, trace_fault
from ttmfs.units import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, pages_of

_ERRNO: Final = {FaultResult.SIGBUS: errno.EIO, FaultResult.OOM: errno.ENOMEM}


async def read(bo: BufferObject, offset: int, size: int) -> Buffer:
    """Serve a READ: exactly min(size, end of BO - offset) bytes. TtmError: EIO, ENOMEM, ENOSPC.

    The caller hands the buffer on before its next await.
    """
    data = read_at_once(bo, offset, size)
    if data is None:
        used(bo, "fault")
        data = await parked(bo, read_external if bo.external else _read_slowly, offset, size)
        if bo.device.trace.faults:
            first = offset >> PAGE_SHIFT
            trace_use(bo, "fault", bo.last_use, first, pages_of(offset + len(data)) - first)
        _handed_out(bo, offset, len(data))
    return data


def read_at_once(bo: BufferObject, offset: int, size: int) -> Buffer | None:
    """The same if it need not wait; else None, and nothing has happened."""
    started = clock.monotonic_ns() if bo.device.trace.faults else 0
    data = at_once.try_read(bo, offset, size)
    if data is None and bo.looks_only:
        data = at_once.try_look(bo, offset, size)
    if data is not None:
        used_at_once(bo, "read", offset, len(data))
        if started:
            trace_fault(bo, offset, len(data), started)
        _handed_out(bo, offset, len(data))
    return data


def _handed_out(bo: BufferObject, offset: int, size: int) -> None:
    faults = bo.device.counters.faults
    pages = (size + PAGE_SIZE - 1) >> PAGE_SHIFT
    faults.count += 1
    faults.pages += pages
    bo.faults += 1
    bo.fault_pages += pages
    bo.handed_out = True
    if offset + size >= bo.size:
        bo.eof_page_read = True


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
            raise TtmError(errno.ESHUTDOWN, f"fault of {bo.name!r}: the mount is being taken down")
        _check_content(bo, f"fault of {bo.name!r} page {first}")
        if bo.gate.unmaps(first, count) or late:
            try:
                at_once.give_memory(bo, first, count, late=request.expired, holes=not bo.looks_only)
            except TtmError as error:
                await _make_room(bo, first, count, error, request)
                continue
            bo.looked |= bo.looks_only
            return at_once.gather_now(bo, offset, size)
        vmf = VmFault(bo, first, count, deadline=request.deadline, flags=flags)
        result = await serve_fault(vmf, request.turn)
        request.note(vmf)
        if result is FaultResult.OK:
            # A copy or a truncate slipped in before, or the move that was waited for failed: start over.
            stale = bo.copies or bo.lost or size > bo.size - offset
            data = None if stale else at_once.read_now(bo, offset, size)
            if data is None and bo.looks_only and not stale:
                data = at_once.look(bo, offset, size)
            if data is not None:
                return data
        elif result in _ERRNO:
            raise TtmError(vmf.code or _ERRNO[result], f"fault of {bo.name!r} page {first}: {vmf.message}")
        elif result is FaultResult.RETRY:
            # The kernel allows one restart; after that the fault queues for what it waits for.
            flags = FaultFlag.NONE
        await request.again(begun, first, count)


def _check_content(bo: BufferObject, what: str) -> None:
    """TtmError(EIO) when no byte of it is right: a copy failed, or it was purged and is not to read as zeros."""
    if bo.lost:
        raise TtmError(errno.EIO, f"{what}: {bo.lost}")


async def _make_room(bo: BufferObject, first: int, count: int, error: TtmError, request: Request) -> None:
    """There is no memory right now: make some, or raise the error.

    Others are unmapped for it, which waits for their requests (H31). So that none of these waits for this one, the BO
    is reserved meanwhile; then other pages of its own may go, too. While its pages are being unmapped somebody else has
    it reserved, and waits for the answer: it comes soon.
    """
    if error.errno != errno.ENOMEM or request.expired:
        raise error
    unmapping = bo.gate.unmaps(first, count)
    if not unmapping and not bo.resv.trylock():
        await park(bo, "reservation", bo.resv.wait_unlocked, request.time_to_live, first, count)
        return
    keep, patience = (None, COMMAND_WAIT) if unmapping else (range(first, first + count), FAULT_WAIT)
    try:
        made = await make_room(bo.device, Need(count, bo, keep, min(patience, request.time_to_live)))
    finally:
        if not unmapping:
            bo.unlock()
    if not made:
        raise error


# -- WRITE ---------------------------------------------------------------------------------------------------------


async def write(bo: BufferObject, offset: int, data: bytes) -> int:
    """Serve a WRITE of all of `data`, growing the BO if it ends behind it. TtmError: ENOMEM, ENOSPC, EIO, EFBIG.

    Fails only for pages that never had memory, and beyond the largest size. Size and content are as before then.
    """
    end = offset + len(data)
    old_size = bo.size
    try:
        if end <= old_size:
            await _write(bo, offset, data)
        else:
            with growing(bo, end, partial(lifetime.resize, bo)):
                await _write(bo, offset, data)
    except TtmError as error:
        await drop_unwritten(bo, bo.device.unmapper, offset, len(data), error)
        raise
    if end > old_size and old_size & PAGE_MASK:
        await drop_cached_eof_page(bo, bo.device.unmapper, old_size, ALL_PAGES)
    return len(data)


def write_at_once(bo: BufferObject, offset: int, data: Buffer) -> bool:
    """The same if it need not wait and the BO need not grow; else False, and nothing has happened."""
    if offset + len(data) > bo.size or not at_once.try_write(bo, offset, data):
        return False
    used_at_once(bo, "write", offset, len(data))
    _written(bo, offset, len(data))
    return True


def _written(bo: BufferObject, offset: int, size: int) -> None:
    first, end = offset >> PAGE_SHIFT, pages_of(offset + size)
    bo.gate.touch(first, end - first)
    if bo.dirty is not None:
        bo.dirty.wrote(first, end)
    bo.handed_out = True


async def _write(bo: BufferObject, offset: int, data: bytes) -> None:
    if not write_at_once(bo, offset, data):
        used(bo, "write")
        await parked(bo, write_external if bo.external else _write_slowly, offset, data)
        first = offset >> PAGE_SHIFT
        trace_use(bo, "write", bo.last_use, first, pages_of(offset + len(data)) - first)
        _written(bo, offset, len(data))


async def _write_slowly(bo: BufferObject, offset: int, data: bytes, request: Request) -> None:
    first = offset >> PAGE_SHIFT
    end = offset + len(data)
    count = ((end - 1) >> PAGE_SHIFT) - first + 1
    overwrite = not offset & PAGE_MASK and not end & PAGE_MASK
    flags = FaultFlag.ALLOW_RETRY | FaultFlag.WRITE
    while True:
        begun = trio.current_time()
        if bo.device.closing:
            raise TtmError(errno.ESHUTDOWN, f"write to {bo.name!r}: the mount is being taken down")
        _check_content(bo, f"write to {bo.name!r} page {first}")
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
                raise TtmError(vmf.code or _ERRNO[result], f"write to {bo.name!r} page {first}: {vmf.message}")
            if result is FaultResult.SIGBUS and not bo.copies and not bo.lost and end <= bo.size:
                # Pinned out of the CPU's reach, say: the memory is there, and a WRITE must not be lost.
                at_once.scatter_now(bo, offset, data)
                return
            if result is FaultResult.RETRY:
                flags = FaultFlag.WRITE
        if end <= bo.size:
            done = at_once.try_write(bo, offset, data)
            if done or _write_anyway(bo, offset, data, first, count, request):
                return
        await request.again(begun, first, count)


async def _prepare(bo: BufferObject, first: int, count: int, request: Request) -> None:
    """One step towards a WRITE beside copies, or without the reservation: what is in its way ends, or memory is had."""
    try:
        if bo.copies:
            await _wait_for_copy(bo, first, count, request)
        else:
            at_once.give_memory(bo, first, count, late=request.expired and not bo.gate.unmaps(first, count))
    except TtmError as error:
        await _make_room(bo, first, count, error, request)


def _write_anyway(bo: BufferObject, offset: int, data: bytes, first: int, count: int, request: Request) -> bool:
    """Time is up but the memory is there (out of the CPU's reach, say): a WRITE must not be lost."""
    moving = any(copy.src is not copy.dst for copy in bo.copies)
    if not request.late or moving or not bo.has_memory(first, count):
        return False
    return at_once.scatter_now(bo, offset, data)


async def _wait_for_copy(bo: BufferObject, first: int, count: int, request: Request) -> None:
    """Bytes are moving, or the BO is fresh on space still being copied out: wait, then place it in system."""
    unmapping = bo.gate.unmaps(first, count)
    index = first
    while index < first + count:
        backing, copy, end = bo.truth(index)
        end = min(end, first + count)
        if copy is None:
            # Behind all copies, or where they have been, or below those of a tail that is stored.
            at_once.give_memory(bo, index, end - index, late=False)
            index = end
            continue
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
                bo.need_tt().populate_range(index, first + count - index, use_reserve=True)
                return
            raise TtmError(errno.EIO, f"write to {bo.name!r}: a copy did not end in {bo.device.fault_timeout:g} s")
        if at_once.has_hole(backing, index, end):
            if request.late or unmapping:
                at_once.fill_holes(bo, index, end - index)
            else:
                request.waits += ("copy",)
                await park(bo, "copy", copy.fence.wait, request.time_left, first, count)
            return
        index = end
