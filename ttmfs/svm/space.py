"""AddressSpace: one shared virtual address space, svm/NAME: offset in the file = address.

The CPU side is `chunks`, made where something was touched (cpu.py serves it); the device side is `table` (fault.py,
migrate.py). `mapping` says per page whether
it is mapped (`rw`, `ro`, `none`), `advice` what madvise said. Nothing is proportional to the size of the space.

`set_size`, `unlink` and `release` never wait (rule R5). What the device still uses of what they drop is given back when
it is done.
"""

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np
import trio
from sortedcontainers import SortedDict

from ttmfs import clock
from ttmfs.errors import TtmError
from ttmfs.memory.arena import Arena
from ttmfs.memory.pool import PagePool
from ttmfs.observe import points
from ttmfs.svm.advice import NO_ADVICE, Advice
from ttmfs.svm.asked import Asked
from ttmfs.svm.chunk import Chunk, DevMem, Move
from ttmfs.svm.counters import SpaceStats, SvmCounters
from ttmfs.svm.intervals import IntervalMap
from ttmfs.svm.looked import LookedAt
from ttmfs.svm.pages import CHUNK_PAGES, CHUNK_SHIFT, index_of, lowest, mask_of
from ttmfs.svm.ranges import RangeTable
from ttmfs.svm.shared import Shared
from ttmfs.svm.views import SpaceView
from ttmfs.ttm import lifetime
from ttmfs.ttm.account import MEMORY, SWAP, Account
from ttmfs.ttm.advice import pages_gone
from ttmfs.ttm.copy import CopyState
from ttmfs.ttm.gate import Gate
from ttmfs.ttm.growth import Growth
from ttmfs.ttm.placement import SYSTEM, VRAM
from ttmfs.ttm.watcher import Watcher
from ttmfs.units import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, pages_of

if TYPE_CHECKING:
    from ttmfs.driver.device import VirtualDevice

MAX_SIZE: Final = 1 << 40
"""1 TiB."""

_UNCOUNTED = 64
"""Chunks that may be uncounted though they are gone."""


