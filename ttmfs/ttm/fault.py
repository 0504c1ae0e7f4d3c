"""The fault helpers and the default handler (ttm_bo_vm_reserve, ttm_bo_vm_fault_idle, ttm_bo_vm_fault_reserved).

A driver builds its own handler from these three; `default_fault` is the one that everybody else uses. A READ of the
page cache is a fault of every page it names.

A handler answers with a FaultResult. OK: the bytes may be handed out right now, with no await in between. NOPAGE and
RETRY: start over. `vmf.reserved` says whether the reservation is still held. The waits inside end early when an INVAL
of the BO is about to be issued (`Gate.park`); what was being waited for is then not had, and the answer is RETRY.
"""

import errno
from functools import partial
from typing import Final

from ttmfs.errors import TtmError
from ttmfs.observe import points
from ttmfs.sync.resv import Usage
from ttmfs.ttm.advice import want
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.contention import NoRoom
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.funcs import FaultFlag, FaultResult, Protection, VmFault
from ttmfs.ttm.park import park
from ttmfs.ttm.placement import SYSTEM, Place
from ttmfs.ttm.populate import populate_range
from ttmfs.ttm.prefetch import prefetch
from ttmfs.ttm.turn import Turn
from ttmfs.ttm.unmap import unmap_virtual
from ttmfs.ttm.validate import validate

NUM_PREFAULT: Final = 16
"""TTM_BO_VM_NUM_PREFAULT: the kernel's number of pages, for drivers that keep it."""


async def vm_reserve(vmf: VmFault) -> FaultResult:
    """ttm_bo_vm_reserve: OK with the BO reserved, else RETRY (after waiting, if that was allowed) or NOPAGE.

    Trylock; if somebody holds it: count a retry and, with ALLOW_RETRY, wait for the release without taking the lock,
    then RETRY (with RETRY_NOWAIT at once). Without ALLOW_RETRY queue for it in arrival order.
    """
    bo: BufferObject = vmf.bo
    if bo.resv.trylock(vmf.ticket):
        vmf.reserved = True
        return FaultResult.OK
    bo.reservation_retries += 1
    bo.device.counters.faults.retries += 1
    if FaultFlag.ALLOW_RETRY in vmf.flags:
        if FaultFlag.RETRY_NOWAIT not in vmf.flags:
            vmf.waits += ("reservation",)
            await park(bo, "reservation", bo.resv.wait_unlocked, vmf.time_left, vmf.first, vmf.count)
        return FaultResult.RETRY
    vmf.waits += ("reservation",)
    if not await park(bo, "reservation", partial(bo.resv.lock, vmf.ticket), vmf.time_left, vmf.first, vmf.count):
        return FaultResult.NOPAGE
    vmf.reserved = True
    return FaultResult.OK


async def fault_idle(vmf: VmFault) -> FaultResult:
    """ttm_bo_vm_fault_idle: wait for the moves of the BO (KERNEL usage), never for jobs that use it.

    With ALLOW_RETRY the reservation is dropped before the wait and the answer is RETRY.
    """
    bo: BufferObject = vmf.bo
    if bo.resv.test_signaled(Usage.KERNEL):
        return FaultResult.OK

    async def wait() -> None:
        await bo.resv.wait(Usage.KERNEL)

    if FaultFlag.ALLOW_RETRY in vmf.flags:
        if FaultFlag.RETRY_NOWAIT not in vmf.flags:
            vmf.unreserve()
            vmf.waits += ("move",)
            await park(bo, "move", wait, vmf.time_left, vmf.first, vmf.count)
        return FaultResult.RETRY
    vmf.waits += ("move",)
    return FaultResult.OK if await park(bo, "move", wait, vmf.time_left, vmf.first, vmf.count) else FaultResult.NOPAGE


async def fault_reserved(vmf: VmFault, prot: Protection, num_prefault: int) -> FaultResult:
    """ttm_bo_vm_fault_reserved: make the faulting pages available; at most `num_prefault` pages besides.

    Who only looks (ttmfs.ttm.looking) gets what there is: holes stay such, and nothing is placed.

    SIGBUS: imported BO that may not be mapped, offset past the end, unknown state, or no way to bring it within the
    CPU's reach. OOM: no memory. NOPAGE: again. RETRY: again, and the reservation may be gone (`vmf.reserved`).
    """
    bo: BufferObject = vmf.bo
    vmf.prot = prot
    if bo.external:
        return vmf.fail(FaultResult.SIGBUS, "it is imported: its exporter serves it")
    if bo.lost:
        return vmf.fail(FaultResult.SIGBUS, bo.lost)
    if vmf.first >= bo.num_pages:
        return vmf.fail(FaultResult.SIGBUS, f"page {vmf.first} is past the end of {bo.num_pages} pages")
    looking = bo.looks_only and FaultFlag.WRITE not in vmf.flags
    try:
        if not looking:
            await _place(vmf)
        await bo.funcs.fault_reserve_notify(bo)
    except TtmError as error:
        return _notify_failed(vmf, error)
    result = await fault_idle(vmf)
    if result is not FaultResult.OK:
        return result
    ctx = OperationContext(resv=bo.resv, faulting=bo)
    count = min(vmf.count, bo.num_pages - vmf.first)
    advised = bo.device.prefetcher is not None
    prefault = 0 if advised else num_prefault
    try:
        added = await populate_range(
            bo, vmf.first, count, ctx, prefault=prefault, zero=not vmf.overwrite, holes=not looking
        )
        if added and advised:
            added += await prefetch(bo, vmf.first, count, holes=not looking)
    except TtmError as error:
        if error.errno in (errno.EINTR, errno.EAGAIN):
            return FaultResult.NOPAGE
        return vmf.fail(FaultResult.OOM if error.errno == errno.ENOMEM else FaultResult.SIGBUS, error)
    extra = max(0, added - count)
    vmf.prefaulted += extra
    points.populate(bo.device.trace, bo, pages=added, why="fault")
    bo.prefault_pages += extra
    bo.device.counters.faults.prefault_pages += extra
    return await _map_io_mem(vmf)


