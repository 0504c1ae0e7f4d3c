"""ZstdStore: backed-up pages compressed in memory, each page a zstd frame of its own.

A page that zstd does not make smaller by a sixteenth is kept plain; a page of zeros takes no room but its entry in
the books, for which 64 bytes are charged. Stored bytes are counted in grains of 64. Frames lie in a SegmentLog, so the
memory goes back to the host. Compressing and decompressing release the interpreter lock and belong in a worker
thread: they are the middle parts (`write`, `read`).
"""

import contextlib
import errno
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import zstandard

from ttmfs.errors import TtmError
from ttmfs.memory.arena import Arena
from ttmfs.memory.runs import BoolArray, Int64Array, PageArray, Uint32Array, expand
from ttmfs.memory.stores.base import SwapStore, log
from ttmfs.memory.stores.checksums import ZERO_HASH, page_hash, page_hashes
from ttmfs.memory.stores.medium import FileMedium
from ttmfs.memory.stores.segments import (
    GRAIN,
    GRAIN_SHIFT,
    GRAINS,
    MAX_SEGMENTS,
    PLACE_SHIFT,
    SEGMENT,
    Segment,
    SegmentLog,
)
from ttmfs.memory.stores.slots import MAX_SLOTS, lazy_array
from ttmfs.memory.stores.transfer import LoadTransfer, StoreTransfer
from ttmfs.units import PAGE_SHIFT, PAGE_SIZE

LEVEL: Final = 1
MAX_SIZE: Final = MAX_SEGMENTS * SEGMENT // 2 - 8 * SEGMENT
_STEP: Final = 512
_WORTH: Final = PAGE_SIZE - PAGE_SIZE // 16
_PLAIN: Final = PAGE_SIZE
_PADDING: Final = [bytes(count) for count in range(GRAIN)]
_SPARE: Final = 6


def data_grains(lengths: PageArray) -> Int64Array:
    """Grains that pieces of these lengths take in the log."""
    return (np.asarray(lengths).astype(np.int64) + GRAIN - 1) >> GRAIN_SHIFT


@dataclass(slots=True)
class Packed:
    """Pages on their way in: their lengths (0 zeros, 4096 plain), and the pieces one after the other."""

    lengths: Int64Array
    data: mmap.mmap | bytes


@dataclass(slots=True)
class Located:
    """Where pages are, as of the start of a load."""

    places: Uint32Array
    lengths: Int64Array
    segments: dict[int, tuple[int, int]] = field(default_factory=dict)


@dataclass(slots=True)
class Compaction:
    """Live pieces of sparse segments on their way into one."""

    victims: list[Segment]
    slots: Int64Array
    places: Uint32Array
    grains: Int64Array
    data: memoryview | None = None


