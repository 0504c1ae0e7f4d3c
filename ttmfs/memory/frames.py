"""Frames that change hands: 2 MiB of memory go from one arena to another by page table (mremap), not byte by byte.

Where the kernel would insert a page into the swap cache instead of copying it. `move_frame` promises: afterwards the
target has the bytes, and the source reads as zeros and holds no memory there. `exchange`: both have the other's bytes,
and page numbers, addresses and advice are what they were. A host that cannot do it (before Linux 5.7, or with so many
frames that the limit of mappings of a process would be in sight, as a frame may become a mapping of its own) says so
through `can_move` and `can_exchange`, and its callers copy.
"""

import ctypes
import errno
import functools
import logging
import mmap
import os
import weakref
from pathlib import Path
from typing import Final

import numpy as np

from ttmfs.errors import TtmError
from ttmfs.memory.arena import ADVICE, FRAME_PAGES, HUGE_SIZE, MAP_NORESERVE, Arena
from ttmfs.memory.runs import BoolArray, Int64Array, PageArray
from ttmfs.units import PAGE_SHIFT

log = logging.getLogger(__name__)

_MAYMOVE_FIXED_DONTUNMAP: Final = 0x1 | 0x2 | 0x4
_MAP_FIXED: Final = 0x10
_FAILED: Final = ctypes.c_void_p(-1).value
_USUAL_MAPPINGS: Final = 65530
_RUN_FRAMES: Final = 16
"""How many frames change places at once, where the host can do that: a call costs as much for them as for one."""
_LAST: Final = FRAME_PAGES - 1
_PAGEMAP_HAS_MEMORY: Final = np.uint64(3 << 62)
"""Bits of an entry of /proc/self/pagemap: there is a page, or it is swapped out by the host."""

# A few microseconds each: less than it takes to get the interpreter lock back.
_libc = ctypes.PyDLL(None, use_errno=True)
_mremap = _libc.mremap
_mremap.restype = ctypes.c_void_p
_mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
_madvise = _libc.madvise
_madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_pread = _libc.pread
_pread.restype = ctypes.c_ssize_t
_pread.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64]

_taking_part: "weakref.WeakSet[Arena]" = weakref.WeakSet()
"""Arenas of which `can_move` has said yes: their frames count, all together."""


class _Host:
    """What this host has shown. `refused`: an exchange, once; none is tried any more."""

    refused = False


def can_move(first: Arena, second: Arena) -> bool:
    """Can frames of these two go to and fro? From then on all their frames count as mappings that there may be."""
    if first in _taking_part and second in _taking_part:
        return _host_moves()
    taking_part = {*_taking_part, first, second}
    if sum(arena.num_pages for arena in taking_part) // FRAME_PAGES > _most_frames() or not _host_moves():
        return False
    _taking_part.update((first, second))
    return True


def can_exchange(first: Arena, second: Arena) -> bool:
    """Can frames of these two change places? They may be one arena. No more once the host has refused it.

    What an exchange needs of the host is had when this says so: where it happens nothing may fail any more.
    """
    try:
        return not _Host.refused and can_move(first, second) and longest_run() <= _spare().num_pages // FRAME_PAGES
    except TtmError:  # no memory for that, at this moment
        return False


def frames_in(first: PageArray, second: PageArray) -> Int64Array:
    """Where both arrays (same length) have a whole frame, aligned and in order: offsets into them, int64, ascending."""
    if len(first) < FRAME_PAGES:
        return np.empty(0, np.int64)
    one, other = np.asarray(first), np.asarray(second)
    starts = np.flatnonzero((one | other) & (FRAME_PAGES - 1) == 0)
    starts = starts[starts <= len(one) - FRAME_PAGES]
    # The ends tell most of those that are none: to look at single pages costs little.
    for pages in (one, other):
        starts = starts[pages[starts + _LAST] == pages[starts] + _LAST]
    if starts.size:
        breaks = np.flatnonzero((one[1:] - one[:-1] != 1) | (other[1:] - other[:-1] != 1))
        starts = starts[np.searchsorted(breaks, starts) == np.searchsorted(breaks, starts + _LAST)]
    return starts


