"""Calls: what the device does with an address space, one coroutine each; answers are dicts of plain values.

All raise TtmError: EFAULT outside the space or unlinked (calls in flight too), ENOENT not mapped, EPERM a write to a
read-only mapping, EINVAL unaligned where pages are meant, ENODEV unplugged, or suspended where the device has work to
do, ENOMEM, EIO, ETIME when what bounds a call (`fault_timeout` for a fault with its restarts, `command_timeout` for a
job) has passed.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import trio

from ttmfs.driver.calls import check_device, check_plugged
from ttmfs.driver.operation import Operation
from ttmfs.driver.queues import MAX_JOBS
from ttmfs.errors import TtmError, no_such
from ttmfs.svm.advice import Advice
from ttmfs.svm.batch import batch_of
from ttmfs.svm.fault import handle_fault, prefetch_batch, prefetch_range
from ttmfs.svm.find import find_or_insert
from ttmfs.svm.jobs import queue
from ttmfs.svm.migrate import FaultTally
from ttmfs.svm.ranges import Range
from ttmfs.svm.space import AddressSpace
from ttmfs.ttm.placement import SYSTEM, VRAM
from ttmfs.units import PAGE_MASK, PAGE_SHIFT

Result = dict[str, Any]

ATOMIC: Final = ("device", "global", "cpu", "undefined")
MIGRATION: Final = ("all", "system_only")


def _check_bytes(space: AddressSpace, address: int, length: int) -> None:
    space.check_alive()
    if length <= 0:
        raise TtmError(errno.EINVAL, "the length is 0: say how many bytes")
    if address < 0 or address + length > space.size:
        message = f"{address:#x}+{length:#x} is outside {space.name}, which has {space.size:#x} bytes"
        raise TtmError(errno.EFAULT, message)


def _check_pages(space: AddressSpace, address: int, length: int) -> tuple[int, int]:
    """First page and the page behind the last. A length may end at the space's end, which may be within a page."""
    check_plugged(space.vdev)
    _check_bytes(space, address, length)
    unaligned = length & PAGE_MASK and address + length != space.size
    if address & PAGE_MASK or unaligned:
        raise TtmError(errno.EINVAL, f"{address:#x}+{length:#x}: both must be multiples of 4096")
    return address >> PAGE_SHIFT, (address + length + PAGE_MASK) >> PAGE_SHIFT


@contextmanager
def _bounded(space: AddressSpace, seconds: float, what: str) -> Iterator[None]:
    """ETIME when the block takes longer than that."""
    with trio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise TtmError(errno.ETIME, f"{what} in {space.name} was not done within {seconds:g} s")


async def _operate(space: AddressSpace, operation: Operation, address: int, length: int, *, wait: bool) -> Result:
    """Fault in and queue part after part; then wait for the last."""
    check_device(space.vdev)
    _check_bytes(space, address, length)
    if space.pending_jobs >= MAX_JOBS:
        raise TtmError(errno.EAGAIN, f"{MAX_JOBS} jobs of {space.name} have not ended: wait for one of them")
    tally = FaultTally()
    done = 0
    atomic = operation.kind == "atomic_add"
    try:
        while done < length:
            at = address + done
            with _bounded(space, space.vdev.ttm.fault_timeout, f"the fault at {at:#x}"):
                bound = await handle_fault(space, at >> PAGE_SHIFT, tally, write=operation.writes, atomic=atomic)
                size = min(length - done, (bound.found.end << PAGE_SHIFT) - at)
                queue(space, operation, bound, at, size, done)
                done += size
            if done < length:
                await trio.lowlevel.checkpoint()
    except TtmError as error:
        # Parts that are queued are done all the same, as stores before a fault are: waited for, also where nobody
        # asked to wait, because no answer names their fence.
        space.last_error = error.message
        if operation.fence is not None:
            await operation.fence.wait(space.vdev.config.command_timeout)
        raise
    fence = operation.fence
    assert fence is not None
    result: Result = {"fence": fence.name, "bytes_moved": tally.ctx.done.bytes_moved, "faults": tally.faults}
    if tally.restarts:
        result["restarts"] = tally.restarts
    if tally.fallbacks:
        result["fallbacks"] = tally.fallbacks
    if wait:
        if not await fence.wait(space.vdev.config.command_timeout):
            raise TtmError(errno.ETIME, f"{operation.kind} at {address:#x} in {space.name} is not done yet")
        if fence.error:
            raise TtmError(fence.error, f"{operation.kind} at {address:#x} in {space.name} failed")
    return result


