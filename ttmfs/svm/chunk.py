"""Chunk: 2 MiB of an address space, and where each of its pages is (the PTEs of the CPU side).

A page is in exactly one place: in system memory (`pages`), in the swap store (`stored`), in a VRAM allocation
(`allocs`), on its way into VRAM (the source is with the `Move`, until its copy has ended), or nowhere: a hole, which
reads as zeros. Ranges are aligned and
at most this large, so no allocation and no move ever crosses a chunk. Chunks own their allocations and moves; a space
is known here only as the Owner that it is to them.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from ttmfs.memory.arena import Arena
from ttmfs.memory.copy import copy_pages, copy_run, zero_pages
from ttmfs.svm.counters import SpaceStats, SvmCounters
from ttmfs.svm.pages import CHUNK_PAGES, CpuPages, Pages, Payer, free_pages, lowest, run_length
from ttmfs.svm.ram import HOLE, Ram
from ttmfs.svm.stored import Stored
from ttmfs.sync.fence import Fence
from ttmfs.ttm import lifetime
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.copy import Copy, CopyState
from ttmfs.ttm.resource import Resource
from ttmfs.units import PAGE_MASK, PAGE_SHIFT

if TYPE_CHECKING:
    from ttmfs.driver.device import VirtualDevice

_COUNTS: Final = tuple(range(CHUNK_PAGES + 1))
"""One object for each number, however many chunks count so many pages."""


class Owner(Payer, Protocol):
    """What an address space is to its chunks, and to whoever moves their pages."""

    vdev: "VirtualDevice"
    stats: SpaceStats
    blocks: int
    """Pages that hold something, of all chunks but the uncounted."""
    uncounted: "list[Chunk]"
    """Chunks that have changed since."""

    @property
    def arena(self) -> Arena:
        """The memory that numbers of system pages mean."""

    @property
    def counters(self) -> SvmCounters:
        """Of all spaces."""

    def tidy(self, chunk: "Chunk") -> None:
        """Forget a chunk that has nothing to remember."""

    def used(self, chunk: "Chunk") -> None:
        """Somebody has just used its system pages: they go to the store after all others."""

    def invalidate(self, first: int, end: int, why: str, *, unmap: bool = False) -> int:
        """What the device knows of pages [first, end) is void."""

    def migrated(self, first: int, num_pages: int, moved: int, why: str, *, into_vram: bool) -> None:
        """Count and trace a migration that has ended."""


class Chunk:
    """Chunk `number` of a space: its pages are [number * 512, number * 512 + 512). All masks are of these 512 pages."""

    __slots__ = ("allocs", "counted", "fences", "handed", "moves", "number", "pages", "space", "stored", "users")

    def __init__(self, space: Owner, number: int) -> None:
        self.space = space
        self.number = number
        self.pages = CpuPages()
        self.allocs: tuple[DevMem, ...] = ()
        self.moves: tuple[Move, ...] = ()
        self.counted = 0
        """Pages that it holds, as far as the space counts them; -1 while it is `uncounted` there."""
        self.handed = 0
        """Pages that a READ or WRITE was answered with since they were last invalidated: clients may cache them."""
        self.fences: tuple[tuple[int, Fence], ...] = ()
        """(mask, fence) of jobs that use system pages."""
        self.users = 0
        """Migrations that are being prepared: it is not forgotten meanwhile, and nothing of it goes to the store."""
        self.stored: Stored | None = None

    @property
    def first_page(self) -> int:
        """The page of the space where it begins."""
        return self.number * CHUNK_PAGES

    @property
    def empty(self) -> bool:
        """Nothing to remember."""
        if self.pages.present or self.allocs or self.moves or self.handed or self.users:
            return False
        return (self.stored is None or self.stored.empty) and not self.busy(-1)

    def vram(self) -> int:
        """Mask of the pages that are in VRAM."""
        mask = 0
        for devmem in self.allocs:
            mask |= devmem.present
        return mask

    def moving_in(self) -> int:
        """Mask of the pages that are on their way into VRAM."""
        mask = 0
        for move in self.moves:
            if move.into_vram:
                mask |= move.live
        return mask

    def populated(self) -> int:
        """Mask of the pages that hold something, wherever."""
        mask = self.pages.present | self.in_store | self.vram()
        for move in self.moves:
            if move.into_vram:
                mask |= move.ram.present & move.live
        return mask

    @property
    def in_store(self) -> int:
        """Mask of the pages that are in the swap store."""
        return 0 if self.stored is None else self.stored.handles.present

    def need_stored(self) -> Stored:
        """What it has in the store, made now if there is none."""
        if self.stored is None:
            store = self.space.vdev.ttm.swap_store
            assert store is not None
            self.stored = Stored(self.space, store)
        return self.stored

    def touch(self, mask: int) -> None:
        """These system pages were used, or go elsewhere: what is being stored of them is not what they hold."""
        if self.stored is not None:
            self.stored.touch(mask)

    def changed(self) -> None:
        """It has other pages than before, or has them elsewhere."""
        if self.counted >= 0:
            self.space.blocks -= self.counted
            self.counted = -1
            self.space.uncounted.append(self)

    def count(self) -> int:
        """Pages that hold something, wherever."""
        self.counted = _COUNTS[self.populated().bit_count()]
        return self.counted

    def move_of(self, mask: int) -> "Move | None":
        """A move, in either direction, that has one of these pages on its way."""
        for move in self.moves:
            if move.live & mask:
                return move
        return None

    def alloc_of(self, mask: int) -> "DevMem | None":
        """The allocation that holds the lowest of these pages that is in VRAM."""
        found = mask & self.vram()
        if not found:
            return None
        bit = found & -found
        return next(devmem for devmem in self.allocs if devmem.present & bit)

    def busy(self, mask: int) -> tuple[Fence, ...]:
        """Fences of the jobs that use these system pages (-1: any)."""
        if not self.fences:
            return ()
        self.fences = tuple(entry for entry in self.fences if not entry[1].signaled)
        return tuple(fence for used, fence in self.fences if used & mask)

    def busy_pages(self) -> int:
        """Mask of the system pages that jobs use."""
        mask = 0
        for used, fence in self.fences:
            mask |= 0 if fence.signaled else used
        return mask

    @property
    def name(self) -> str:
        """For messages."""
        return f"svm:{self.space.name} chunk {self.number}"

    def system_pages(self) -> Pages:
        """All system pages that it has, those included that its moves have, and what comes back from the store."""
        parts = [self.pages.numbers(self.pages.present), *(move.system_pages() for move in self.moves)]
        parts += [] if self.stored is None else [load.pages for load in self.stored.loading]
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    # -- bytes -----------------------------------------------------------------------------------------------------

    def locate(self, index: int, count: int) -> tuple[Arena | None, int, int]:
        """(arena, page number, length) of the run of pages from `index` on, as they are now; no arena: a hole."""
        bit = 1 << index
        pages = self.pages
        if pages.present & bit:
            page, length = pages.extent(index, count)
            return self.space.arena, page, length
        for devmem in self.allocs:
            if devmem.present & bit:
                count = min(count, run_length(devmem.present, index))
                page, length = devmem.resource.extent(index - devmem.first, count)
                return devmem.resource.arena, page, length
        for move in self.moves:
            if move.into_vram and move.live & bit:
                return move.locate(index, min(count, run_length(move.live, index)))
        assert not self.in_store >> index & 1, "what is in the store is loaded before its bytes are touched"
        known = (pages.present | self.in_store | self.vram() | self.moving_in()) >> index
        return None, HOLE, min(count, lowest(known)) if known else count

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill `view` with the bytes from `offset` of the chunk on; holes are left as they are."""
        for at, memory in self._memory(offset, len(view)):
            view[at : at + len(memory)] = memory

    def write_from(self, view: memoryview, offset: int) -> None:
        """Put these bytes where each page is now. Holes are passed over: the caller has filled them, or means them."""
        for at, memory in self._memory(offset, len(view)):
            memory[:] = view[at : at + len(memory)]

    def _memory(self, offset: int, size: int) -> Iterator[tuple[int, memoryview]]:
        """(where in the `size` bytes from `offset` on, the memory that holds them), run by run, without holes."""
        done = 0
        end = (offset + size + PAGE_MASK) >> PAGE_SHIFT
        while done < size:
            index = (offset + done) >> PAGE_SHIFT
            skip = (offset + done) & PAGE_MASK
            arena, page, length = self.locate(index, end - index)
            take = min(size - done, (length << PAGE_SHIFT) - skip)
            if arena is not None:
                start = (page << PAGE_SHIFT) + skip
                yield done, arena.buf[start : start + take]
            done += take

    # -- losing pages ------------------------------------------------------------------------------------------------

    def drop(self, mask: int) -> None:
        """These pages become holes, at once. What the device still uses of them is freed when it is done."""
        self.changed()
        if self.stored is not None:
            self.stored.drop(mask)
        gone = self.pages.present & mask
        if gone:
            fences = self.busy(gone)
            free_pages(self.space, self.pages.take(gone), fences)
        for move in self.moves:
            move.live &= ~mask
        for devmem in self.allocs:
            devmem.drop(mask)

    def cut_page(self, index: int, skip: int) -> None:
        """Zero page `index` from byte `skip` of it on, wherever it is, also where a copy is carrying it."""
        for move in self.moves:
            if move.live >> index & 1 and move.copy.state is CopyState.RUNNING:
                move.cut.append((index, skip))
        if self.stored is not None and self.stored.cut(index, skip):
            return
        arena, page, _length = self.locate(index, 1)
        if arena is not None:
            arena.mem[page, skip:] = 0


