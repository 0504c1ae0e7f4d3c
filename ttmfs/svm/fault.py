"""The device's page fault (xe_svm_handle_pagefault): garbage, range, migrate once, get pages, bind; or again.

A fault ends with the range *bound*: its page table entries are valid, and what makes them so is held until the caller
has queued its job, in the same step. Whoever calls bounds the restarts in time.
"""

import errno
from typing import TYPE_CHECKING, Final

import trio

from ttmfs import clock
from ttmfs.driver.calls import check_device
from ttmfs.errors import TtmError
from ttmfs.observe import points
from ttmfs.svm.batch import into_region, to_system
from ttmfs.svm.chunk import Chunk, DevMem
from ttmfs.svm.cpu import populate
from ttmfs.svm.find import find_or_insert
from ttmfs.svm.migrate import FaultTally, alloc_vram, inside_one, range_evict
from ttmfs.svm.prefetch import prefetch
from ttmfs.svm.ranges import Range
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.placement import SYSTEM, VRAM
from ttmfs.units import PAGE_SHIFT

if TYPE_CHECKING:
    from ttmfs.svm.advice import Advice
    from ttmfs.svm.shared import Shared
    from ttmfs.svm.space import AddressSpace

VRAM_TRIES: Final = 3
"""Attempts of an atomic access to get its range into VRAM."""
_NO_MEMORY: Final = (errno.ENOMEM, errno.EDQUOT)
_AGAIN: Final = (errno.EAGAIN, errno.EOPNOTSUPP, errno.EFAULT, errno.EPERM)


class Bound:
    """A range whose pages may be used: with a reserved allocation and a fence slot of it, or in system."""

    __slots__ = ("chunk", "devmem", "found")

    def __init__(self, found: Range, chunk: Chunk, devmem: DevMem | None) -> None:
        self.found = found
        self.chunk = chunk
        self.devmem = devmem

    def release(self) -> None:
        """The job is queued (or there is none): unreserve, which bumps the allocation on its LRU."""
        if self.devmem is not None:
            self.devmem.bo.unreserve()


class _Turn:
    """The locks of a fault that did not get as far as to bind its range (xe_validation's exclusive retry).

    Faults whose ranges do not fit into VRAM together evict each other's between migration and bind, for ever; those
    whose ranges do not fit into memory together keep what each has of it from the others. Who has started over for the
    one keeps the others from migrating (migrate_lock), for the other from waiting for memory (memory_lock), until it is
    bound. They hold nothing meanwhile. Who has the former never waits for the latter.
    """

    __slots__ = ("_alone", "_memory", "_migrate", "_waits", "taken")

    def __init__(self, svm: "Shared") -> None:
        self._migrate, self._memory = svm.migrate_lock, svm.memory_lock
        self._alone = False
        """It is the last attempt."""
        self.taken = self._waits = False
        """Which of the two are held."""

    async def take(self) -> None:
        """Wait for the migrate_lock; nothing to do when it is taken."""
        if not self.taken:
            await self._migrate.acquire()
            self.taken = True

    async def alone(self, error: TtmError) -> None:
        """One more attempt after `error`, which is for want of memory; raised if there was one."""
        if self._alone or error.errno not in _NO_MEMORY:
            raise error
        self._alone = True
        if not self.taken:
            await self._memory.acquire()
            self._waits = True

    def context(self) -> OperationContext:
        """How memory is waited for: not at all by who is not alone, and holds what others wait for."""
        return OperationContext(no_wait_gpu=not (self._waits or self.taken))

    def end(self) -> None:
        """Give up what was taken."""
        if self.taken:
            self.taken = False
            self._migrate.release()
        if self._waits:
            self._waits = False
            self._memory.release()


async def handle_fault(space: "AddressSpace", page: int, tally: FaultTally, *, write: bool, atomic: bool) -> Bound:
    """Make the range around `page` accessible to the device. The caller uses the answer before its next await.

    An atomic access wants its range in VRAM; one that is too small ever to migrate is left in system, where this
    device can do atomics too (the kernel would fault for ever), and so is every one where faults never migrate.
    TtmError: EFAULT, ENOENT, EPERM, EACCES the range is advised for atomics of the CPU, ENODEV, ENOMEM, EIO.
    """
    turn = _Turn(space.svm)
    try:
        return await _handle_fault(space, page, tally, turn, write=write, atomic=atomic)
    finally:
        turn.end()


