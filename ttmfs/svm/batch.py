"""Batch: ranges that follow each other and migrate together, where nobody is in the way.

What one range costs beside its bytes, waking the engine and waiting for it, locks, a fence, a look at clients' caches,
frames that change hands, is spent once for some of them. A batch takes what is free and waits for nothing but its copy
(and INVAL): it evicts nothing, and where somebody uses a range, or it is partly elsewhere, it ends before that range.
Whatever it leaves over goes one by one (alloc_vram, range_evict), which has its way, or says why it has not.
"""

from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import TYPE_CHECKING, Final

import numpy as np

from ttmfs import clock
from ttmfs.errors import TtmError
from ttmfs.svm.chunk import Chunk, DevMem
from ttmfs.svm.devmem import came_back, outgoing, submit_moves
from ttmfs.svm.find import find_or_insert
from ttmfs.svm.migrate import FaultTally, Incoming, close_gate, inside_one
from ttmfs.svm.pages import CHUNK_PAGES, FULL, take_pages
from ttmfs.svm.ranges import Range
from ttmfs.sync.breather import Breather
from ttmfs.sync.resv import Usage
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.move import IDLE_TIMEOUT
from ttmfs.ttm.placement import SYSTEM, Place, PlaceFlag
from ttmfs.ttm.validate import validate
from ttmfs.units import PAGE_SIZE

if TYPE_CHECKING:
    from ttmfs.svm.space import AddressSpace

MOST_RANGES: Final = 16
"""Requests of a range on its way wait for the copy of all: a millisecond if frames change hands, some if they are
copied."""


def batch_of(space: "AddressSpace", found: Range, end: int, region: str, alike: Callable[[int], bool]) -> list[Range]:
    """`found` and the ranges behind it that can go to `region` with it, up to page `end`; made where there are none.

    Each begins where the one before ends, with a page that is mapped and `alike`, and nobody is in its way. `found`
    alone where failures or a link are simulated: those strike, and are spent for, each range by itself.
    """
    ranges = [found]
    vdev = space.vdev
    inject = vdev.ttm.inject
    if vdev.link.bandwidth or vdev.link.latency or any(inject[place].probability for place in inject):
        return ranges
    if region not in (SYSTEM, *space.svm.regions):
        return ranges
    may_go = _may_come_back if region == SYSTEM else _may_migrate
    room = _room(space, region) - found.num_pages
    while room >= 0 and may_go(space, ranges[-1]) and len(ranges) < MOST_RANGES and (page := ranges[-1].end) < end:
        if space.mapping.interval(page, end)[2] == "none" or not alike(page):
            break
        ranges.append(find_or_insert(space, page, write=False))
        room -= ranges[-1].num_pages
    return ranges


def _may_migrate(space: "AddressSpace", found: Range) -> bool:
    return found.num_pages >= space.svm.policy.threshold_pages and _is_free(space, found)


def _may_come_back(space: "AddressSpace", found: Range) -> bool:
    """Has it memory for all pages, of which no copy is under way?"""
    chunk = space.chunks.get(found.chunk)
    if found.unmapped or chunk is None or chunk.moves:
        return False
    return not found.mask & ~(chunk.vram() | chunk.pages.present)


def _room(space: "AddressSpace", region: str) -> int:
    """Pages that a region has free."""
    if region == SYSTEM:
        return space.pool.free_pages
    manager = space.vdev.ttm.managers[region]
    return (manager.size - manager.usage) // PAGE_SIZE


async def into_region(space: "AddressSpace", ranges: list[Range], region: str, tally: FaultTally, why: str) -> int:
    """Ranges of a batch to the device's memory. How many of the first ones are there and bound; 0: none was moved.

    TtmError never. Cancelled, it leaves what is on its way there: it arrives when the copy ends.
    """
    started = clock.monotonic_ns()
    incoming: list[Incoming] = []
    breather = Breather()
    async with space.svm.migrate_lock:
        try:
            for found in ranges:
                if not _may_migrate(space, found) or not await _take_room(space, found, region, tally, incoming):
                    break
                await breather.step()
            going = await _invalidated(space, incoming)
            if not going:
                return 0
            copying = clock.monotonic_ns()
            fence = close_gate(going)
            await fence.wait(space.vdev.ttm.fault_timeout)
            _share(space, ranges[: len(going)], "device_copy_us", copying)
            _share(space, ranges[: len(going)], "migrate_us", started)
            for one in going:
                if one.devmem.present:
                    one.arrived(why)
                else:
                    space.svm.counters.migrations_failed += 1
            return _bind(space, [one.found for one in going], _is_in_one)
        finally:
            for one in incoming:
                one.end()


async def _take_room(
    space: "AddressSpace", found: Range, region: str, tally: FaultTally, incoming: list[Incoming]
) -> bool:
    """One more that comes in, if nobody has to go for it."""
    if _room(space, region) < found.num_pages:
        return False
    one = Incoming(space, found)
    incoming.append(one)
    one.bo.resv.trylock()
    ctx = OperationContext(no_wait_gpu=True, resv=one.bo.resv, done=tally.ctx.done)
    try:
        await validate(one.bo, (Place(region, flags=PlaceFlag.DESIRED),), ctx)
        one.bo.resv.reserve_fences(1)
    except TtmError:
        incoming.pop().end()
        return False
    one.has_room()
    return True