class DevMem:
    """VRAM for pages [first, first + num_pages) of a chunk, all or part of which are `present` (a mask of the chunk).

    An ordinary BO with a chunk around it (drm_pagemap_devmem, its zdd, and xe's SVM BO in one). It dies when the last
    page has gone: back to system, or unmapped. Nothing is present until the copy into it has ended. Protected by the
    reservation of `bo`, except that pages may be dropped at any time.
    """

    __slots__ = ("bo", "chunk", "dead", "expires", "first", "num_pages", "present")

    def __init__(self, bo: BufferObject, chunk: "Chunk", first: int, num_pages: int) -> None:
        self.bo = bo
        self.chunk = chunk
        self.first = first
        self.num_pages = num_pages
        self.present = 0
        self.expires = 0.0
        """Until then, on trio's clock, CPU faults leave it where it is (the timeslice of atomics)."""
        self.dead = False
        bo.private = bo.named = self

    @property
    def path(self) -> str:
        """The name of the BO, made when somebody asks for it."""
        return f"svm:{self.chunk.space.name}@{self.first_page << PAGE_SHIFT:#x}"

    @property
    def first_page(self) -> int:
        """The page of the space where it begins."""
        return self.chunk.first_page + self.first

    @property
    def resource(self) -> Resource:
        """The space it has."""
        assert self.bo.resource is not None
        return self.bo.resource

    def arrived(self, live: int) -> None:
        """The copy into it has ended: these pages are here from now on."""
        if not live or self.dead:
            self.release()
            return
        self.present = live
        self.chunk.changed()
        self.chunk.allocs = (*self.chunk.allocs, self)

    def drop(self, mask: int) -> None:
        """These pages are here no more; with the last one it dies."""
        if self.dead or not self.present & mask:
            return
        self.present &= ~mask
        self.chunk.changed()
        if not self.present:
            self.release()

    def release(self) -> None:
        """devmem_release: the BO goes now, or when it is unreserved and idle."""
        if self.dead:
            return
        self.dead = True
        self.present = 0
        self.chunk.changed()
        self.chunk.allocs = tuple(other for other in self.chunk.allocs if other is not self)
        lifetime.release(self.bo)