async def _handle_fault(
    space: "AddressSpace", page: int, tally: FaultTally, turn: _Turn, *, write: bool, atomic: bool
) -> Bound:
    svm = space.svm
    tries = VRAM_TRIES
    may_migrate = True
    timeslice = svm.atomic_timeslice_ms / 1000
    faulted = False
    started = clock.monotonic_ns()
    while True:
        space.check_alive()
        check_device(space.vdev)
        space.collect_garbage()
        found = find_or_insert(space, page, write=write)
        advice = space.advice.get(page)
        if atomic and advice.atomic == "cpu":
            raise TtmError(errno.EACCES, f"{page << PAGE_SHIFT:#x} is advised for atomics of the CPU only")
        region = advice.region or VRAM
        devmem_only = atomic and _atomic_needs_vram(space, found, advice)
        valid = found.bound and (not devmem_only or _in_vram(space, found))
        if not valid and not faulted:
            faulted = True
            _count_fault(space, found, tally, write, atomic)
        if not valid and may_migrate and _needs_migrate(space, found, advice, devmem_only):
            found.skip_migrate = svm.policy.migrate == "once"
            failure = await _try_vram(space, found, region, tally, turn, timeslice if atomic else 0.0)
            if failure is not None and found.unmapped:
                # A part of it was, meanwhile: that says nothing about VRAM, and the next range is another one.
                await _start_over(space, tally)
                continue
            if failure is not None:
                # Clients that go on touching it are a reason of the moment: that ends with the fault's time.
                tries -= failure.errno != errno.EBUSY
                if devmem_only and not tries:
                    raise failure
                # Once only: the full retry goes on with system pages.
                may_migrate = devmem_only
                tally.fallbacks += not devmem_only and failure.errno != errno.EFAULT
        try:
            bound = await _get_pages_and_bind(space, found, turn.context(), devmem_only=devmem_only)
        except TtmError as error:
            await _recover(space, found, tally, turn, error)
            if devmem_only:
                # At most what three tries of the kernel's make of it: clients wait for it, and restarts may be many.
                timeslice = min(2 * timeslice, svm.atomic_timeslice_ms / 1000 * (1 << VRAM_TRIES))
                await turn.take()
            await _start_over(space, tally)
            continue
        _count_served(space, found, started if faulted else 0)
        return bound


async def _recover(space: "AddressSpace", found: Range, tally: FaultTally, turn: _Turn, error: TtmError) -> None:
    """What could not be bound is tried again, a mixed range when it is all in system, one without memory alone; other
    errors are raised.
    """
    if error.errno not in _AGAIN:
        await turn.alone(error)
    elif error.errno == errno.EOPNOTSUPP:
        space.svm.counters.mixed += 1
        try:
            await range_evict(space, found, tally, "mixed")
        except TtmError as failure:
            await turn.alone(failure)


async def _start_over(space: "AddressSpace", tally: FaultTally) -> None:
    tally.restarts += 1
    space.svm.counters.gpu_restarts += 1
    await trio.lowlevel.checkpoint()


