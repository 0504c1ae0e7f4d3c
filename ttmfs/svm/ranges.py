"""Ranges and notifiers: what the device knows of an address space (drm_gpusvm_range, drm_gpusvm_notifier).

A range is 2 MiB, 64 KiB or 4 KiB (or what svm_range_sizes says), aligned to its size, and made by the first device
fault in it. It is *bound* while the device's page table has valid entries for it; whatever moves or drops one of its
pages invalidates all of it. A notifier is a window of the space that holds ranges; it comes and goes with them.
"""

import errno
from collections.abc import Iterator
from typing import Final

from sortedcontainers import SortedDict

from ttmfs.errors import TtmError
from ttmfs.svm.pages import CHUNK_PAGES, CHUNK_SHIFT, mask_of
from ttmfs.units import PAGE_SHIFT

CHECK_PAGES_THRESHOLD: Final = 16
"""A chunk of at most this many pages is taken only where all CPU pages are present, if the device has VRAM."""


class Range:
    """Pages [first, first + num_pages) of a space. Protected by the one thread; `seq` moves when it is invalidated."""

    __slots__ = ("bound", "first", "num_pages", "partial_unmap", "seq", "skip_migrate", "unmapped")

    def __init__(self, first: int, num_pages: int) -> None:
        self.first = first
        self.num_pages = num_pages
        self.seq = 0
        self.bound = False
        """The page table's entries are valid (tile_present and not tile_invalidated)."""
        self.skip_migrate = False
        """It was tried: not again, unless prefetched or advised."""
        self.unmapped = False
        """The CPU's mapping has gone, at least in part: the garbage collector removes it."""
        self.partial_unmap = False

    @property
    def end(self) -> int:
        """The page behind it."""
        return self.first + self.num_pages

    @property
    def mask(self) -> int:
        """Its pages in their chunk."""
        return mask_of(self.first & (CHUNK_PAGES - 1), self.num_pages)

    @property
    def chunk(self) -> int:
        """The number of its chunk."""
        return self.first >> CHUNK_SHIFT

    @property
    def flags(self) -> str:
        """Words for the table of ranges, `-` for none."""
        words = ("bound", "skip_migrate", "unmapped", "partial_unmap")
        return ",".join(word for word in words if getattr(self, word)) or "-"


class Notifier:
    """One window: how many ranges it holds, and its sequence number."""

    __slots__ = ("ranges", "seq")

    def __init__(self) -> None:
        self.ranges = 0
        self.seq = 0


class RangeTable:
    """All ranges of one space, by first page, their notifiers by number, and what waits for the garbage collector."""

    __slots__ = ("garbage", "notifier_pages", "notifiers", "ranges")

    def __init__(self, notifier_size: int) -> None:
        self.notifier_pages = notifier_size >> PAGE_SHIFT
        self.ranges: SortedDict[int, Range] = SortedDict()
        self.notifiers: SortedDict[int, Notifier] = SortedDict()
        self.garbage: list[Range] = []

    def __len__(self) -> int:
        return len(self.ranges)

    def find(self, page: int) -> Range | None:
        """The range around a page."""
        at = self.ranges.bisect_right(page)
        if not at:
            return None
        found: Range = self.ranges.peekitem(at - 1)[1]
        return found if page < found.end else None

    def overlapping(self, first: int, end: int) -> Iterator[Range]:
        """Ranges with a page in [first, end); the table must not change meanwhile."""
        before = self.find(first)
        if before is not None and before.first < first:
            yield before
        for start in self.ranges.irange(first, end, (True, False)):
            yield self.ranges[start]

    def insert(self, page: int, low: int, high: int, present: int, *, sizes: tuple[int, ...], check: int) -> Range:
        """The largest range around `page`, of `sizes` pages, that fits into [low, high) and its notifier's window.

        One of more than a page must not overlap another, and one of at most `check` pages needs all of them in
        `present` (a mask of the chunk). TtmError(EINVAL) when nothing fits.
        """
        window = page // self.notifier_pages
        low = max(low, window * self.notifier_pages)
        high = min(high, (window + 1) * self.notifier_pages)
        for size in sizes:
            first = page // size * size
            if first < low or first + size > high:
                continue
            found = Range(first, size)
            if size > 1:
                if next(self.overlapping(first, first + size), None) is not None:
                    continue
                if size <= check and found.mask & ~present:
                    continue
            self.ranges[first] = found
            notifier = self.notifiers.get(window)
            if notifier is None:
                notifier = self.notifiers[window] = Notifier()
            notifier.ranges += 1
            return found
        raise TtmError(errno.EINVAL, f"no range fits around {page << PAGE_SHIFT:#x}")

    def remove(self, found: Range) -> None:
        """Take a range out; its notifier goes with its last one."""
        if self.ranges.get(found.first) is not found:
            return
        del self.ranges[found.first]
        window = found.first // self.notifier_pages
        notifier = self.notifiers[window]
        notifier.ranges -= 1
        if not notifier.ranges:
            del self.notifiers[window]

    def invalidate(self, first: int, end: int, *, unmap: bool = False) -> int:
        """drm_gpusvm_notifier's callback: zap all ranges with a page here, whole; returns how many were bound.

        With `unmap` they are also marked and listed for the garbage collector.
        """
        zapped = 0
        for found in self.overlapping(first, end):
            found.seq += 1
            self.notifiers[found.first // self.notifier_pages].seq += 1
            zapped += found.bound
            found.bound = False
            if unmap and not found.unmapped:
                found.unmapped = True
                found.partial_unmap = first > found.first or end < found.end
                self.garbage.append(found)
        return zapped

    def collect(self) -> int:
        """The garbage collector: remove what was unmapped; returns how many ranges."""
        garbage, self.garbage = self.garbage, []
        for found in garbage:
            self.remove(found)
        return len(garbage)

    def check(self) -> list[str]:
        """Sentences about what is wrong."""
        wrong = []
        end = 0
        windows: dict[int, int] = {}
        for first, found in self.ranges.items():
            if first != found.first or first < end or first % found.num_pages:
                wrong.append(f"range at page {first}: overlaps another, or is not aligned")
            end = found.end
            window = first // self.notifier_pages
            windows[window] = windows.get(window, 0) + 1
        if windows != {number: notifier.ranges for number, notifier in self.notifiers.items()}:
            wrong.append("notifiers do not count their ranges")
        return wrong
