"""Backup: pages of a tt to the swap store, and away (ttm_tt_backup, ttm_pool_backup). Seed: pool backup.

In meaning page by page, in speed step by step: each step is stored behind a copy that keeps WRITEs away, then its
pages are freed and their entries are handles. Higher orders are split on the way. A failure half way leaves a legal,
partly backed-up tt, marked so that it is not backed up again before something of it has come back.

A page that a client has cached keeps its memory, or its WRITE could fail (rule R4). So what is to go is unmapped
first, and a page that was handed out again meanwhile stays.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
import trio
from numpy.typing import NDArray

from ttmfs.errors import TtmError
from ttmfs.memory.arena import Arena
from ttmfs.memory.stores import SwapStore
from ttmfs.sync.fence import Fence
from ttmfs.sync.resv import Usage
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.copy import Copy, CopyState
from ttmfs.ttm.device import Device
from ttmfs.ttm.page_vector import Index, Vector, decode_pages
from ttmfs.ttm.tt import TT
from ttmfs.ttm.unmap import unmap_virtual
from ttmfs.units import PAGE_SHIFT

STEP_PAGES: Final = 512
"""2 MiB go to or come from the store in one step. A store that is no slower than moving the bytes does it on the loop,
with checkpoints in between, so that nobody is kept waiting for a millisecond."""
_UNMAPS: Final = 3
"""INVALs that pages whose clients go on reading get before they are left alone."""
_STORE_THREADS: Final = trio.CapacityLimiter(4)


@dataclass(frozen=True, slots=True)
class BackupFlags:
    """ttm_backup_flags, and `allow_move` of ttm_bo_shrink_flags.

    `purge`: free without storing, past the pool. `writeback`: what is stored is on the medium when the call returns.
    `allow_move`: a BO in a region with memory of its own goes to system first.
    """

    purge: bool = False
    writeback: bool = False
    allow_move: bool = False


async def store_pages(device: Device, arena: Arena, pages: Vector, *, writeback: bool = False) -> Vector:
    """One step to the store: handles (uint32) of as many of `pages`, from the first on, as there was room for.

    TtmError: ENOSPC when not one could be stored, otherwise the medium's error. Nothing is stored when cancelled.
    """
    store = device.swap_store
    assert store is not None
    fault = device.inject["store_write"]
    store.fail_write = (lambda _number: errno.ENOSPC if fault.should_fail() else 0) if fault.probability else None
    transfer = store.begin_store(len(pages))
    try:
        if store.blocking:
            await trio.to_thread.run_sync(store.write, transfer, arena, pages, writeback, limiter=_STORE_THREADS)
        else:
            for _ in store.write_steps(transfer, arena, pages):
                await trio.lowlevel.checkpoint()
    except BaseException:
        store.cancel_store(transfer)
        raise
    return store.end_store(transfer)


async def load_pages(device: Device, tt: TT, index: Index, pages: Vector) -> tuple[NDArray[np.bool_], TtmError | None]:
    """One step back from the store, as `TT.end_load` says."""
    store = tt.store
    assert store is not None
    fault = device.inject["store_read"]
    store.fail_read = (lambda _number: fault.should_fail()) if fault.probability else None
    load = tt.begin_load(index)
    try:
        if store.blocking:
            await trio.to_thread.run_sync(store.read, load.transfer, tt.arena, pages, limiter=_STORE_THREADS)
        else:
            for _ in store.read_steps(load.transfer, tt.arena, pages):
                await trio.lowlevel.checkpoint()
    except BaseException:
        # Cancelled, perhaps half way. The caller hears of nothing that has come, so nothing has: the pages are its own.
        load.transfer.error, load.transfer.loaded = TtmError(errno.EINTR, "interrupted"), 0
        tt.end_load(load, pages)
        raise
    return tt.end_load(load, pages)


async def flush_store(device: Device) -> None:
    """All that is stored is on the medium when this returns. TtmError with the medium's error."""
    store = device.swap_store
    if store is not None:
        await do_upkeep(store, flush=True)
        await trio.to_thread.run_sync(store.sync, limiter=_STORE_THREADS)


async def do_upkeep(store: SwapStore, *, flush: bool = False) -> None:
    """All that the store wants done, in threads. TtmError with the medium's error when it is to flush."""
    while (work := store.begin_upkeep(flush)) is not None:
        try:
            await trio.to_thread.run_sync(store.run_upkeep, work, limiter=_STORE_THREADS)
        finally:
            store.end_upkeep(work)
        await trio.lowlevel.checkpoint()


