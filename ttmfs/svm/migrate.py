"""Migration of ranges: into VRAM, all or nothing, and back (drm_pagemap_populate_mm, drm_gpusvm_range_evict).

Into VRAM: a fresh BO is allocated as any other; then the range's pages are invalidated in the clients' caches, with the
gate open, until nobody was answered with one of them meanwhile (the notifier's sequence number); then the gate closes
for exactly these pages and they are copied. Requests of them wait for the copy, all others take no notice.
"""

import errno
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from ttmfs.errors import TtmError
from ttmfs.svm.chunk import Chunk, DevMem, Move
from ttmfs.svm.cpu import migrate_to_ram
from ttmfs.svm.devmem import submit_moves
from ttmfs.svm.pages import CHUNK_PAGES
from ttmfs.svm.ram import take_ram
from ttmfs.svm.ranges import Range
from ttmfs.svm.swap import load_stored
from ttmfs.sync.fence import Fence
from ttmfs.sync.resv import Usage
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.contention import NoRoom
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.placement import Place
from ttmfs.ttm.turn import Turn
from ttmfs.ttm.validate import validate
from ttmfs.units import PAGE_SHIFT

if TYPE_CHECKING:
    from ttmfs.svm.space import AddressSpace

ALLOC_RETRY_SECONDS: Final = 1.0
"""An allocation whose victims are all held by somebody is tried again for so long (xe_vm_validate_should_retry)."""
_NO_ROOM: Final = (errno.ENOMEM, errno.ENOSPC, errno.EDQUOT)
_GATE_ATTEMPTS: Final = 4
"""How often a range is invalidated before clients that keep touching it win."""


@dataclass(slots=True)
class FaultTally:
    """What one call has done so far."""

    ctx: OperationContext = field(default_factory=OperationContext)
    faults: int = 0
    restarts: int = 0
    fallbacks: int = 0
    """Ranges that stayed in system because VRAM could not be had."""


def inside_one(chunk: Chunk | None, mask: int) -> DevMem | None:
    """The allocation that holds all of these pages."""
    if chunk is not None:
        for devmem in chunk.allocs:
            if not mask & ~devmem.present:
                return devmem
    return None


async def alloc_vram(
    space: "AddressSpace",
    found: Range,
    tally: FaultTally,
    why: str,
    region: str,
    *,
    timeslice: float = 0.0,
    locked: bool = False,
) -> None:
    """xe_svm_alloc_vram: all of a range into one allocation in `region`; nothing to do when it is there.

    On EBUSY (part of it is in VRAM already, perhaps in another region, or clients kept touching it) it is brought back
    and tried once more. For want of memory, or of VRAM, it is tried once more as well: nobody else migrates meanwhile
    (the exclusive retry). `timeslice`: seconds for which CPU faults leave it there. `locked`: the caller has the
    migrate_lock. TtmError: ENOMEM, EBUSY, EFAULT unmapped or unlinked, EIO, ENODEV, ETIME; every page is then readable
    where it was.
    """
    if region not in space.svm.regions:
        raise TtmError(errno.ENOMEM, f"this device has no {region}")
    if _is_there(space, found, region, timeslice):
        return
    with space.stats.timed(found.num_pages, "migrate_us"):
        counters = space.svm.counters
        tried: list[int | None] = []
        async with nullcontext() if locked else space.svm.migrate_lock:
            while True:
                if _is_there(space, found, region, timeslice):
                    return
                try:
                    if errno.EBUSY in tried:
                        await range_evict(space, found, tally, why)
                    await _migrate_to_devmem(space, found, tally, why, region, timeslice)
                    return
                except TtmError as error:
                    if error.errno in tried or not _once_more(error):
                        counters.alloc_failures += error.errno in _NO_ROOM
                        raise
                    tried.append(error.errno)
                    counters.migrations_busy += error.errno == errno.EBUSY
                    counters.alloc_retries += error.errno != errno.EBUSY


def _is_there(space: "AddressSpace", found: Range, region: str, timeslice: float) -> bool:
    """Is all of a range in one allocation in `region`? CPU faults leave it there for the timeslice then."""
    devmem = inside_one(space.chunks.get(found.chunk), found.mask)
    if devmem is None or devmem.bo.mem_type != region:
        return False
    devmem.expires = max(devmem.expires, trio.current_time() + timeslice)
    return True


def _once_more(error: TtmError) -> bool:
    """Not if others were waited for already, in vain."""
    if isinstance(error, NoRoom):
        return error.contended is None
    return error.errno in (errno.EBUSY, errno.ENOMEM)


async def range_evict(space: "AddressSpace", found: Range, tally: FaultTally, why: str) -> None:
    """drm_gpusvm_range_evict: every allocation that holds a page of the range goes back to system, whole.

    TtmError: ENOMEM, EBUSY, EIO; what is not back is readable in VRAM.
    """
    while (devmem := space.alloc_of(found.first, found.end)) is not None:
        await migrate_to_ram(devmem, why, tally.ctx)
    while (move := space.move_of(found.first, found.end)) is not None:
        await move.copy.fence.wait()