async def _map_io_mem(vmf: VmFault) -> FaultResult:
    """ttm_mem_io_reserve, last, so that nobody takes the mapping before the bytes are handed out."""
    bo: BufferObject = vmf.bo
    io_mem = bo.device.io_mem
    try:
        while bo.resource is not None and not io_mem.reserve(bo.resource):
            if not await _unmap_oldest(bo):
                return FaultResult.NOPAGE
    except TtmError as error:
        return vmf.fail(FaultResult.SIGBUS, error)
    return FaultResult.OK


async def _unmap_oldest(bo: BufferObject) -> bool:
    """ttm_mem_io_evict: the mapping that faulted longest ago goes. False when the BOs that have some are all in use.

    As victims of an eviction they are reserved for it, without waiting: of two faults that take each other's mapping
    each would wait for the other.
    """
    for resource in bo.device.io_mem:
        other: BufferObject = resource.bo
        shared = other.resv is bo.resv
        if not shared and not other.resv.trylock():
            continue
        try:
            points.io_mem_evict(bo.device.trace, other, for_bo=bo.name)
            await unmap_virtual(other)
        finally:
            if not shared:
                other.unlock()
        return True
    return False


async def _place(vmf: VmFault) -> None:
    """A BO that was never placed, or was gutted, goes to its placement first."""
    bo: BufferObject = vmf.bo
    if bo.placed and bo.resource is not None:
        return
    if bo.device.suspended:
        # Until it is resumed the device has no memory; then the next use places it.
        if bo.resource is None:
            bo.assign(bo.device.managers[SYSTEM].alloc(bo, Place(SYSTEM)))
        bo.placed = True
        bo.device.placed_in_suspend[bo] = None
        return
    pinned = bo.pin_count > 0 and bo.resource is not None
    if not pinned and (bo.placement or bo.resource is None):
        placement = bo.placement or bo.device.default_placement
        await validate(bo, placement, OperationContext(faulting=bo))
        want(bo, placement)
    bo.placed = True


def _notify_failed(vmf: VmFault, error: TtmError) -> FaultResult:
    if isinstance(error, NoRoom) and error.contended is not None:
        vmf.contended = error.contended
        return FaultResult.NOPAGE
    if error.errno in (errno.EBUSY, errno.EINTR) or (error.errno == errno.ENODEV and vmf.bo.device.suspended):
        return FaultResult.NOPAGE
    result = FaultResult.OOM if error.errno in (errno.ENOMEM, errno.ENOSPC) else FaultResult.SIGBUS
    return vmf.fail(result, error)


async def serve_fault(vmf: VmFault, turn: Turn) -> FaultResult:
    """The BO's own handler, bounded: NOPAGE when the time is up, or when pages of the fault are about to be unmapped.

    Rule R1 for all that a handler may wait for, not only for its own reservation and moves: memory, and space that
    others have to be evicted from first. It is cancelled there, gives up its reservation, and the request is served
    from where its bytes are. Where it found no room because others are busy, those are waited for, without the
    reservation, and NOPAGE is the answer: the next attempt has a ticket, and the age of `turn`.
    """
    bo: BufferObject = vmf.bo
    result = FaultResult.NOPAGE
    vmf.ticket = turn.ticket()

    async def handler() -> None:
        nonlocal result
        result = await bo.funcs.fault(vmf)
        if vmf.contended is not None:
            vmf.unreserve()
            vmf.waits += ("space",)
            await turn.wait(vmf.contended)
        else:
            turn.end_claims()

    await bo.gate.park(handler, vmf.time_left, vmf.first, vmf.count)
    return result


async def default_fault(vmf: VmFault) -> FaultResult:
    """ttm_bo_vm_fault: reserve, serve with the BO's prefault, unreserve."""
    result = await vm_reserve(vmf)
    if result is not FaultResult.OK:
        return result
    try:
        return await fault_reserved(vmf, Protection.READ | Protection.WRITE, vmf.bo.prefault)
    finally:
        vmf.unreserve()