async def unmap_for_backup(bo: BufferObject, first: int, count: int) -> None:
    """Nobody has pages [first, first + count) of a reserved BO cached when this returns, and its gate says when that
    changes (`Gate.touched`; end it with `Gate.unwatch`). TtmError(EBUSY) when its clients go on reading.
    """
    whole = not first and count >= bo.num_pages
    bo.drop_view()
    for _ in range(_UNMAPS):
        bo.gate.watch(first, count)
        await (unmap_virtual(bo) if whole else unmap_virtual(bo, first, count))
        if not bo.gate.touched and not bo.copies and bo.resv.test_signaled(Usage.BOOKKEEP):
            return
    bo.gate.unwatch()
    raise _in_use(bo)


def _in_use(bo: BufferObject) -> TtmError:
    return TtmError(errno.EBUSY, f"{bo.name or 'a BO'} stays in memory: its clients go on reading")


@contextmanager
def closed_gate(bo: BufferObject, tt: TT, what: str) -> Iterator[Copy]:
    """While pages of a reserved BO are stored: WRITEs wait for this copy, as READs do for the reservation.

    Its `zero_from` says what a truncate cut off meanwhile.
    """
    fence = Fence(0, 0, what)
    gate = Copy(tt, tt, tt.num_pages, fence)
    gate.state = CopyState.RUNNING
    bo.add_copy(gate)
    try:
        yield gate
    finally:
        gate.state = CopyState.DONE
        fence.signal()
        bo.drop_view()


async def tt_backup(bo: BufferObject, first: int, count: int, flags: BackupFlags) -> int:
    """ttm_tt_backup: the pages of [first, first + count) of a reserved, idle BO in system; how many went.

    Fewer than there are when something failed half way: `bo.last_error` says what. TtmError when nothing went: EBUSY
    clients that do not stop reading, ENOSPC no room, otherwise the medium's error. Cancelled, it has moved some.
    """
    tt, device = bo.tt, bo.device
    assert tt is not None
    index = tt.present_in(first, count)
    out = 0
    counters = device.counters.backup
    try:
        await unmap_for_backup(bo, first, count)
        stayed = False
        for start in range(0, len(index), STEP_PAGES):
            for attempt in range(_UNMAPS):
                if bo.gate.touched:
                    await unmap_for_backup(bo, first, count)
                part = index[start : start + STEP_PAGES]
                part = part[part < tt.num_pages]
                part = part[(tt.vector[part] != 0) & (tt.vector[part] & 1 == 0)]
                went, complete = await _backup_step(bo, tt, part, writeback=flags.writeback)
                out += went
                counters.pages_out += went
                if not complete:
                    raise TtmError(errno.ENOSPC, f"{bo.name} is backed up in part: {_why_full(device)}")
                await trio.lowlevel.checkpoint()
                if went == len(part):
                    break
                # Some of it was handed out, or cut off, while it was stored: once more.
                stayed |= attempt == _UNMAPS - 1
        if stayed and not out:
            raise _in_use(bo)
        if flags.writeback and out:
            await flush_store(device)
    except TtmError as error:
        counters.failed += 1
        bo.last_error = error.message
        if not out:
            raise
        tt.backed_up = True
    finally:
        bo.gate.unwatch()
        if out:
            _left_memory(bo, tt)
    if device.trace.on:
        device.trace.emit("backup", bo.name, first=first, pages=out, left=tt.populated_pages)
    return out


def _why_full(device: Device) -> str:
    return device.swap_store.full_because if device.swap_store is not None else "there is no swap store"


def _left_memory(bo: BufferObject, tt: TT) -> None:
    """Pages of the BO are gone: off the LRU with it when these were all."""
    bo.drop_view()
    if bo.resource is not None and not tt.populated_pages:
        bo.device.lru_readd(bo.resource)


async def _backup_step(bo: BufferObject, tt: TT, index: Index, *, writeback: bool) -> tuple[int, bool]:
    """Store and free the pages of these entries, or a prefix of them; (how many went, was there room for all).

    No await between the last check of the caller and the gate. What a truncate cut off meanwhile, the page with the
    new end included, stays as it is: bytes that change while they are stored have no checksum.
    """
    if not len(index):
        return 0, True
    with closed_gate(bo, tt, f"backup {bo.name} {len(index)} pages") as gate:
        handles = await store_pages(bo.device, tt.arena, decode_pages(tt.vector[index]), writeback=writeback)
        stored = index[: len(handles)]
        keep = np.full(len(stored), not bo.gate.touched)
        if gate.zero_from is not None:
            keep &= stored < gate.zero_from >> PAGE_SHIFT
        if not keep.all():
            assert tt.store is not None
            tt.store.drop(handles[~keep], upkeep=False)
        tt.mark_backed_up(stored[keep], handles[keep])
    return int(keep.sum()), len(stored) == len(index)
