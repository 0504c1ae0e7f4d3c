"""FreeLevels: per order, which blocks are in a set of pages; the searchable store below FreeArea.

Per order there is a bytearray, one byte for each possible block (1 = a block of the set), shared with a numpy view: a
single operation searches it with `rfind` (memchr speed, at most 1024 bytes, found through a summary of counts per 1024
blocks) and a bulk one works on whole levels with numpy. Positions are block numbers within an order.
"""

from array import array
from collections.abc import Iterator

import numpy as np

from ttmfs.memory.runs import Int64Array, Uint8Array

GROUP_SHIFT = 10
FEW = 4
"""Up to so many blocks, plain Python beats numpy's fixed cost per call."""
NONE = np.empty(0, np.int64)
_STEP = 64 << GROUP_SHIFT
"""Positions that are checked at a time: some tenths of a millisecond."""


class FreeLevels:
    """No blocks yet, over pages [0, num_pages).

    `pages` counts its pages, `blocks[order]` its blocks, bit `order` of `mask` says whether there are any. `steps`
    counts the levels and blocks that searches, splits and merges looked at.
    """

    __slots__ = (
        "_count",
        "_has",
        "_np",
        "_np_count",
        "_state",
        "blocks",
        "mask",
        "max_order",
        "num_pages",
        "pages",
        "steps",
    )

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.max_order = num_pages.bit_length() - 1
        self._state: list[bytearray] = []
        self._np: list[Uint8Array] = []
        self._count: list[array[int]] = []
        self._np_count: list[np.ndarray[tuple[int], np.dtype[np.uint16]]] = []
        self._has: list[bytearray] = []
        for order in range(self.max_order + 1):
            # One more than fit, since a page of the odd tail has a place there too, and then even, so that every
            # block has a buddy to look at. What lies beyond the end is never free.
            size = (num_pages >> order) + 1
            state = bytearray(size + (size & 1))
            groups = (len(state) >> GROUP_SHIFT) + 1
            count = array("H", bytes(2 * groups))
            self._state.append(state)
            self._np.append(np.frombuffer(state, np.uint8))
            self._count.append(count)
            self._np_count.append(np.frombuffer(count, np.uint16))
            self._has.append(bytearray(groups))
        self.blocks = [0] * (self.max_order + 1)
        self.mask = 0
        self.pages = 0
        self.steps = 0

    # One block at a time.

    def _set(self, order: int, pos: int) -> None:
        self._state[order][pos] = 1
        group = pos >> GROUP_SHIFT
        self._count[order][group] += 1
        self._has[order][group] = 1
        self.blocks[order] += 1
        self.mask |= 1 << order

    def _unset(self, order: int, pos: int) -> None:
        self._state[order][pos] = 0
        group = pos >> GROUP_SHIFT
        count = self._count[order]
        count[group] -= 1
        if not count[group]:
            self._has[order][group] = 0
        self.blocks[order] -= 1
        if not self.blocks[order]:
            self.mask &= ~(1 << order)

    def last(self, order: int, low: int = 0, high: int | None = None) -> int:
        """Highest position in [low, high) with a block of this order, -1 when there is none."""
        self.steps += 1
        state = self._state[order]
        if high is None:
            group = len(self._has[order])
        elif high <= low:
            return -1
        else:
            # The top group may reach beyond `high`; below it the summary says which group has a block at all.
            group = (high - 1) >> GROUP_SHIFT
            pos = state.rfind(1, max(low, group << GROUP_SHIFT), high)
            if pos >= 0:
                return pos
        group = self._has[order].rfind(1, low >> GROUP_SHIFT, group)
        begin = group << GROUP_SHIFT
        return state.rfind(1, max(low, begin), begin + (1 << GROUP_SHIFT)) if group >= 0 else -1

    # Whole levels at a time.

    def _adjust(self, order: int, pos: Int64Array, sign: int) -> None:
        """Account for blocks put in (+1) or taken out (-1) at `pos` of one order."""
        group = pos >> GROUP_SHIFT
        low, high = int(group.min()), int(group.max())
        added = np.bincount(group - low, minlength=high - low + 1) * sign
        count = self._np_count[order][low : high + 1]
        count[:] = count + added
        self._has[order][low : high + 1] = (count != 0).astype(np.uint8).tobytes()
        self.blocks[order] += sign * pos.size
        if self.blocks[order]:
            self.mask |= 1 << order
        else:
            self.mask &= ~(1 << order)

    def _set_many(self, order: int, pos: Int64Array) -> None:
        self._np[order][pos] = 1
        self._adjust(order, pos, 1)

    def _unset_many(self, order: int, pos: Int64Array) -> None:
        if pos.size <= FEW:
            for one in pos.tolist():
                self._unset(order, one)
            return
        self._np[order][pos] = 0
        self._adjust(order, pos, -1)

    def top(self, order: int, count: int, low: int, high: int) -> Int64Array:
        """The highest `count` (or fewer) positions in [low, high) with a block of this order, ascending."""
        if count <= FEW:
            found: list[int] = []
            while len(found) < count and (pos := self.last(order, low, high)) >= 0:
                found.append(pos)
                high = pos
            return np.array(found[::-1], np.int64)
        self.steps += 1
        if high <= low:
            return NONE
        first, last = low >> GROUP_SHIFT, ((high - 1) >> GROUP_SHIFT) + 1
        from_top = np.cumsum(self._np_count[order][first:last][::-1], dtype=np.int64)
        groups = int(np.searchsorted(from_top, count)) + 1
        begin = max(low, (last - groups) << GROUP_SHIFT)
        found_pos = np.flatnonzero(self._np[order][begin:high]) + begin
        if found_pos.size < count and begin > low:
            # The top group reaches beyond `high`: its blocks there were counted but are not ours.
            found_pos = np.flatnonzero(self._np[order][low:high]) + low
        return found_pos[-count:]

    def all_blocks(self) -> tuple[Int64Array, Uint8Array]:
        """All blocks as `(starts, orders)`, ascending by start."""
        starts, orders = [NONE], [np.empty(0, np.uint8)]
        for order in range(self.max_order + 1):
            if self.blocks[order]:
                pos = np.flatnonzero(self._np[order])
                starts.append(pos << order)
                orders.append(np.full(pos.size, order, np.uint8))
        start = np.concatenate(starts)
        order_of = np.concatenate(orders)
        by_start = np.argsort(start)
        return start[by_start], order_of[by_start]

    def map_of(self, first: int, last: int) -> Uint8Array:
        """Per page of [first, last), 1 when it is in the set, uint8, the caller's own.

        `first` is a multiple of some power of two that is not less than the number of pages.
        """
        found = np.zeros(last - first, np.uint8)
        for order in range(self.max_order + 1):
            if not self.blocks[order]:
                continue
            pos = np.flatnonzero(self._np[order][first >> order : ((last - 1) >> order) + 1])
            if pos.size and 1 << order >= found.size:
                found[:] = 1
            elif pos.size:
                found[: found.size >> order << order].reshape(-1, 1 << order)[pos] = 1
        return found

    def clear(self) -> None:
        """Make the set empty."""
        for order in range(self.max_order + 1):
            if self.blocks[order]:
                self._np[order][:] = 0
                self._np_count[order][:] = 0
                self._has[order][:] = bytes(len(self._has[order]))
                self.blocks[order] = 0
        self.mask = 0
        self.pages = 0

    def check_steps(self, what: str) -> Iterator[None]:
        """Raise AssertionError naming what is wrong with the counts, or with buddies that both stand.

        What a step looks at holds at any moment, so others may run at each yield.
        """
        for order in range(self.max_order + 1):
            for first in range(0, len(self._state[order]), _STEP):
                self._check_part(what, order, first)
                yield
        self._check_sums(what)

    def _check_part(self, what: str, order: int, first: int) -> None:
        """_STEP positions of an order, from `first` on: whole groups, and buddies together."""
        part = slice(first, first + _STEP)
        state = self._np[order][part]
        both = np.flatnonzero((state[::2] != 0) & (state[1::2] != 0)) * 2 + first
        assert not both.size, f"{what}: buddies at order {order}, page {int(both[0]) << order} are not merged"
        pos = np.flatnonzero(state) + first
        beyond = pos[(pos + 1) << order > self.num_pages]
        assert not beyond.size, f"{what}: a block of order {order} lies beyond the end"
        low, high = first >> GROUP_SHIFT, part.stop >> GROUP_SHIFT
        counts = self._np_count[order][low : high if part.stop < len(self._state[order]) else None]
        groups = np.bincount((pos >> GROUP_SHIFT) - low, minlength=len(counts))
        assert (groups == counts).all(), f"{what}: group counts of order {order} are wrong"
        has = np.frombuffer(self._has[order], np.uint8)[low : low + len(counts)]
        assert ((groups != 0) == (has != 0)).all(), f"{what}: the summary of order {order} is wrong"

    def _check_sums(self, what: str) -> None:
        pages = 0
        for order in range(self.max_order + 1):
            there, counted = int(self._np_count[order].sum(dtype=np.int64)), self.blocks[order]
            assert there == counted, f"{what}: order {order} has {there} blocks, not {counted}"
            assert bool(self.mask >> order & 1) == bool(there), f"{what}: the mask of order {order} is wrong"
            pages += there << order
        assert pages == self.pages, f"{what}: counts {self.pages} pages, has {pages}"