async def gpu_fill(space: AddressSpace, addr: int, length: int, byte: int, *, wait: bool = True) -> Result:
    """Fill bytes; {"fence", "bytes_moved", "faults"}, and "fallbacks" ranges that VRAM could not be had for."""
    if not 0 <= byte <= 255:
        raise TtmError(errno.EINVAL, f"{byte} is no byte: say 0 to 255")
    return await _operate(space, Operation("fill", value=byte), addr, length, wait=wait)


async def gpu_write(space: AddressSpace, addr: int, data: bytes, *, wait: bool = True) -> Result:
    """Write `data`."""
    return await _operate(space, Operation("write", data=bytes(data)), addr, len(data), wait=wait)


async def gpu_read(space: AddressSpace, addr: int, length: int) -> Result:
    """Read bytes: "data" in hexadecimal."""
    operation = Operation("read")
    result = await _operate(space, operation, addr, length, wait=True)
    assert isinstance(operation.result, bytearray)
    result["data"] = operation.result.hex()
    return result


async def gpu_atomic_add(space: AddressSpace, addr: int, value: int, *, wait: bool = True) -> Result:
    """Add to the little-endian u64 at `addr`, modulo 2**64; "value" is what it was. TtmError(EACCES): advised cpu."""
    if addr & 7:
        raise TtmError(errno.EINVAL, f"{addr:#x}: an atomic needs an address that is a multiple of 8")
    operation = Operation("atomic_add", value=value % (1 << 64))
    result = await _operate(space, operation, addr, 8, wait=wait)
    if wait:
        result["value"] = operation.result
    return result


async def gpu_checksum(space: AddressSpace, addr: int, length: int) -> Result:
    """The checksum of bytes, as ctl/submit's: "value"."""
    operation = Operation("checksum")
    result = await _operate(space, operation, addr, length, wait=True)
    result["value"] = operation.result
    return result


def _regions(space: AddressSpace) -> tuple[str, ...]:
    """Where pages can be asked to be. A device may have no vram: that is no wrong word."""
    return (VRAM, *(name for name in space.svm.regions if name != VRAM), SYSTEM)


def _wanted(space: AddressSpace, page: int, region: str) -> str:
    """Where a prefetch goes. `preferred`: as advised, else to who faults, which works in system if it has no VRAM."""
    if region != "preferred":
        return region
    advised = space.advice.get(page).preferred
    if advised == "fault":
        return VRAM if space.svm.has_vram else SYSTEM
    return advised


def _batch(space: AddressSpace, found: Range, end: int, region: str) -> list[Range]:
    """Those that a prefetch up to page `end` moves together with `found`: they go to the same place."""
    wanted = _wanted(space, found.first, region)
    return batch_of(space, found, end, wanted, lambda page: _wanted(space, page, region) == wanted)