def _count_served(space: "AddressSpace", found: Range, started: int) -> None:
    """`started`: monotonic ns of a fault, 0 when the range was valid."""
    if started:
        space.stats.add_sized(found.num_pages, "pagefault_us", (clock.monotonic_ns() - started) // 1000)
    else:
        space.stats.add_sized(found.num_pages, "valid_pagefault_count")


def _count_fault(space: "AddressSpace", found: Range, tally: FaultTally, write: bool, atomic: bool) -> None:
    tally.faults += 1
    space.gpu_faults += 1
    space.svm.counters.gpu_faults += 1
    space.stats.add("svm_pagefault_count")
    space.stats.add_sized(found.num_pages, "pagefault_count")
    trace = space.vdev.ttm.trace
    points.svm_fault(trace, space, first=found.first, pages=found.num_pages, write=write, atomic=atomic)


async def _try_vram(
    space: "AddressSpace", found: Range, region: str, tally: FaultTally, turn: _Turn, timeslice: float
) -> TtmError | None:
    """The one attempt to migrate; why it failed. TtmError: ENODEV, and EFAULT when the space is gone."""
    try:
        why = "atomic" if timeslice else "gpu_fault"
        await alloc_vram(space, found, tally, why, region, timeslice=timeslice, locked=turn.taken)
    except TtmError as error:
        if error.errno == errno.ENODEV or space.unlinked:
            raise
        _vram_failed(space, found, region, error)
        return error
    if space.vdev.ttm.prefetcher is not None and not turn.taken:
        await prefetch(space, found, region, space.vdev.ttm.prefetcher, tally)
    return None


def _vram_failed(space: "AddressSpace", found: Range, region: str, error: TtmError) -> None:
    space.last_error = f"no {region} for the range at {found.first << PAGE_SHIFT:#x}: {error.message}"
    why = f"failed: {error.name}"
    points.svm_migrate(space.vdev.ttm.trace, space, first=found.first, dir="in", bytes=0, why=why)


def _in_vram(space: "AddressSpace", found: Range) -> bool:
    return inside_one(space.chunks.get(found.chunk), found.mask) is not None


def _atomic_needs_vram(space: "AddressSpace", found: Range, advice: "Advice") -> bool:
    """xe_vma_need_vram_for_atomic: not on a device without VRAM, nor where faults never migrate."""
    policy = space.svm.policy
    wanted = policy.migrate != "never" or advice.region is not None
    return wanted and (advice.region or VRAM) in space.svm.regions and found.num_pages >= policy.threshold_pages


def _needs_migrate(space: "AddressSpace", found: Range, advice: "Advice", devmem_only: bool) -> bool:
    """xe_svm_range_needs_migrate_to_vram."""
    policy = space.svm.policy
    region = advice.region
    if (region or VRAM) not in space.svm.regions or found.num_pages < policy.threshold_pages:
        return False
    devmem = inside_one(space.chunks.get(found.chunk), found.mask)
    if devmem is not None and devmem.bo.mem_type == (region or devmem.bo.mem_type):
        return False
    if advice.preferred == "system" or (devmem_only and devmem is None):
        return devmem_only
    if policy.migrate == "always":
        return True
    return not found.skip_migrate and (policy.migrate == "once" or region is not None)


async def _get_pages_and_bind(
    space: "AddressSpace", found: Range, ctx: OperationContext, *, devmem_only: bool
) -> Bound:
    """TtmError EAGAIN: the range was invalidated between; else as get_pages, and ENOMEM for want of a fence slot."""
    with space.stats.timed(found.num_pages, "get_pages_us"):
        seq = await _get_pages(space, found, ctx, devmem_only=devmem_only)
    chunk = space.chunks.get(found.chunk)
    if found.seq != seq or found.unmapped or chunk is None:
        raise TtmError(errno.EAGAIN, "the range was invalidated meanwhile")
    devmem = inside_one(chunk, found.mask)
    if devmem is not None:
        with space.stats.timed(found.num_pages, "bind_us"):
            await _reserve(found, chunk, devmem, seq)
    elif chunk.vram() & found.mask or chunk.move_of(found.mask) is not None:
        raise TtmError(errno.EAGAIN, "the range moved meanwhile")
    found.bound = True
    return Bound(found, chunk, devmem)


async def _reserve(found: Range, chunk: Chunk, devmem: DevMem, seq: int) -> None:
    """The reservation and a fence slot of an allocation that still holds all of the range. TtmError EAGAIN, ENOMEM."""
    bo = devmem.bo
    await bo.resv.lock()
    try:
        if devmem.dead or found.mask & ~devmem.present or found.seq != seq or found.unmapped:
            raise TtmError(errno.EAGAIN, "the range went back to system meanwhile")
        if chunk.move_of(found.mask) is not None:
            raise TtmError(errno.EAGAIN, "the range is on its way back")
        bo.resv.reserve_fences(1)
    except BaseException:
        bo.unlock()
        raise


async def _get_pages(space: "AddressSpace", found: Range, ctx: OperationContext, *, devmem_only: bool) -> int:
    """drm_gpusvm_range_get_pages: memory for every page, all in one place; returns the sequence number it holds for.

    TtmError: EOPNOTSUPP mixed, or several allocations; EFAULT unmapped, or a system page where only VRAM will do.
    """
    while True:
        seq = found.seq
        space.check_alive()
        if found.unmapped:
            raise TtmError(errno.EFAULT, f"the range at {found.first << PAGE_SHIFT:#x} was unmapped")
        move = space.move_of(found.first, found.end)
        if move is not None:
            await move.copy.fence.wait()
            continue
        chunk = space.chunks.get(found.chunk)
        if chunk is not None and chunk.vram() & found.mask:
            if inside_one(chunk, found.mask) is None:
                raise TtmError(errno.EOPNOTSUPP, f"the range at {found.first << PAGE_SHIFT:#x} is only partly in VRAM")
            return seq
        if devmem_only:
            raise TtmError(errno.EFAULT, f"the range at {found.first << PAGE_SHIFT:#x} is not in VRAM")
        if not await populate(space, found.first, found.end, ctx=ctx):
            return seq


async def prefetch_batch(space: "AddressSpace", ranges: list[Range], tally: FaultTally, wanted: str) -> int:
    """The ranges of a batch to `wanted`; how many of the first ones are there and bound. The next one goes by itself:
    it says what is in its way.
    """
    if len(ranges) < 2:
        return 0
    if wanted == SYSTEM:
        return await to_system(space, ranges, tally, "prefetch")
    for found in ranges:
        found.skip_migrate = space.svm.policy.migrate == "once"
    return await into_region(space, ranges, wanted, tally, "prefetch")


async def prefetch_range(space: "AddressSpace", found: Range, tally: FaultTally, wanted: str) -> None:
    """One range of a prefetch: to `wanted`, unless it is too small for that, and bound. Like a fault, one that finds no
    memory is tried once more alone; other trouble is raised.
    """
    turn = _Turn(space.svm)
    policy = space.svm.policy
    try:
        while True:
            if wanted != SYSTEM and found.num_pages >= policy.threshold_pages:
                found.skip_migrate = policy.migrate == "once"
                await alloc_vram(space, found, tally, "prefetch", wanted, locked=turn.taken)
            try:
                if wanted == SYSTEM:
                    await range_evict(space, found, tally, "prefetch")
                (await _get_pages_and_bind(space, found, turn.context(), devmem_only=False)).release()
                return
            except TtmError as error:
                if error.errno != errno.EAGAIN:
                    await turn.alone(error)
            tally.restarts += 1
            await trio.lowlevel.checkpoint()
    finally:
        turn.end()