def in_whole_frames(pages: PageArray) -> BoolArray:
    """Which of these pages, each named once, have all of their frame beside them: bool, in any order."""
    frame = np.asarray(pages).astype(np.int64) // FRAME_PAGES
    if not frame.size:
        return np.empty(0, np.bool_)
    frame -= frame.min()
    whole: BoolArray = (np.bincount(frame) == FRAME_PAGES)[frame]
    return whole


def move_frame(dst: Arena, dst_page: int, src: Arena, src_page: int) -> None:
    """The frame of `src` that begins at page `src_page` becomes that of `dst` at `dst_page`; both arenas `can_move`.

    The host may still refuse for lack of mappings. Then the bytes are copied. Raises TtmError(EINVAL), with nothing
    moved, for what is no frame of its arena, or not any more; OSError when the host has not even room for the copy.
    """
    _check(dst, dst_page)
    _check(src, src_page)
    target = dst.address + (dst_page << PAGE_SHIFT)
    source = src.address + (src_page << PAGE_SHIFT)
    if _mremap(source, HUGE_SIZE, HUGE_SIZE, _MAYMOVE_FIXED_DONTUNMAP, target) != target:
        _warn_once(ctypes.get_errno())
        _map_anew(target)
        dst.mem[dst_page : dst_page + FRAME_PAGES] = src.mem[src_page : src_page + FRAME_PAGES]
        src.give_back(src_page, FRAME_PAGES)


def exchange(one: Arena, page: int, other: Arena, other_page: int, frames: int) -> None:
    """`frames` frames of `one` from page `page` on, and those of `other` from `other_page` on, change places.

    For the loop's thread only, at most `longest_run()` frames. It succeeds or has changed nothing: what the host
    refuses to move is copied in this call, and `can_exchange` is false from then on. TtmError(EINVAL) for what are no
    frames of their arenas, or the same ones. Should the host have no mapping for an address that a refusal has
    unmapped, the process ends at once: it must not serve a hole.
    """
    if not 0 < frames <= longest_run():
        raise TtmError(errno.EINVAL, f"{frames} frames do not change places at once: 1 to {longest_run()} do")
    _check(one, page, frames)
    _check(other, other_page, frames)
    if one is other and abs(page - other_page) < frames * FRAME_PAGES:
        raise TtmError(errno.EINVAL, f"frames of {one.name!r} at {page} and {other_page} overlap")
    first = one.address + (page << PAGE_SHIFT)
    second = other.address + (other_page << PAGE_SHIFT)
    spare = _spare().address
    _bring(spare, first, frames)
    _bring(first, second, frames)
    _bring(second, spare, frames)


@functools.cache
def longest_run() -> int:
    """How many frames can change places at once: _RUN_FRAMES where a run may lie in several mappings, else 1.

    From Linux 6.17 on; what is refused half way is found out by /proc/self/pagemap.
    """
    run = 2 * FRAME_PAGES
    arenas = [Arena("run", run), Arena("run's target", run), Arena("run's frame", FRAME_PAGES)]
    first, target, other = (arena.address for arena in arenas)
    for number, arena in enumerate(arenas):
        arena.mem[:, 0] = number + 1
    # Its two frames are of different mappings then.
    works = _pagemap() >= 0 and _mremap(other, HUGE_SIZE, HUGE_SIZE, _MAYMOVE_FIXED_DONTUNMAP, first) == first
    works = works and _mremap(first, 2 * HUGE_SIZE, 2 * HUGE_SIZE, _MAYMOVE_FIXED_DONTUNMAP, target) == target
    if not works:
        for address in (first, target, target + HUGE_SIZE):
            _map_anew(address)
    expected = [3] * FRAME_PAGES + [1] * FRAME_PAGES
    works = works and arenas[1].mem[:, 0].tolist() == expected and not arenas[0].mem[:, 0].any()
    for arena in arenas:
        arena.close()
    return _RUN_FRAMES if works else 1


