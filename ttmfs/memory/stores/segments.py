"""SegmentLog: pieces of bytes of any size in segments of 2 MiB, in memory or written behind to a file.

Pieces are appended; a segment that has no live piece left goes back to the host whole. Where dropped pieces leave
holes, the emptiest segments are copied together, so that what is held is at most twice what is live, plus a few
segments. A size-class allocator would hand out single holes, but its half-empty slabs are what keeps memory from
returning; and whole segments are what a disk likes to be written.

A piece's *place* is its segment's number and its first grain of 64 bytes, in 32 bits.
"""

import heapq
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from ttmfs.memory.arena import HUGE_SIZE, Arena
from ttmfs.memory.runs import Int64Array, Uint32Array
from ttmfs.memory.stores.medium import FileMedium
from ttmfs.units import PAGE_SHIFT

SEGMENT: Final = HUGE_SIZE
_SEGMENT_PAGES: Final = SEGMENT >> PAGE_SHIFT
GRAIN_SHIFT: Final = 6
GRAIN: Final = 1 << GRAIN_SHIFT
GRAINS: Final = SEGMENT >> GRAIN_SHIFT
PLACE_SHIFT: Final = 15
assert 1 << PLACE_SHIFT == GRAINS
MAX_SEGMENTS: Final = 1 << (32 - PLACE_SHIFT)


@dataclass(slots=True, eq=False)
class Segment:
    """One segment: in memory when `slab` >= 0, in the file when `block` >= 0. `head` grains are written, `live` of
    them are used. `busy`: upkeep works on it. `broken`: it could
    not be read. Lower `age`: older content. `slots`: whose pieces were put into it."""

    number: int
    age: int
    slab: int = -1
    block: int = -1
    head: int = 0
    live: int = 0
    busy: bool = False
    broken: bool = False
    slots: list[Uint32Array] = field(default_factory=list)


