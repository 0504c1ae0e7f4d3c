"""The range allocator: contiguous ranges of pages by best fit (`drm_mm`, under TTM's range manager).

What it is: `RangeAllocator(num_pages)` hands out `RangeNode`s, each one range of pages [start, start + num_pages),
and keeps the holes between them sorted by size and by address. All numbers are pages.

What it promises: `insert` without window and alignment, `reserve_exact` and `remove` cost O(log n) in the number
of nodes (and the logarithm of the address space), in every mode; `steps` counts what is visited. An alignment
adds a step for each hole that is large enough but lies badly; a window adds, in mode "best" only, the holes that
fit but lie outside, or those inside, whichever are fewer. Holes next to each other are always one.
"""

import errno
from collections.abc import Iterator
from itertools import islice
from typing import Final, Literal

from sortedcontainers import SortedDict, SortedList

from ttmfs.errors import TtmError

Mode = Literal["best", "high", "low"]
"""best: the smallest hole that fits, the lowest of equals (DRM_MM_INSERT_BEST). high: the highest address
(DRM_MM_INSERT_HIGH, for TTM_PL_FLAG_TOPDOWN). low: the lowest (DRM_MM_INSERT_LOW)."""

_MODES: Final = ("best", "high", "low")
_BITS: Final = 3
_FAN: Final = 1 << _BITS
_CHECKED_AT_ONCE: Final = 500
"""Nodes and holes that a check looks at before others may run."""


class RangeNode:
    """An allocated range (`drm_mm_node`): pages [start, start + num_pages)."""

    __slots__ = ("num_pages", "start")

    def __init__(self, start: int, num_pages: int) -> None:
        self.start = start
        self.num_pages = num_pages

    @property
    def end(self) -> int:
        """The first page behind it."""
        return self.start + self.num_pages

    def __repr__(self) -> str:
        return f"RangeNode(start={self.start}, num_pages={self.num_pages})"


class _HoleTree:
    """The largest hole that starts in each aligned block of addresses, at every scale.

    This is what `subtree_max_hole` is in drm_mm's tree, on a sparse radix tree: the lowest or highest hole of at
    least a given size is found without looking at those that are too small.
    """

    __slots__ = ("_levels", "steps")

    def __init__(self, num_pages: int) -> None:
        depth = (max(num_pages - 1, 1).bit_length() + _BITS - 1) // _BITS
        # _levels[k][block] is the largest hole that starts in block * 8**k .. (block + 1) * 8**k.
        self._levels: list[dict[int, int]] = [{} for _ in range(depth + 1)]
        self.steps = 0

    def __len__(self) -> int:
        """Holes."""
        return len(self._levels[0])

    def size_at(self, start: int) -> int:
        """The hole that starts there; 0 when none does."""
        return self._levels[0].get(start, 0)

    def set(self, start: int, size: int) -> None:
        """There is a hole of `size` pages at `start`, or none when it is 0."""
        key = start
        value = size
        below: dict[int, int] = {}
        for depth, level in enumerate(self._levels):
            if depth:
                base = key - key % _FAN
                value = max(below.get(base + i, 0) for i in range(_FAN))
                key >>= _BITS
            self.steps += 1
            if level.get(key, 0) == value:
                return
            if value:
                level[key] = value
            else:
                del level[key]
            below = level

    def lowest(self, size: int, start: int) -> int | None:
        """Where the lowest hole of at least `size` pages begins that begins at `start` or above."""
        depth = 0
        key = start
        while self._levels[depth].get(key, 0) < size:
            self.steps += 1
            key += 1
            if key % _FAN == 0:
                key >>= _BITS
                depth += 1
                if depth == len(self._levels):
                    return None
        while depth:
            depth -= 1
            key <<= _BITS
            while self._levels[depth].get(key, 0) < size:
                self.steps += 1
                key += 1
        return key

    def highest(self, size: int, end: int) -> int | None:
        """Where the highest hole of at least `size` pages begins that begins below `end`."""
        depth = 0
        key = end - 1
        while self._levels[depth].get(key, 0) < size:
            self.steps += 1
            if key <= 0:
                return None
            if key % _FAN == 0:
                key >>= _BITS
                depth += 1
            key -= 1
        while depth:
            depth -= 1
            key = (key << _BITS) + _FAN - 1
            while self._levels[depth].get(key, 0) < size:
                self.steps += 1
                key -= 1
        return key


