"""Leaves: a sparse array of numbers in two levels, as a page table has them.

A leaf holds 512 entries (2 MiB of pages) and is made when one of them is first set; where there is none, every entry is
0. A leaf of which nothing is left is dropped. So time and memory are for what is there, never for the length: an array
of 2**35 entries with one set is one leaf, and all that walks it goes from leaf to leaf.

Entries are looked at many at a time: `entries` for neighbours, `at` for any, `find` for those of a kind. What these
return may be a view: it is to be read, before the array changes.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ttmfs.memory.runs import is_run

LEAF_SHIFT: Final = 9
LEAF_PAGES: Final = 1 << LEAF_SHIFT
"""Entries of a leaf: pages of 2 MiB."""
_MASK: Final = LEAF_PAGES - 1
_LEAST: Final = 8
"""Entries of the smallest leaf: only an array shorter than a leaf has such a one."""
_DENSE: Final = 32
"""A stretch of which one entry in so many is wanted is looked at as a whole."""

S = TypeVar("S", bound=np.generic)
Index = NDArray[np.intp]
Kind = Callable[[NDArray[Any]], NDArray[np.bool_]]
"""Says of entries which of them are wanted; never an entry that is 0."""

_NOWHERE: Final[Index] = np.zeros(0, np.intp)


class Leaves(Generic[S]):
    """`num_pages` entries, the index of each is that of a page. All entries are 0 at first."""

    __slots__ = ("_empty", "_leaves", "_numbers", "num_pages")

    def __init__(self, num_pages: int, empty: NDArray[S]) -> None:
        """`empty`: LEAF_PAGES zeros of the entries' type, which all arrays of a kind can share; never written."""
        self.num_pages = num_pages
        self._empty = empty
        self._leaves: dict[int, NDArray[S]] = {}
        self._numbers: list[int] = []
        """The numbers of the leaves that there are, ascending."""

    # -- looking -------------------------------------------------------------------------------------------------

    def entry(self, index: int) -> int:
        """One entry; 0 behind the end."""
        leaf = self._leaves.get(index >> LEAF_SHIFT)
        if leaf is None or index >= self.num_pages:
            return 0
        return leaf.item(index & _MASK)  # type: ignore[no-any-return]

    def entries(self, first: int, count: int) -> NDArray[S]:
        """Entries [first, first + count), fewer at the end of the array. Holes take time like everything else here."""
        end = min(first + count, self.num_pages)
        if end <= first:
            return self._empty[:0]
        start, low = first & _MASK, first >> LEAF_SHIFT
        stop = start + end - first
        if stop <= LEAF_PAGES:
            return self._leaves.get(low, self._empty)[start:stop]
        return self.rows(range(low, ((end - 1) >> LEAF_SHIFT) + 1))[start:stop]

    def at(self, index: Index) -> NDArray[S]:
        """The entries at `index`, in that order, whatever it is."""
        if not len(index):
            return self._empty[:0]
        if _is_long_run(index) and index.item(-1) < self.num_pages:
            return self.entries(index.item(0), len(index))
        numbers = index >> LEAF_SHIFT
        low, high = int(numbers.min()), int(numbers.max())
        if low == high:
            found: NDArray[S] = self._leaves.get(low, self._empty)[index & _MASK]
            return found
        if (high - low) << LEAF_SHIFT <= _DENSE * len(index):
            return self.rows(range(low, high + 1))[index - (low << LEAF_SHIFT)]
        found = np.empty(len(index), self._empty.dtype)
        for number, offsets, part in _by_leaf(numbers, index):
            found[part] = self._leaves.get(number, self._empty)[offsets]
        return found

    def where(self, first: int, end: int, kind: Kind) -> Index:
        """Indices of all of [first, end) that are of this kind, ascending."""
        return self._find(first, end, kind)[0]

    def find(self, first: int, end: int, kind: Kind) -> tuple[Index, NDArray[S]]:
        """As `where`, and the entries there."""
        index, rows, at = self._find(first, end, kind)
        return index, rows[at]

    def _find(self, first: int, end: int, kind: Kind) -> tuple[Index, NDArray[S], Index]:
        """As `where`, some entries, and where in these each that was found is."""
        numbers = self.leaves_in(first, end)
        if not numbers:
            return _NOWHERE, self._empty, _NOWHERE
        base = numbers[0] << LEAF_SHIFT
        rows = self.rows(numbers)
        if len(numbers) == 1:
            start = max(first - base, 0)
            rows = rows[start : end - base]
            at = kind(rows).nonzero()[0]
            return at + (base + start), rows, at
        at = kind(rows).nonzero()[0]
        if numbers[-1] - numbers[0] == len(numbers) - 1:
            index = at + base if base else at
        else:
            index = (np.array(numbers, np.intp) << LEAF_SHIFT)[at >> LEAF_SHIFT] + (at & _MASK)
        if len(index) and (index.item(0) < first or index.item(-1) >= end):
            low, high = np.searchsorted(index, (first, end))
            return index[low:high], rows, at[low:high]
        return index, rows, at

    def leaves_in(self, first: int, end: int) -> list[int]:
        """Numbers of the leaves that have one of the entries [first, end), ascending."""
        numbers = self._numbers
        if not numbers or first >= end:
            return []
        low = bisect_left(numbers, first >> LEAF_SHIFT)
        return numbers[low : bisect_left(numbers, ((end - 1) >> LEAF_SHIFT) + 1, low)]

    def next_content(self, index: int) -> int:
        """The first entry from `index` on that may be set: all before it are 0. `num_pages` when none may be."""
        at = bisect_left(self._numbers, index >> LEAF_SHIFT)
        if at == len(self._numbers):
            return self.num_pages
        return min(max(index, self._numbers[at] << LEAF_SHIFT), self.num_pages)

    def leaf(self, number: int) -> NDArray[S] | None:
        """One leaf, to be read; fewer than LEAF_PAGES entries where the whole array is shorter."""
        return self._leaves.get(number)

    @property
    def num_leaves(self) -> int:
        """How many there are."""
        return len(self._numbers)

    def rows(self, numbers: list[int] | range) -> NDArray[S]:
        """The entries of these leaves, whether there are such or not, one behind the other."""
        leaves, empty = self._leaves, self._empty
        if len(numbers) == 1:
            return leaves.get(numbers[0], empty)
        return np.concatenate([leaves.get(number, empty) for number in numbers])

    # -- changing ------------------------------------------------------------------------------------------------

    def put(self, index: Index, values: NDArray[S]) -> None:
        """Set the entries at `index`, which lie before the end, none twice; none becomes 0 (see `clear`)."""
        if not len(index):
            return
        if len(index) == 1:
            at = index.item()
            self._need_leaf(at >> LEAF_SHIFT)[at & _MASK] = values[0]
            return
        if _is_long_run(index):
            first = index.item(0)
            for number, start, stop in _pieces(first, first + len(index)):
                at = (number << LEAF_SHIFT) - first
                self._need_leaf(number)[start:stop] = values[at + start : at + stop]
            return
        for number, offsets, part in _by_leaf(index >> LEAF_SHIFT, index):
            self._need_leaf(number)[offsets] = values[part]

    def put_range(self, first: int, end: int, value: S) -> None:
        """Set all of [first, end), which lies before the end of the array, to one value that is not 0."""
        for number, start, stop in _pieces(first, end):
            self._need_leaf(number)[start:stop] = value

    def clear(self, index: Index) -> None:
        """The entries at `index` become 0."""
        if not len(index):
            return
        if _is_long_run(index):
            # Leaves that go as a whole are not written.
            first, end = -(-index.item(0) >> LEAF_SHIFT), (index.item(-1) + 1) >> LEAF_SHIFT
            self._remove_leaves(first, end)
            first, end = (first << LEAF_SHIFT) - index.item(0), (end << LEAF_SHIFT) - index.item(0)
            self.clear(index[:first])
            self.clear(index[end:])
            return
        for number, offsets, _part in _by_leaf(index >> LEAF_SHIFT, index):
            leaf = self._leaves.get(number)
            if leaf is not None:
                leaf[offsets] = 0
                if not leaf.any():
                    self._remove_leaf(number)

    def take_away(self, leaves: int) -> Iterator[NDArray[S]]:
        """All entries become 0 now; what they were, `leaves` leaves at a time, ascending, for who lists them later."""
        taken, numbers = self._leaves, self._numbers
        self._leaves, self._numbers = {}, []
        return (
            np.concatenate([taken.pop(number) for number in numbers[first : first + leaves]])
            for first in range(0, len(numbers), leaves)
        )

    def set_length(self, num_pages: int) -> None:
        """Longer, with zeros; or shorter, where nothing that is cut off is set any more."""
        self.num_pages = num_pages
        leaf = self._leaves.get(0)
        if leaf is not None and len(leaf) < min(num_pages, LEAF_PAGES):
            longer = self._new_leaf(0)
            longer[: len(leaf)] = leaf
            self._leaves[0] = longer

    def _need_leaf(self, number: int) -> NDArray[S]:
        leaf = self._leaves.get(number)
        if leaf is None:
            leaf = self._leaves[number] = self._new_leaf(number)
            insort(self._numbers, number)
        return leaf

    def _new_leaf(self, number: int) -> NDArray[S]:
        size = LEAF_PAGES
        if not number and self.num_pages < LEAF_PAGES:
            size = max(_LEAST, 1 << (self.num_pages - 1).bit_length())
        return np.zeros(size, self._empty.dtype)

    def _remove_leaf(self, number: int) -> None:
        del self._leaves[number]
        del self._numbers[bisect_left(self._numbers, number)]

    def _remove_leaves(self, first: int, end: int) -> None:
        """Those of [first, end) that there are."""
        low, high = (bisect_left(self._numbers, number) for number in (first, end))
        for number in self._numbers[low:high]:
            del self._leaves[number]
        del self._numbers[low:high]


def _is_long_run(index: Index) -> bool:
    """Are these neighbours in order, at least a whole leaf of them among them?"""
    return len(index) >= 2 * LEAF_PAGES and is_run(index)


def _pieces(first: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(leaf, where in it [first, end) begins, and where it ends), for each leaf."""
    while first < end:
        number = first >> LEAF_SHIFT
        stop = min(end, (number + 1) << LEAF_SHIFT)
        yield number, first & _MASK, ((stop - 1) & _MASK) + 1
        first = stop


def _by_leaf(numbers: Index, index: Index) -> Iterator[tuple[int, Index, slice]]:
    """(leaf, indices in it, which part of `index` they are), for each stretch of `index` that lies in one leaf."""
    offsets = index & _MASK
    first = numbers.item(0)
    if bool((numbers == first).all()):
        yield first, offsets, slice(None)
        return
    changes = (numbers[1:] != numbers[:-1]).nonzero()[0] + 1
    for start, stop in pairwise((0, *changes.tolist(), len(index))):
        yield numbers.item(start), offsets[start:stop], slice(start, stop)
