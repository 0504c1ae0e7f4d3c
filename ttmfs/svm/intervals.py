"""IntervalMap: a value for every page of an address space, stored only where it changes (a tree of VMAs).

Neighbours of equal value are one interval, as the kernel merges VMAs. The cost is that of the intervals that differ
from the default, whatever the size of the space.
"""

from collections.abc import Iterator
from typing import Generic, TypeVar

from sortedcontainers import SortedDict

T = TypeVar("T")


class IntervalMap(Generic[T]):
    """Every page from 0 on has the value `default` until `set` says otherwise. Units are pages, ends exclusive."""

    __slots__ = ("_starts", "default")

    def __init__(self, default: T) -> None:
        self.default = default
        # Start of an interval → its value; it reaches to the next start. Empty: all default.
        self._starts: SortedDict[int, T] | None = None

    def __len__(self) -> int:
        """Boundaries stored."""
        return 0 if self._starts is None else len(self._starts)

    def get(self, page: int) -> T:
        """The value at a page."""
        if not self._starts:
            return self.default
        at = self._starts.bisect_right(page)
        value: T = self._starts.peekitem(at - 1)[1] if at else self.default
        return value

    def interval(self, page: int, end: int) -> tuple[int, int, T]:
        """(first, end, value) of the interval around `page`, cut off at `end`."""
        if not self._starts:
            return 0, end, self.default
        starts = self._starts
        at = starts.bisect_right(page)
        first = starts.peekitem(at - 1)[0] if at else 0
        value = starts.peekitem(at - 1)[1] if at else self.default
        stop = starts.peekitem(at)[0] if at < len(starts) else end
        return first, min(stop, end), value

    def pieces(self, first: int, end: int) -> Iterator[tuple[int, int, T]]:
        """(first, end, value) of the intervals that make up [first, end), in order; a snapshot need not be taken."""
        while first < end:
            _start, stop, value = self.interval(first, end)
            yield first, stop, value
            first = stop

    def set(self, first: int, end: int, value: T) -> bool:
        """Give [first, end) one value; False when it had it already."""
        if first >= end or all(old == value for _first, _end, old in self.pieces(first, end)):
            return False
        if self._starts is None:
            self._starts = SortedDict()
        starts = self._starts
        after = self.get(end)
        before = self.get(first - 1) if first else self.default
        for start in list(starts.irange(first, end)):
            del starts[start]
        if value != before:
            starts[first] = value
        if after != value:
            starts[end] = after
        if not starts:
            self._starts = None
        return True
