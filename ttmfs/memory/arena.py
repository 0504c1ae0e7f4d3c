"""Arena: the bytes of one kind of memory (system RAM, VRAM, a store), as private anonymous memory.

It promises: a fresh arena reads as zeros and costs no host memory until it is touched, whatever its size; its base
is aligned to 2 MiB and huge pages are asked for (touching 4 KiB shmem pages first costs ten times a copy, huge
anonymous ones 1.4 times); a child process that forks does not get it. Which pages are whose is not known here: that
is the buddy's and the pool's business.
"""

import contextlib
import errno
import mmap

import numpy as np

from ttmfs.errors import TtmError
from ttmfs.memory.runs import PageArray, Uint8Array, is_run, iter_steps, runs
from ttmfs.units import PAGE_SHIFT, PAGE_SIZE

HUGE_SIZE = 2 << 20
FRAME_PAGES = HUGE_SIZE >> PAGE_SHIFT
MAP_NORESERVE = 0x4000  # not in the mmap module before Python 3.13
ADVICE = (mmap.MADV_HUGEPAGE, mmap.MADV_DONTFORK)
"""For all memory of an arena. A host without huge pages refuses the first; both only make things cheaper."""


class Arena:
    """`num_pages` pages of memory called `name`.

    `mem` is a uint8 array of shape (num_pages, 4096); `buf` is the same memory as a flat, writable memoryview of
    bytes. Raises TtmError(EINVAL) for a negative size and TtmError(ENOMEM) when the host refuses the mapping.
    """

    __slots__ = ("__weakref__", "_map", "_offset", "_zeros", "address", "buf", "mem", "name", "num_pages", "rows")

    def __init__(self, name: str, num_pages: int) -> None:
        if num_pages < 0:
            raise TtmError(errno.EINVAL, f"arena {name!r}: {num_pages} is no number of pages")
        self.name = name
        self.num_pages = num_pages
        self._map: mmap.mmap | None = None
        self._offset = 0
        flat = np.empty(0, np.uint8)
        if num_pages:
            size = num_pages << PAGE_SHIFT
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
            try:
                self._map = mmap.mmap(-1, size + HUGE_SIZE, flags=flags)
            except (OSError, OverflowError, ValueError) as error:
                message = f"the host does not give {size >> 20} MiB for {name!r}: make it smaller ({error})"
                raise TtmError(errno.ENOMEM, message) from error
            whole = np.frombuffer(self._map, np.uint8)
            self._offset = -whole.ctypes.data % HUGE_SIZE
            for advice in ADVICE:
                with contextlib.suppress(OSError):
                    self._map.madvise(advice)
            flat = whole[self._offset : self._offset + size]
        self.address = flat.ctypes.data
        """Where it begins, a multiple of 2 MiB."""
        self.mem: Uint8Array = flat.reshape(num_pages, PAGE_SIZE)
        self.buf: memoryview = flat.data
        self.rows: np.ndarray[tuple[int], np.dtype[np.void]] = self.mem.view(f"V{PAGE_SIZE}").reshape(num_pages)
        """One item per page: what take and put move as a whole."""
        self._zeros = np.zeros(64, f"V{PAGE_SIZE}")

    def __repr__(self) -> str:
        return f"Arena({self.name!r}, {self.num_pages})"

    def view(self, first_page: int, num_pages: int) -> memoryview:
        """The arena's own bytes of these pages (no copy), writable.

        Raises TtmError(EINVAL) when they are not all inside the arena.
        """
        self._check(first_page, num_pages)
        return self.buf[first_page << PAGE_SHIFT : (first_page + num_pages) << PAGE_SHIFT]

    def give_back(self, first_page: int, num_pages: int) -> None:
        """Return these pages' host memory (MADV_DONTNEED); they read as zeros afterwards.

        Raises TtmError(EINVAL) when they are not all inside the arena.
        """
        self._check(first_page, num_pages)
        if num_pages and self._map is not None:
            begin = self._offset + (first_page << PAGE_SHIFT)
            self._map.madvise(mmap.MADV_DONTNEED, begin, num_pages << PAGE_SHIFT)

    def zero(self, pages: PageArray) -> None:
        """Fill these pages with zeros, by runs where there are runs. Raises IndexError beyond the arena."""
        size = len(pages)
        if size == 0:
            return
        if is_run(pages):
            first = int(pages[0])
            self._check(first, size)
            self.mem[first : first + size] = 0
            return
        _, starts, lengths = runs(pages)
        if size >= 4 * starts.size:
            mem = self.mem
            for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
                mem[start : start + length] = 0
            return
        for step in iter_steps(size):
            part = pages[step]
            self.rows[part] = self._zeros[: len(part)]

    def close(self) -> None:
        """Give all memory back and unmap. With views still held elsewhere the mapping itself goes with the last one."""
        mapping, self._map = self._map, None
        self.mem = np.empty((0, PAGE_SIZE), np.uint8)
        self.rows = np.empty(0, f"V{PAGE_SIZE}")
        self.buf = memoryview(bytearray())
        self.num_pages = 0
        if mapping is not None:
            mapping.madvise(mmap.MADV_DONTNEED)
            with contextlib.suppress(BufferError):
                mapping.close()

    def _check(self, first_page: int, num_pages: int) -> None:
        if first_page < 0 or num_pages < 0 or first_page + num_pages > self.num_pages:
            message = f"pages {first_page}+{num_pages} are not in {self.name!r}, which has {self.num_pages}"
            raise TtmError(errno.EINVAL, message)