async def _invalidated(space: "AddressSpace", incoming: list[Incoming]) -> list[Incoming]:
    """The first ones, of which no client has a page cached now and that nobody uses; the others are given up. None if
    they are fewer than two. When it returns nothing was awaited since that was so."""
    if len(incoming) < 2:
        return []
    await space.flush(incoming[0].found.first, incoming[-1].found.end)
    ttm = space.vdev.ttm
    if space.unlinked or ttm.unplugged or ttm.suspended:
        return []
    going = list(takewhile(lambda one: _is_free(space, one.found) and not _is_cached(space, one.found), incoming))
    while len(incoming) > len(going):
        incoming.pop().end()
    return going


def _is_free(space: "AddressSpace", found: Range) -> bool:
    """Is all of a range in system, and not used by jobs?"""
    if found.unmapped:
        return False
    chunk, mask = space.chunks.get(found.chunk), found.mask
    if chunk is None:
        return True
    return not ((chunk.vram() | chunk.in_store) & mask or chunk.move_of(mask) or chunk.busy(mask))


def _is_cached(space: "AddressSpace", found: Range) -> bool:
    return space.handed_out(found.first, found.end) or space.gate.unmaps(found.first, found.num_pages)


async def to_system(space: "AddressSpace", ranges: list[Range], tally: FaultTally, why: str) -> int:
    """Ranges of a batch to system. How many of the first ones are there, with memory for all pages, and bound.

    TtmError never. Cancelled, it leaves what is on its way there.
    """
    held: dict[DevMem, int] = {}
    try:
        for found in ranges:
            if not _hold(space, found, held):
                break
        count = sum(live.bit_count() for live in held.values())
        if count and not space.vdev.ttm.can_spare(count):
            return 0
        if count:
            await _copy_out(space, held, count, tally, why)
        return _bind(space, ranges, _is_in_system)
    finally:
        for devmem in held:
            devmem.bo.unlock()


def _hold(space: "AddressSpace", found: Range, held: dict[DevMem, int]) -> bool:
    """Reserve the allocations of a range; False where one is not idle, or the range may not come back so."""
    if not _may_come_back(space, found):
        return False
    for devmem in space.chunks[found.chunk].allocs:
        if not devmem.present & found.mask or devmem in held:
            continue
        if not devmem.bo.resv.trylock():
            return False
        if not devmem.bo.resv.test_signaled(Usage.BOOKKEEP):
            devmem.bo.unlock()
            return False
        held[devmem] = devmem.present
    return True


async def _copy_out(
    space: "AddressSpace", held: dict[DevMem, int], count: int, tally: FaultTally, why: str
) -> None:
    """Reserved allocations, `count` pages in all, to fresh pages; up to the wait in one step."""
    pages = take_pages(space, count, zero=False, unlimited=True)
    moves = []
    for first, end in _stretches(held):
        space.invalidate(first, end, why)
    # Whole chunks first, so that each has a frame; in the order of their other side, so that both are a run.
    chunks = [devmem for devmem, live in held.items() if live == FULL]
    chunks.sort(key=lambda devmem: devmem.resource.start)
    whole = pages[: len(chunks) * CHUNK_PAGES].reshape(-1, CHUNK_PAGES)
    pages[: whole.size] = whole[np.argsort(whole[:, 0])].ravel()
    for devmem in dict.fromkeys((*chunks, *held)):
        live = held[devmem]
        part, pages = pages[: live.bit_count()], pages[live.bit_count() :]
        devmem.bo.resv.reserve_fences(1)
        moves.append(outgoing(devmem, live, part))
    started = clock.monotonic_ns()
    fence = submit_moves(space.vdev, moves, ())
    space.vdev.ttm.note_pressure()
    await fence.wait(IDLE_TIMEOUT)
    if not fence.signaled or fence.error:
        return
    us = (clock.monotonic_ns() - started) // 1000 // len(held)
    for devmem, live in held.items():
        came_back(devmem, live, why, tally.ctx)
        space.stats.add_sized(devmem.num_pages, "cpu_copy_us", us)


def _stretches(held: dict[DevMem, int]) -> Iterator[tuple[int, int]]:
    """(first, end) of pages of the space where allocations follow each other."""
    first = end = -1
    for devmem in sorted(held, key=lambda devmem: devmem.first_page):
        if devmem.first_page != end:
            if end >= 0:
                yield first, end
            first = devmem.first_page
        end = devmem.first_page + devmem.num_pages
    if end >= 0:
        yield first, end


def _bind(space: "AddressSpace", ranges: list[Range], is_whole: Callable[[Chunk, int], bool]) -> int:
    """Bind the first ranges that are all in one place: as for a device fault, with no job behind it. How many."""
    for count, found in enumerate(ranges):
        chunk = space.chunks.get(found.chunk)
        if found.unmapped or space.unlinked or chunk is None or chunk.move_of(found.mask):
            return count
        if not is_whole(chunk, found.mask):
            return count
        found.bound = True
    return len(ranges)


def _is_in_one(chunk: Chunk, mask: int) -> bool:
    return inside_one(chunk, mask) is not None


def _is_in_system(chunk: Chunk, mask: int) -> bool:
    return not mask & ~chunk.pages.present


def _share(space: "AddressSpace", ranges: list[Range], name: str, started: int) -> None:
    """Each range has its part of the time since then."""
    us = (clock.monotonic_ns() - started) // 1000 // len(ranges)
    for found in ranges:
        space.stats.add_sized(found.num_pages, name, us)