class RangeAllocator:
    """Ranges of pages out of [0, num_pages).

    `used_pages`: pages in nodes. `steps`: nodes and holes visited by searches and updates so far.
    Raises TtmError(EINVAL) when num_pages is negative.
    """

    def __init__(self, num_pages: int) -> None:
        if num_pages < 0:
            raise TtmError(errno.EINVAL, f"a range of {num_pages} pages: it cannot be negative")
        self.num_pages = num_pages
        self.used_pages = 0
        self._nodes: SortedDict = SortedDict()  # start -> RangeNode
        self._holes: SortedDict = SortedDict()  # start -> pages
        self._by_size: SortedList = SortedList()  # (pages, start)
        self._tree = _HoleTree(num_pages)
        self._visited = 0
        if num_pages:
            self._add_hole(0, num_pages)

    @property
    def steps(self) -> int:
        return self._visited + self._tree.steps

    @property
    def free_pages(self) -> int:
        return self.num_pages - self.used_pages

    def __len__(self) -> int:
        """Nodes."""
        return len(self._nodes)

    def insert(
        self, pages: int, *, alignment: int = 1, first: int = 0, last: int | None = None, mode: Mode = "best"
    ) -> RangeNode:
        """Allocate `pages` contiguous pages (`drm_mm_insert_node_in_range`).

        The start is a multiple of `alignment` pages (any number; 0 and 1 are none), the range inside the window
        [first, last), where `last` may lie beyond the end and None is the end. In the chosen hole "best" and
        "low" take the lowest place, "high" the highest.

        Raises TtmError(ENOSPC) when no hole takes it, TtmError(EINVAL) when pages < 1, alignment or first is
        negative, first > last, or the mode is none.
        """
        if pages < 1:
            raise TtmError(errno.EINVAL, f"cannot allocate {pages} pages: ask for at least one")
        if alignment < 0 or first < 0 or (last is not None and last < first):
            raise TtmError(
                errno.EINVAL,
                f"alignment {alignment}, pages {first} to {last}: none may be negative or upside down",
            )
        if mode not in _MODES:
            raise TtmError(errno.EINVAL, f"{mode!r} is no mode: use best, high or low")
        end = self.num_pages if last is None else min(last, self.num_pages)
        alignment = max(alignment, 1)
        for hole in self._candidates(pages, first, end, mode):
            self._visited += 1
            size = self._holes[hole]
            lower = max(hole, first)
            upper = min(hole + size, end) - pages  # the highest start
            start = upper - upper % alignment if mode == "high" else lower + -lower % alignment
            if lower <= start <= upper:
                return self._carve(hole, size, start, pages)
        window = "" if first == 0 and end == self.num_pages else f" between page {first} and page {end}"
        aligned = "" if alignment == 1 else f" aligned to {alignment}"
        raise TtmError(
            errno.ENOSPC,
            f"no hole of {pages} pages{aligned}{window}: {self.free_pages} of {self.num_pages} are free",
        )

    def reserve_exact(self, start: int, pages: int) -> RangeNode:
        """Allocate just the pages [start, start + pages) (`drm_mm_reserve_node`).

        Raises TtmError(ENOSPC) when one of them is in use, TtmError(EINVAL) when pages < 1 or they are not all
        inside the range.
        """
        if pages < 1 or start < 0 or start + pages > self.num_pages:
            raise TtmError(errno.EINVAL, f"{pages} pages from page {start} are no part of {self.num_pages} pages")
        self._visited += 1
        index = self._holes.bisect_right(start) - 1
        if index >= 0:
            hole, size = self._holes.peekitem(index)
            if start + pages <= hole + size:
                return self._carve(hole, size, start, pages)
        raise TtmError(errno.ENOSPC, f"of the {pages} pages from page {start} some are in use")

    def remove(self, node: RangeNode) -> None:
        """Free a node; its hole and those on both sides become one (`drm_mm_remove_node`).

        Raises TtmError(EINVAL) when it is not allocated here, as after a first remove.
        """
        if self._nodes.get(node.start) is not node:
            raise TtmError(errno.EINVAL, f"{node!r} is not allocated here: it was removed, or belongs elsewhere")
        del self._nodes[node.start]
        self.used_pages -= node.num_pages
        start, end = node.start, node.end
        index = self._holes.bisect_left(start)
        self._visited += 1
        if index:
            before, size = self._holes.peekitem(index - 1)
            if before + size == start:
                self._drop_hole(before, size)
                start = before
        after = self._holes.get(end)
        if after is not None:
            self._drop_hole(end, after)
            end += after
        self._add_hole(start, end - start)
        if not self._nodes:
            self._nodes.clear()  # or it keeps room for as many as there ever were

    def holes(self) -> Iterator[tuple[int, int]]:
        """(start, pages) of every hole, by address (`drm_mm_for_each_hole`)."""
        yield from self._holes.items()

    def nodes(self) -> Iterator[RangeNode]:
        """Every node, by address (`drm_mm_for_each_node`)."""
        yield from self._nodes.values()

    def dump(self) -> str:
        """Nodes and holes by address and the totals, as `drm_mm_print` prints them; unit pages."""
        rows = [(node.start, node.num_pages, "used") for node in self.nodes()]
        rows += [(start, size, "free") for start, size in self.holes()]
        lines = [f"0x{start:016x}-0x{start + size:016x}: {size}: {what}" for start, size, what in sorted(rows)]
        lines.append(f"total: {self.num_pages}, used {self.used_pages} free {self.free_pages}")
        return "\n".join(lines) + "\n"

    def check(self) -> list[str]:
        """Walk everything; a sentence for each thing that is wrong."""
        return [sentence for found in self.check_steps() for sentence in found]

    def check_steps(self) -> Iterator[list[str]]:
        """As `check`, what each step finds; what a step looks at holds at any moment, so others may run in between."""
        position = 0
        while position < self.num_pages:
            position, wrong = self._check_from(position)
            yield wrong
        yield self._check_totals()

    def _check_from(self, page: int) -> tuple[int, list[str]]:
        """Some ranges from the one of this page on; where to go on, and what is wrong."""
        begin = max(_floor(self._nodes, page), _floor(self._holes, page))
        nodes = islice(self._nodes.irange(begin), _CHECKED_AT_ONCE)
        holes = islice(self._holes.irange(begin), _CHECKED_AT_ONCE)
        rows = [(start, self._nodes[start].num_pages, True) for start in nodes]
        rows += [(start, self._holes[start], False) for start in holes]
        rows = sorted(rows)[:_CHECKED_AT_ONCE]
        wrong = []
        position, was_hole = begin, False
        for start, size, used in rows:
            if start != position or size < 1:
                wrong.append(f"range: page {position} is followed by a range at page {start} of {size} pages")
            if was_hole and not used:
                wrong.append(f"range: the hole at page {start} was not merged with the one before it")
            if not used and (size, start) not in self._by_size:
                wrong.append(f"range: the hole at page {start} is by address, but not by size")
            if not used and self._tree.size_at(start) != size:
                wrong.append(f"range: the tree of holes has another one at page {start}")
            position, was_hole = start + size, not used
        if len(rows) == _CHECKED_AT_ONCE:
            return rows[-1][0], wrong  # once more: the next one is looked at beside it
        if position != self.num_pages:
            wrong.append(f"range: ends at page {position} of {self.num_pages}")
        return self.num_pages, wrong

    def _check_totals(self) -> list[str]:
        wrong = []
        if sum(node.num_pages for node in self.nodes()) != self.used_pages:
            wrong.append(f"range: {self.used_pages} pages counted as used, the nodes have others")
        if len(self._by_size) != len(self._holes):
            wrong.append("range: holes by size and holes by address differ")
        if len(self._tree) != len(self._holes):
            wrong.append("range: the tree of holes and the holes by address differ")
        return wrong

    def _candidates(self, pages: int, first: int, end: int, mode: Mode) -> Iterator[int]:
        """Holes of at least `pages` pages that reach into the window, in the order the mode tries them."""
        if end - first < pages:
            return
        if mode == "low":
            index = self._holes.bisect_right(first) - 1
            if index >= 0:
                start, size = self._holes.peekitem(index)
                if size >= pages and start + size > first:
                    yield start
            lowest = self._tree.lowest(pages, first + 1)
            while lowest is not None and lowest < end:
                yield lowest
                lowest = self._tree.lowest(pages, lowest + 1)
        elif mode == "high":
            highest = self._tree.highest(pages, end)
            while highest is not None:
                yield highest
                if highest <= first:  # whatever is lower ends before the window
                    return
                highest = self._tree.highest(pages, highest)
        else:
            yield from self._best(pages, first, end)

    def _best(self, pages: int, first: int, end: int) -> Iterator[int]:
        fitting = self._by_size.bisect_left((pages, 0))
        if first > 0 or end < self.num_pages:
            low = max(self._holes.bisect_right(first) - 1, 0)
            high = self._holes.bisect_left(end)
            if high - low < len(self._by_size) - fitting:
                self._visited += high - low
                inside = [(size, start) for start, size in self._holes.items()[low:high] if size >= pages]
                yield from (start for _, start in sorted(inside))
                return
        yield from (start for _, start in self._by_size.islice(fitting))

    def _carve(self, hole: int, size: int, start: int, pages: int) -> RangeNode:
        self._drop_hole(hole, size)
        if start > hole:
            self._add_hole(hole, start - hole)
        if start + pages < hole + size:
            self._add_hole(start + pages, hole + size - start - pages)
        node = RangeNode(start, pages)
        self._nodes[start] = node
        self.used_pages += pages
        return node

    def _add_hole(self, start: int, size: int) -> None:
        self._holes[start] = size
        self._by_size.add((size, start))
        self._tree.set(start, size)

    def _drop_hole(self, start: int, size: int) -> None:
        del self._holes[start]
        self._by_size.remove((size, start))
        self._tree.set(start, 0)


def _floor(ranges: SortedDict, page: int) -> int:
    """Where the last of these ranges begins that begins at this page or before; 0 when none does."""
    index = ranges.bisect_right(page)
    return ranges.keys()[index - 1] if index else 0
