"""Frames that change hands: 2 MiB of memory go from one arena to another by page table (mremap), not byte by byte.

Where the kernel would insert a page into the swap cache instead of copying it. What it promises: afterwards the target
has the bytes, and the source reads as zeros and holds no memory there. A host that cannot do it (before Linux 5.7, or
with so many frames that the limit of mappings of a process would be in sight, as a frame may become a mapping of its
own) says so through `can_move`, and its callers copy.
"""

import ctypes
import errno
import functools
import logging
import mmap
import os
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


def can_move(first: Arena, second: Arena) -> bool:
    """Can frames of these two go to and fro?"""
    frames = (first.num_pages + second.num_pages) // FRAME_PAGES
    return frames <= _most_frames() and _host_moves()


def frames_in(first: PageArray, second: PageArray) -> Int64Array:
    """Where both arrays (same length) have a whole frame, aligned and in order: offsets into them, int64, ascending."""
    count = len(first)
    if count < FRAME_PAGES:
        return np.empty(0, np.int64)
    a, b = np.asarray(first).astype(np.int64, copy=False), np.asarray(second).astype(np.int64, copy=False)
    starts = np.flatnonzero((a | b) & (FRAME_PAGES - 1) == 0)
    starts = starts[starts <= count - FRAME_PAGES]
    breaks = np.zeros(count, np.int64)
    np.cumsum((a[1:] - a[:-1] != 1) | (b[1:] - b[:-1] != 1), out=breaks[1:])
    result: Int64Array = starts[breaks[starts] == breaks[starts + FRAME_PAGES - 1]]
    return result


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


def _check(arena: Arena, page: int) -> None:
    if page & (FRAME_PAGES - 1) or not 0 <= page <= arena.num_pages - FRAME_PAGES:
        raise TtmError(errno.EINVAL, f"no frame of {arena.name!r}, which has {arena.num_pages} pages, begins at {page}")


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
