"""Ram: the system side of a move, which pages it comes from or goes to, and which of them there are.

Where all pages of an allocation have one, in one run, as they mostly have, nothing is kept but where the run begins.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from ttmfs.memory.runs import is_run
from ttmfs.svm.pages import CpuPages, Pages, index_of, mask_from, mask_of

HOLE: Final = -1


class Ram:
    """System pages for pages [first, first + num_pages) of a chunk. All masks are of the chunk's pages.

    `run` is the first system page if all have one, in order, else -1.
    """

    __slots__ = ("_numbers", "first", "num_pages", "run")

    def __init__(self, first: int, num_pages: int) -> None:
        self.first = first
        self.num_pages = num_pages
        self.run = -1
        self._numbers: Pages | None = None
        """Per page, the system page number + 1; 0 where there is none."""

    @classmethod
    def of_run(cls, first: int, num_pages: int, page: int) -> "Ram":
        """All of them, from system page `page` on."""
        ram = cls(first, num_pages)
        ram.run = page
        return ram

    @classmethod
    def of_pages(cls, first: int, num_pages: int, mask: int, pages: NDArray[np.uint32]) -> "Ram":
        """These pages have one, in order."""
        ram = cls(first, num_pages)
        if len(pages) == num_pages and is_run(pages):
            ram.run = int(pages[0])
        else:
            ram.put(mask, pages)
        return ram

    @property
    def present(self) -> int:
        """Mask of those that have one."""
        if self.run >= 0:
            return mask_of(self.first, self.num_pages)
        return 0 if self._numbers is None else mask_from(self._numbers != 0) << self.first

    def has(self, index: int) -> bool:
        """Has page `index` of the chunk one?"""
        return self.run >= 0 or (self._numbers is not None and bool(self._numbers[index - self.first]))

    def pages(self, mask: int) -> Pages:
        """The system pages of these, each of which has one, in order."""
        if self.run >= 0 and mask == self.present:
            return np.arange(self.run, self.run + self.num_pages, dtype=np.uint32)
        index = index_of(mask) - self.first
        if self.run >= 0:
            return (index + self.run).astype(np.uint32)
        found: Pages = self._array()[index] - np.uint32(1)
        return found

    def part(self, index: int, count: int) -> Pages:
        """Per page, of `count` from page `index` of the allocation on, the system page number + 1, or 0."""
        if self.run >= 0:
            return np.arange(self.run + index + 1, self.run + index + count + 1, dtype=np.uint32)
        return self._array()[index : index + count]

    def locate(self, index: int, count: int) -> tuple[int, int]:
        """(system page, or HOLE, and length) of the run from page `index` of the chunk on."""
        index -= self.first
        if self.run >= 0:
            return self.run + index, min(count, self.num_pages - index)
        part = self._array()[index : index + count]
        first = part.item(0)
        if not first:
            some = np.flatnonzero(part)
            return HOLE, int(some[0]) if len(some) else len(part)
        follows = part[1:] - part[:-1] == 1
        return first - 1, len(part) if bool(follows.all()) else int(np.argmin(follows)) + 1

    def put(self, mask: int, pages: NDArray[np.uint32]) -> None:
        """These have one now, in order."""
        self._array()[index_of(mask) - self.first] = pages + np.uint32(1)

    def give(self, mask: int, to: CpuPages) -> None:
        """The system pages of these are the chunk's."""
        if self.run >= 0:
            to.put_run(mask, self.run - self.first)
        else:
            to.put(mask, self.pages(mask))

    def _array(self) -> Pages:
        if self._numbers is None:
            self._numbers = np.zeros(self.num_pages, np.uint32)
        return self._numbers


def take_ram(pages: CpuPages, mask: int, first: int, num_pages: int) -> Ram:
    """The system pages of a part of a chunk leave it, those of `mask`."""
    base = pages.base_of(mask) if mask == mask_of(first, num_pages) else None
    if base is None:
        return Ram.of_pages(first, num_pages, mask, pages.take(mask))
    pages.leave(mask)
    return Ram.of_run(first, num_pages, base + first)
