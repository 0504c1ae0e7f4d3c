"""At once: the bytes of a BO, in and out, and memory for them, with no wait at all.

What READs and WRITEs try first, and what is left to them where they may not wait: while an INVAL of the BO is
outstanding (R1), and when their time is up (R3, R4). No function here awaits, so what was found true about a page
(`_locate`) is still true when its bytes are touched.
"""

import errno

from ttmfs.errors import TtmError
from ttmfs.memory.copy import gather
from ttmfs.ttm.backing import Backing
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.copy import CopyState
from ttmfs.ttm.tt import TT
from ttmfs.units import PAGE_MASK, PAGE_SHIFT

Buffer = memoryview | bytes | bytearray


def try_read(bo: BufferObject, offset: int, size: int) -> Buffer | None:
    """`size` bytes (fewer only at the end of the BO) if they can be had with no wait at all, else None."""
    if bo.whole is not None and not bo.resv.locked and not bo.unmapping and bo.placed:
        data = _one_run(bo.whole, offset, min(size, bo.size - offset))
        if data is not None:
            return data
    if bo.resv.locked or bo.copies or bo.unmapping or not bo.placed or not bo.reachable:
        return None
    if bo.external or bo.device.unplugged:
        return None
    size = min(size, bo.size - offset)
    if size <= 0:
        return b""
    if not bo.vmap_known:
        bo.make_vmap()
    return None if bo.lost else read_now(bo, offset, size)


def _one_run(whole: Backing, offset: int, size: int) -> memoryview | None:
    """These bytes as a view, if they are one run of the memory of what holds all of the BO."""
    if size <= 0:
        return None
    first = offset >> PAGE_SHIFT
    count = ((offset + size - 1) >> PAGE_SHIFT) - first + 1
    page, length = whole.extent(first, count)
    if page < 0 or length < count:
        return None
    start = (page << PAGE_SHIFT) + (offset & PAGE_MASK)
    return whole.arena.buf[start : start + size]


def try_look(bo: BufferObject, offset: int, size: int) -> Buffer | None:
    """As `try_read`, for who only looks: holes are zeros and stay holes."""
    if bo.resv.locked or bo.copies or bo.unmapping or not bo.reachable:
        return None
    if bo.external or bo.device.unplugged or bo.lost:
        return None
    size = min(size, bo.size - offset)
    return look(bo, offset, size) if size > 0 else b""


def look(bo: BufferObject, offset: int, size: int) -> Buffer | None:
    """The bytes of a BO with no copy pending where they are, holes as zeros; None when some are in the store."""
    first = offset >> PAGE_SHIFT
    count = ((offset + size - 1) >> PAGE_SHIFT) - first + 1
    tt = bo.tt
    if tt is not None and len(tt.handles_in(first, first + count)):
        return None
    bo.looked = True
    return bytes(size) if tt is None and not bo.own_pages else gather_now(bo, offset, size)


def read_now(bo: BufferObject, offset: int, size: int) -> Buffer | None:
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
    backing, copy, end = bo.truth(index)
    count = min(count, end - index)
    if copy is None:
        return bo.extent(index, count)
    if backing is None:
        return None, -1, count
    page, length = backing.extent(index, count)
    return backing, page, length


def try_write(bo: BufferObject, offset: int, data: Buffer) -> bool:
    """Write with no wait at all, without the reservation: memory is there and no bytes are moving."""
    if bo.whole is not None and bo.placed:
        view = _one_run(bo.whole, offset, len(data))
        if view is not None:
            view[:] = data
            return True
    first = offset >> PAGE_SHIFT
    count = ((offset + len(data) - 1) >> PAGE_SHIFT) - first + 1
    if not data or bo.device.unplugged:
        return True
    if bo.lost:
        return False
    if not bo.copies:
        if bo.external or not bo.has_memory(first, count):
            return False
        if not (bo.placed and bo.reachable) and not bo.gate.unmaps(first, count):
            return False
        scatter_now(bo, offset, data)
        return True
    index = first
    while index < first + count:
        backing, copy, end = bo.truth(index)
        end = min(end, first + count)
        if copy is None:
            if not bo.has_memory(index, end - index):
                return False
        elif backing is None or copy.state is not CopyState.QUEUED or has_hole(backing, index, end):
            return False
        index = end
    return scatter_now(bo, offset, data)


def scatter_now(bo: BufferObject, offset: int, data: Buffer) -> bool:
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


def has_hole(src: Backing, index: int, end: int) -> bool:
    """Is one of pages [index, end) a hole of the source of a copy (defrag leaves holes alone)?"""
    return isinstance(src, TT) and not src.has_memory(index, end - index)


def give_memory(bo: BufferObject, first: int, count: int, *, late: bool, holes: bool = True) -> None:
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
                errno.EIO, f"fault of {bo.name!r} page {first} was not served within {bo.device.fault_timeout:g} s"
            )
        tt.populate_range(index, pages, use_reserve=True)


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


def fill_holes(bo: BufferObject, index: int, count: int) -> None:
    """Memory, zeroed, for these pages in all tts of copies that have not begun: they carry on what is written there.

    Targets before sources: a source's page needs one to go to, while a target may have more than it gets.
    TtmError(ENOMEM).
    """
    ends = [copy.dst for copy in bo.copies] + [copy.src for copy in bo.copies]
    for tt in ends:
        if isinstance(tt, TT) and index < tt.num_pages:
            tt.populate_range(index, min(count, tt.num_pages - index), use_reserve=True)
