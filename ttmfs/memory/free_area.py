"""FreeArea: a set of pages kept as maximal aligned power-of-two blocks (the kernel's per-order free areas).

The buddy allocator keeps two of them: the free pages, and those of them that are known to be zero. Two buddies never
both stand: they are one block of the next order. Starts are page numbers, positions block numbers within an order.
"""

from collections.abc import Iterator

import numpy as np

from ttmfs.memory.free_levels import FEW, NONE, FreeLevels
from ttmfs.memory.runs import Int64Array, Uint8Array, ascending, expand, unique_sorted


def canonical(first: int, last: int) -> Iterator[tuple[int, int]]:
    """The largest aligned blocks `(start, order)` that make up pages [first, last), ascending; O(log n) of them."""
    while first < last:
        order = (last - first).bit_length() - 1
        if first:
            order = min(order, (first & -first).bit_length() - 1)
        yield first, order
        first += 1 << order


class FreeArea(FreeLevels):
    """An empty set over pages [0, num_pages)."""

    __slots__ = ()

    # One block at a time.

    def add(self, start: int, order: int) -> None:
        """Put in a block none of whose pages is in the set, and merge it with its buddies."""
        self.pages += 1 << order
        pos = start >> order
        while self._state[order][pos ^ 1]:
            self._unset(order, pos ^ 1)
            pos >>= 1
            order += 1
            self.steps += 1
        self._set(order, pos)

    def add_range(self, first: int, last: int) -> None:
        """Put in pages [first, last), none of which is in the set."""
        for start, order in canonical(first, last):
            self.add(start, order)

    def take_one(self, order: int) -> int:
        """Take out the highest block of the smallest sufficient order; splitting keeps the right half.

        Returns its start, -1 when there is none.
        """
        enough = self.mask >> order
        if not enough:
            return -1
        level = order + (enough & -enough).bit_length() - 1
        pos = self.last(level)
        self._unset(level, pos)
        while level > order:
            level -= 1
            pos = 2 * pos + 1
            self._set(level, pos - 1)
            self.steps += 1
        self.pages -= 1 << order
        return pos << order

    def remove(self, start: int, order: int) -> None:
        """Take out those pages of the aligned block that are in the set, splitting what they are part of."""
        above = self.mask >> order
        level = order
        while above:
            if above & 1:
                self.steps += 1
                if self._state[level][start >> level]:
                    self._unset(level, start >> level)
                    while level > order:
                        level -= 1
                        self._set(level, (start >> level) ^ 1)
                        self.steps += 1
                    self.pages -= 1 << order
                    return
            above >>= 1
            level += 1
        for level in range(order - 1, -1, -1):
            if self.blocks[level]:
                self.steps += 1
                first, last = start >> level, (start + (1 << order)) >> level
                if self._state[level].find(1, first, last) >= 0:
                    pos = np.flatnonzero(self._np[level][first:last]) + first
                    self._unset_many(level, pos)
                    self.pages -= pos.size << level

    def count(self, start: int, order: int) -> int:
        """How many pages of the aligned block are in the set."""
        if self.holds(start, order):
            return 1 << order
        total = 0
        for level in range(order):
            if self.blocks[level]:
                self.steps += 1
                total += self._state[level].count(1, start >> level, (start + (1 << order)) >> level) << level
        return total

    def holds(self, start: int, order: int) -> bool:
        """Whether the whole aligned block is in the set."""
        above = self.mask >> order
        level = order
        while above:
            if above & 1:
                self.steps += 1
                if self._state[level][start >> level]:
                    return True
            above >>= 1
            level += 1
        return False

    # Whole levels at a time.

    def add_many(self, starts: Int64Array, orders: Uint8Array) -> None:
        """Put in many blocks, none of whose pages is in the set, merging level by level."""
        if starts.size <= FEW:
            for start, order in zip(starts.tolist(), orders.tolist(), strict=True):
                self.add(start, order)
            return
        per_order = np.bincount(orders)
        carry = NONE
        for order in range(self.max_order + 1):
            self.steps += 1
            pos = carry
            if order < per_order.size and per_order[order]:
                own = (starts if per_order[order] == starts.size else starts[orders == order]) >> order
                self.pages += own.size << order
                own = ascending(own)
                pos = ascending(np.concatenate((carry, own))) if carry.size else own
            carry = NONE
            if pos.size:
                state = self._np[order]
                state[pos] = 1
                self._adjust(order, pos, 1)
                carry = unique_sorted(pos[state[pos ^ 1] != 0] >> 1)
                if carry.size:
                    merged = np.concatenate((2 * carry, 2 * carry + 1))
                    state[merged] = 0
                    self._adjust(order, merged, -1)
            elif order >= per_order.size:
                return

    def remove_many(self, starts: Int64Array, order: int) -> None:
        """Take out those pages of these aligned blocks (ascending, no overlap) that are in the set."""
        if not self.pages:
            return
        if starts.size <= FEW:
            for start in starts.tolist():
                self.remove(start, order)
            return
        before = self.pages
        for level in range(self.max_order, order, -1):
            if not self.blocks[level]:
                continue
            self.steps += 1
            parents = unique_sorted(starts >> level)
            parents = parents[self._np[level][parents] != 0]
            if parents.size:
                self._unset_many(level, parents)
                self._set_many(level - 1, np.concatenate((2 * parents, 2 * parents + 1)))
        pos = starts >> order
        here = self._np[order][pos] != 0
        found = pos[here]
        if found.size:
            self._unset_many(order, found)
        gone = found.size << order
        rest = pos[~here]
        if rest.size and self.mask & ((1 << order) - 1):
            for level in range(order - 1, -1, -1):
                if self.blocks[level]:
                    self.steps += 1
                    width = 1 << (order - level)
                    inner = expand(rest * width, np.full(rest.size, width))
                    inner = inner[self._np[level][inner] != 0]
                    if inner.size:
                        self._unset_many(level, inner)
                        gone += inner.size << level
        self.pages = before - gone

    def holds_many(self, starts: Int64Array, order: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Per aligned block of this order, whether the whole of it is in the set."""
        if starts.size <= FEW:
            return np.array([self.holds(start, order) for start in starts.tolist()], np.bool_)
        held = np.zeros(starts.size, np.bool_)
        for level in range(order, self.max_order + 1):
            if self.blocks[level]:
                self.steps += 1
                held |= self._np[level][starts >> level] != 0
        return held

    def take_units(
        self, order: int, count: int, low: int, high: int, topdown: bool = False
    ) -> Int64Array:
        """Take up to `count` aligned blocks of exactly `order` out of pages [low, high); their starts, ascending.

        Blocks of the smallest sufficient order go first and of those the highest (with `topdown` just the highest of
        all); what is larger is split and its right part is used: the same pages as taking one after the other.
        """
        first, last = -(-low >> order), high >> order
        if count <= 0 or first >= last:
            return NONE
        if self.blocks[order] >= count and not topdown and (found := self._take_whole(order, count, first, last)).size:
            return found
        return self._take_any(order, count, first, last, topdown)

    def _take_any(self, order: int, count: int, first: int, last: int, topdown: bool) -> Int64Array:
        """As `take_units`, out of positions [first, last) of the order."""
        chosen: list[tuple[int, Int64Array]] = []
        need = count
        for level in range(order, self.max_order + 1):
            if need <= 0:
                break
            if not self.blocks[level]:
                continue
            shift = level - order
            # Two more than would do: one at either end of the range may lie in it only in part.
            wanted = -(-need >> shift) + 2
            pos = self.top(level, wanted, first >> shift, -(-last >> shift))
            if pos.size:
                chosen.append((level, pos))
                if not topdown:
                    edges = np.minimum((pos + 1) << shift, last) - np.maximum(pos << shift, first)
                    need -= int(edges.sum())
        if not chosen:
            return NONE
        levels = np.concatenate([np.full(pos.size, level) for level, pos in chosen])
        # Highest first; the levels are in ascending order already.
        pos = np.concatenate([pos[::-1] for _, pos in chosen])
        shifts = levels - order
        begin = np.maximum(pos << shifts, first)
        end = np.minimum((pos + 1) << shifts, last)
        if topdown:
            by_end = np.argsort(-end)
            levels, pos, shifts, begin, end = (x[by_end] for x in (levels, pos, shifts, begin, end))
        total = np.cumsum(end - begin)
        used = int(np.searchsorted(total, count)) + 1
        if used < total.size:
            levels, pos, shifts, begin, end, total = (x[:used] for x in (levels, pos, shifts, begin, end, total))
        surplus = int(total[-1]) - count
        if surplus > 0:
            begin[-1] += surplus
        for level in np.flatnonzero(np.bincount(levels)).tolist():
            out = pos if level == levels[0] == levels[-1] and not topdown else pos[levels == level]
            self._unset_many(level, out)
            self.pages -= out.size << level
        cut = np.flatnonzero(end - begin != 1 << shifts)
        for i in cut.tolist():
            self.add_range(int(pos[i]) << int(levels[i]), int(begin[i]) << order)
            self.add_range(int(end[i]) << order, int(pos[i] + 1) << int(levels[i]))
        return ascending(expand(begin[::-1], (end - begin)[::-1])) << order

    def _take_whole(self, order: int, count: int, first: int, last: int) -> Int64Array:
        """As `take_units`, where nothing needs to be split, as in fragmented memory; none where that does not do."""
        pos = self.top(order, count, first, last)
        if pos.size < count:
            return NONE
        self._unset_many(order, pos)
        self.pages -= count << order
        return pos << order

    def free_runs(self) -> tuple[Int64Array, Int64Array]:
        """Maximal stretches of pages of the set as `(first, last)`, last exclusive, ascending."""
        starts, orders = self.all_blocks()
        if not starts.size:
            return NONE, NONE
        ends = starts + (1 << orders.astype(np.int64))
        gap = starts[1:] != ends[:-1]
        return starts[np.concatenate(([True], gap))], ends[np.concatenate((gap, [True]))]