@functools.cache
def _spare() -> Arena:
    """Where one side is while the other takes its place; empty between calls."""
    return Arena("spare frames", _RUN_FRAMES * FRAME_PAGES)


def _bring(target: int, source: int, frames: int) -> None:
    """What is at `source` is at `target` then, which held no memory, and there is none at `source`."""
    size = frames * HUGE_SIZE
    if _mremap(source, size, size, _MAYMOVE_FIXED_DONTUNMAP, target) == target:
        return
    code = ctypes.get_errno()
    for offset in range(0, size, HUGE_SIZE):
        # Of a run in several mappings the first ones may have come before the next was refused.
        if not _holds_memory(target + offset):
            try:
                _map_anew(target + offset)
            except OSError as error:
                log.critical("memory of the device is lost (%s): this daemon ends", error)
                os.abort()
            ctypes.memmove(target + offset, source + offset, HUGE_SIZE)
            _madvise(source + offset, HUGE_SIZE, mmap.MADV_DONTNEED)
    if not _Host.refused:
        _Host.refused = True
        log.warning("from now on all moves are copied, as the host exchanges no memory: %s", os.strerror(code))


@functools.cache
def _pagemap() -> int:
    """Descriptor of /proc/self/pagemap, -1 where there is none. A child that forks must not use it."""
    try:
        return os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def _holds_memory(address: int) -> bool:
    """Is there any memory in the frame at `address`? Not if it is unmapped. The interpreter lock is held meanwhile."""
    entries = np.zeros(FRAME_PAGES, np.uint64)
    if _pagemap() >= 0:
        _pread(_pagemap(), entries.ctypes.data, entries.nbytes, (address >> PAGE_SHIFT) * entries.itemsize)
    return bool((entries & _PAGEMAP_HAS_MEMORY).any())


def _check(arena: Arena, page: int, frames: int = 1) -> None:
    if page & (FRAME_PAGES - 1) or not 0 <= page <= arena.num_pages - frames * FRAME_PAGES:
        message = f"no {frames} frames of {arena.name!r}, which has {arena.num_pages} pages, begin at {page}"
        raise TtmError(errno.EINVAL, message)


@functools.cache
def _warn_once(code: int) -> None:
    log.warning("memory of the swap store is copied, not moved: %s", os.strerror(code))


def _map_anew(address: int) -> None:
    """A failed mremap may have unmapped its target already: nobody may fall into that hole."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED | MAP_NORESERVE
    if _mmap(address, HUGE_SIZE, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) != address:
        raise OSError(ctypes.get_errno() or errno.ENOMEM, "the host has no mapping left for memory of the device")
    for advice in ADVICE:
        _madvise(address, HUGE_SIZE, advice)


@functools.cache
def _most_frames() -> int:
    """Half of the mappings that the host allows a process."""
    try:
        return int(Path("/proc/sys/vm/max_map_count").read_text()) // 2
    except (OSError, ValueError):
        return _USUAL_MAPPINGS // 2


@functools.cache
def _host_moves() -> bool:
    """Try it."""
    first, second = Arena("frame", FRAME_PAGES), Arena("frame's target", FRAME_PAGES)
    first.mem[0, 0] = 1
    target = second.address
    moved = _mremap(first.address, HUGE_SIZE, HUGE_SIZE, _MAYMOVE_FIXED_DONTUNMAP, target)
    if moved == _FAILED:
        _map_anew(target)
    works = moved == target and int(second.mem[0, 0]) == 1 and int(first.mem[0, 0]) == 0
    first.close()
    second.close()
    return works