class ZstdStore(SwapStore):
    """Room for `size` stored bytes in memory; how many pages that is depends on what is in them.

    `level` is zstd's; `threads` of zstd's own work on one `write` or `read` (0: the caller's alone).

    Raises TtmError: EINVAL for a size beyond 127 GiB, ENOMEM when the host refuses the address space.
    """

    medium: FileMedium | None = None

    def __init__(self, size: int, level: int = LEVEL, threads: int = 0, name: str = "zstd") -> None:
        if size > MAX_SIZE:
            message = f"a compressed swap store holds {MAX_SIZE >> 30} GiB at most: {size >> 30} GiB is too much"
            raise TtmError(errno.EINVAL, message)
        super().__init__(name, size, min(size >> GRAIN_SHIFT, MAX_SLOTS))
        count = self.slots.num_slots
        self.checksums: Uint32Array = lazy_array(count, np.uint32)
        self._places: Uint32Array = lazy_array(count, np.uint32)
        self._lengths = lazy_array(count, np.uint16)
        self._used_grains = 0
        self._segments = SegmentLog("zstd store", 2 * -(-size // SEGMENT) + _SPARE)
        self._level = level
        self._threads = threads
        self._compressors: list[zstandard.ZstdCompressor] = []
        self._decompressors: list[zstandard.ZstdDecompressor] = []

    @property
    def used(self) -> int:
        return self._used_grains << GRAIN_SHIFT

    @property
    def waste(self) -> int:
        held, live = sum(self._segments.held), sum(self._segments.live)
        return held * SEGMENT - (live << GRAIN_SHIFT)

    # A context is not for two threads at once; they are made as needed and kept.

    @contextlib.contextmanager
    def _compressor(self) -> Iterator[zstandard.ZstdCompressor]:
        try:
            context = self._compressors.pop()
        except IndexError:
            context = zstandard.ZstdCompressor(
                level=self._level, write_checksum=False, write_content_size=False, write_dict_id=False
            )
        yield context
        self._compressors.append(context)

    @contextlib.contextmanager
    def _decompressor(self) -> Iterator[zstandard.ZstdDecompressor]:
        try:
            context = self._decompressors.pop()
        except IndexError:
            context = zstandard.ZstdDecompressor()
        yield context
        self._decompressors.append(context)

    # Storing.

    def _write(self, transfer: StoreTransfer, arena: Arena, pages: PageArray, writeback: bool) -> None:
        for begin in range(0, len(pages), _STEP):
            part = pages[begin : begin + _STEP]
            hashes = transfer.checksums[begin : begin + len(part)]
            page_hashes(arena, part, hashes)
            transfer.payload.append(self._pack(arena, part, hashes))
            transfer.written += len(part)

    def _pack(self, arena: Arena, pages: PageArray, hashes: Uint32Array) -> Packed:
        lengths = np.zeros(len(pages), np.int64)
        zero = [i for i in np.flatnonzero(hashes == ZERO_HASH).tolist() if not arena.mem[pages[i]].any()]
        other = np.delete(np.arange(len(pages)), zero)
        if not other.size:
            return Packed(lengths, b"")
        table = np.empty((other.size, 2), np.uint64)
        table[:, 0] = np.asarray(pages)[other].astype(np.uint64) << np.uint64(PAGE_SHIFT)
        table[:, 1] = PAGE_SIZE
        with self._compressor() as compressor:
            source = zstandard.BufferWithSegments(arena.buf, table.tobytes())
            frames: Any = compressor.multi_compress_to_buffer(source, threads=self._threads)
        parts: list[Any] = []
        total = 0
        for index, offset, frame in zip(other.tolist(), table[:, 0].tolist(), frames, strict=True):
            size = len(frame)
            if size > _WORTH:
                size = _PLAIN
                frame = arena.buf[offset : offset + PAGE_SIZE]  # noqa: PLW2901
            lengths[index] = size
            parts.append(frame)
            parts.append(_PADDING[-size % GRAIN])
            total += size + (-size % GRAIN)
        # Memory of its own, that returns as soon as the pieces are in the log: the heap would keep it.
        data = mmap.mmap(-1, total)
        for part in parts:
            data.write(part)
        return Packed(lengths, data)

    def _commit(self, transfer: StoreTransfer, written: int) -> int:
        done = 0
        for packed in transfer.payload:
            count = min(packed.lengths.size, written - done)
            if count <= 0:
                break
            slots, lengths = transfer.slots[done : done + count], packed.lengths[:count]
            grains = data_grains(lengths)
            charge = np.maximum(grains, 1)
            room = (self.size >> GRAIN_SHIFT) - self._used_grains
            fitting = int(np.searchsorted(np.cumsum(charge), room, side="right"))
            some = np.flatnonzero(grains[:fitting])
            places = self._segments.append(memoryview(packed.data), grains[some], slots[some])
            if places.size < some.size:
                fitting = int(some[places.size])
                some = some[: places.size]
            slots = slots[:fitting]
            self._places[slots[some]] = places
            self._lengths[slots] = lengths[:fitting]
            self.checksums[slots] = transfer.checksums[done : done + fitting]
            self._used_grains += int(charge[:fitting].sum())
            done += fitting
            if fitting < count:
                break
        transfer.payload.clear()
        return done

    # Loading.

    def _locate(self, transfer: LoadTransfer) -> None:
        slots = transfer.slots
        located = Located(self._places[slots], self._lengths[slots].astype(np.int64))
        held = located.lengths != 0
        for number in np.unique(located.places[held] >> np.uint32(PLACE_SHIFT)).tolist():
            segment = self._segments.segments[number]
            located.segments[number] = (segment.slab, segment.block)
        transfer.payload = located
        self._segments.readers += 1

    def _arrived(self, transfer: LoadTransfer) -> None:
        self._segments.readers -= 1
        self._segments.bury()

    def _read(self, transfer: LoadTransfer, arena: Arena, pages: PageArray) -> None:
        for begin in range(0, len(pages), _STEP):
            step = slice(begin, min(begin + _STEP, len(pages)))
            right = np.zeros(step.stop - begin, np.bool_)
            try:
                self._read_step(transfer, step, arena, pages[step], right)
            finally:
                bad = np.flatnonzero(~right)
                transfer.loaded = begin + (int(bad[0]) if bad.size else right.size)
            if bad.size:
                raise self._wrong(int(transfer.slots[transfer.loaded]))

    def _read_step(
        self, transfer: LoadTransfer, step: slice, arena: Arena, pages: PageArray, right: BoolArray
    ) -> None:
        located: Located = transfer.payload
        places, lengths = located.places[step].astype(np.int64), located.lengths[step]
        wanted = self.checksums[transfer.slots[step]]
        zero = np.flatnonzero(lengths == 0)
        arena.zero(pages[zero])
        right[zero] = wanted[zero] == ZERO_HASH
        numbers = np.where(lengths == 0, -1, places >> PLACE_SHIFT)
        offsets = (places & (GRAINS - 1)) << GRAIN_SHIFT
        for number in np.unique(numbers[numbers >= 0]).tolist():
            mine = np.flatnonzero(numbers == number)
            slab, block = located.segments[number]
            if block < 0:
                source, at = self._segments.arena.buf, offsets[mine] + slab * SEGMENT
            else:
                assert self.medium is not None
                low = int(offsets[mine].min())
                high = int((offsets[mine] + lengths[mine]).max())
                source = memoryview(self.medium.read_bytes(block * SEGMENT + low, high - low))
                at = offsets[mine] - low
            self._unpack(source, at, mine, lengths, wanted, arena, pages, right)

    def _unpack(
        self,
        source: memoryview,
        at: Int64Array,
        mine: Int64Array,
        lengths: Int64Array,
        wanted: Uint32Array,
        arena: Arena,
        pages: PageArray,
        right: BoolArray,
    ) -> None:
        """Verify the pieces `mine` that lie in `source` at `at`, and put what is right into its page."""
        there = at + lengths[mine] <= len(source)
        mine, at = mine[there], at[there]
        packed = lengths[mine] != _PLAIN
        found: list[tuple[int, Any]] = [
            (index, source[offset : offset + PAGE_SIZE])
            for index, offset in zip(mine[~packed].tolist(), at[~packed].tolist(), strict=True)
        ]
        found += zip(mine[packed].tolist(), self._decompress(source, at[packed], lengths[mine[packed]]), strict=True)
        buf = arena.buf
        for index, data in found:
            if data is not None and page_hash(data) == wanted[index]:
                begin = int(pages[index]) << PAGE_SHIFT
                buf[begin : begin + PAGE_SIZE] = data
                right[index] = True

    def _decompress(self, source: memoryview, at: Int64Array, lengths: Int64Array) -> list[Any]:
        """One page of bytes per frame, None for one that is broken."""
        if not at.size:
            return []
        table = np.stack((at, lengths), axis=1).astype(np.uint64)
        sizes = np.full(at.size, PAGE_SIZE, np.uint64).tobytes()
        with self._decompressor() as decompressor:
            try:
                frames = zstandard.BufferWithSegments(source, table.tobytes())
                found: Any = decompressor.multi_decompress_to_buffer(
                    frames, decompressed_sizes=sizes, threads=self._threads
                )
                return list(found)
            except zstandard.ZstdError:
                if at.size == 1:
                    return [None]
        # Which one it is, is not said.
        return [self._decompress(source, at[i : i + 1], lengths[i : i + 1])[0] for i in range(at.size)]

    # Dropping.

    def _forget(self, slots: Int64Array) -> None:
        grains = data_grains(self._lengths[slots])
        self._used_grains -= int(np.maximum(grains, 1).sum())
        held = grains > 0
        self._segments.forget(self._places[slots[held]], grains[held])

    def begin_upkeep(self, flush: bool = False) -> object | None:
        if self._closed:
            return None
        victims = self._segments.sparse(False) or self._segments.sparse(True)
        if not victims:
            return None
        for segment in victims:
            segment.busy = True
        slots = np.unique(np.concatenate([part for segment in victims for part in segment.slots])).astype(np.int64)
        slots = slots[self.slots.is_stored(slots) & (self._lengths[slots] != 0)]
        numbers = np.array([segment.number for segment in victims])
        slots = slots[np.isin(self._places[slots] >> np.uint32(PLACE_SHIFT), numbers)]
        places = self._places[slots]
        order = np.argsort(places)
        slots, places = slots[order], places[order]
        return Compaction(victims, slots, places, data_grains(self._lengths[slots]))

    def run_upkeep(self, work: object) -> None:
        assert isinstance(work, Compaction)
        pieces = []
        try:
            for segment in sorted(work.victims, key=lambda segment: segment.number):
                mine = work.places >> np.uint32(PLACE_SHIFT) == segment.number
                rows = np.frombuffer(self._segments.bytes_of(segment, self.medium), f"V{GRAIN}")
                offsets = (work.places[mine] & np.uint32(GRAINS - 1)).astype(np.int64)
                pieces.append(rows[expand(offsets, work.grains[mine])])
            work.data = memoryview(np.concatenate(pieces).view(np.uint8).data)
        except (OSError, IndexError, ValueError) as error:
            # Its pages say so when they are loaded; nothing else can be done with it.
            log.error("the swap store %s could not read its file: %s", self.name, error)
            for segment in work.victims:
                segment.broken = True

    def end_upkeep(self, work: object) -> None:
        assert isinstance(work, Compaction)
        for segment in work.victims:
            segment.busy = False
        if work.data is not None and work.grains.size:
            self._enter(work, work.data)
        for segment in work.victims:
            if not segment.live:
                self._segments.free(segment)

    def _enter(self, work: Compaction, data: memoryview) -> None:
        """The copy stands for what it was made of, except for what was dropped (or stored anew) meanwhile."""
        age = min(segment.age for segment in work.victims)
        total = int(work.grains.sum())
        copy = self._segments.adopt(data, total, age)
        if copy is None:
            return
        starts = (np.cumsum(work.grains) - work.grains).astype(np.uint32)
        places = starts + np.uint32(copy.number << PLACE_SHIFT)
        same = self.slots.is_stored(work.slots) & (self._places[work.slots] == work.places)
        same &= data_grains(self._lengths[work.slots]) == work.grains
        moved = work.slots[same]
        self._places[moved] = places[same]
        copy.slots.append(moved.astype(np.uint32))
        for segment in work.victims:
            segment.busy = True  # not freed on the way
        self._segments.forget(work.places[same], work.grains[same])
        for segment in work.victims:
            segment.busy = False
        self._segments.forget(places[~same], work.grains[~same])

    def place_of(self, handle: int) -> tuple[Segment, int]:
        """Where a stored page lies, if it is not zeros: its segment and the byte in it."""
        place = int(self._places[handle - 1])
        return self._segments.segments[place >> PLACE_SHIFT], (place & (GRAINS - 1)) << GRAIN_SHIFT

    def corrupt(self, handle: int, offset: int = 0, flip: int = 1) -> None:
        """Flip bits of one stored byte in memory: damage on purpose, for who wants to see it found."""
        segment, begin = self.place_of(handle)
        self._segments.arena.buf[segment.slab * SEGMENT + begin + offset] ^= flip

    def check(self) -> None:
        super().check()
        stored = np.flatnonzero(self.slots.is_stored(np.arange(self.slots.num_slots)))
        grains = data_grains(self._lengths[stored])
        assert int(np.maximum(grains, 1).sum()) == self._used_grains, f"{self.name}: the stored bytes are miscounted"
        held = grains > 0
        numbers = self._places[stored[held]] >> np.uint32(PLACE_SHIFT)
        live = np.bincount(numbers, weights=grains[held], minlength=1)
        self._segments.check()
        for segment in self._segments.segments.values():
            expected = int(live[segment.number]) if segment.number < live.size else 0
            assert segment.live == expected, f"{self.name}: segment {segment.number} has {expected} live grains"

    def _close(self) -> None:
        self._segments.arena.close()
