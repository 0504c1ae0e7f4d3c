"""SlotMap: which slots of a store are taken, and which free ones still hold memory or disk blocks.

It promises: the lowest free slots go out first, whole slabs to who wants so many, so that neighbours stay neighbours
and the high end can be given back; nothing here costs Python work per page. One byte a slot and two counts per slab of
512 slots (2 MiB): extents in a sorted tree would be smaller while they are long, but cost microseconds each where a
page-fragmented BO has one for each page. The map lies in memory that is not there until it is used.
"""

import errno
import mmap
from typing import Any, Final

import numpy as np

from ttmfs.errors import TtmError
from ttmfs.memory.account import Account
from ttmfs.memory.arena import FRAME_PAGES, MAP_NORESERVE
from ttmfs.memory.runs import Int64Array, PageArray, Uint8Array, Uint32Array, ascending, expand, runs

SLAB_SHIFT: Final = 9
SLAB: Final = 1 << SLAB_SHIFT
assert SLAB == FRAME_PAGES
MAX_SLOTS: Final = (1 << 31) - 2
"""A handle is slot + 1, and a page vector keeps it in 31 bits."""

TAKEN: Final = 1
STORED: Final = 2
TOUCHED: Final = 4
"""The medium may hold memory or blocks for this slot."""

_IN_SLAB: Final = np.arange(SLAB, dtype=np.uint32)


def lazy_array(count: int, dtype: Any) -> np.ndarray[tuple[int], Any]:
    """`count` zeros that cost no host memory until they are touched, 4 KiB at a time. Raises TtmError(ENOMEM)."""
    size = count * np.dtype(dtype).itemsize
    if not size:
        return np.empty(0, dtype)
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    except (OSError, OverflowError, ValueError) as error:
        message = f"the host does not give {size >> 20} MiB for the books of a swap store: make it smaller"
        raise TtmError(errno.ENOMEM, message) from error
    memory.madvise(mmap.MADV_DONTFORK)
    result: np.ndarray[tuple[int], Any] = np.frombuffer(memory, dtype)
    return result