class AddressSpace:
    """One space. `private` is what the file system hangs on to it. All offsets and sizes are bytes."""

    __slots__ = (
        "account",
        "advice",
        "asked",
        "blocks",
        "bytes_moved",
        "chunks",
        "cpu_faults",
        "cpu_view",
        "eof_page_read",
        "gate",
        "gpu_faults",
        "group",
        "growth",
        "held_pages",
        "last_error",
        "loading_pages",
        "looked",
        "looked_at",
        "looks_only",
        "mapping",
        "migrations_in",
        "migrations_out",
        "name",
        "pending_jobs",
        "private",
        "reclaim_hand",
        "released",
        "size",
        "stats",
        "stored_pages",
        "svm",
        "table",
        "uncounted",
        "unlinked",
        "vdev",
        "view",
        "watcher",
    )

    def __init__(self, svm: Shared, name: str, account: Account) -> None:
        self.svm = svm
        self.account = account
        """Who pays for what it has."""
        self.group = svm.vdev.ttm.dmem.root
        """Which group is charged for what it gets in a region from now on."""
        self.held_pages = 0
        """System pages, those included that are given back when a job has ended."""
        self.stored_pages = self.loading_pages = 0
        self.vdev: VirtualDevice = svm.vdev
        self.name = name
        self.size = 0
        self.growth: Growth | None = None
        self.private: object = None
        self.view = SpaceView(self, VRAM)
        self.cpu_view = SpaceView(self, SYSTEM)
        self.watcher: Watcher | None = None
        self.chunks: SortedDict[int, Chunk] = SortedDict()
        self.reclaim_hand = 0
        """The chunk where reclaim goes on."""
        self.table = RangeTable(svm.notifier_size)
        self.mapping: IntervalMap[str] = IntervalMap("rw")
        self.advice: IntervalMap[Advice] = IntervalMap(NO_ADVICE)
        self.stats = SpaceStats()
        self.looks_only = False
        """Nobody can store into what READs hand out: see ttmfs.ttm.looking."""
        self.looked = False
        self.looked_at = LookedAt()
        self.blocks = 0
        """Pages that the chunks hold that are not `uncounted`."""
        self.uncounted: list[Chunk] = []
        """Those whose content has changed since `num_blocks` counted it."""
        self.unlinked = False
        self.released = False
        self.gate = Gate()
        self.eof_page_read = False
        """A client may have the page with the end of the file cached and up to date; see ttmfs.ttm.before_reply."""
        self.asked = Asked()
        self.cpu_faults = self.gpu_faults = self.pending_jobs = 0
        self.migrations_in = self.migrations_out = self.bytes_moved = 0
        self.last_error = ""

    # -- what it is made of --------------------------------------------------------------------------------------

    @property
    def pool(self) -> PagePool:
        """Where system pages come from."""
        return self.vdev.pool

    @property
    def arena(self) -> Arena:
        """The memory that they number."""
        return self.vdev.pool.arena

    @property
    def num_pages(self) -> int:
        """Pages that the size needs."""
        return pages_of(self.size)

    @property
    def counters(self) -> SvmCounters:
        """Of all spaces."""
        return self.svm.counters

    def need_chunk(self, number: int) -> Chunk:
        """The chunk, made now if there is none."""
        chunk: Chunk | None = self.chunks.get(number)
        if chunk is None:
            chunk = self.chunks[number] = Chunk(self, number)
        return chunk

    def used(self, chunk: Chunk) -> None:
        """Somebody has just used its system pages: they go to the store after all others."""
        warmth = self.svm.warmth
        warmth[chunk] = self
        warmth.move_to_end(chunk)

    def tidy(self, chunk: Chunk) -> None:
        """Forget a chunk that has nothing to remember."""
        if chunk.empty and self.chunks.get(chunk.number) is chunk:
            del self.chunks[chunk.number]
            self.svm.warmth.pop(chunk, None)
            if len(self.uncounted) > _UNCOUNTED + 2 * len(self.chunks):
                self.num_blocks()

    @staticmethod
    def masks(first: int, end: int) -> Iterator[tuple[int, int]]:
        """(chunk number, mask) of the pages [first, end)."""
        while first < end:
            number = first >> CHUNK_SHIFT
            stop = min(end, (number + 1) << CHUNK_SHIFT)
            yield number, mask_of(first & (CHUNK_PAGES - 1), stop - first)
            first = stop

    def pieces(self, first: int, end: int) -> Iterator[tuple[Chunk, int]]:
        """(chunk, mask) of the pages [first, end), of the chunks that there are."""
        if first >= end:
            return
        low, high = first >> CHUNK_SHIFT, (end - 1) >> CHUNK_SHIFT
        if low == high:
            chunk = self.chunks.get(low)
            if chunk is not None:
                yield chunk, mask_of(first & (CHUNK_PAGES - 1), end - first)
            return
        for number in list(self.chunks.irange(low, high)):
            chunk = self.chunks.get(number)
            if chunk is None:
                continue
            start = max(first - chunk.first_page, 0)
            yield chunk, mask_of(start, min(end - chunk.first_page, CHUNK_PAGES) - start)

    def held(self, number: int) -> int:
        """Mask of a chunk's pages that have memory somewhere."""
        chunk = self.chunks.get(number)
        return 0 if chunk is None else chunk.populated()

    def mapped_mask(self, number: int, mask: int) -> int:
        """Those of these pages of a chunk that are mapped; `mask` has at least one."""
        if not len(self.mapping):
            return mask
        base = number << CHUNK_SHIFT
        for start, end, mode in self.mapping.pieces(base + lowest(mask), base + mask.bit_length()):
            if mode == "none":
                mask &= ~mask_of(start - base, end - start)
        return mask

    def map_holes(self, first: int, end: int) -> None:
        """A CPU store maps unmapped pages anew."""
        if len(self.mapping):
            for start, stop, mode in list(self.mapping.pieces(first, end)):
                if mode == "none":
                    self.mapping.set(start, stop, "rw")

    def move_of(self, first: int, end: int, state: CopyState | None = None) -> Move | None:
        """A move that has one of these pages on its way (its copy in `state`)."""
        for chunk, mask in self.pieces(first, end):
            for move in chunk.moves:
                if move.live & mask and (state is None or move.copy.state is state):
                    return move
        return None

    def alloc_of(self, first: int, end: int) -> DevMem | None:
        """The allocation that holds the first of these pages that is in VRAM."""
        for chunk, mask in self.pieces(first, end):
            if chunk.allocs and (devmem := chunk.alloc_of(mask)) is not None:
                return devmem
        return None

    # -- its size ------------------------------------------------------------------------------------------------

    def set_size(self, size: int) -> None:
        """ftruncate: at once, waiting for nobody. TtmError(EFBIG) beyond 1 TiB, EINVAL below 0."""
        self.resize(size)
        if self.growth is not None:
            self.growth.settled = size

    def resize(self, size: int) -> None:
        """As `set_size`, also of a WRITE past the end that may still fail (see ttmfs.ttm.growth)."""
        if size > MAX_SIZE:
            raise TtmError(errno.EFBIG, f"{size} bytes: an address space has at most {MAX_SIZE} (1 TiB)")
        if size < 0:
            raise TtmError(errno.EINVAL, f"{size} bytes is no size")
        old_pages, old_size = self.num_pages, self.size
        self.size = size
        if size >= old_size:
            return
        first = self.num_pages
        if size & PAGE_MASK:
            page = size >> PAGE_SHIFT
            # It may be cached from when it was in the middle.
            self.eof_page_read |= self.handed_out(page, page + 1)
            chunk = self.chunks.get(page >> CHUNK_SHIFT)
            if chunk is not None:
                chunk.cut_page(page & (CHUNK_PAGES - 1), size & PAGE_MASK)
        if first < old_pages:
            self.drop(first, old_pages, "truncate")
            for chunk, mask in self.pieces(first, old_pages):
                # The kernel drops these from its cache by itself.
                chunk.handed &= ~mask
                self.tidy(chunk)
            self.looked_at.take(first, MAX_SIZE >> PAGE_SHIFT)
            self.mapping.set(first, MAX_SIZE >> PAGE_SHIFT, "rw")
            self.advice.set(first, MAX_SIZE >> PAGE_SHIFT, NO_ADVICE)
            self.table.collect()

    def drop(self, first: int, end: int, why: str) -> None:
        """Pages [first, end) become holes, and the ranges that had any of them are void."""
        self.invalidate(first, end, why, unmap=True)
        prefetcher = self.vdev.ttm.prefetcher
        for chunk, mask in self.pieces(first, end):
            if chunk.populated() & mask:
                page, count = chunk.first_page + lowest(mask), mask.bit_count()
                pages_gone(prefetcher, self.view, page, count)
                pages_gone(prefetcher, self.cpu_view, page, count)
            chunk.drop(mask)
            self.tidy(chunk)

    # -- invalidation --------------------------------------------------------------------------------------------

    def invalidate(self, first: int, end: int, why: str, *, unmap: bool = False) -> int:
        """What the device knows of pages [first, end) is void (the notifier's callback); returns ranges zapped."""
        started = clock.monotonic_ns()
        zapped = self.table.invalidate(first, end, unmap=unmap)
        if zapped:
            counters = self.svm.counters
            counters.invalidations += zapped
            self.stats.add("svm_tlb_inval_count")
            self.stats.add("svm_tlb_inval_us", (clock.monotonic_ns() - started) // 1000)
            points.svm_invalidate(self.vdev.ttm.trace, self, first=first, pages=end - first, ranges=zapped, why=why)
        if self.table.garbage:
            self.svm.garbage_listed()
        return zapped

    def handed_out(self, first: int, end: int) -> bool:
        """May a client have one of these pages cached?"""
        if self.looked_at.any(first, end):
            return True
        return any(chunk.handed & mask for chunk, mask in self.pieces(first, end))

    async def drop_looked(self) -> None:
        """Nobody has zeros cached that were only looked at when this returns."""
        await self.flush(0, self.num_pages)

    async def flush(self, first: int, end: int) -> bool:
        """Drop pages [first, end) from the clients' caches, dirty ones are written back first; False: none was there.

        Only from the first to the last that was handed out. Requests of these pages that wait are woken and served from
        where the bytes are. Never cancelled half way, never raises.
        """
        low, high = self.looked_at.take(first, end)
        for chunk, mask in self.pieces(first, end):
            handed = chunk.handed & mask
            if handed:
                low = min(low, chunk.first_page + lowest(handed))
                high = max(high, chunk.first_page + handed.bit_length())
                chunk.handed &= ~mask
                chunk.touch(handed)
        for pages in self.gate.outstanding:
            # Its writeback may still be on the way: wait for it, by one more.
            if pages.start < end and first < pages.stop:
                low, high = min(low, max(pages.start, first)), max(high, min(pages.stop, end))
        if low >= high:
            return False
        unmapped = range(low, high)
        self.gate.begin_unmapping(unmapped)
        self.svm.counters.unmaps += 1
        try:
            with trio.CancelScope(shield=True):
                await self.svm.unmapper.invalidate(self, low, high - low)
        finally:
            self.gate.end_unmapping(unmapped)
            for chunk, _mask in self.pieces(low, high):
                self.tidy(chunk)
        return True

    # -- the device ----------------------------------------------------------------------------------------------

    def check_alive(self) -> None:
        """TtmError(EFAULT) once it has no name."""
        if self.unlinked or self.released:
            raise TtmError(errno.EFAULT, f"the address space {self.name} was unlinked: its device side is gone")

    def collect_garbage(self) -> int:
        """xe_svm_garbage_collector: remove ranges whose mapping has gone."""
        return self.table.collect()

    def migrated(self, first: int, num_pages: int, moved: int, why: str, *, into_vram: bool) -> None:
        """Count and trace a migration that has ended."""
        counters = self.svm.counters
        direction = "in" if into_vram else "out"
        label = "device_copy_kb" if into_vram else "cpu_copy_kb"
        self.stats.add_sized(num_pages, label, moved << (PAGE_SHIFT - 10))
        self.bytes_moved += moved << PAGE_SHIFT
        if into_vram:
            self.migrations_in += 1
            counters.migrations_in += 1
            counters.bytes_in += moved << PAGE_SHIFT
            self.stats.add_sized(num_pages, "migrate_count")
        else:
            self.migrations_out += 1
            counters.migrations_out += 1
            counters.bytes_out += moved << PAGE_SHIFT
            pages_gone(self.vdev.ttm.prefetcher, self.view, first, num_pages)
        size = moved << PAGE_SHIFT
        points.svm_migrate(self.vdev.ttm.trace, self, first=first, dir=direction, bytes=size, why=why)

    def set_account(self, account: Account) -> None:
        """`account` pays for it from now on, also for what it has in memory and in VRAM."""
        for who, sign in ((self.account, -1), (account, 1)):
            who.charge(MEMORY, sign * self.held_pages)
            who.charge(SWAP, sign * self.stored_pages)
            who.charge_flight(sign * self.loading_pages)
        self.account = account
        for chunk in self.chunks.values():
            for devmem in (*chunk.allocs, *(move.devmem for move in chunk.moves)):
                lifetime.set_account(devmem.bo, account)

    def unlink(self) -> None:
        """No name any more: the device side answers EFAULT from now on, also calls in flight."""
        self.unlinked = True

    def release(self) -> None:
        """The name and the last opener and mapping are gone: everything is given back, as soon as it is idle."""
        if self.released:
            return
        self.unlinked = self.released = True
        self.drop(0, MAX_SIZE >> PAGE_SHIFT, "release")
        self.table.collect()
        self.size = 0
        for chunk in list(self.chunks.values()):
            chunk.handed = 0
            self.tidy(chunk)
        self.gate.wake()
        self.svm.forget(self)

    # -- looking at it -------------------------------------------------------------------------------------------

    def snapshot(self, first_page: int, count: int) -> bytes:
        """One letter per page: `.` nothing, `s` system, `b` in the store, `v` VRAM, `m` on its way; up to the end."""
        count = max(0, min(count, self.num_pages - first_page))
        letters = np.full(count, ord("."), np.uint8)
        for chunk, mask in self.pieces(first_page, first_page + count):
            moving = 0
            for move in chunk.moves:
                moving |= move.live
            places = (("s", chunk.pages.present), ("b", chunk.in_store), ("v", chunk.vram()), ("m", moving))
            for letter, found in places:
                if found & mask:
                    letters[index_of(found & mask) + (chunk.first_page - first_page)] = ord(letter)
        return letters.tobytes()

    def num_blocks(self) -> int:
        """Pages that hold something, wherever: counted anew only where that has changed since it was last asked."""
        for chunk in self.uncounted:
            self.blocks += chunk.count()
        self.uncounted.clear()
        return self.blocks

    def stats_text(self) -> str:
        """`name: value` lines with the names of xe's gt stats."""
        return self.stats.text()


assert PAGE_SIZE << CHUNK_SHIFT == 2 << 20
