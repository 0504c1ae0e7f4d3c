"""Asked: which pages of an address space requests and device faults wait for memory for.

They keep what they have of it already, or two of them could take it from each other for ever. And the kernel has the
folios of a READ or WRITE locked until it is answered: whoever makes room for it must not have these invalidated (H30).
"""

from collections.abc import Iterator
from contextlib import contextmanager

from ttmfs.svm.pages import CHUNK_PAGES, mask_of


class Asked:
    """Ranges of pages, end exclusive; the same one perhaps several times."""

    __slots__ = ("_ranges",)

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []

    def __len__(self) -> int:
        """How many different ones."""
        return len(set(self._ranges))

    @contextmanager
    def during(self, first: int, end: int) -> Iterator[None]:
        """Pages [first, end) are asked for meanwhile."""
        pages = (first, end)
        self._ranges.append(pages)
        try:
            yield
        finally:
            self._ranges.remove(pages)

    def within(self, first_page: int) -> int:
        """Mask of the pages that are asked for of the chunk that begins there."""
        mask = 0
        for first, end in self._ranges:
            low, high = max(first - first_page, 0), min(end - first_page, CHUNK_PAGES)
            if low < high:
                mask |= mask_of(low, high - low)
        return mask