async def prefetch(space: AddressSpace, addr: int, length: int, region: str) -> Result:
    """Migrate every range of these pages to a region now, and bind it; unmapped holes are passed over.

    "ranges" is how many. Ranges under the threshold stay in system. TtmError(ENODATA) when one could not be had there.
    """
    allowed = (*_regions(space), "preferred")
    if region not in allowed:
        raise no_such(region, "region for prefetch", allowed)
    check_device(space.vdev)
    _check_bytes(space, addr, length)
    tally = FaultTally()
    page, end = addr >> PAGE_SHIFT, (addr + length + PAGE_MASK) >> PAGE_SHIFT
    ranges = alone = 0
    while page < end:
        space.check_alive()
        check_device(space.vdev)
        space.collect_garbage()
        end = min(end, space.num_pages)
        if page >= end:
            break
        _first, stop, mode = space.mapping.interval(page, end)
        if mode == "none":
            page = stop
            continue
        found = find_or_insert(space, page, write=False)
        wanted = _wanted(space, page, region)
        try:
            with _bounded(space, space.vdev.ttm.fault_timeout, f"prefetch of {page << PAGE_SHIFT:#x}"):
                batch = _batch(space, found, end, region) if page >= alone else [found]
                done = await prefetch_batch(space, batch, tally, wanted)
                if not done:
                    alone = batch[-1].end
                    await prefetch_range(space, found, tally, wanted)
        except TtmError as error:
            space.check_alive()
            if error.errno == errno.ENODEV:
                raise
            message = f"{page << PAGE_SHIFT:#x} could not be prefetched to {wanted}: {error.message}"
            raise TtmError(errno.ENODATA, message) from error
        ranges += max(done, 1)
        page = batch[max(done - 1, 0)].end
        await trio.lowlevel.checkpoint()
    return {"bytes_moved": tally.ctx.done.bytes_moved, "ranges": ranges}


async def madvise(
    space: AddressSpace,
    addr: int,
    length: int,
    *,
    preferred: str | None = None,
    atomic: str | None = None,
    migration: str | None = None,
) -> Result:
    """Advice for pages: nothing moves now. "changed" pages had other advice; "invalidated" ranges were zapped.

    Ranges that lie across the border of what changed are given up, all others of it may migrate once again.
    """
    first, end = _check_pages(space, addr, length)
    places = (*_regions(space), "fault")
    said = {"preferred": (preferred, places), "atomic": (atomic, ATOMIC), "migration": (migration, MIGRATION)}
    for key, (word, allowed) in said.items():
        if word is not None and word not in allowed:
            raise no_such(word, f"value of {key}=", allowed)
    new = {key: word for key, (word, _allowed) in said.items() if word is not None}
    if not new:
        raise TtmError(errno.EINVAL, "say at least one of preferred= atomic= migration=")
    space.collect_garbage()
    changed = invalidated = 0
    for start, stop, old in list(space.advice.pieces(first, end)):
        advice: Advice = replace(old, **new)
        if advice == old:
            continue
        space.advice.set(start, stop, advice)
        changed += stop - start
        invalidated += space.invalidate(start, stop, "madvise")
    if changed:
        for found in list(space.table.overlapping(first, end)):
            low, high, _advice = space.advice.interval(found.first, space.num_pages)
            if low <= found.first and found.end <= high:
                found.skip_migrate = False
            else:
                space.table.remove(found)
    await trio.lowlevel.checkpoint()
    return {"changed": changed, "invalidated": invalidated}


async def unmap(space: AddressSpace, addr: int, length: int) -> Result:
    """munmap: the bytes are gone, the CPU reads zeros, the device ENOENT; a CPU store maps its page anew.

    What clients had dirty of it is collected first, so that it does not come back later. Ranges that had a part of it
    are given up; what survives of them stays where it is. "ranges" is how many.
    """
    first, end = _check_pages(space, addr, length)
    await space.flush(first, end)
    space.check_alive()
    end = min(end, max(first, space.num_pages))
    ranges = len(space.table)
    space.mapping.set(first, end, "none")
    space.advice.set(first, end, Advice())
    space.drop(first, end, "unmap")
    space.collect_garbage()
    ranges -= len(space.table)
    # Published; what was handed out while the dirty pages were collected goes too.
    await space.flush(first, end)
    return {"ranges": ranges}


async def map_range(space: AddressSpace, addr: int, length: int, *, read_only: bool) -> Result:
    """mmap: these pages are mapped, for the device read-only with `read_only`; what they hold stays.

    Where that is a change, ranges with a part of it are given up.
    """
    first, end = _check_pages(space, addr, length)
    before = list(space.mapping.pieces(first, end))
    changed = space.mapping.set(first, end, "ro" if read_only else "rw")
    if changed:
        for start, stop, mode in before:
            if mode != ("ro" if read_only else "rw"):
                space.invalidate(start, stop, "map", unmap=True)
        space.collect_garbage()
    await trio.lowlevel.checkpoint()
    return {"changed": changed}
