"""Calls: what may be asked of the device, one coroutine each (the driver's ioctls).

Each reserves what it works on, calls TTM and says what happened as a dict of plain values. On failure it raises
TtmError and the BOs it names are as they were.
"""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.locking import reserved, with_all_reserved
from ttmfs.errors import TtmError
from ttmfs.sync.resv import Usage
from ttmfs.ttm.advice import trace_use, used, want
from ttmfs.ttm.backup import BackupFlags
from ttmfs.ttm.bo import PURGED, BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.device import suspended_error
from ttmfs.ttm.evict import evict_all, evict_until
from ttmfs.ttm.mem_space import evict_bo
from ttmfs.ttm.placement import SYSTEM, Placement
from ttmfs.ttm.populate import populate_all
from ttmfs.ttm.shrinker import bo_shrink, shrink
from ttmfs.ttm.swapout import device_swapout, swapout
from ttmfs.ttm.unmap import unmap_virtual
from ttmfs.ttm.validate import validate, validate_all
from ttmfs.units import PAGE_SIZE

Result = dict[str, Any]


def check_plugged(vdev: VirtualDevice) -> None:
    """TtmError(ENODEV) when the device was unplugged."""
    if vdev.ttm.unplugged:
        raise TtmError(errno.ENODEV, "the device was unplugged")


def check_device(vdev: VirtualDevice) -> None:
    """TtmError(ENODEV) when the device does no work: unplugged or suspended."""
    check_plugged(vdev)
    if vdev.ttm.suspended:
        raise suspended_error()


def _moved(bo: BufferObject, ctx: OperationContext) -> Result:
    result: Result = {"bytes_moved": ctx.done.bytes_moved, "mem_type": bo.mem_type, "evictions": ctx.done.evictions}
    fence = bo.moving_fence()
    if fence is not None:
        result["fence"] = fence.name
    return result


async def validate_bo(vdev: VirtualDevice, bo: BufferObject, placement: Placement, ctx: OperationContext) -> Result:
    """ttm_bo_validate on one BO. EINVAL for one that is gone (`--purgeable strict`)."""
    check_device(vdev)
    used(bo, "validate")

    async def work() -> Result:
        # Again, here and below: it may have waited for long.
        check_device(vdev)
        _check_there((bo,))
        ctx.resv = bo.resv
        await validate(bo, placement, ctx)
        _validated((bo,), placement)
        result = _moved(bo, ctx)
        result["dirty_pages"] = await vdev.funcs.take_dirty(bo)
        return result

    return await with_all_reserved([bo], ctx, work)


def _check_there(bos: Sequence[BufferObject]) -> None:
    """TtmError(EINVAL) for what was purged and is not to be zeros."""
    for bo in bos:
        if bo.gone:
            raise TtmError(errno.EINVAL, f"{bo.name!r}: {PURGED}")


def _validated(bos: Sequence[BufferObject], placement: Placement) -> None:
    """Somebody who asked for that has them there, or the next best."""
    for bo in bos:
        want(bo, placement)
    call = bos[0].device.uses
    for bo in bos:
        trace_use(bo, "validate", call)


async def evict_one(vdev: VirtualDevice, bo: BufferObject, ctx: OperationContext) -> Result:
    """Out of its region, as the driver's evict_flags say; from system: success, nothing moved. EINVAL when pinned.

    Evicting what cannot go anywhere is ENOMEM, or ENOSPC with `--propagate-enospc`.
    """
    check_device(vdev)

    async def work() -> Result:
        check_device(vdev)
        if bo.pin_count:
            raise TtmError(errno.EINVAL, f"{bo.name!r} is pinned in {bo.mem_type}: unpin it first")
        if bo.mem_type != SYSTEM or bo.purgeable:
            await evict_bo(bo, ctx)
        return _moved(bo, ctx)

    with _enospc_as_asked(vdev):
        return await with_all_reserved([bo], ctx, work)


@contextmanager
def _enospc_as_asked(vdev: VirtualDevice) -> Iterator[None]:
    """No room for a victim is ENOMEM, as ttm_bo_validate says it, unless `--propagate-enospc`."""
    try:
        yield
    except TtmError as error:
        if error.errno == errno.ENOSPC and not vdev.ttm.propagate_enospc:
            raise TtmError(errno.ENOMEM, error.message) from None
        raise


async def validate_many(
    vdev: VirtualDevice, bos: Sequence[BufferObject], placement: Placement, ctx: OperationContext
) -> Result:
    """All or none: every new resource is allocated before the first move; one failure frees them all."""
    check_device(vdev)
    # Not what the ticket has locked: of BOs that share a reservation that would be one only.
    each = tuple(dict.fromkeys(bos))
    for bo in each:
        used(bo, "validate")

    async def work() -> Result:
        check_device(vdev)
        _check_there(each)
        moved = await validate_all(each, placement, ctx)
        _validated(each, placement)
        result: Result = {"bytes_moved": ctx.done.bytes_moved, "evictions": ctx.done.evictions, "moved": len(moved)}
        fences = [fence.name for bo in moved if (fence := bo.moving_fence()) is not None]
        if fences:
            result["fences"] = fences
        return result

    return await with_all_reserved(each, ctx, work)


async def evict_region(vdev: VirtualDevice, region: str, size: int | None, ctx: OperationContext) -> Result:
    """evict_first until `size` bytes of a region are free that were used, or all of it (None)."""
    check_device(vdev)
    manager = vdev.ttm.managers[region]
    before = manager.usage
    if region != SYSTEM:
        with _enospc_as_asked(vdev):
            if size is None:
                await evict_all(manager, ctx)
            else:
                await evict_until(manager, ctx, lambda: before - manager.usage >= size)
    return {"bytes_moved": ctx.done.bytes_moved, "evictions": ctx.done.evictions, "bytes_freed": before - manager.usage}