class SegmentLog:
    """An empty log of at most `max_segments` segments. All methods belong to the loop thread but `bytes_of`."""

    def __init__(self, name: str, max_segments: int) -> None:
        self.max_segments = min(max_segments, MAX_SEGMENTS)
        self.arena = Arena(name, self.max_segments * _SEGMENT_PAGES)
        self.segments: dict[int, Segment] = {}
        self.readers = 0
        self.free_blocks: list[int] = []
        """Blocks of the file that nothing uses and that wait for their hole."""
        self.blocks_at_work = 0
        """Blocks that are being written or punched."""
        self._open: Segment | None = None
        self._age = 0
        self._numbers: list[int] = []
        self._slabs: list[int] = []
        self._holes: list[int] = []
        self._next_number = self._next_slab = self._next_block = 0
        self._dead: list[Segment] = []
        self._dead_slabs: list[int] = []
        self.live = [0, 0]
        """Live grains in memory and in the file."""
        self.held = [0, 0]
        """Segments in memory and in the file."""

    def append(self, data: memoryview, grains: Int64Array, slots: Uint32Array) -> Uint32Array:
        """Put pieces of these sizes, lying one after the other in `data`, for these slots; their places, uint32.

        Fewer when there is no free segment left.
        """
        places = np.empty(grains.size, np.uint32)
        ends = np.cumsum(grains)
        done, base = 0, 0
        while done < grains.size:
            segment = self._open
            room = GRAINS - segment.head if segment is not None else 0
            fitting = int(np.searchsorted(ends, base + room, side="right")) - done
            if segment is None or fitting <= 0:
                segment = self._open = self._new()
                if segment is None:
                    break
                continue
            size = int(ends[done + fitting - 1]) - base
            self._fill(segment, data[base << GRAIN_SHIFT : (base + size) << GRAIN_SHIFT], size)
            starts = ends[done : done + fitting] - grains[done : done + fitting] - base + segment.head - size
            places[done : done + fitting] = starts + (segment.number << PLACE_SHIFT)
            segment.slots.append(slots[done : done + fitting].astype(np.uint32))
            done += fitting
            base += size
        return places[:done]

    def _fill(self, segment: Segment, data: memoryview, size: int) -> None:
        begin = segment.slab * SEGMENT + (segment.head << GRAIN_SHIFT)
        self.arena.buf[begin : begin + len(data)] = data
        segment.head += size
        segment.live += size
        self.live[0] += size

    def _new(self, age: int = -1) -> Segment | None:
        if self._slabs:
            slab = heapq.heappop(self._slabs)
        elif self._next_slab < self.max_segments:
            slab, self._next_slab = self._next_slab, self._next_slab + 1
        else:
            return None
        if self._numbers:
            number = heapq.heappop(self._numbers)
        elif self._next_number < MAX_SEGMENTS:
            number, self._next_number = self._next_number, self._next_number + 1
        else:
            heapq.heappush(self._slabs, slab)
            return None
        if age < 0:
            self._age += 1
            age = self._age
        segment = Segment(number, age, slab=slab)
        self.segments[number] = segment
        self.held[0] += 1
        return segment

    def forget(self, places: Uint32Array, grains: Int64Array) -> None:
        """These pieces are not needed any more."""
        if not places.size:
            return
        numbers = places >> np.uint32(PLACE_SHIFT)
        sums = np.bincount(numbers, weights=grains)
        for number in np.flatnonzero(sums).tolist():
            segment, gone = self.segments[number], int(sums[number])
            segment.live -= gone
            self.live[segment.block >= 0] -= gone
            if not segment.live and not segment.busy:
                self.free(segment)

    def free(self, segment: Segment) -> None:
        """A segment without live pieces goes back; while pages are being read, only afterwards."""
        assert not segment.live
        if segment is self._open:
            self._open = None
        self.held[segment.block >= 0] -= 1
        del self.segments[segment.number]
        self._dead.append(segment)
        self.bury()

    def bury(self) -> None:
        """Give back the memory of what died, unless a reader may still look there."""
        if self.readers:
            return
        for segment in self._dead:
            heapq.heappush(self._numbers, segment.number)
            if segment.slab >= 0:
                self._dead_slabs.append(segment.slab)
            if segment.block >= 0:
                self.free_blocks.append(segment.block)
        self._dead.clear()
        for slab in self._dead_slabs:
            self.arena.give_back(slab * _SEGMENT_PAGES, _SEGMENT_PAGES)
            heapq.heappush(self._slabs, slab)
        self._dead_slabs.clear()

    def bytes_of(self, segment: Segment, medium: FileMedium | None) -> memoryview:
        """What a (busy) segment holds, by any thread. Raises OSError."""
        if segment.block < 0:
            return self.arena.buf[segment.slab * SEGMENT : segment.slab * SEGMENT + (segment.head << GRAIN_SHIFT)]
        assert medium is not None
        return memoryview(medium.read_bytes(segment.block * SEGMENT, segment.head << GRAIN_SHIFT))

    # Upkeep.

    def seal(self) -> None:
        """Append to another segment from now on."""
        self._open = None

    def sparse(self, in_file: bool) -> list[Segment]:
        """The emptiest segments, when too little of all is live: together they fill one at most."""
        held = self.held[in_file] << PLACE_SHIFT
        if held <= 2 * self.live[in_file] + 2 * GRAINS or not (self._slabs or self._next_slab < self.max_segments):
            return []
        chosen: list[Segment] = []
        live = 0
        for segment in sorted(self._sealed(in_file), key=lambda segment: segment.live):
            if live + segment.live > GRAINS:
                break
            live += segment.live
            chosen.append(segment)
        return chosen if len(chosen) > 1 else []

    def oldest(self) -> Segment | None:
        """The segment in memory that was written first."""
        return min(self._sealed(False), key=lambda segment: segment.age, default=None)

    def _sealed(self, in_file: bool) -> list[Segment]:
        some = self.segments.values()
        return [s for s in some if (s.block >= 0) == in_file and s is not self._open and not (s.busy or s.broken)]

    def adopt(self, data: memoryview, grains: int, age: int) -> Segment | None:
        """A full copy of live pieces as a segment of its own, as old as they are; None when there is no room."""
        segment = self._new(age)
        if segment is not None:
            self._fill(segment, data, grains)
        return segment

    def take_block(self) -> int:
        """The lowest free block of the file."""
        self.blocks_at_work += 1
        if self._holes:
            return heapq.heappop(self._holes)
        self._next_block += 1
        return self._next_block - 1

    def put_blocks(self, blocks: list[int]) -> None:
        """These have their holes and can be used again."""
        self.blocks_at_work -= len(blocks)
        for block in blocks:
            heapq.heappush(self._holes, block)
        if len(self._holes) == self._next_block:
            self._holes.clear()
            self._next_block = 0

    def moved(self, segment: Segment, block: int) -> None:
        """A segment is in the file now; its memory goes back when nobody reads there."""
        self._dead_slabs.append(segment.slab)
        segment.slab, segment.block = -1, block
        self.blocks_at_work -= 1
        self.held[0] -= 1
        self.held[1] += 1
        self.live[0] -= segment.live
        self.live[1] += segment.live
        self.bury()

    def check(self) -> None:
        """Raise AssertionError naming what is wrong."""
        for in_file in (False, True):
            mine = [s for s in self.segments.values() if (s.block >= 0) == in_file]
            assert len(mine) == self.held[in_file], f"log: {self.held[in_file]} segments counted, {len(mine)} are"
            live = sum(s.live for s in mine)
            assert live == self.live[in_file], f"log: {self.live[in_file]} live grains counted, {live} are"
        for segment in self.segments.values():
            what = f"log: segment {segment.number} is {segment}"
            assert segment.live > 0 or segment.busy, what
            assert segment.live <= segment.head <= GRAINS, what
        known = [*self.segments.values(), *self._dead]
        slabs = [s.slab for s in known if s.slab >= 0] + self._slabs + self._dead_slabs
        assert len(set(slabs)) == len(slabs) == self._next_slab, "log: a slab is lost or used twice"
        blocks = [s.block for s in known if s.block >= 0] + self._holes + self.free_blocks
        all_of = len(blocks) + self.blocks_at_work
        assert len(set(blocks)) == len(blocks) <= all_of == self._next_block, "log: a block is lost or used twice"