class Incoming:
    """A range on its way into VRAM. Its BO there is fresh: nobody else knows it, and it stays reserved until `end`."""

    __slots__ = ("_submitted", "bo", "chunk", "devmem", "found", "space")

    def __init__(self, space: "AddressSpace", found: Range) -> None:
        self.space = space
        self.found = found
        self.chunk = space.need_chunk(found.chunk)
        self.chunk.users += 1
        self.bo = BufferObject(space.vdev.ttm, space.svm.funcs, account=space.account, group=space.group)
        self.bo.size = found.num_pages << PAGE_SHIFT
        self.devmem = DevMem(self.bo, self.chunk, found.first & (CHUNK_PAGES - 1), found.num_pages)
        self._submitted = False

    def has_room(self) -> None:
        """Space in a region was found."""
        # No status shows it, and there may be many ranges.
        self.bo.last_move = None

    def close_gate(self) -> Move:
        """In the step in which its copy is submitted: its pages leave the CPU side."""
        found, chunk, devmem = self.found, self.chunk, self.devmem
        self._submitted = True
        present = chunk.pages.present & found.mask
        chunk.touch(present)
        ram = take_ram(chunk.pages, present, devmem.first, devmem.num_pages)
        return Move(devmem, found.mask, ram, into_vram=True)

    def arrived(self, why: str) -> None:
        """Count that it is there."""
        self.space.migrated(self.found.first, self.found.num_pages, self.found.num_pages, why, into_vram=True)

    def end(self) -> None:
        """Unreserve. If nothing was submitted, it has never been; if its copy runs, it arrives when that ends."""
        if not self._submitted:
            self.devmem.release()
        self.bo.unreserve()
        self.chunk.users -= 1
        self.space.tidy(self.chunk)


async def _migrate_to_devmem(
    space: "AddressSpace", found: Range, tally: FaultTally, why: str, region: str, timeslice: float
) -> None:
    chunk = space.need_chunk(found.chunk)
    chunk.users += 1
    try:
        while (move := chunk.move_of(found.mask)) is not None:
            await move.copy.fence.wait()
        _check(space, found, chunk)
        incoming = Incoming(space, found)
        ttm = space.vdev.ttm
        turn = Turn(ttm, incoming.bo.name)
        incoming.bo.resv.trylock(turn.need_ticket())
        try:
            with turn:
                await _allocate(incoming, region, tally, turn)
            await _invalidate_cpu(space, found, chunk)
            incoming.bo.resv.reserve_fences(1)
            fence = close_gate([incoming])
            with space.stats.timed(found.num_pages, "device_copy_us"):
                await fence.wait(ttm.fault_timeout)
            _check_copy(incoming, fence)
            incoming.devmem.expires = trio.current_time() + timeslice
            incoming.arrived(why)
        finally:
            incoming.end()
    finally:
        chunk.users -= 1
        space.tidy(chunk)


def _check(space: "AddressSpace", found: Range, chunk: Chunk) -> None:
    """May the range be migrated? TtmError: EFAULT, ENODEV, EBUSY."""
    space.check_alive()
    ttm = space.vdev.ttm
    if ttm.unplugged or ttm.suspended:
        raise TtmError(errno.ENODEV, "the device does no work: it is suspended, or was unplugged")
    if found.unmapped:
        raise TtmError(errno.EFAULT, f"the range at {found.first << PAGE_SHIFT:#x} was unmapped meanwhile")
    if (chunk.vram() | chunk.moving_in()) & found.mask:
        raise TtmError(errno.EBUSY, f"a part of the range at {found.first << PAGE_SHIFT:#x} is in VRAM already")


async def _allocate(incoming: Incoming, region: str, tally: FaultTally, turn: Turn) -> None:
    """Room in a region, evicting as needed; tried again while victims are only held by somebody.

    Nobody else knows the BO, so it stays reserved while they are waited for.
    """
    bo = incoming.bo
    until = trio.current_time() + ALLOC_RETRY_SECONDS
    while True:
        try:
            tally.ctx.resv, tally.ctx.ticket = bo.resv, bo.resv.holder
            await validate(bo, (Place(region),), tally.ctx)
            break
        except TtmError as error:
            left = until - trio.current_time()
            contended = error.contended if isinstance(error, NoRoom) else None
            if contended is None or left <= 0:
                raise
        incoming.space.svm.counters.alloc_retries += 1
        with trio.move_on_after(left):
            await turn.wait(contended)
    incoming.has_room()


async def _invalidate_cpu(space: "AddressSpace", found: Range, chunk: Chunk) -> None:
    """Until no page of the range is in the store, no client can have one cached and no job uses one.

    TtmError: EBUSY they keep coming, and of what comes back from the store ENOMEM or what that says.

    When it returns nothing was awaited since that was so.
    """
    for _attempt in range(_GATE_ATTEMPTS):
        await load_stored(space, found.chunk, found.mask)
        for fence in chunk.busy(found.mask):
            await fence.wait()
        await space.flush(found.first, found.end)
        _check(space, found, chunk)
        handed = space.handed_out(found.first, found.end)
        if chunk.in_store & found.mask:
            continue
        if not (handed or chunk.busy(found.mask) or space.gate.unmaps(found.first, found.end - found.first)):
            return
    raise TtmError(errno.EBUSY, f"clients keep touching the range at {found.first << PAGE_SHIFT:#x}")


def close_gate(going: Sequence[Incoming]) -> Fence:
    """In one step: the pages of ranges that follow each other leave the CPU side, and their copy is queued."""
    first, last = going[0], going[-1]
    space = first.space
    space.invalidate(first.found.first, last.found.end, "migrate")
    deps = {fence: None for incoming in going for fence in incoming.bo.resv.get_fences(Usage.KERNEL)}
    return submit_moves(space.vdev, [incoming.close_gate() for incoming in going], tuple(deps))


def _check_copy(incoming: Incoming, fence: Fence) -> None:
    if fence.signaled and not fence.error and not incoming.devmem.dead:
        return
    incoming.space.svm.counters.migrations_failed += 1
    where = f"the range at {incoming.found.first << PAGE_SHIFT:#x}"
    if not fence.signaled:
        raise TtmError(errno.ETIME, f"the copy of {where} to VRAM did not end in time")
    if fence.error:
        raise TtmError(errno.EIO, f"the copy of {where} to VRAM failed; it is still in system")
    raise TtmError(errno.EFAULT, f"{where} was unmapped while it was copied")