async def pin(vdev: VirtualDevice, bo: BufferObject) -> Result:
    """ttm_bo_pin."""
    check_plugged(vdev)
    async with reserved(bo):
        bo.pin()
        return {"pin_count": bo.pin_count}


async def unpin(vdev: VirtualDevice, bo: BufferObject) -> Result:
    """ttm_bo_unpin; EINVAL when it is not pinned."""
    check_plugged(vdev)
    async with reserved(bo):
        bo.unpin()
        return {"pin_count": bo.pin_count}


async def unmap(vdev: VirtualDevice, bo: BufferObject, first_page: int, num_pages: int) -> Result:
    """ttm_bo_unmap_virtual: zap the CPU's cached pages; dirty ones are written back first."""
    del vdev
    async with reserved(bo):
        was_mapped = bo.handed_out
        await unmap_virtual(bo, first_page, num_pages)
        return {"unmapped": was_mapped}


async def wait_bo(vdev: VirtualDevice, bo: BufferObject, usage: Usage, timeout: float) -> Result:
    """Wait for the BO's fences up to `usage`. ETIME when the time is up; EIO when its content was lost; ENOENT gone."""
    del vdev
    bo.check_alive()
    if not await bo.resv.wait(usage, timeout):
        pending = bo.resv.get_fences(usage)
        names = " ".join(f"{fence.name} ({fence.what})" for fence in pending[:4])
        raise TtmError(errno.ETIME, f"{bo.name!r} still waits for {len(pending)} fences after {timeout:g} s: {names}")
    if bo.unknown_state:
        raise TtmError(errno.EIO, f"a copy of {bo.name!r} failed and its content is lost")
    return {}


async def backup_one(vdev: VirtualDevice, bo: BufferObject, flags: BackupFlags, ctx: OperationContext) -> Result:
    """ttm_bo_shrink: the pages of one BO to the store, or, to purge, away. Success when it has none in memory.

    A backup that fails half way is a success that says so: `partial` and `why`. The next one goes on with the rest, as
    the shrinker does. EBUSY where it is not possible.
    """
    check_plugged(vdev)
    async with reserved(bo):
        if flags.purge:
            pages = 0 if bo.external else await bo_shrink(bo, ctx, flags)
            return {"purged_pages": pages, "bytes_moved": ctx.done.bytes_moved}
        nothing = not bo.external and (bo.tt is None or not bo.tt.populated_pages) and bo.mem_type == SYSTEM
        out = 0 if nothing else await bo_shrink(bo, ctx, flags)
        left = 0 if bo.tt is None else bo.tt.populated_pages
        result: Result = {"pages_out": out, "populated_pages": left, "bytes_moved": ctx.done.bytes_moved}
        if out and left:
            result |= {"partial": True, "why": ctx.done.why or f"{bo.name!r} was written while it was backed up"}
        elif ctx.done.why:
            # All of it is in the store, but not on its medium.
            result["why"] = ctx.done.why
        return result


async def shrink_all(
    vdev: VirtualDevice, pages: int, flags: BackupFlags, ctx: OperationContext
) -> Result:
    """The shrinker: purgeable BOs first, then idle ones, then busy ones, until `pages` pages have left memory.

    EBUSY without a swap store (purge needs none). Otherwise what could be had is the result.
    """
    check_plugged(vdev)
    if vdev.ttm.swap_store is None and not flags.purge:
        raise TtmError(errno.EBUSY, "this device has no swap store: mount with --swap SIZE, or say purge")
    done = await shrink(vdev.ttm, pages, ctx, purge_only=flags.purge, writeback=flags.writeback)
    return {
        "pages_out": done.stored,
        "purged_pages": done.purged,
        "bytes_freed": done.pages * PAGE_SIZE,
        "failed": done.failed,
        "bytes_moved": ctx.done.bytes_moved,
    }


async def restore(vdev: VirtualDevice, bo: BufferObject, ctx: OperationContext) -> Result:
    """ttm_tt_restore, and memory for every other page of the BO's tt: populated whole, or ENOMEM.

    Interrupted or failed it keeps where it stands, and the next one goes on from there.
    """
    check_plugged(vdev)
    async with reserved(bo):
        before = vdev.ttm.counters.backup.pages_in
        if bo.resource is None or bo.resource.manager.use_tt:
            tt = bo.need_tt()
            await populate_all(bo, tt, ctx)
            return {"populated_pages": tt.populated_pages, "pages_in": vdev.ttm.counters.backup.pages_in - before}
        return {"populated_pages": bo.num_pages, "pages_in": 0}


async def swapout_one(vdev: VirtualDevice, bo: BufferObject, ctx: OperationContext) -> Result:
    """The pages of one BO to swap; success when it has none in memory. EBUSY pinned or imported, ENOSPC no room."""
    check_plugged(vdev)
    async with reserved(bo):
        nothing = not bo.external and (bo.tt is None or not bo.tt.populated_pages) and bo.mem_type == SYSTEM
        pages = 0 if nothing else await swapout(bo, ctx)
        return {"pages_out": pages, "bytes_moved": ctx.done.bytes_moved}


async def swapout_all(vdev: VirtualDevice, pages: int, ctx: OperationContext) -> Result:
    """ttm_device_swapout: the least recently used of system and gtt, until `pages` pages are out or none is left."""
    check_plugged(vdev)
    if vdev.ttm.swap_store is None:
        raise TtmError(errno.ENOSPC, "this device has no swap: mount with --swap SIZE")
    return {"pages_out": await device_swapout(vdev.ttm, ctx, pages), "bytes_moved": ctx.done.bytes_moved}
