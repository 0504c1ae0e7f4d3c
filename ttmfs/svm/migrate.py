"""Migration of ranges: into VRAM, all or nothing, and back (drm_pagemap_populate_mm, drm_gpusvm_range_evict).

Into VRAM: a fresh BO is allocated as any other; then the range's pages are invalidated in the clients' caches, with the
gate open, until nobody was answered with one of them meanwhile (the notifier's sequence number); then the gate closes
for exactly these pages and they are copied. Requests of them wait for the copy, all others take no notice.
"""

import errno
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import trio

from ttmfs.errors import TtmError
from ttmfs.svm.chunk import Chunk, DevMem, Move
from ttmfs.svm.cpu import migrate_to_ram
from ttmfs.svm.devmem import submit_move
from ttmfs.svm.pages import CHUNK_PAGES, index_of
from ttmfs.svm.ranges import Range
from ttmfs.svm.swap import load_stored
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
    with space.stats.timed(found.num_pages, "migrate_us"):
        counters = space.svm.counters
        tried: list[int | None] = []
        async with nullcontext() if locked else space.svm.migrate_lock:
            while True:
                devmem = inside_one(space.chunks.get(found.chunk), found.mask)
                if devmem is not None and devmem.bo.mem_type == region:
                    devmem.expires = max(devmem.expires, trio.current_time() + timeslice)
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


async def _migrate_to_devmem(
    space: "AddressSpace", found: Range, tally: FaultTally, why: str, region: str, timeslice: float
) -> None:
    chunk = space.need_chunk(found.chunk)
    chunk.users += 1
    try:
        while (move := chunk.move_of(found.mask)) is not None:
            await move.copy.fence.wait()
        _check(space, found, chunk)
        ttm = space.vdev.ttm
        bo = BufferObject(ttm, space.svm.funcs, account=space.account, group=space.group)
        bo.size = found.num_pages << PAGE_SHIFT
        turn = Turn(ttm, bo.name)
        bo.resv.trylock(turn.need_ticket())
        devmem = DevMem(bo, chunk, found.first & (CHUNK_PAGES - 1), found.num_pages)
        try:
            try:
                with turn:
                    await _allocate(space, bo, region, tally, turn)
                await _invalidate_cpu(space, found, chunk)
                bo.resv.reserve_fences(1)
            except BaseException:
                devmem.release()
                raise
            move = _close_gate(space, found, chunk, devmem)
            # Whoever is cancelled here leaves the range on its way: it arrives when its copy ends, all the same.
            with space.stats.timed(found.num_pages, "device_copy_us"):
                await move.copy.fence.wait(ttm.fault_timeout)
            _check_copy(space, found, move)
            devmem.expires = trio.current_time() + timeslice
            space.migrated(found.first, found.num_pages, found.num_pages, why, into_vram=True)
        finally:
            bo.unreserve()
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


async def _allocate(
    space: "AddressSpace", bo: BufferObject, region: str, tally: FaultTally, turn: Turn
) -> None:
    """Room in a region, evicting as needed; tried again while victims are only held by somebody.

    Nobody else knows the BO, so it stays reserved while they are waited for.
    """
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
        space.svm.counters.alloc_retries += 1
        with trio.move_on_after(left):
            await turn.wait(contended)
    # No status shows it, and there may be many ranges.
    bo.last_move = None


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


def _close_gate(space: "AddressSpace", found: Range, chunk: Chunk, devmem: DevMem) -> Move:
    """In one step: the pages leave the CPU side and their copy is queued."""
    space.invalidate(found.first, found.end, "migrate")
    present = chunk.pages.present & found.mask
    chunk.touch(present)
    ram = np.zeros(found.num_pages, np.uint32)
    if present:
        ram[index_of(present) - devmem.first] = chunk.pages.take(present) + np.uint32(1)
    move = Move(devmem, found.mask, ram, into_vram=True)
    submit_move(space.vdev, move, tuple(devmem.bo.resv.get_fences(Usage.KERNEL)))
    return move


def _check_copy(space: "AddressSpace", found: Range, move: Move) -> None:
    fence = move.copy.fence
    if fence.signaled and not fence.error and not move.devmem.dead:
        return
    space.svm.counters.migrations_failed += 1
    where = f"the range at {found.first << PAGE_SHIFT:#x}"
    if not fence.signaled:
        raise TtmError(errno.ETIME, f"the copy of {where} to VRAM did not end in time")
    if fence.error:
        raise TtmError(errno.EIO, f"the copy of {where} to VRAM failed; it is still in system")
    raise TtmError(errno.EFAULT, f"{where} was unmapped while it was copied")
