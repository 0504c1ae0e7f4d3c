"""Swapout: the older, whole-object mechanism that gives system pages back (ttm_bo_swapout, ttm_device_swapout).

A BO is moved to system, unmapped, and its pages are copied to the device's swap store step by step, behind a copy
that keeps WRITEs away; then they are freed and the BO stands on the unevictable list. Whatever needs its pages brings
them back: a fault, validate to gtt or vram, a job, restore.

Where the kernel has warts: a failed swapout does not let the walk visit the BO again (CVE-2026-52965; the cursor stops
at what was bumped since it was made), the resource is looked at after the move to system, not before it, a BO leaves
its bulk move when, and only when, it was swapped, and pages are counted as pages.
"""

import errno
from typing import Final

import numpy as np
import trio

from ttmfs.errors import TtmError, called
from ttmfs.observe import points
from ttmfs.ttm import lifetime
from ttmfs.ttm.advice import pages_gone
from ttmfs.ttm.backup import closed_gate, unmap_for_backup
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.device import Device
from ttmfs.ttm.lru_cursor import LruCursor
from ttmfs.ttm.mem_space import mem_space, move_to
from ttmfs.ttm.move import wait_ctx
from ttmfs.ttm.placement import SYSTEM, Place
from ttmfs.ttm.resource import Resource, ResourceManager
from ttmfs.ttm.store_io import StoreSteps, store_pages
from ttmfs.units import PAGE_SHIFT

_SKIP: Final = frozenset({errno.EBUSY, errno.ENOMEM, errno.ENOSPC, errno.EINVAL})


def why_not(bo: BufferObject) -> str:
    """Why a BO cannot be swapped out now; empty when it can (the checks of ttm_bo_swapout_cb)."""
    if bo.pin_count:
        return "it is pinned"
    if bo.external:
        return "it is imported"
    if bo.unknown_state:
        return "its content was lost"
    if not bo.own_pages and (bo.tt is None or not bo.tt.populated_pages):
        return "it has no pages in memory"
    return ""


async def swapout(bo: BufferObject, ctx: OperationContext) -> int:
    """ttm_bo_swapout_cb on a reserved BO: its pages go to swap; returns how many.

    A deleted BO is waited for and freed instead. TtmError: EBUSY it cannot be swapped out (pinned, imported, nothing in
    memory, in use with no_wait_gpu, clients that do not stop reading), ENOSPC no room in swap, ENODEV there is no swap.
    On failure, and when cancelled, its bytes are all where they were, or in system instead of its region.
    """
    if bo.deleted:
        pages = bo.tt.populated_pages if bo.tt is not None else 0
        await wait_ctx(bo, ctx)
        lifetime.cleanup(bo)
        return pages
    reason = why_not(bo)
    if reason:
        raise TtmError(errno.EBUSY, f"{called(bo.name)} is not swapped out: {reason}")
    store = bo.device.swap_store
    if store is None:
        raise TtmError(errno.ENOSPC, "this device has no swap: mount with --swap SIZE")
    if bo.mem_type != SYSTEM:
        resource = await mem_space(bo, (Place(SYSTEM),), ctx)
        await move_to(bo, resource, ctx, evict=True)
    await wait_ctx(bo, ctx)
    try:
        # A page that a client has cached keeps its memory, or its WRITE could fail (R4).
        await unmap_for_backup(bo, 0, bo.num_pages)
        bo.funcs.swap_notify(bo)
        pages = await _store(bo)
    finally:
        bo.gate.unwatch()
    bo.relist()
    pages_gone(bo.device.prefetcher, bo, 0, bo.num_pages)
    bo.device.counters.swap.out += 1
    points.swapout(bo.device.trace, bo, pages=pages)
    return pages


async def _store(bo: BufferObject) -> int:
    """ttm_tt_swapout: copy its pages, then free them. No await between the last check of the caller and the gate.

    Unlike a backup it is the whole or nothing.
    """
    tt, device = bo.tt, bo.device
    assert tt is not None
    assert tt.store is not None
    index = tt.present()
    if not len(index):
        raise TtmError(errno.EBUSY, f"{called(bo.name)} is not swapped out: it has no pages in memory any more")
    if tt.store.available_pages < len(index):
        raise TtmError(errno.ENOSPC, f"no room for {len(index)} pages of {bo.name!r}: {tt.store.full_because}")
    handles = np.zeros(0, np.uint32)
    went = 0
    try:
        with closed_gate(bo, tt, f"swapout {bo.name} {len(index)} pages") as gate:
            steps = StoreSteps(device, tt.store)
            while len(handles) < len(index):
                start = len(handles)
                part = index[start : start + steps.next_to(start)]
                stored = await store_pages(device, tt.arena, tt.pages_at(part), bo=bo.name)
                handles = tt.storing = np.concatenate((handles, stored))
                if len(stored) < len(part):
                    raise TtmError(errno.ENOSPC, f"{bo.name!r} is not swapped out: {tt.store.full_because}")
                await trio.lowlevel.checkpoint()
                steps.after_step()
            if bo.gate.touched:
                raise TtmError(errno.EBUSY, f"{called(bo.name)} is not swapped out: a client read it meanwhile")
            # What a truncate cut off meanwhile changed while it was stored, and stays as it is.
            went = len(index) if gate.zero_from is None else int((index < gate.zero_from >> PAGE_SHIFT).sum())
            tt.mark_backed_up(index[:went], handles[:went])
    finally:
        tt.storing = None
        if went < len(handles):
            tt.store.drop(handles[went:], upkeep=False)
    device.counters.backup.pages_out += went
    return went


async def swapout_manager(
    device: Device, manager: ResourceManager, ctx: OperationContext, pages: int, *, but: BufferObject | None = None
) -> int:
    """ttm_bo_swapout: swap out the least recently used of one region, trylock only, until `pages` pages are out.

    Never `but`. Returns the pages. One that cannot go is passed over, and not met again.
    """
    out = 0
    with LruCursor(manager.lru, until_now=True) as cursor:
        while out < pages and (item := cursor.next()) is not None:
            assert isinstance(item, Resource)
            bo = item.bo
            if bo is but or why_not(bo) or bo.unmapping or not bo.resv.trylock():
                continue
            try:
                if bo.resource is item and bo.funcs.eviction_valuable(bo, Place(manager.name)):
                    out += await swapout(bo, ctx)
            except TtmError as error:
                device.counters.swap.failed += 1
                if error.errno not in _SKIP:
                    raise
            finally:
                bo.unlock()
    return out


async def device_swapout(
    device: Device, ctx: OperationContext, pages: int = 1, *, but: BufferObject | None = None
) -> int:
    """ttm_device_swapout: all regions whose BOs are in system pages, in turn, until `pages` pages are out."""
    store = device.swap_store
    out = 0
    if store is None:
        return 0
    for manager in device.managers.values():
        if manager.use_tt and out < pages and store.available_pages:
            out += await swapout_manager(device, manager, ctx, pages - out, but=but)
    return out