class Move:
    """Pages of one allocation on their way between system and VRAM, behind the fence of their copy.

    `ram` is the system side: into VRAM the source, whose pages have left the chunk's own (what has none there is a
    hole), out of it the target (what has none stays). `live` is the mask of pages for which the move still counts: what
    is unmapped meanwhile leaves it.
    """

    __slots__ = ("chunk", "copy", "cut", "devmem", "into_vram", "live", "ram")

    copy: Copy

    def __init__(self, devmem: DevMem, live: int, ram: Ram, *, into_vram: bool) -> None:
        self.devmem = devmem
        self.chunk = devmem.chunk
        self.live = live
        self.ram = ram
        self.into_vram = into_vram
        self.cut: list[tuple[int, int]] = []
        """(page of the chunk, byte): cut off by a truncate while bytes moved."""

    def locate(self, index: int, count: int) -> tuple[Arena | None, int, int]:
        """As Chunk.locate, of a move into VRAM: its source."""
        page, length = self.ram.locate(index, count)
        return None if page == HOLE else self.chunk.space.arena, page, length

    def system_pages(self) -> Pages:
        """Its source, or its target, in system."""
        return self.ram.pages(self.ram.present)

    def fill_holes(self, mask: int, pages: Pages) -> None:
        """Into VRAM, before the copy begins: memory for these holes, so that they can be written."""
        self.ram.put(mask, pages)
        self.chunk.changed()

    def step(self, index: int, count: int) -> None:
        """Copy `count` pages from page `index` of the allocation on; synchronous."""
        space, resource = self.chunk.space, self.devmem.resource
        if self.ram.run >= 0 and resource.start >= 0:
            one, two = self.ram.run + index, resource.start + index
            if self.into_vram:
                copy_run(resource.arena, two, space.arena, one, count)
            else:
                copy_run(space.arena, one, resource.arena, two, count)
            return
        ram = self.ram.part(index, count)
        vram = resource.numbers(index, count)
        at = np.flatnonzero(ram)
        if len(at) == count:
            self._copy(space.arena, ram - np.uint32(1), resource, vram)
            return
        if len(at):
            self._copy(space.arena, ram[at] - np.uint32(1), resource, vram[at])
        if self.into_vram:
            zero_pages(resource.arena, vram[ram == 0])

    def _copy(self, arena: Arena, ram: Pages, resource: Resource, vram: Pages) -> None:
        if self.into_vram:
            copy_pages(resource.arena, vram, arena, ram)
        else:
            copy_pages(arena, ram, resource.arena, vram)

    def finish(self) -> None:
        """The bytes are there: cut off what a truncate took meanwhile."""
        for index, skip in self.cut:
            at = index - self.devmem.first
            if self.into_vram:
                self.devmem.resource.arena.mem[self.devmem.resource.numbers(at, 1)[0], skip:] = 0
            elif self.ram.has(index):
                self.chunk.space.arena.mem[self.ram.locate(index, 1)[0], skip:] = 0

    def done(self, fence: Fence) -> None:
        """The copy's fence has signaled: the pages are in their new place, or, if it failed, still in the old one."""
        chunk, devmem = self.chunk, self.devmem
        chunk.changed()
        chunk.moves = tuple(move for move in chunk.moves if move is not self)
        failed = fence.error != 0
        with_ram = self.ram.present
        # Into system, or back into it: these get their RAM page.
        stays = self.live & with_ram if self.into_vram == failed else 0
        if stays:
            self.ram.give(stays, chunk.pages)
            chunk.space.used(chunk)
        rest = with_ram & ~stays
        if rest:
            free_pages(chunk.space, self.ram.pages(rest))
        if failed:
            # Its bytes are where they were, so nothing is lost.
            devmem.bo.unknown_state = False
            if self.into_vram:
                devmem.release()
        elif self.into_vram:
            devmem.arrived(self.live)
        else:
            devmem.drop(self.live)
        chunk.space.tidy(chunk)
