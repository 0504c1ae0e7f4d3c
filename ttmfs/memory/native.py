"""Native: pages are copied by a few lines of C (pages.c) where scripts/setup has built them, else by numpy.

What it promises: the same bytes as numpy's take and put, in half the time or less for scattered pages. Nothing needs
it: without a compiler, or with a library of another version, `NATIVE` is None and `ttmfs.memory.copy` does without.
"""

import ctypes
import errno
from pathlib import Path
from typing import Any, Final

import numpy as np

from ttmfs.errors import TtmError
from ttmfs.memory.arena import Arena
from ttmfs.memory.runs import PageArray, Uint32Array, is_run
from ttmfs.units import PAGE_SHIFT

LIBRARY: Final = Path(__file__).with_name("_pages.so")
VERSION: Final = 1
"""That of the functions of pages.c."""


class Native:
    """The functions of one library. Pages of source and target must not overlap.

    IndexError for a page beyond its arena (but see `copy_run`), and TtmError(EBADF) for an arena that is closed, with
    nothing changed. Others of this process run meanwhile, but for `copy_run`.
    """

    def __init__(self, library: ctypes.CDLL, holding: ctypes.PyDLL) -> None:
        self._copy = _declared(library, "ttmfs_copy_pages", 4, 0)
        self._sum = _declared(library, "ttmfs_sum_pages", 4, 2)
        self._copy_holding = _declared(holding, "ttmfs_copy_pages", 4, 0)

    def copy_pages(self, dst: Arena, dst_pages: PageArray, src: Arena, src_pages: PageArray) -> None:
        """Page `src_pages[i]` of `src` becomes page `dst_pages[i]` of `dst`."""
        to, source = _Place(dst, dst_pages), _Place(src, src_pages)
        self._copy(to.address, to.pages, source.address, source.pages, len(src_pages))

    def copy_run(self, dst: Arena, dst_page: int, src: Arena, src_page: int, count: int) -> None:
        """One run, which the caller has found to be in its arenas.

        The interpreter lock is held: getting it back may take longer than a step of a copy.
        """
        to, source = dst.address + (dst_page << PAGE_SHIFT), src.address + (src_page << PAGE_SHIFT)
        self._copy_holding(to, None, source, None, count)

    def copy_and_sum(
        self, dst: Arena, dst_pages: PageArray, src: Arena, src_pages: PageArray, keys: Uint32Array, out: Uint32Array
    ) -> None:
        """copy_pages, and into `out` the sum of each page's 1,024 words times `keys`, modulo 2**32."""
        to, source = _Place(dst, dst_pages), _Place(src, src_pages)
        sums = np.empty(len(src_pages), np.uint32)
        self._sum(
            to.address, to.pages, source.address, source.pages, len(src_pages), keys.ctypes.data, sums.ctypes.data
        )
        out[:] = sums

    def sum_pages(self, src: Arena, src_pages: PageArray, keys: Uint32Array, out: Uint32Array) -> None:
        """The sums alone."""
        source = _Place(src, src_pages)
        sums = np.empty(len(src_pages), np.uint32)
        self._sum(None, None, source.address, source.pages, len(src_pages), keys.ctypes.data, sums.ctypes.data)
        out[:] = sums


class _Place:
    """Pages of an arena as the functions take them: `pages` from `address` on, None for one run that begins there.

    While it lives so does the memory, whoever closes the arena meanwhile.
    """

    __slots__ = ("_mem", "_numbers", "address", "pages")

    def __init__(self, arena: Arena, pages: PageArray) -> None:
        self._mem = arena.mem
        if not len(self._mem):
            raise TtmError(errno.EBADF, f"{arena.name!r} is closed: its pages are gone")
        self.address = arena.address
        self.pages: int | None = None
        self._numbers: Uint32Array | None = None
        if is_run(pages):
            first = int(pages[0]) if len(pages) else 0
            last = first + len(pages) - 1
            self.address += first << PAGE_SHIFT
        else:
            numbers = np.ascontiguousarray(pages, np.uint32)
            first, last = 0, int(numbers.max())
            self.pages, self._numbers = numbers.ctypes.data, numbers
        if first < 0 or last >= len(self._mem):
            raise IndexError(f"page {max(first, last)} is not in {arena.name!r}, which has {len(self._mem)}")


def _declared(library: ctypes.CDLL, name: str, before: int, behind: int) -> Any:
    """`before` pointers, a count, and pointers behind it."""
    function = getattr(library, name)
    function.argtypes = [ctypes.c_void_p] * before + [ctypes.c_size_t] + [ctypes.c_void_p] * behind
    function.restype = None
    return function


def load(path: Path = LIBRARY) -> Native | None:
    """The library, if there is one that fits."""
    try:
        library = ctypes.CDLL(str(path))
        if library.ttmfs_pages_version() != VERSION:
            return None
        return Native(library, ctypes.PyDLL(str(path)))
    except (OSError, AttributeError):
        return None


NATIVE: Final = load()
