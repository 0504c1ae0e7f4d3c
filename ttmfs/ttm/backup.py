"""Backup: pages of a tt to the swap store, and away (ttm_tt_backup, ttm_pool_backup).

In meaning page by page, in speed step by step: each step is stored behind a copy that keeps WRITEs away, then its
pages are freed and their entries are handles. Higher orders are split on the way. A failure half way leaves a legal,
partly backed-up tt, and the next backup, whoever asks for it, goes on with the pages that are left.

A page that a client has cached keeps its memory, or its WRITE could fail (rule R4). So what is to go is unmapped
first, and a page that was handed out again meanwhile stays.
"""

import errno
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
import trio
from numpy.typing import NDArray

from ttmfs.errors import TtmError, called
from ttmfs.memory.frames import in_whole_frames
from ttmfs.observe import points
from ttmfs.sync.fence import Fence
from ttmfs.sync.resv import Usage
from ttmfs.ttm.advice import pages_gone
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.copy import Copy, CopyState
from ttmfs.ttm.device import Device
from ttmfs.ttm.page_vector import Index, are_pages
from ttmfs.ttm.store_io import LONG_STEP_PAGES, StoreSteps, flush_store, in_lanes, store_pages
from ttmfs.ttm.tt import TT
from ttmfs.ttm.unmap import unmap_virtual
from ttmfs.units import PAGE_SHIFT

_UNMAPS: Final = 3
"""INVALs that pages whose clients go on reading get before they are left alone."""


@dataclass(frozen=True, slots=True)
class BackupFlags:
    """ttm_backup_flags, and `allow_move` of ttm_bo_shrink_flags.

    `purge`: free without storing, past the pool. `writeback`: what is stored is on the medium when the call returns.
    `allow_move`: a BO in a region with memory of its own goes to system first.
    """

    purge: bool = False
    writeback: bool = False
    allow_move: bool = False


async def unmap_for_backup(bo: BufferObject, first: int, count: int) -> None:
    """Nobody has pages [first, first + count) of a reserved BO cached when this returns, and its gate says when that
    changes (`Gate.touched`; end it with `Gate.unwatch`). TtmError(EBUSY) when its clients go on reading.
    """
    whole = not first and count >= bo.num_pages
    bo.drop_vmap()
    for _ in range(_UNMAPS):
        bo.gate.watch(first, count)
        await (unmap_virtual(bo) if whole else unmap_virtual(bo, first, count))
        if not bo.gate.touched and not bo.copies and bo.resv.test_signaled(Usage.BOOKKEEP):
            return
    bo.gate.unwatch()
    raise _in_use(bo)


def _in_use(bo: BufferObject) -> TtmError:
    return TtmError(errno.EBUSY, f"{called(bo.name)} stays in memory: its clients go on reading")


@contextmanager
def closed_gate(bo: BufferObject, tt: TT, what: str) -> Iterator[Copy]:
    """While pages of a reserved BO are stored: WRITEs wait for this copy, as READs do for the reservation.

    Its `zero_from` says what a truncate cut off meanwhile.
    """
    fence = Fence(0, 0, what)
    gate = Copy(tt, tt, tt.num_pages, fence)
    gate.first = bo.own_pages
    gate.state = CopyState.RUNNING
    bo.add_copy(gate)
    try:
        yield gate
    finally:
        gate.state = CopyState.DONE
        fence.signal()


async def tt_backup(bo: BufferObject, first: int, count: int, flags: BackupFlags, ctx: OperationContext) -> int:
    """ttm_tt_backup: the pages of [first, first + count) of a reserved, idle BO, in system or its tail; how many went.

    Fewer than there are when something failed half way: `ctx.done.why` and `bo.last_error` say. TtmError when nothing
    went: EBUSY clients that do not stop reading, ENOSPC no room, otherwise the medium's error. Cancelled, it has moved
    some.
    """
    assert bo.tt is not None
    tt, device = bo.tt, bo.device
    backup = _Backup(bo, tt, first, count, flags)
    try:
        await backup.run()
    except TtmError as error:
        device.counters.backup.failed += 1
        bo.last_error = error.message
        if not backup.out:
            raise
        ctx.done.why = error.message
    finally:
        bo.gate.unwatch()
        if backup.out:
            pages_gone(bo.device.prefetcher, bo, first, count)
        if backup.out and not tt.populated_pages:
            # Off the LRU: these were all of its pages.
            bo.relist()
    points.backup(device.trace, bo, first=first, pages=backup.out, left=tt.populated_pages)
    return backup.out