class SlotMap:
    """`num_slots` free slots. `used`: taken slots, `stored`: those with a page in them, `waste`: free but touched."""

    __slots__ = (
        "_free", "_low", "_slabs", "_state", "_waste", "accounts", "held", "num_slots", "stored", "used", "waste",
    )  # fmt: skip

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.used = self.stored = self.waste = 0
        self.held = 0
        """Taken by `hold_waste`, and not released yet."""
        self.accounts: list[Account] = []
        """Whoever finds out just now whose the stored pages are: hears of each that is stored."""
        self._state: Uint8Array = lazy_array(num_slots, np.uint8)
        self._slabs = self._state[: num_slots & -SLAB].reshape(-1, SLAB)
        slabs = -(-num_slots >> SLAB_SHIFT)
        self._free = np.full(slabs, SLAB, np.int32)
        if slabs:
            self._free[-1] = num_slots - ((slabs - 1) << SLAB_SHIFT)
        self._waste = np.zeros(slabs, np.int32)
        self._low = 0  # no free slot in any slab before this one

    @property
    def free(self) -> int:
        """Slots that can be taken."""
        return self.num_slots - self.used

    def take(self, count: int) -> Uint32Array:
        """Take `count` free slots, or as many as there are, uint32: wholly free slabs, the lowest first, then the
        lowest slots.
        """
        count = min(count, self.free)
        if count < SLAB:
            return self._take_lowest(count)
        slabs = np.flatnonzero(self._free[self._low :] == SLAB)[: count >> SLAB_SHIFT] + self._low
        self._slabs[slabs] |= TAKEN
        self._free[slabs] = 0
        self.waste -= int(self._waste[slabs].sum())
        self._waste[slabs] = 0
        self.used += slabs.size << SLAB_SHIFT
        found = (slabs.astype(np.uint32) << np.uint32(SLAB_SHIFT))[:, None] + _IN_SLAB
        return np.concatenate((found.reshape(-1), self._take_lowest(count - found.size)))

    def _take_lowest(self, count: int) -> Uint32Array:
        """The lowest free slots, of which there are so many: ascending."""
        if count <= 0:
            return np.empty(0, np.uint32)
        slabs = self._free.size
        first, width = self._low, (count >> SLAB_SHIFT) + 8
        first += self._skip(first)
        while True:
            room = np.cumsum(self._free[first : first + width])
            if room[-1] >= count or first + width >= slabs:
                break
            width *= 4
        last = first + int(np.searchsorted(room, count)) + 1
        begin = first << SLAB_SHIFT
        span = self._state[begin : min(last << SLAB_SHIFT, self.num_slots)]
        found = np.flatnonzero((span & TAKEN) == 0)[:count] + begin
        self._taken(found)
        self._low = int(found[-1]) >> SLAB_SHIFT
        return found.astype(np.uint32)

    def _taken(self, found: Int64Array) -> None:
        """Free slots that are not free any more."""
        if not found.size:
            return
        touched = found[(self._state[found] & TOUCHED) != 0]
        self._state[found] |= TAKEN
        self._adjust(self._free, found, -1)
        if touched.size:
            self._adjust(self._waste, touched, -1)
            self.waste -= touched.size
        self.used += found.size

    def _skip(self, first: int) -> int:
        """How many slabs from `first` on are full."""
        width = 64
        skipped = 0
        while first + skipped < self._free.size:
            some = np.flatnonzero(self._free[first + skipped : first + skipped + width])
            if some.size:
                return skipped + int(some[0])
            skipped += width
            width *= 4
        return 0

    def touch(self, slots: PageArray) -> None:
        """The medium is about to hold something for these taken slots."""
        self._state[slots] |= TOUCHED

    def emptied(self, first: int, count: int) -> None:
        """The medium holds nothing any more for these taken slots."""
        self._state[first : first + count] &= ~TOUCHED & 0xFF

    def commit(self, slots: PageArray) -> None:
        """These taken slots hold a page now."""
        self._state[slots] |= STORED
        self.stored += len(slots)
        for account in self.accounts:
            account.excuse(slots)

    def put(self, slots: PageArray) -> None:
        """These taken slots, ascending or not, each named once, are free again."""
        if not len(slots):
            return
        numbers = np.asarray(slots).astype(np.int64, copy=False)
        state = self._state[numbers]
        self.stored -= int(np.count_nonzero(state & STORED))
        touched = numbers[(state & TOUCHED) != 0]
        self._state[numbers] = state & TOUCHED
        self._adjust(self._free, numbers, 1)
        self.used -= numbers.size
        self._low = min(self._low, int(numbers.min()) >> SLAB_SHIFT)
        if touched.size:
            self._adjust(self._waste, touched, 1)
            self.waste += touched.size

    def slots_of(self, handles: PageArray) -> Int64Array:
        """The slots of these handles, all of which must hold a page; int64, in the order given.

        Raises TtmError(EINVAL) naming the first that does not, or that is named twice.
        """
        slots = np.asarray(handles).astype(np.int64) - 1
        if not slots.size:
            return slots
        if int(slots.min()) < 0 or int(slots.max()) >= self.num_slots:
            bad = slots[(slots < 0) | (slots >= self.num_slots)]
            raise TtmError(errno.EINVAL, f"{int(bad[0]) + 1} is no handle of this store")
        empty = (self._state[slots] & STORED) == 0
        if empty.any():
            handle = int(slots[int(empty.argmax())]) + 1
            raise TtmError(errno.EINVAL, f"handle {handle} holds no page: it was dropped, or never stored")
        ordered = ascending(slots)
        twice = ordered[1:] == ordered[:-1]
        if twice.any():
            raise TtmError(errno.EINVAL, f"handle {int(ordered[int(twice.argmax())]) + 1} is named twice")
        return slots

    def is_stored(self, slots: PageArray) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Per slot, whether it holds a page."""
        result: np.ndarray[tuple[int], np.dtype[np.bool_]] = (self._state[slots] & STORED) != 0
        return result

    def stored_map(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Per slot, whether it holds a page."""
        result: np.ndarray[tuple[int], np.dtype[np.bool_]] = (self._state & STORED) != 0
        return result

    def hold_waste(self, limit: int, keep: int, most: int) -> tuple[Int64Array, Int64Array]:
        """Take free slots that are to be given back: `(first, count)` of their runs, ascending.

        Every slab with waste that is wholly free, as a whole: memory comes by the huge page, also for slots that were
        never touched. And with more than `limit` slots of waste elsewhere the longest runs of touched ones there, until
        at most `keep` are left. At most `most` slots, or one run. They count as used until `release`.
        """
        rich = np.flatnonzero(self._waste)
        sizes = np.minimum(self.num_slots - (rich << SLAB_SHIFT), SLAB)
        whole = self._free[rich] == sizes
        _, slab, slabs = runs(rich[whole])
        first = slab << SLAB_SHIFT
        count = np.minimum(slabs << SLAB_SHIFT, self.num_slots - first)
        left = int(self._waste[rich[~whole]].sum())
        if left > limit:
            some_first, some_count = self._runs_in(rich[~whole])
            order = np.argsort(-some_count, kind="stable")
            enough = int(np.searchsorted(np.cumsum(some_count[order]), left - keep)) + 1
            first = np.concatenate((first, some_first[order[:enough]]))
            count = np.concatenate((count, some_count[order[:enough]]))
        fitting = max(1, int(np.searchsorted(np.cumsum(count), most, side="right")))
        first, count = first[:fitting], count[:fitting]
        by_first = np.argsort(first)
        first, count = first[by_first], count[by_first]
        self._taken(expand(first, count))
        self.held += int(count.sum())
        return first, count

    def release(self, first: Int64Array, count: Int64Array, given_back: bool) -> None:
        """What `hold_waste` took is free again, and with `given_back` no longer touched."""
        slots = expand(first, count)
        self.held -= slots.size
        if given_back:
            self._state[slots] &= ~TOUCHED & 0xFF
        self.put(slots)

    def _runs_in(self, slabs: Int64Array) -> tuple[Int64Array, Int64Array]:
        slots = expand(slabs << SLAB_SHIFT, np.minimum(self.num_slots - (slabs << SLAB_SHIFT), SLAB))
        slots = slots[(self._state[slots] & (TAKEN | TOUCHED)) == TOUCHED]
        if not slots.size:
            return slots, slots
        index = np.concatenate(([0], np.flatnonzero(slots[1:] - slots[:-1] != 1) + 1))
        return slots[index], np.diff(index, append=slots.size)

    def _adjust(self, counts: np.ndarray[tuple[int], np.dtype[np.int32]], slots: Int64Array, sign: int) -> None:
        slabs = slots >> SLAB_SHIFT
        low = int(slabs.min())
        added = np.bincount(slabs - low)
        counts[low : low + added.size] += (sign * added).astype(np.int32)

    def check(self) -> None:
        """Raise AssertionError naming what is wrong with the counts."""
        state = self._state
        taken = (state & TAKEN) != 0
        wasted = (state & (TAKEN | TOUCHED)) == TOUCHED
        assert int(taken.sum()) == self.used, f"slots: {self.used} counted as used, {int(taken.sum())} are"
        stored = (state & STORED) != 0
        assert int(stored.sum()) == self.stored, f"slots: {self.stored} counted as stored, {int(stored.sum())} are"
        assert not (stored & ~taken).any(), "slots: a free slot holds a page"
        assert int(wasted.sum()) == self.waste, f"slots: {self.waste} counted as waste, {int(wasted.sum())} are"
        for what, counts, mask in (("free", self._free, ~taken), ("waste", self._waste, wasted)):
            wrong = np.bincount(np.flatnonzero(mask) >> SLAB_SHIFT, minlength=counts.size) != counts
            assert not wrong.any(), f"slots: the {what} count of slab {int(wrong.argmax())} is wrong"
        free = np.flatnonzero(~taken)
        assert not free.size or int(free[0]) >> SLAB_SHIFT >= self._low, "slots: a free slot lies below the lowest slab"