def _why_full(device: Device) -> str:
    return device.swap_store.full_because if device.swap_store is not None else "there is no swap store"


class _Backup:
    """A backup under way. `out`: pages that are in the store."""

    def __init__(self, bo: BufferObject, tt: TT, first: int, count: int, flags: BackupFlags) -> None:
        assert tt.store is not None
        self._bo, self._tt, self._store, self._flags = bo, tt, tt.store, flags
        self._first, self._count = first, count
        self.out = 0
        self._store_steps = StoreSteps(bo.device, tt.store)
        self._next = first
        """Entries from here on were not looked at yet."""
        self._left: deque[tuple[Index, int, int]] = deque()
        """Entries still to be stored, how often that was tried, and how many are gone that were before them."""
        self._stayed = False
        self._failure: TtmError | None = None

    async def run(self) -> None:
        """All of it. TtmError as `tt_backup`; steps before the failure are done."""
        await unmap_for_backup(self._bo, self._first, self._count)
        while self._left or self._next < self._end:
            if self._bo.gate.touched:
                await unmap_for_backup(self._bo, self._first, self._count)
            await in_lanes(self._store, self._steps(), self._step)
            if self._failure is not None:
                raise self._failure
        if self._stayed:
            raise _in_use(self._bo)
        if self._flags.writeback and self.out:
            await flush_store(self._bo.device)

    @property
    def _end(self) -> int:
        return min(self._first + self._count, self._tt.num_pages)

    def _steps(self) -> Iterator[tuple[Index, int]]:
        while self._left or self._next < self._end:
            if not self._left:
                self._look_ahead()
            index, tried, begun = self._left.popleft()
            size = self._store_steps.next_to(begun)
            if len(index) > size:
                self._left.appendleft((index[size:], tried, begun + size))
            yield index[:size], tried

    def _look_ahead(self) -> None:
        """The next entries that have a page, those in whole frames first: a store may take these over as they are."""
        first = min(self._tt.next_content(self._next), self._end)
        index, pages = self._tt.pages_in(first, min(LONG_STEP_PAGES, self._end - first))
        self._next = first + LONG_STEP_PAGES
        in_frames = in_whole_frames(pages)
        if not in_frames.all():
            index = np.concatenate((index[in_frames], index[~in_frames]))
        self._left.append((index, 0, 0))

    async def _step(self, step: tuple[Index, int]) -> bool:
        """Store and free some pages; False when the next ones have to wait for `run`."""
        index, tried = step
        index = index[index < self._tt.num_pages]
        index = index[are_pages(self._tt.at(index))]
        try:
            went, complete = await self._backup(index)
        except TtmError as error:
            self._failure = error
            return False
        self.out += went
        self._bo.device.counters.backup.pages_out += went
        if not complete:
            message = f"{self._bo.name} is backed up in part: {_why_full(self._bo.device)}"
            self._failure = TtmError(errno.ENOSPC, message)
        elif went < len(index):
            # Some of it was handed out, or cut off, while it was stored: once more.
            if tried + 1 < _UNMAPS:
                self._left.append((index, tried + 1, 0))
            else:
                self._stayed = True
        await trio.lowlevel.checkpoint()
        self._store_steps.after_step()
        return self._failure is None and not self._bo.gate.touched

    async def _backup(self, index: Index) -> tuple[int, bool]:
        """Store and free the pages of these entries, or a prefix of them; (how many went, was there room for all).

        No await between the last look at the gate and its closing. What a truncate cut off meanwhile, the page with
        the new end included, stays as it is: bytes that change while they are stored have no checksum.
        """
        if not len(index):
            return 0, True
        bo, tt = self._bo, self._tt
        with closed_gate(bo, tt, f"backup {bo.name} {len(index)} pages") as gate:

            def unchanged() -> NDArray[np.bool_]:
                end = tt.num_pages if gate.zero_from is None else gate.zero_from >> PAGE_SHIFT
                return (index < end) & (not bo.gate.touched)

            pages = tt.pages_at(index)
            writeback = self._flags.writeback
            handles = await store_pages(
                bo.device, tt.arena, pages, bo=bo.name, writeback=writeback, unchanged=unchanged
            )
            went = np.flatnonzero(handles)
            tt.mark_backed_up(index[went], handles[went])
        return len(went), len(handles) == len(index)
